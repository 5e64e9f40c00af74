//! Limits of bandwidth: what a pod sends and receives, in bytes per second.
//!
//! A bucket of tokens, kept as a time: `full_at` says when the bucket will be full again if nothing
//! passes until then. A packet moves it on by what the packet costs at the bucket's rate, and how far
//! it lies ahead is what the bucket lacks:
//!
//! ```text
//!            now            full_at                   now + burst
//!   ──────────┼────────────────┼──────────────────────────┼──────────► time
//!             │◄──── spent ───►│◄──── still to spend ────►│
//! ```
//!
//! There are two ways to hold a pod to its limit:
//!
//! - [`admit`] drops what comes while the bucket is empty. It needs nothing of the node.
//! - [`departure`] gives each packet the time at which it may leave, and the uplink's queueing
//!   discipline (`fq`) keeps it until then: nothing is lost, and the pod's TCP sees a slower network.
//!
//! A packet passes if there is anything left to spend, and may cost more than is left: a bucket
//! smaller than a packet would pass none of that size. The packets after it wait for the debt.
//!
//! Programs on several CPUs spend from one bucket without a lock. What is spent while the bucket is
//! not full is added atomically, so none of it is lost; only the first packets after a pause can be
//! counted as one, when they come on several CPUs in the same nanoseconds. Entries are preallocated:
//! one that the agent replaces meanwhile stays valid memory, and the new one begins full.

use core::ptr;

use aya_ebpf::{
    Global,
    btf_maps::HashMap,
    helpers::{bpf_ktime_get_ns, bpf_skb_set_tstamp},
    macros::btf_map,
};
use weft_abi::{
    drop::DropReason,
    endpoint::{Bandwidth, Bucket},
    maps,
};

use crate::{drops::Drop, skb::Skb};

/// Set at load to 1 where programs may set a packet's departure time at an interface's ingress
/// (`bpf_skb_set_tstamp`, from 5.18 on).
#[unsafe(no_mangle)]
static HAVE_SKB_SET_TSTAMP: Global<u8> = Global::new(0);

#[btf_map(name = "bandwidth")]
static BANDWIDTH: HashMap<u32, Bandwidth, { maps::ENDPOINTS }> = HashMap::new();

/// `BPF_SKB_TSTAMP_DELIVERY_MONO`: the time is one of departure, on the monotonic clock.
const DELIVERY_MONO: u32 = 1;

/// The furthest departure, in nanoseconds from now: more than a queue that helps anybody, and less
/// than the 10 s beyond which `fq` drops by itself.
const HORIZON: u64 = 2 * SECOND;

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// The least that a bucket holds for [`admit`], in nanoseconds of its rate.
///
/// Between two pods the round trip is so short that the smallest window of TCP is faster than most
/// limits: it runs into the limit, loses everything, and is silent until its retransmission timer,
/// which waits 200 ms at least (`TCP_RTO_MIN`). What the bucket cannot hold by then is lost to it: with
/// 50 ms of the rate, TCP gets 30 to 70 % of its limit; with 220 ms and more, 93 to 101 %, at any rate
/// from 1 Mbit/s to 1 Gbit/s, by any congestion control.
const LEAST_BURST: u64 = SECOND / 4;

/// The largest burst that is computed with, in bytes: 8 GiB times a second in nanoseconds fits in
/// 64 bits, with room for the time since boot.
const LARGEST_BURST: u64 = 1 << 33;

/// Ethernet, IPv4 and TCP header with timestamps: what each further segment of a packet that the
/// kernel has not cut yet adds on the wire. Others differ by less than two in a hundred.
const SEGMENT_HEADERS: u64 = 14 + 20 + 32;

/// Which of an endpoint's limits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the endpoint sends.
    Egress,
    /// What it receives.
    Ingress,
}

/// Counts the packet against a limit of the endpoint behind `ifindex`; drops it if that is used up.
#[inline(always)]
pub fn admit(skb: &Skb, ifindex: u32, direction: Direction) -> Result<(), Drop> {
    match bucket(ifindex, direction) {
        Some(bucket) if !bucket.admits(now(), wire_length(skb)) => {
            Err(Drop::because(DropReason::Bandwidth))
        }
        _ => Ok(()),
    }
}

/// Counts the packet against what the endpoint behind `ifindex` may send, and sets the time at which
/// the uplink shall send it; drops it if that is too far away.
///
/// For packets that are redirected to the overlay or an uplink: the host stack would take the time
/// for that of an arrival. Where the kernel cannot set it, the same as [`admit`].
#[inline(always)]
pub fn departure(skb: &Skb, ifindex: u32) -> Result<(), Drop> {
    if HAVE_SKB_SET_TSTAMP.load() == 0 {
        return admit(skb, ifindex, Direction::Egress);
    }
    let Some(bucket) = bucket(ifindex, Direction::Egress) else {
        return Ok(());
    };
    let now = now();
    let Some(time) = bucket.departure(now, wire_length(skb)) else {
        return Err(Drop::because(DropReason::Bandwidth));
    };
    if time <= now {
        return Ok(());
    }
    // SAFETY: the helper takes the program's context and numbers.
    if unsafe { bpf_skb_set_tstamp(skb.raw(), time, DELIVERY_MONO) } != 0 {
        return Err(Drop::because(DropReason::Helper));
    }
    Ok(())
}

/// A bucket in the map, which programs on other CPUs use at the same time.
struct Shared {
    bucket: *mut Bucket,
    /// Bytes per second; not 0.
    rate: u64,
}

/// The bucket of this limit, if there is one.
#[inline(always)]
fn bucket(ifindex: u32, direction: Direction) -> Option<Shared> {
    let limits = BANDWIDTH.get_ptr_mut(ifindex)?;
    // SAFETY: a preallocated entry, valid for the program's run.
    unsafe {
        let bucket = match direction {
            Direction::Egress => &raw mut (*limits).egress,
            Direction::Ingress => &raw mut (*limits).ingress,
        };
        match (*bucket).bytes_per_second {
            0 => None,
            rate => Some(Shared { bucket, rate }),
        }
    }
}

impl Shared {
    /// Whether a packet of so many bytes may pass now; if so, it is paid for.
    #[inline(always)]
    fn admits(&self, now: u64, bytes: u64) -> bool {
        let full_at = self.full_at();
        if full_at > now + self.burst_time().max(LEAST_BURST) {
            return false;
        }
        self.spend(full_at, now, time_for(bytes, self.rate));
        true
    }

    /// When a packet of so many bytes may leave, which can be past; it is paid for. `None` if that
    /// is too far away.
    #[inline(always)]
    fn departure(&self, now: u64, bytes: u64) -> Option<u64> {
        let full_at = self.full_at();
        let time = full_at.saturating_sub(self.burst_time());
        if time > now + HORIZON {
            return None;
        }
        self.spend(full_at, now, time_for(bytes, self.rate));
        Some(time)
    }

    /// Nanoseconds in which the bucket fills.
    #[inline(always)]
    fn burst_time(&self) -> u64 {
        // SAFETY: as in `bucket`.
        let burst = unsafe { (*self.bucket).burst };
        time_for(burst.min(LARGEST_BURST), self.rate)
    }

    #[inline(always)]
    fn full_at(&self) -> u64 {
        // SAFETY: as in `bucket`; volatile, because programs on other CPUs write it meanwhile.
        unsafe { ptr::read_volatile(&raw const (*self.bucket).full_at) }
    }

    /// Spends: `full_at` is what was read of it, `cost` is nanoseconds.
    #[inline(always)]
    fn spend(&self, full_at: u64, now: u64, cost: u64) {
        // SAFETY: as in `full_at`.
        unsafe {
            let clock = &raw mut (*self.bucket).full_at;
            if full_at < now {
                ptr::write_volatile(clock, now + cost);
            } else {
                atomic_add(clock, cost);
            }
        }
    }
}

/// Adds atomically.
///
/// Rust offers no atomic addition for BPF, and compilers like to make it one that returns the old
/// value, which kernels before 5.12 do not know; so the instruction is written out.
///
/// # Safety
///
/// `to` is valid, aligned and shared with other programs only.
#[inline(always)]
unsafe fn atomic_add(to: *mut u64, amount: u64) {
    // SAFETY: the caller's; the instruction touches nothing else.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({to} + 0) += {amount}",
            to = in(reg) to,
            amount = in(reg) amount,
            options(nostack, preserves_flags),
        );
    }
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        use core::sync::atomic::{AtomicU64, Ordering};

        AtomicU64::from_ptr(to).fetch_add(amount, Ordering::Relaxed);
    }
}

/// Monotonic time in nanoseconds.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { bpf_ktime_get_ns() }
}

/// The bytes of the packet once it is cut for the wire.
#[inline(always)]
fn wire_length(skb: &Skb) -> u64 {
    // SAFETY: the context is valid for the whole program, and the field is readable in tc.
    let segments = unsafe { (*skb.raw()).gso_segs };
    u64::from(skb.len()) + u64::from(segments.saturating_sub(1)) * SEGMENT_HEADERS
}

/// Nanoseconds that so many bytes, at most [`LARGEST_BURST`], take at this rate.
#[inline(always)]
fn time_for(bytes: u64, bytes_per_second: u64) -> u64 {
    bytes * SECOND / bytes_per_second
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000 * SECOND;

    fn shared(bucket: &mut Bucket) -> Shared {
        Shared {
            rate: bucket.bytes_per_second,
            bucket,
        }
    }

    /// A thousand bytes per second.
    fn kilobyte(burst: u64) -> Bucket {
        Bucket {
            bytes_per_second: 1_000,
            burst,
            full_at: 0,
        }
    }

    /// How many packets of 100 bytes pass when one comes every millisecond for so many seconds.
    fn passed(bucket: &Shared, from: u64, seconds: u64) -> u64 {
        (0..seconds * 1_000)
            .map(|millisecond| u64::from(bucket.admits(from + millisecond * SECOND / 1_000, 100)))
            .sum()
    }

    #[test]
    fn the_rate_and_one_burst_pass() {
        let mut bucket = kilobyte(1_000);
        let bucket = shared(&mut bucket);
        // Ten packets per second, and ten of the burst.
        assert_eq!(passed(&bucket, NOW, 10), 100 + 10);
        // The burst is used up, and does not come back while packets do.
        assert_eq!(passed(&bucket, NOW + 10 * SECOND, 10), 100);
        // After a pause it is full, and no fuller than that.
        assert_eq!(passed(&bucket, NOW + 100 * SECOND, 10), 100 + 10);
    }

    #[test]
    fn no_bucket_is_too_small_for_tcp() {
        let mut bucket = kilobyte(1);
        assert_eq!(passed(&shared(&mut bucket), NOW, 10), 100 + 2 + 1);
    }

    #[test]
    fn a_packet_larger_than_the_bucket_passes_and_is_paid_for() {
        let mut bucket = kilobyte(1_000);
        let bucket = shared(&mut bucket);
        assert!(bucket.admits(NOW, 65_536));
        assert!(!bucket.admits(NOW + 64 * SECOND, 1));
        assert!(bucket.admits(NOW + 65 * SECOND, 1));
    }

    #[test]
    fn departures_are_spaced_by_the_rate_after_the_burst() {
        let mut bucket = kilobyte(200);
        let bucket = shared(&mut bucket);
        let tenth = SECOND / 10;
        let waits: Vec<u64> = (0..5)
            .map(|_| bucket.departure(NOW, 100).unwrap().saturating_sub(NOW))
            .collect();
        assert_eq!(waits, [0, 0, 0, tenth, 2 * tenth]);
    }

    #[test]
    fn no_departure_lies_beyond_the_horizon() {
        let mut bucket = kilobyte(0);
        let bucket = shared(&mut bucket);
        let queued = (0..100)
            .map_while(|_| bucket.departure(NOW, 100))
            .collect::<Vec<_>>();
        assert_eq!(queued.len(), 21);
        assert_eq!(queued.last(), Some(&(NOW + HORIZON)));
        assert!(bucket.departure(NOW + SECOND, 100).is_some());
    }

    #[test]
    fn absurd_limits_are_no_danger() {
        let limit = |bytes_per_second| Bucket {
            bytes_per_second,
            burst: u64::MAX,
            full_at: 0,
        };
        // Sums that do not fit would panic here.
        let mut slowest = limit(1);
        let slowest = shared(&mut slowest);
        while slowest.admits(NOW, u64::from(u32::MAX)) {}
        assert_eq!(slowest.departure(NOW, u64::from(u32::MAX)), None);
        let mut fastest = limit(u64::MAX);
        let fastest = shared(&mut fastest);
        for _ in 0..10 {
            assert!(fastest.admits(NOW, u64::from(u32::MAX)));
            assert_eq!(fastest.departure(NOW, u64::from(u32::MAX)), Some(NOW));
        }
    }

    #[test]
    fn what_several_cpus_spend_is_not_lost() {
        let mut bucket = kilobyte(LARGEST_BURST);
        bucket.full_at = NOW;
        let clock = &raw mut bucket.full_at as usize;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        // SAFETY: the bucket outlives the scope and is only added to meanwhile.
                        unsafe { atomic_add(clock as *mut u64, 3) };
                    }
                });
            }
        });
        assert_eq!(bucket.full_at, NOW + 4 * 10_000 * 3);
    }
}
