//! IPv6 (RFC 8200).

use aya_ebpf::{
    bindings::{
        __sk_buff, bpf_fib_lookup, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    programs::TcContext,
};
use network_types::{eth::EthHdr, ip::Ipv6Hdr, tcp::TcpHdr};
use weft_abi::{
    addr::Addr6,
    config::{CONFIG_MASQUERADE_V6, Config, Uplink},
    drop::DropReason,
    flow::Tuple,
};

use super::{Family, table_methods, tables};
use crate::{
    checksum::Difference,
    decide::{self, steps},
    drops::Drop,
    hash::Hash,
    icmp::Quoted,
    packet::{Icmp, L3, Packet, Part, end, protocol},
    reject::{self, TTL},
    skb::Skb,
};

/// IPv6.
pub struct V6;

tables!(
    Addr6,
    "flows6",
    "endpoints6",
    "ipcache6",
    "frontends6",
    "backends6",
    "source_ranges6",
    "affinity6",
    "fragments6",
    "scratch6"
);

steps! {
    V6;
    hold: hold6 = decide::fragments::hold::<V6>;
    follow: follow6 = decide::fragments::follow::<V6>;
    begin: begin6 = decide::begin::<V6>;
    recognise: recognise6 = decide::recognise::<V6>;
    translate: translate6 = decide::translate::translate::<V6>;
    serve: serve6 = decide::serve::serve::<V6>;
    ask_backend: ask_backend6 = decide::translate::ask_backend::<V6>;
    elect: elect6 = decide::serve::elect::<V6>;
    locate: locate6 = decide::locate::<V6>;
    read_quote: read_quote6 = decide::errors::read_quote::<V6>;
    relate: relate6 = decide::errors::relate::<V6>;
    requote_error: requote_error6 = decide::errors::requote::<V6>;
    readdress: readdress6 = decide::errors::readdress::<V6>;
    leave: leave6 = decide::leave::leave::<V6>;
    permit: permit6 = decide::permit::<V6>;
    claim_back: claim_back6 = decide::remember::claim_back::<V6>;
    claim_port: claim_port6 = decide::remember::claim_port::<V6>;
    store_front: store_front6 = decide::remember::store_front::<V6>;
    reset: reset6 = reject::reset::<V6>;
    unreachable: unreachable6 = reject::unreachable::<V6>;
    store: store6 = decide::remember::store::<V6>;
}

const MALFORMED: Drop = Drop {
    reason: DropReason::Malformed,
    rule: 0,
};

/// `AF_INET6`.
const AF_INET6: u8 = 10;

/// The extension headers that are looked through (RFC 8200, section 4; RFC 4302).
mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication.
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// How many extension headers a packet may have. The specification recommends an order in which none
/// comes more than once, and destination options twice.
const EXTENSIONS: u32 = 6;
/// Where the transport header must begin at the latest.
const BOUND: u32 = 384;

/// What [`chain`] found, packed into a number because it crosses a BPF-to-BPF call: the
/// identification of a fragment in the upper half, then two bits for what it is, then the offset of
/// the transport header in 16 bits, then its protocol.
#[derive(Clone, Copy)]
struct Chain(u64);

impl Chain {
    const FIRST: u64 = 1 << 24;
    const LATER: u64 = 2 << 24;

    fn protocol(self) -> u8 {
        self.0 as u8
    }

    fn offset(self) -> u32 {
        (self.0 >> 8) as u32 & 0xffff
    }

    fn part(self) -> Part {
        let id = (self.0 >> 32) as u32;
        if self.0 & Self::FIRST != 0 {
            Part::First(id)
        } else if self.0 & Self::LATER != 0 {
            Part::Later(id)
        } else {
            Part::Whole
        }
    }
}

#[inline(always)]
fn is_extension(header: u8) -> bool {
    matches!(
        header,
        extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::FRAGMENT
            | extension::AUTHENTICATION
            | extension::DESTINATION
    )
}

/// Walks the extension headers from `header` at `offset`; `None` if they do not end within the bounds,
/// or the packet ends before they do.
#[inline(always)]
fn chain(skb: &Skb, header: u8, offset: u32) -> Option<Chain> {
    let chain = extensions6(skb.raw(), header.into(), offset);
    (chain != 0).then_some(Chain(chain))
}

/// The walk of [`chain`]; 0 for `None`. A global function: the verifier walks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn extensions6(context: *mut __sk_buff, header: u32, offset: u32) -> u64 {
    let skb = Skb::new(TcContext::new(context));
    let (mut header, mut offset) = (header as u8, offset);
    let mut fragment = 0_u64;
    let mut walked = 0;
    while walked < EXTENSIONS {
        if !is_extension(header) {
            break;
        }
        // Every one of them is a multiple of eight bytes, and at least that long.
        let Some(bytes) = skb.load::<[u8; 8]>(offset as usize) else {
            return 0;
        };
        let length = match header {
            extension::FRAGMENT => {
                let offset_and_more = u16::from_be_bytes([bytes[2], bytes[3]]);
                let id = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                // Neither: an atomic fragment (RFC 6946), which is a whole packet.
                if offset_and_more & 0xfff8 != 0 {
                    // What follows is not a header.
                    let later = Chain::LATER | u64::from(id) << 32;
                    return later | u64::from(offset + 8) << 8 | u64::from(bytes[0]);
                } else if offset_and_more & 1 != 0 {
                    fragment = Chain::FIRST | u64::from(id) << 32;
                }
                8
            }
            extension::AUTHENTICATION => (u32::from(bytes[1]) + 2) * 4,
            _ => (u32::from(bytes[1]) + 1) * 8,
        };
        header = bytes[0];
        offset += length;
        if offset > BOUND {
            return 0;
        }
        walked += 1;
    }
    if is_extension(header) {
        0
    } else {
        fragment | u64::from(offset) << 8 | u64::from(header)
    }
}

impl Family for V6 {
    type Addr = Addr6;
    const ETHER_TYPE: u16 = 0x86dd;
    const ZERO: Addr6 = Addr6::new([0; 16]);
    const HEADER: usize = Ipv6Hdr::LEN;
    const PORT_UNREACHABLE: [u8; 2] = [1, 4];
    const BITS: u32 = 128;
    const ICMP: u8 = protocol::ICMPV6;
    const HAIRPIN: Addr6 = weft_abi::HAIRPIN_V6;
    const MASQUERADE: u16 = CONFIG_MASQUERADE_V6;
    const FRAGMENTS_BY_PROTOCOL: bool = false;
    const ICMP_PSEUDO_HEADER: bool = true;

    #[inline(always)]
    fn parse(skb: &Skb, packet: &mut Packet<Addr6>) -> Result<(), Drop> {
        // The headers are linear for all but strange senders; those cost one pull.
        if skb.at::<[u8; L3 + Ipv6Hdr::LEN + 8]>(0).is_none() {
            let wanted = skb.len().min((L3 + Ipv6Hdr::LEN + TcpHdr::LEN) as u32);
            skb.pull(wanted)?;
        }
        let ethernet: EthHdr = skb.read(0).ok_or(MALFORMED)?;
        let ip: Ipv6Hdr = skb.read(L3).ok_or(MALFORMED)?;
        if ip.vcf[0] >> 4 != 6 {
            return Err(MALFORMED);
        }
        *packet = Packet {
            tuple: Tuple {
                source: Addr6::new(ip.src_addr),
                destination: Addr6::new(ip.dst_addr),
                source_port: 0,
                destination_port: 0,
            },
            l4_offset: (L3 + Ipv6Hdr::LEN) as u32,
            end: end(skb, Ipv6Hdr::LEN, ip.payload_len)?,
            source_mac: ethernet.src_addr,
            protocol: ip.next_hdr,
            signals: 0,
            ttl: ip.hop_limit,
            icmp: [0; 2],
            datagram: 0,
        };
        let mut part = Part::Whole;
        if is_extension(ip.next_hdr) {
            let chain = chain(skb, ip.next_hdr, packet.l4_offset)
                .ok_or(Drop::because(DropReason::ExtensionHeaders))?;
            packet.protocol = chain.protocol();
            packet.l4_offset = chain.offset();
            part = chain.part();
        }
        packet.read_transport::<Self>(skb, part)
    }

    #[inline(always)]
    fn ends(skb: &Skb) -> Option<(Addr6, Addr6, u8)> {
        let ip: Ipv6Hdr = skb.read(L3)?;
        Some((
            Addr6::new(ip.src_addr),
            Addr6::new(ip.dst_addr),
            ip.next_hdr,
        ))
    }

    #[inline(always)]
    fn icmp(kind: u8) -> Icmp {
        match kind {
            128 => Icmp::Request,
            129 => Icmp::Reply,
            // Unreachable, too big, time exceeded, parameter problem (RFC 4443), and errors to come.
            0..=127 => Icmp::Error,
            _ => Icmp::Other,
        }
    }

    #[inline(always)]
    fn quoted(skb: &Skb, offset: usize, quoted: &mut Quoted<Addr6>) -> bool {
        let Some(ip) = skb.load::<Ipv6Hdr>(offset) else {
            return false;
        };
        if ip.vcf[0] >> 4 != 6 {
            return false;
        }
        let (mut protocol, mut l4) = (ip.next_hdr, offset + Ipv6Hdr::LEN);
        if is_extension(protocol) {
            let Some(chain) = chain(skb, protocol, l4 as u32) else {
                return false;
            };
            if matches!(chain.part(), Part::Later(_)) {
                return false;
            }
            (protocol, l4) = (chain.protocol(), chain.offset() as usize);
        }
        quoted.tuple.source = Addr6::new(ip.src_addr);
        quoted.tuple.destination = Addr6::new(ip.dst_addr);
        quoted.read::<Self>(skb, protocol, offset, l4)
    }

    #[inline(always)]
    fn requote(
        skb: &Skb,
        offset: usize,
        new: &Tuple<Addr6>,
        addresses: Difference,
    ) -> Result<Difference, Drop> {
        let source = offset + core::mem::offset_of!(Ipv6Hdr, src_addr);
        skb.store(source, &new.source)?;
        skb.store(source + size_of::<Addr6>(), &new.destination)?;
        Ok(addresses)
    }

    #[inline(always)]
    fn sorts_first(a: Addr6, a_port: u16, b: Addr6, b_port: u16) -> bool {
        let (a_words, b_words) = (words(a), words(b));
        let mut index = 0;
        while index < 4 {
            if a_words[index] != b_words[index] {
                return u32::from_be(a_words[index]) < u32::from_be(b_words[index]);
            }
            index += 1;
        }
        a_port <= b_port
    }

    #[inline(always)]
    fn widen(address: Addr6) -> Addr6 {
        address
    }

    #[inline(always)]
    fn stays_on_link(address: Addr6) -> bool {
        let octets = address.octets;
        // Multicast; link-local unicast; unspecified and loopback.
        octets[0] == 0xff
            || (octets[0] == 0xfe && octets[1] & 0xc0 == 0x80)
            || (words(address)[..3] == [0; 3] && u32::from_be(words(address)[3]) <= 1)
    }

    #[inline(always)]
    fn difference(old: Addr6, new: Addr6) -> Difference {
        let (old, new) = (words(old), words(new));
        Difference::NONE
            .double(old[0], new[0])
            .double(old[1], new[1])
            .double(old[2], new[2])
            .double(old[3], new[3])
    }

    #[inline(always)]
    fn write_addresses(skb: &Skb, tuple: &Tuple<Addr6>) -> Result<(), Drop> {
        let ip = skb.at::<Ipv6Hdr>(L3).ok_or(MALFORMED)?;
        // SAFETY: `at` checked the bounds; no helper ran since.
        unsafe {
            (*ip).src_addr = tuple.source.octets;
            (*ip).dst_addr = tuple.destination.octets;
        }
        Ok(())
    }

    #[inline(always)]
    fn decrement_ttl(skb: &Skb) -> Result<(), Drop> {
        let ip = skb.at::<Ipv6Hdr>(L3).ok_or(MALFORMED)?;
        // SAFETY: `at` checked the bounds; no helper ran since.
        let change = unsafe {
            let (old, next) = ((*ip).hop_limit, (*ip).next_hdr);
            (*ip).hop_limit = old.wrapping_sub(1);
            Difference::NONE.word(
                u16::from_ne_bytes([next, old]),
                u16::from_ne_bytes([next, old.wrapping_sub(1)]),
            )
        };
        // No checksum in the header makes up for it, as IPv4's does, in the sum of all bytes that
        // some devices hand over with a packet.
        skb.summed(change);
        Ok(())
    }

    // A function of its own, for its stack.
    #[inline(never)]
    fn hash(tuple: &Tuple<Addr6>, protocol: u8) -> u32 {
        let mut hash = Hash::of(protocol, tuple.source_port, tuple.destination_port);
        let mut index = 0;
        while index < 16 {
            hash = hash.word(u32::from_be_bytes([
                tuple.source.octets[index],
                tuple.source.octets[index + 1],
                tuple.source.octets[index + 2],
                tuple.source.octets[index + 3],
            ]));
            index += 4;
        }
        hash.finish()
    }

    #[inline(always)]
    fn sum(address: Addr6) -> Difference {
        let mut sum = Difference::NONE;
        let mut index = 0;
        while index < 16 {
            sum = sum.adds(u16::from_ne_bytes([
                address.octets[index],
                address.octets[index + 1],
            ]));
            index += 2;
        }
        sum
    }

    #[inline(always)]
    fn write_header(
        skb: &Skb,
        tuple: &Tuple<Addr6>,
        protocol: u8,
        payload: u16,
    ) -> Result<(), Drop> {
        let ip = skb.at::<[u8; Ipv6Hdr::LEN]>(L3).ok_or(MALFORMED)?;
        let [high, low] = payload.to_be_bytes();
        // SAFETY: `at` checked the bounds; no helper ran since.
        unsafe {
            *ip.cast::<[u8; 8]>() = [6 << 4, 0, 0, 0, high, low, protocol, TTL];
            *ip.cast::<Addr6>().byte_add(8) = tuple.source;
            *ip.cast::<Addr6>().byte_add(24) = tuple.destination;
        }
        Ok(())
    }

    #[inline(always)]
    fn node_address(config: &Config) -> Option<Addr6> {
        (config.node_v6 != Self::ZERO).then_some(config.node_v6)
    }

    #[inline(always)]
    fn uplink_address(uplink: &Uplink) -> Option<Addr6> {
        (uplink.v6 != Addr6::default()).then_some(uplink.v6)
    }

    #[inline(always)]
    fn fib_addresses(params: &mut bpf_fib_lookup, source: Addr6, destination: Addr6) {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = words(source);
        params.__bindgen_anon_4.ipv6_dst = words(destination);
    }

    #[inline(always)]
    fn answering_socket(tuple: &Tuple<Addr6>, socket: &mut bpf_sock_tuple) -> u32 {
        socket.__bindgen_anon_1.ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: words(tuple.destination),
            daddr: words(tuple.source),
            sport: tuple.destination_port.to_be(),
            dport: tuple.source_port.to_be(),
        };
        size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>() as u32
    }

    table_methods!();
}

/// The address as four words, each in network order.
#[inline(always)]
fn words(address: Addr6) -> [u32; 4] {
    // SAFETY: sixteen octets are four words; `Addr6` is aligned for them.
    unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(address.octets) }
}
