//! Dropped packets: counted by reason, and told as events.

use aya_ebpf::{
    btf_maps::{PerCpuArray, RingBuf},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use aya_log_ebpf::debug;
use weft_abi::{
    drop::{DROP_SLOTS, DropCount, DropReason},
    event::DropEvent,
    maps::EVENTS_BYTES,
};

use crate::{
    family::{Family, V4, V6},
    icmp::Quoted,
    packet::L3,
    skb::Skb,
};

#[btf_map(name = "drops")]
static DROPS: PerCpuArray<DropCount, { DROP_SLOTS as usize }> = PerCpuArray::new();

#[btf_map(name = "events")]
static EVENTS: RingBuf<DropEvent, EVENTS_BYTES> = RingBuf::new();

/// The tc action code that drops.
const TC_ACT_SHOT: i32 = 2;

/// A packet that must not pass, and why.
#[derive(Clone, Copy)]
pub struct Drop {
    /// Why.
    pub reason: DropReason,
    /// The rule that decided, for policy drops; else 0.
    pub rule: u32,
}

impl Drop {
    /// A drop that no rule decided.
    #[inline(always)]
    pub fn because(reason: DropReason) -> Self {
        Self { reason, rule: 0 }
    }
}

/// Counts a system call that was refused as a drop: it would have been packets.
#[inline(always)]
pub fn refused(reason: DropReason) {
    count(reason, 0);
}

#[inline(always)]
fn count(reason: DropReason, bytes: u32) {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU slot. A program of a system call may be interrupted by one of a packet:
        // that may cost a count.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(bytes);
        }
    }
}

/// Counts the drop, tells of it, and returns the action that drops.
#[inline(never)]
pub fn report<const POINT: u8>(skb: &Skb, drop: Drop) -> i32 {
    count(drop.reason, skb.len());
    debug!(
        skb.ctx(),
        "drop: reason {} rule {} at {}", drop.reason as u8, drop.rule, POINT
    );
    // A full ring loses the event, never the count.
    if let Some(mut event) = EVENTS.reserve(0) {
        let record = event.write(DropEvent {
            // SAFETY: the helper takes nothing and returns a number.
            time: unsafe { bpf_ktime_get_ns() },
            rule: drop.rule,
            ifindex: skb.ifindex(),
            length: skb.len(),
            reason: drop.reason as u8,
            point: POINT,
            ..DropEvent::default()
        });
        if skb.ether_type() == V4::ETHER_TYPE {
            describe::<V4>(skb, record);
        } else if skb.ether_type() == V6::ETHER_TYPE {
            describe::<V6>(skb, record);
        }
        event.submit(0);
    }
    TC_ACT_SHOT
}

/// Writes down as much of the packet as can be read of it.
#[inline(never)]
fn describe<F: Family>(skb: &Skb, record: &mut DropEvent) {
    let Some((source, destination, protocol)) = F::ends(skb) else {
        return;
    };
    record.source = F::widen(source);
    record.destination = F::widen(destination);
    record.protocol = protocol;
    // The reader of quoted packets does not care for checks, nor for fragments.
    let mut quoted = Quoted::between(source, destination);
    if F::quoted(skb, L3, &mut quoted) {
        record.protocol = quoted.protocol;
        record.source_port = quoted.tuple.source_port;
        record.destination_port = quoted.tuple.destination_port;
    }
}
