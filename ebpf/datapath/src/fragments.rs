//! Fragments: only the first one of a datagram carries ports, so they are remembered for the others.
//!
//! A later fragment that comes before the first one cannot be judged. It waits for it, within bounds
//! ([`hold`]), and comes again at the interface where it came in ([`resume`]).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_F_INGRESS, BPF_NOEXIST},
    btf_maps::{LruHashMap, PerCpuArray},
    helpers::{bpf_ktime_get_ns, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    macros::btf_map,
    programs::TcContext,
};
use weft_abi::{MARK_RESUMED, addr::Addr6, drop::DropReason, maps};

use crate::{
    drops::Drop,
    family::Family,
    packet::{L3, LATER, Packet, protocol},
    skb::{Action, Skb},
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
fn key<F: Family>(packet: &Packet<F::Addr>) -> Datagram<F::Addr> {
    Datagram {
        source: packet.tuple.source,
        destination: packet.tuple.destination,
        id: packet.datagram,
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
pub fn remember<F: Family>(packet: &Packet<F::Addr>) {
    let ports = Ports {
        source: packet.tuple.source_port,
        destination: packet.tuple.destination_port,
        icmp: packet.icmp,
        protocol: packet.protocol,
        reserved: 0,
        seen: now(),
    };
    let _ = F::fragments().insert(key::<F>(packet), ports, u64::from(BPF_ANY));
}

/// Gives a later fragment what the first one had.
#[inline(always)]
pub fn recall<F: Family>(packet: &mut Packet<F::Addr>) -> Result<(), Drop> {
    // SAFETY: read at once and not kept.
    match unsafe { F::fragments().get(key::<F>(packet)) } {
        Some(ports) if now().wrapping_sub(ports.seen) < LIFETIME => {
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

/// Nanoseconds since boot.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether a later fragment would overlay the transport header that was judged (RFC 1858, RFC 3128):
/// `offset` in units of eight bytes.
#[inline(always)]
pub fn overlays_header(protocol: u8, offset: u16) -> bool {
    protocol == protocol::TCP && offset == 1
}

/// How many fragments of a datagram wait for its first one.
const WAITING: u32 = 8;
/// How many wait at all.
const HELD: usize = 512;
/// The longest fragment that waits, in bytes, Ethernet header included: a jumbo frame.
const LONGEST: usize = 9_216;

/// A place in which a fragment waits; both families in one form.
#[repr(C)]
#[derive(Clone, Copy)]
struct Place {
    source: Addr6,
    destination: Addr6,
    id: u32,
    protocol: u32,
    /// Which of the datagram's, from 0 to [`WAITING`].
    index: u32,
    reserved: u32,
}

/// A fragment that waits.
#[repr(C)]
struct Fragment {
    seen: u64,
    length: u32,
    /// The interface where it came in, and will come again: not always the first one's.
    ifindex: u32,
    bytes: [u8; LONGEST],
}

#[btf_map(name = "held")]
static HELD_FRAGMENTS: LruHashMap<Place, Fragment, HELD> = LruHashMap::new();

/// Where a fragment is copied to before it is stored, or while others take its place.
#[btf_map(name = "fragment")]
static COPY: PerCpuArray<Fragment, 1> = PerCpuArray::new();

/// The place that is being asked for: the argument of the global functions below.
#[btf_map(name = "place")]
static PLACE: PerCpuArray<Place, 1> = PerCpuArray::new();

#[inline(always)]
fn place<F: Family>(packet: &Packet<F::Addr>) -> Option<&'static mut Place> {
    // SAFETY: this CPU's own slot, and programs of these hooks do not interrupt each other.
    let place = unsafe { &mut *PLACE.get_ptr_mut(0)? };
    let key = key::<F>(packet);
    place.source = F::widen(key.source);
    place.destination = F::widen(key.destination);
    place.id = key.id;
    place.protocol = key.protocol;
    place.index = 0;
    place.reserved = 0;
    Some(place)
}

/// Keeps a copy of a later fragment until its first one comes; `None` if there is no room.
#[inline(always)]
pub fn hold<F: Family>(skb: &Skb, packet: &Packet<F::Addr>) -> Option<Action> {
    place::<F>(packet)?;
    if hold_fragment(skb.raw()) == 0 {
        return None;
    }
    // SAFETY: only whether it is there is looked at.
    if unsafe { F::fragments().get(key::<F>(packet)) }.is_some() {
        // The first one came meanwhile, on another CPU: it may not have seen this one.
        return Some(take_fragments(skb));
    }
    Some(Action::Keep)
}

/// Another CPU may have taken it already: then it comes twice, which receivers are used to.
#[inline(always)]
fn take_fragments(skb: &Skb) -> Action {
    skb.set_mark(MARK_RESUMED);
    skb.again()
}

/// Lets the fragments that waited for this first one come again.
#[inline(always)]
pub fn resume<F: Family>(skb: &Skb, packet: &Packet<F::Addr>) -> Result<(), Drop> {
    if place::<F>(packet).is_some() && resume_fragments(skb.raw()) != 0 {
        return Err(Drop::because(DropReason::Helper));
    }
    Ok(())
}

/// Stores the packet in a free place; 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_fragment(context: *mut __sk_buff) -> u64 {
    let skb = Skb::new(TcContext::new(context));
    let (Some(place), Some(copy)) = (PLACE.get_ptr_mut(0), COPY.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: this CPU's own slots, and programs of these hooks do not interrupt each other.
    let (place, copy) = unsafe { (&mut *place, &mut *copy) };
    if !copy_from(&skb, copy) {
        return 0;
    }
    let mut index = 0;
    while index < WAITING {
        place.index = index;
        index += 1;
        // SAFETY: read at once and not kept.
        let stale = match unsafe { HELD_FRAGMENTS.get(*place) } {
            Some(old) => copy.seen.wrapping_sub(old.seen) > LIFETIME,
            None => true,
        };
        let flags = if stale { BPF_ANY } else { BPF_NOEXIST };
        if HELD_FRAGMENTS
            .insert(*place, &*copy, u64::from(flags))
            .is_ok()
        {
            return 1;
        }
    }
    0
}

/// The length, if it is one that is held; else 0.
///
/// For the verifier of 5.10, which learns a lower bound only by an order, not by "is not 0", and for
/// which the compiler must not make one comparison of the two.
#[inline(always)]
fn bounded(length: u32) -> u32 {
    if length > LONGEST as u32 {
        return 0;
    }
    let length = opaque(length);
    if length < L3 as u32 { 0 } else { length }
}

/// The same number, of which the compiler knows nothing any more, but the verifier does.
#[inline(always)]
fn opaque(number: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    let number = {
        let mut wide = u64::from(number);
        // SAFETY: a register is copied onto itself.
        unsafe {
            core::arch::asm!("{n} = {n}", n = inout(reg) wide, options(nomem, nostack));
        }
        wide as u32
    };
    number
}

/// Copies the whole packet; whether it is not too long.
#[inline(always)]
fn copy_from(skb: &Skb, copy: &mut Fragment) -> bool {
    let length = bounded(skb.len());
    if length == 0 {
        return false;
    }
    copy.seen = now();
    copy.length = length;
    copy.ifindex = skb.ifindex();
    // SAFETY: the bounds were checked; the helper writes only there.
    unsafe { bpf_skb_load_bytes(skb.raw().cast(), 0, copy.bytes.as_mut_ptr().cast(), length) == 0 }
}

/// Makes the packet one of these bytes.
#[inline(always)]
fn copy_to(skb: &Skb, copy: &Fragment) -> bool {
    let length = bounded(copy.length);
    if length == 0 {
        return false;
    }
    // SAFETY: the context is valid for the whole program; the bounds were checked.
    unsafe {
        bpf_skb_change_tail(skb.raw(), length, 0) == 0
            && bpf_skb_store_bytes(skb.raw(), 0, copy.bytes.as_ptr().cast(), length, 0) == 0
    }
}

/// Sends a copy of every fragment that waits in the places of the datagram to where it came in.
///
/// A program cannot make packets, but it can change the one it has, and clone it: so this one becomes
/// each of them in turn, and itself again in the end. Returns 0 unless that fails.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn resume_fragments(context: *mut __sk_buff) -> u64 {
    let skb = Skb::new(TcContext::new(context));
    let (Some(place), Some(own)) = (PLACE.get_ptr_mut(0), COPY.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: as in `hold_fragment`.
    let (place, own) = unsafe { (&mut *place, &mut *own) };
    let mark = skb.mark();
    let mut changed = false;
    let mut index = 0;
    while index < WAITING {
        place.index = index;
        index += 1;
        // SAFETY: an entry that is replaced meanwhile yields another fragment's bytes, or mixed ones,
        // which its receiver's checksum finds.
        let Some(held) = (unsafe { HELD_FRAGMENTS.get(*place) }) else {
            continue;
        };
        if !changed && !copy_from(&skb, own) {
            return 0;
        }
        changed = true;
        if own.seen.wrapping_sub(held.seen) <= LIFETIME && copy_to(&skb, held) {
            skb.set_mark(MARK_RESUMED);
            let _ = skb
                .ctx()
                .clone_redirect(held.ifindex, u64::from(BPF_F_INGRESS));
        }
        let _ = HELD_FRAGMENTS.remove(*place);
    }
    if !changed {
        return 0;
    }
    skb.set_mark(mark);
    u64::from(!copy_to(&skb, own))
}
