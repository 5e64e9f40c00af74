//! The number of a flow that every node computes the same, for its place in Maglev tables.
//!
//! Multiply and rotate per word, with the final mix of MurmurHash3: places are even, and neighbouring
//! ports far from each other. It needs no secret: who knows his place has no more than a backend.

/// A hash under way.
#[derive(Clone, Copy)]
pub struct Hash(u32);

impl Hash {
    /// Begins with the protocol and the ports.
    #[inline(always)]
    pub fn of(protocol: u8, source_port: u16, destination_port: u16) -> Self {
        Self(u32::from(protocol)).word(u32::from(source_port) << 16 | u32::from(destination_port))
    }

    /// Adds a word.
    #[inline(always)]
    pub fn word(self, word: u32) -> Self {
        let mixed = (self.0 ^ word.wrapping_mul(0xcc9e_2d51)).rotate_left(13);
        Self(mixed.wrapping_mul(5).wrapping_add(0xe654_6b64))
    }

    /// The number.
    #[inline(always)]
    pub fn finish(self) -> u32 {
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
        mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
        mixed ^ (mixed >> 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_ports_spread_evenly() {
        let places: u32 = 251;
        let mut counts = vec![0_u32; places as usize];
        for port in 1_024..=u16::MAX {
            let hash = Hash::of(6, port, 80).word(0x0a00_0001).finish();
            counts[(hash % places) as usize] += 1;
        }
        let mean = 64_512 / places;
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(
            least.is_some_and(|least| *least > mean * 3 / 4),
            "{least:?} of {mean}"
        );
        assert!(
            most.is_some_and(|most| *most < mean * 5 / 4),
            "{most:?} of {mean}"
        );
    }
}
