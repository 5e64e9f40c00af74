//! SCTP's checksum (RFC 9260, section 6.8, appendix A): a CRC32c of the whole packet.
//!
//! It is linear: what changing the ports changes of it depends on the changed bits and the packet's
//! length, not on the rest of the packet. So a translated packet is mended without reading it.

/// The polynomial of CRC32c, lowest power first: bit 31 is that of x^0.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The largest packet, in bits of its length.
const LENGTH_BITS: usize = 16;

/// x^(8 * 2^n) modulo the polynomial, for each bit n of a length in bytes.
const POWERS: [u32; LENGTH_BITS] = {
    let mut powers = [0; LENGTH_BITS];
    // x^8.
    powers[0] = 1 << (31 - 8);
    let mut bit = 1;
    while bit < LENGTH_BITS {
        powers[bit] = product(powers[bit - 1], powers[bit - 1]);
        bit += 1;
    }
    powers
};

/// The product of two polynomials, modulo the polynomial. Without branches, so that the verifier walks
/// it once.
const fn product(a: u32, b: u32) -> u32 {
    let (mut factor, mut sum) = (b, 0);
    let mut bit = 0;
    while bit < 32 {
        sum ^= factor & 0_u32.wrapping_sub((a >> (31 - bit)) & 1);
        factor = (factor >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(factor & 1));
        bit += 1;
    }
    sum
}

/// The checksum after the ports, the first four bytes of the packet, changed; `length` is the packet's
/// in bytes, the checksum's value is as it stands in the header (`from_ne_bytes`).
#[inline(always)]
pub fn checksum(old: u32, old_ports: [u8; 4], new_ports: [u8; 4], length: u16) -> u32 {
    let mut change = u32::from_le_bytes(old_ports) ^ u32::from_le_bytes(new_ports);
    let mut bit = 0;
    while bit < LENGTH_BITS {
        // Times x^0 where the bit is not set.
        let times = u32::from(length >> bit & 1);
        let factor = (POWERS[bit] & 0_u32.wrapping_sub(times)) | ((times ^ 1) << 31);
        change = product(change, factor);
        bit += 1;
    }
    // The header has it least significant byte first.
    old ^ u32::from_ne_bytes(change.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as the standard's appendix describes it.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut state = u32::MAX;
        for byte in bytes {
            state ^= u32::from(*byte);
            for _ in 0..8 {
                state = (state >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(state & 1));
            }
        }
        !state
    }

    #[test]
    fn the_standard_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn changed_ports_change_the_checksum_as_computing_it_anew_does() {
        for length in [12_usize, 13, 16, 60, 1_000, 1_452, 9_000, 65_515] {
            let mut packet: Vec<_> = (0..length).map(|index| (index * 31 % 251) as u8).collect();
            packet[8..12].fill(0);
            let old = crc32c(&packet).to_le_bytes();
            let old_ports = [packet[0], packet[1], packet[2], packet[3]];
            for new_ports in [[0, 80, 0x9c, 0x40], [0xff; 4], old_ports] {
                packet[..4].copy_from_slice(&new_ports);
                let new = checksum(u32::from_ne_bytes(old), old_ports, new_ports, length as u16);
                assert_eq!(new.to_ne_bytes(), crc32c(&packet).to_le_bytes(), "{length}");
            }
        }
    }
}
