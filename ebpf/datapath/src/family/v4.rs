//! IPv4 (RFC 791).

use aya_ebpf::bindings::{
    bpf_fib_lookup, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
};
use network_types::{eth::EthHdr, ip::Ipv4Hdr, tcp::TcpHdr};
use weft_abi::{
    addr::{Addr4, Addr6},
    config::{CONFIG_MASQUERADE_V4, Config, Uplink},
    drop::DropReason,
    flow::Tuple,
};

use super::{Family, table_methods, tables};
use crate::{
    checksum::Difference,
    decide::{self, steps},
    drops::Drop,
    fragments,
    hash::Hash,
    icmp::Quoted,
    packet::{Icmp, L3, Packet, Part, end, protocol},
    reject::{self, TTL},
    skb::Skb,
};

/// IPv4.
pub struct V4;

tables!(
    Addr4,
    "flows4",
    "endpoints4",
    "ipcache4",
    "frontends4",
    "backends4",
    "source_ranges4",
    "affinity4",
    "fragments4",
    "scratch4"
);

/// The bits of the fragment field that hold the offset, in units of eight bytes.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// More fragments follow.
const MORE_FRAGMENTS: u16 = 0x2000;

steps! {
    V4;
    hold: hold4 = decide::fragments::hold::<V4>;
    follow: follow4 = decide::fragments::follow::<V4>;
    begin: begin4 = decide::begin::<V4>;
    recognise: recognise4 = decide::recognise::<V4>;
    translate: translate4 = decide::translate::translate::<V4>;
    serve: serve4 = decide::serve::serve::<V4>;
    ask_backend: ask_backend4 = decide::translate::ask_backend::<V4>;
    elect: elect4 = decide::serve::elect::<V4>;
    locate: locate4 = decide::locate::<V4>;
    read_quote: read_quote4 = decide::errors::read_quote::<V4>;
    relate: relate4 = decide::errors::relate::<V4>;
    requote_error: requote_error4 = decide::errors::requote::<V4>;
    readdress: readdress4 = decide::errors::readdress::<V4>;
    leave: leave4 = decide::leave::leave::<V4>;
    permit: permit4 = decide::permit::<V4>;
    claim_back: claim_back4 = decide::remember::claim_back::<V4>;
    claim_port: claim_port4 = decide::remember::claim_port::<V4>;
    store_front: store_front4 = decide::remember::store_front::<V4>;
    reset: reset4 = reject::reset::<V4>;
    unreachable: unreachable4 = reject::unreachable::<V4>;
    store: store4 = decide::remember::store::<V4>;
}

const MALFORMED: Drop = Drop {
    reason: DropReason::Malformed,
    rule: 0,
};

/// IPv4, and a header without options.
const VERSION_AND_LENGTH: u8 = 0x45;
/// Do not fragment.
const DONT_FRAGMENT: u16 = 0x4000;

/// `AF_INET`.
const AF_INET: u8 = 2;

impl Family for V4 {
    type Addr = Addr4;
    const ETHER_TYPE: u16 = 0x0800;
    const ZERO: Addr4 = Addr4::new([0; 4]);
    const HEADER: usize = Ipv4Hdr::LEN;
    const PORT_UNREACHABLE: [u8; 2] = [3, 3];
    const BITS: u32 = 32;
    const ICMP: u8 = protocol::ICMP;
    const HAIRPIN: Addr4 = weft_abi::GATEWAY_V4;
    const MASQUERADE: u16 = CONFIG_MASQUERADE_V4;
    const FRAGMENTS_BY_PROTOCOL: bool = true;
    const ICMP_PSEUDO_HEADER: bool = false;

    #[inline(always)]
    fn parse(skb: &Skb, packet: &mut Packet<Addr4>) -> Result<(), Drop> {
        // The headers are linear for all but strange senders; those cost one pull.
        if skb.at::<[u8; L3 + Ipv4Hdr::LEN + 8]>(0).is_none() {
            let wanted = skb.len().min((L3 + 60 + TcpHdr::LEN) as u32);
            skb.pull(wanted)?;
        }
        let ethernet: EthHdr = skb.read(0).ok_or(MALFORMED)?;
        let ip: Ipv4Hdr = skb.read(L3).ok_or(MALFORMED)?;
        let header = usize::from(ip.vihl & 0xf) * 4;
        if ip.vihl >> 4 != 4 || header < Ipv4Hdr::LEN {
            return Err(MALFORMED);
        }
        *packet = Packet {
            tuple: Tuple {
                source: Addr4::new(ip.src_addr),
                destination: Addr4::new(ip.dst_addr),
                source_port: 0,
                destination_port: 0,
            },
            l4_offset: (L3 + header) as u32,
            end: end(skb, 0, ip.tot_len)?,
            source_mac: ethernet.src_addr,
            protocol: ip.proto,
            signals: 0,
            ttl: ip.ttl,
            icmp: [0; 2],
            datagram: 0,
        };
        let fragment = u16::from_be_bytes(ip.frags);
        let id = u16::from_be_bytes(ip.id).into();
        let part = if fragment & (FRAGMENT_OFFSET | MORE_FRAGMENTS) == 0 {
            Part::Whole
        } else if fragment & FRAGMENT_OFFSET == 0 {
            Part::First(id)
        } else if fragments::overlays_header(ip.proto, fragment & FRAGMENT_OFFSET) {
            return Err(MALFORMED);
        } else {
            Part::Later(id)
        };
        packet.read_transport::<Self>(skb, part)
    }

    #[inline(always)]
    fn ends(skb: &Skb) -> Option<(Addr4, Addr4, u8)> {
        let ip: Ipv4Hdr = skb.read(L3)?;
        Some((Addr4::new(ip.src_addr), Addr4::new(ip.dst_addr), ip.proto))
    }

    #[inline(always)]
    fn icmp(kind: u8) -> Icmp {
        match kind {
            // Echo and timestamp.
            8 | 13 => Icmp::Request,
            0 | 14 => Icmp::Reply,
            // Unreachable, source quench, redirect, time exceeded, parameter problem.
            3 | 4 | 5 | 11 | 12 => Icmp::Error,
            _ => Icmp::Other,
        }
    }

    #[inline(always)]
    fn quoted(skb: &Skb, offset: usize, quoted: &mut Quoted<Addr4>) -> bool {
        let Some(ip) = skb.load::<Ipv4Hdr>(offset) else {
            return false;
        };
        let header = usize::from(ip.vihl & 0xf) * 4;
        if ip.vihl >> 4 != 4
            || header < Ipv4Hdr::LEN
            || u16::from_be_bytes(ip.frags) & FRAGMENT_OFFSET != 0
        {
            return false;
        }
        quoted.tuple.source = Addr4::new(ip.src_addr);
        quoted.tuple.destination = Addr4::new(ip.dst_addr);
        quoted.read::<Self>(skb, ip.proto, offset, offset + header)
    }

    #[inline(always)]
    fn requote(
        skb: &Skb,
        offset: usize,
        new: &Tuple<Addr4>,
        addresses: Difference,
    ) -> Result<Difference, Drop> {
        let check = offset + core::mem::offset_of!(Ipv4Hdr, check);
        let source = offset + core::mem::offset_of!(Ipv4Hdr, src_addr);
        let old_check: [u8; 2] = skb.load(check).ok_or(MALFORMED)?;
        let old_check = u16::from_ne_bytes(old_check);
        let new_check = addresses.apply(old_check);
        skb.store(check, &new_check.to_ne_bytes())?;
        skb.store(source, &new.source)?;
        skb.store(source + size_of::<Addr4>(), &new.destination)?;
        Ok(addresses.word(old_check, new_check))
    }

    #[inline(always)]
    fn sorts_first(a: Addr4, a_port: u16, b: Addr4, b_port: u16) -> bool {
        let a = u64::from(a.to_bits()) << 16 | u64::from(a_port);
        let b = u64::from(b.to_bits()) << 16 | u64::from(b_port);
        a <= b
    }

    #[inline(always)]
    fn widen(address: Addr4) -> Addr6 {
        Addr6::mapped(address)
    }

    #[inline(always)]
    fn stays_on_link(address: Addr4) -> bool {
        // Multicast and broadcast; "this" network; loopback. Link-local unicast is forwarded: clouds
        // have their metadata there.
        let first = address.octets[0];
        first >= 224 && (first < 240 || address.to_bits() == u32::MAX) || first == 0 || first == 127
    }

    #[inline(always)]
    fn difference(old: Addr4, new: Addr4) -> Difference {
        Difference::NONE.double(
            u32::from_ne_bytes(old.octets),
            u32::from_ne_bytes(new.octets),
        )
    }

    #[inline(always)]
    fn write_addresses(skb: &Skb, tuple: &Tuple<Addr4>) -> Result<(), Drop> {
        let ip = skb.at::<Ipv4Hdr>(L3).ok_or(MALFORMED)?;
        // SAFETY: `at` checked the bounds; no helper ran since.
        unsafe {
            let sum = Difference::NONE
                .double(
                    u32::from_ne_bytes((*ip).src_addr),
                    u32::from_ne_bytes(tuple.source.octets),
                )
                .double(
                    u32::from_ne_bytes((*ip).dst_addr),
                    u32::from_ne_bytes(tuple.destination.octets),
                )
                .apply(u16::from_ne_bytes((*ip).check));
            (*ip).check = sum.to_ne_bytes();
            (*ip).src_addr = tuple.source.octets;
            (*ip).dst_addr = tuple.destination.octets;
        }
        Ok(())
    }

    #[inline(always)]
    fn decrement_ttl(skb: &Skb) -> Result<(), Drop> {
        let ip = skb.at::<Ipv4Hdr>(L3).ok_or(MALFORMED)?;
        // SAFETY: `at` checked the bounds; no helper ran since.
        unsafe {
            // TTL and protocol share a 16-bit word of the header; TTL is its first byte.
            let old = u16::from_ne_bytes([(*ip).ttl, (*ip).proto]);
            let new = u16::from_ne_bytes([(*ip).ttl.wrapping_sub(1), (*ip).proto]);
            let sum = Difference::NONE
                .word(old, new)
                .apply(u16::from_ne_bytes((*ip).check));
            (*ip).check = sum.to_ne_bytes();
            (*ip).ttl = (*ip).ttl.wrapping_sub(1);
        }
        Ok(())
    }

    #[inline(always)]
    fn hash(tuple: &Tuple<Addr4>, protocol: u8) -> u32 {
        Hash::of(protocol, tuple.source_port, tuple.destination_port)
            .word(tuple.source.to_bits())
            .finish()
    }

    #[inline(always)]
    fn sum(address: Addr4) -> Difference {
        let [a, b, c, d] = address.octets;
        Difference::NONE
            .adds(u16::from_ne_bytes([a, b]))
            .adds(u16::from_ne_bytes([c, d]))
    }

    #[inline(always)]
    fn write_header(
        skb: &Skb,
        tuple: &Tuple<Addr4>,
        protocol: u8,
        payload: u16,
    ) -> Result<(), Drop> {
        let ip = skb.at::<Ipv4Hdr>(L3).ok_or(MALFORMED)?;
        let length = (Ipv4Hdr::LEN as u16 + payload).to_be();
        let check = Difference::NONE
            .adds(u16::from_ne_bytes([VERSION_AND_LENGTH, 0]))
            .adds(length)
            .adds(DONT_FRAGMENT.to_be())
            .adds(u16::from_ne_bytes([TTL, protocol]))
            .plus(Self::sum(tuple.source))
            .plus(Self::sum(tuple.destination));
        // SAFETY: `at` checked the bounds; no helper ran since.
        unsafe {
            (*ip).vihl = VERSION_AND_LENGTH;
            (*ip).tos = 0;
            (*ip).tot_len = length.to_ne_bytes();
            (*ip).id = [0; 2];
            (*ip).frags = DONT_FRAGMENT.to_be_bytes();
            (*ip).ttl = TTL;
            (*ip).proto = protocol;
            (*ip).check = (!check.folded()).to_ne_bytes();
            (*ip).src_addr = tuple.source.octets;
            (*ip).dst_addr = tuple.destination.octets;
        }
        Ok(())
    }

    #[inline(always)]
    fn node_address(config: &Config) -> Option<Addr4> {
        (config.node_v4 != Self::ZERO).then_some(config.node_v4)
    }

    #[inline(always)]
    fn uplink_address(uplink: &Uplink) -> Option<Addr4> {
        (uplink.v4 != Addr4::default()).then_some(uplink.v4)
    }

    #[inline(always)]
    fn fib_addresses(params: &mut bpf_fib_lookup, source: Addr4, destination: Addr4) {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source.octets);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination.octets);
    }

    #[inline(always)]
    fn answering_socket(tuple: &Tuple<Addr4>, socket: &mut bpf_sock_tuple) -> u32 {
        socket.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: u32::from_ne_bytes(tuple.destination.octets),
            daddr: u32::from_ne_bytes(tuple.source.octets),
            sport: tuple.destination_port.to_be(),
            dport: tuple.source_port.to_be(),
        };
        size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32
    }

    table_methods!();
}
