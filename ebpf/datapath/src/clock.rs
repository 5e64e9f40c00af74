//! Time in kernel ticks: what a `last_seen` is compared with.

use aya_ebpf::helpers::bpf_jiffies64;

/// Ticks since boot, low 32 bits. One load on every kernel since 5.6, where the clock helpers cost
/// tens of nanoseconds.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes nothing and returns a number.
    (unsafe { bpf_jiffies64() }) as u32
}

/// Ticks from `then` to `now`, across the wrap of 32 bits.
#[inline(always)]
pub fn since(now: u32, then: u32) -> u32 {
    now.wrapping_sub(then)
}

#[cfg(test)]
mod tests {
    #[test]
    fn wraps() {
        assert_eq!(super::since(3, u32::MAX - 1), 5);
    }
}
