//! What differs between IPv4 and IPv6: the header, the maps, and nothing else.
//!
//! The pipeline is written once over [`Family`]. A family parses its header, rewrites its addresses,
//! and names its maps.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use network_types::{eth::EthHdr, icmp::Icmpv4Hdr, ip::Ipv4Hdr, tcp::TcpHdr, udp::UdpHdr};
use weft_abi::{
    addr::{Addr4, Addr6},
    drop::DropReason,
    endpoint::Endpoint,
    flow::{Flow, FlowKey, Tuple},
    ipcache::IpcacheEntry,
    maps,
    service::{Backend, Frontend, FrontendKey},
};

use crate::{
    checksum::Difference,
    decide::Work,
    drops::Drop,
    packet::{DATA, ERROR, FIN, L3, OPENS, Packet, RST, protocol},
    skb::Skb,
};

/// Map flag of what only the agent writes: memory is taken per entry, not for the whole capacity.
pub const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// The flow table of a family. Preallocated: programs insert where memory cannot be waited for.
pub type FlowTable<A> = LruHashMap<FlowKey<A>, Flow<A>, { maps::FLOWS }>;
/// The local endpoints of a family.
pub type EndpointTable<A> = HashMap<A, Endpoint, { maps::ENDPOINTS }, ON_DEMAND>;
/// The ipcache of a family.
pub type Ipcache<A> = LpmTrie<A, IpcacheEntry, { maps::IPCACHE }>;
/// The service frontends of a family.
pub type FrontendTable<A> = HashMap<FrontendKey<A>, Frontend, { maps::FRONTENDS }, ON_DEMAND>;
/// The service backends of a family.
pub type BackendTable<A> = HashMap<u32, Backend<A>, { maps::BACKENDS }, ON_DEMAND>;

/// The scratch space of a family's slow path.
pub type Scratch<A> = PerCpuArray<Work<A>, 1>;

/// IPv4 or IPv6.
pub trait Family {
    /// An address.
    type Addr: Copy + PartialEq + 'static;
    /// The EtherType.
    const ETHER_TYPE: u16;
    /// Bits of an address.
    const BITS: u32;
    /// The source that a pod sees when it reaches itself through a service.
    const GATEWAY: Self::Addr;

    /// Parses Ethernet, IP and transport headers.
    fn parse(skb: &Skb) -> Result<Packet<Self::Addr>, Drop>;
    /// Source, destination and protocol, whatever follows the IP header.
    fn ends(skb: &Skb) -> Option<(Self::Addr, Self::Addr, u8)>;
    /// The tuple of the packet that an ICMP error at `offset` quotes, as that packet had it.
    fn quoted(skb: &Skb, offset: usize) -> Option<(Tuple<Self::Addr>, u8)>;
    /// Whether (`a`, `a_port`) sorts before (`b`, `b_port`).
    fn sorts_first(a: Self::Addr, a_port: u16, b: Self::Addr, b_port: u16) -> bool;
    /// The address in the form of an event or a tunnel.
    fn widen(address: Self::Addr) -> Addr6;
    /// What the checksum of a pseudo-header changes by when `old` becomes `new`.
    fn difference(old: Self::Addr, new: Self::Addr) -> Difference;
    /// Writes the addresses of `tuple` into the IP header and mends its checksum.
    fn write_addresses(skb: &Skb, tuple: &Tuple<Self::Addr>) -> Result<(), Drop>;
    /// Decrements the time to live; the caller has seen that it is above 1.
    fn decrement_ttl(skb: &Skb) -> Result<(), Drop>;

    /// The flow table.
    fn flows() -> &'static FlowTable<Self::Addr>;
    /// The local endpoints.
    fn endpoints() -> &'static EndpointTable<Self::Addr>;
    /// The ipcache.
    fn ipcache() -> &'static Ipcache<Self::Addr>;
    /// The service frontends.
    fn frontends() -> &'static FrontendTable<Self::Addr>;
    /// The service backends.
    fn backends() -> &'static BackendTable<Self::Addr>;
    /// The scratch space of the slow path.
    fn scratch() -> &'static Scratch<Self::Addr>;
}

/// IPv4.
pub struct V4;

/// The maps of a family. IPv6's exist from the first day, so that the pins and their readers do not
/// change when it comes.
macro_rules! tables {
    ($module:ident, $addr:ty, $flows:literal, $endpoints:literal, $ipcache:literal,
     $frontends:literal, $backends:literal, $scratch:literal) => {
        mod $module {
            use aya_ebpf::macros::btf_map;
            use weft_abi::addr::*;

            use super::*;

            #[btf_map(name = $flows)]
            pub static FLOWS: FlowTable<$addr> = FlowTable::new();
            #[btf_map(name = $endpoints)]
            pub static ENDPOINTS: EndpointTable<$addr> = EndpointTable::new();
            #[btf_map(name = $ipcache)]
            pub static IPCACHE: Ipcache<$addr> = Ipcache::new();
            #[btf_map(name = $frontends)]
            pub static FRONTENDS: FrontendTable<$addr> = FrontendTable::new();
            #[btf_map(name = $backends)]
            pub static BACKENDS: BackendTable<$addr> = BackendTable::new();
            #[btf_map(name = $scratch)]
            pub static SCRATCH: Scratch<$addr> = Scratch::new();
        }
    };
}

tables!(
    v4,
    Addr4,
    "flows4",
    "endpoints4",
    "ipcache4",
    "frontends4",
    "backends4",
    "scratch4"
);
tables!(
    v6,
    Addr6,
    "flows6",
    "endpoints6",
    "ipcache6",
    "frontends6",
    "backends6",
    "scratch6"
);

/// More fragments follow, or this is a later one: bits of the fragment field.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// TCP flags, in the byte at offset 13.
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

impl Family for V4 {
    type Addr = Addr4;
    const ETHER_TYPE: u16 = 0x0800;
    const BITS: u32 = 32;
    const GATEWAY: Addr4 = weft_abi::GATEWAY_V4;

    #[inline(always)]
    fn parse(skb: &Skb) -> Result<Packet<Addr4>, Drop> {
        const MALFORMED: Drop = Drop {
            reason: DropReason::Malformed,
            rule: 0,
        };
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
        if u16::from_be_bytes(ip.frags) & FRAGMENT_OFFSET != 0 {
            return Err(Drop::because(DropReason::Fragment));
        }
        let l4 = L3 + header;
        let mut packet = Packet {
            tuple: Tuple {
                source: Addr4::new(ip.src_addr),
                destination: Addr4::new(ip.dst_addr),
                source_port: 0,
                destination_port: 0,
            },
            l4_offset: l4 as u32,
            source_mac: ethernet.src_addr,
            protocol: ip.proto,
            signals: 0,
            ttl: ip.ttl,
            icmp: [0; 2],
        };
        match ip.proto {
            protocol::TCP => {
                let tcp: [u8; TcpHdr::LEN] = skb.read(l4).ok_or(MALFORMED)?;
                packet.tuple.source_port = u16::from_be_bytes([tcp[0], tcp[1]]);
                packet.tuple.destination_port = u16::from_be_bytes([tcp[2], tcp[3]]);
                let flags = tcp[13];
                packet.signals = if flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN {
                    OPENS
                } else {
                    DATA | ((flags & TCP_FIN) * FIN) | (if flags & TCP_RST != 0 { RST } else { 0 })
                };
            }
            protocol::UDP | protocol::SCTP => {
                let ports: [u8; UdpHdr::LEN] = skb.read(l4).ok_or(MALFORMED)?;
                packet.tuple.source_port = u16::from_be_bytes([ports[0], ports[1]]);
                packet.tuple.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
            }
            protocol::ICMP => {
                let icmp: Icmpv4Hdr = skb.read(l4).ok_or(MALFORMED)?;
                packet.icmp = [icmp.type_, icmp.code];
                let identifier = u16::from_be_bytes([icmp.data[0], icmp.data[1]]);
                match icmp.type_ {
                    // Echo and timestamp: request and reply share an identifier (RFC 792).
                    8 | 13 => {
                        packet.tuple.source_port = identifier;
                        packet.signals = OPENS;
                    }
                    0 | 14 => packet.tuple.destination_port = identifier,
                    // Unreachable, source quench, redirect, time exceeded, parameter problem.
                    3 | 4 | 5 | 11 | 12 => packet.signals = ERROR,
                    _ => {}
                }
            }
            _ => return Err(Drop::because(DropReason::UnsupportedProtocol)),
        }
        Ok(packet)
    }

    #[inline(always)]
    fn ends(skb: &Skb) -> Option<(Addr4, Addr4, u8)> {
        let ip: Ipv4Hdr = skb.read(L3)?;
        Some((Addr4::new(ip.src_addr), Addr4::new(ip.dst_addr), ip.proto))
    }

    #[inline(always)]
    fn quoted(skb: &Skb, offset: usize) -> Option<(Tuple<Addr4>, u8)> {
        let ip: Ipv4Hdr = skb.read(offset)?;
        let header = usize::from(ip.vihl & 0xf) * 4;
        if ip.vihl >> 4 != 4
            || header < Ipv4Hdr::LEN
            || u16::from_be_bytes(ip.frags) & FRAGMENT_OFFSET != 0
        {
            return None;
        }
        // An error quotes at least eight bytes of the transport header (RFC 792).
        let l4: [u8; 8] = skb.read(offset + header)?;
        let word = |index: usize| u16::from_be_bytes([l4[index], l4[index + 1]]);
        let (source_port, destination_port) = match ip.proto {
            protocol::TCP | protocol::UDP | protocol::SCTP => (word(0), word(2)),
            protocol::ICMP => match l4[0] {
                8 | 13 => (word(4), 0),
                0 | 14 => (0, word(4)),
                _ => return None,
            },
            _ => return None,
        };
        let tuple = Tuple {
            source: Addr4::new(ip.src_addr),
            destination: Addr4::new(ip.dst_addr),
            source_port,
            destination_port,
        };
        Some((tuple, ip.proto))
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
    fn difference(old: Addr4, new: Addr4) -> Difference {
        Difference::NONE.double(
            u32::from_ne_bytes(old.octets),
            u32::from_ne_bytes(new.octets),
        )
    }

    #[inline(always)]
    fn write_addresses(skb: &Skb, tuple: &Tuple<Addr4>) -> Result<(), Drop> {
        let ip = skb
            .at::<Ipv4Hdr>(L3)
            .ok_or(Drop::because(DropReason::Malformed))?;
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
        let ip = skb
            .at::<Ipv4Hdr>(L3)
            .ok_or(Drop::because(DropReason::Malformed))?;
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
    fn flows() -> &'static FlowTable<Addr4> {
        &v4::FLOWS
    }

    #[inline(always)]
    fn endpoints() -> &'static EndpointTable<Addr4> {
        &v4::ENDPOINTS
    }

    #[inline(always)]
    fn ipcache() -> &'static Ipcache<Addr4> {
        &v4::IPCACHE
    }

    #[inline(always)]
    fn frontends() -> &'static FrontendTable<Addr4> {
        &v4::FRONTENDS
    }

    #[inline(always)]
    fn backends() -> &'static BackendTable<Addr4> {
        &v4::BACKENDS
    }

    #[inline(always)]
    fn scratch() -> &'static Scratch<Addr4> {
        &v4::SCRATCH
    }
}
