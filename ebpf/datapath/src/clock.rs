//! Time in kernel ticks: what a `last_seen` is compared with.

use aya_ebpf::helpers::bpf_jiffies64;

/// Ticks since boot, low 32 bits. One load on every kernel since 5.6, where the clock helpers cost
/// tens of nanoseconds.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes nothing and returns a number.
    (unsafe { bpf_jiffies64() }) as u32
}

/// How far in the future a time may lie: another CPU reads the clock after this one did and writes
/// its time down first, and a virtual CPU can stand still in between.
const AHEAD: u32 = 1 << 12;

/// Ticks from `then` to `now`, across the wrap of 32 bits; 0 when `then` is the later one.
#[inline(always)]
pub fn since(now: u32, then: u32) -> u32 {
    let ticks = now.wrapping_sub(then);
    if ticks > u32::MAX - AHEAD { 0 } else { ticks }
}

#[cfg(test)]
mod tests {
    #[test]
    fn wraps() {
        assert_eq!(super::since(3, u32::MAX - 1), 5);
    }

    #[test]
    fn what_another_cpu_saw_later_is_now() {
        assert_eq!(super::since(100, 101), 0);
        assert_eq!(super::since(u32::MAX, 3), 0);
    }
}
