//! Fragments: only the first one of a datagram carries ports, so they are remembered for the others.
//!
//! A later fragment that comes before the first one cannot be judged. It waits for it, within bounds
//! ([`hold`]), and comes again at the interface where it came in ([`resume`]).

use aya_ebpf::{bindings::BPF_ANY, btf_maps::LruHashMap, helpers::bpf_ktime_get_ns};
use weft_abi::{drop::DropReason, maps};

use crate::{
    drops::Drop,
    family::Family,
    packet::{LATER, Packet, protocol},
};

/// Nanoseconds for which the ports of a datagram are remembered: as long as a host waits for the rest of
/// one (RFC 1122, section 3.3.2: 60 to 120; Linux: 30).
const LIFETIME: u64 = 30_000_000_000;

/// What makes the fragments of a datagram one (RFC 791; RFC 8200, section 4.5, where the protocol has
/// no part in it and is 0 here).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Datagram<A> {
    source: A,
    destination: A,
    id: u32,
    protocol: u32,
}

/// What the first fragment had.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ports {
    source: u16,
    destination: u16,
    icmp: [u8; 2],
    protocol: u8,
    reserved: u8,
    seen: u64,
}

/// The datagrams whose first fragment passed, of one family.
pub type FragmentTable<A> = LruHashMap<Datagram<A>, Ports, { maps::FRAGMENTS }>;

#[inline(always)]
fn key<F: Family>(packet: &Packet<F::Addr>, id: u32) -> Datagram<F::Addr> {
    Datagram {
        source: packet.tuple.source,
        destination: packet.tuple.destination,
        id,
        protocol: if F::FRAGMENTS_BY_PROTOCOL {
            packet.protocol.into()
        } else {
            0
        },
    }
}

/// Remembers the ports of a first fragment. Without room the others are dropped, as they would be
/// without it.
#[inline(always)]
pub fn remember<F: Family>(packet: &Packet<F::Addr>, id: u32) {
    let ports = Ports {
        source: packet.tuple.source_port,
        destination: packet.tuple.destination_port,
        icmp: packet.icmp,
        protocol: packet.protocol,
        reserved: 0,
        // SAFETY: the helper takes nothing and returns a number.
        seen: unsafe { bpf_ktime_get_ns() },
    };
    let _ = F::fragments().insert(key::<F>(packet, id), ports, u64::from(BPF_ANY));
}

/// Gives a later fragment what the first one had.
#[inline(always)]
pub fn recall<F: Family>(packet: &mut Packet<F::Addr>, id: u32) -> Result<(), Drop> {
    // SAFETY: the helper takes nothing and returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: read at once and not kept.
    match unsafe { F::fragments().get(key::<F>(packet, id)) } {
        Some(ports) if now.wrapping_sub(ports.seen) < LIFETIME => {
            packet.tuple.source_port = ports.source;
            packet.tuple.destination_port = ports.destination;
            packet.icmp = ports.icmp;
            packet.protocol = ports.protocol;
            packet.signals = LATER;
            Ok(())
        }
        _ => Err(Drop::because(DropReason::Fragment)),
    }
}

/// Whether a later fragment would overlay the transport header that was judged (RFC 1858, RFC 3128):
/// `offset` in units of eight bytes.
#[inline(always)]
pub fn overlays_header(protocol: u8, offset: u16) -> bool {
    protocol == protocol::TCP && offset == 1
}
