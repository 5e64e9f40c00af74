//! Incremental Internet checksums (RFC 1071, RFC 1624).

/// The ones' complement sum of `words`, as `new - old` for checksum updates: add the complements of
/// what goes and what comes. Order does not matter, so a sum may mix addresses and ports.
#[derive(Clone, Copy, Default)]
pub struct Difference(u32);

impl Difference {
    /// No change.
    pub const NONE: Self = Self(0);

    /// Accounts for a 16-bit word that was not there before.
    #[inline(always)]
    #[must_use]
    pub fn adds(self, word: u16) -> Self {
        Self(self.0 + u32::from(word))
    }

    /// Accounts for a 16-bit word that changes. Both in the same byte order.
    #[inline(always)]
    #[must_use]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u32::from(!old) + u32::from(new))
    }

    /// Accounts for 32 bits that change, on a 16-bit boundary.
    #[inline(always)]
    #[must_use]
    pub fn double(self, old: u32, new: u32) -> Self {
        self.word(old as u16, new as u16)
            .word((old >> 16) as u16, (new >> 16) as u16)
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum, folded to 16 bits; what `bpf_l4_csum_replace` takes as `to` with size 0.
    #[inline(always)]
    #[must_use]
    pub fn folded(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// The checksum after the change (RFC 1624, equation 3).
    #[inline(always)]
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !Self(u32::from(!checksum) + u32::from(self.folded())).folded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|word| u32::from(*word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn incremental_equals_full() {
        let mut words = [
            0x4500, 0x0073, 0, 0x4000, 0x4011, 0, 0xc0a8, 0x0001, 0xc0a8, 0x00c7,
        ];
        let before = checksum(&words);
        assert_eq!(before, 0xb861, "the example of every textbook");
        for (index, new) in [(4, 0x3f11), (6, 0xffff), (7, 0), (8, 0x0a00), (9, 0x1234)] {
            let after = Difference::NONE
                .word(words[index], new)
                .apply(checksum(&words));
            words[index] = new;
            assert_eq!(after, checksum(&words), "word {index}");
        }
    }

    #[test]
    fn double_is_two_words() {
        let words = [0x1234, 0x5678, 0x9abc];
        let after = Difference::NONE
            .double(0x1234_5678, 0xdead_beef)
            .apply(checksum(&words));
        assert_eq!(after, checksum(&[0xdead, 0xbeef, 0x9abc]));
    }
}
