//! Internet checksums and SCTP's, computed the plain way.

use std::net::IpAddr;

/// The Internet checksum of these parts, one after the other; all but the last of even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// What TCP, UDP and ICMPv6 checksums cover besides the segment.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    // The two families write the same numbers in different widths; the sums are equal.
    bytes.extend([0, protocol]);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes
}

/// The checksum of a segment with its pseudo-header; 0 when it holds a right one.
pub fn of_segment(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let pseudo = pseudo_header(source, destination, protocol, segment.len());
    checksum(&[&pseudo, segment])
}

/// The CRC32c of these bytes, bit by bit (RFC 9260, appendix A).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut state = u32::MAX;
    for byte in bytes {
        state ^= u32::from(*byte);
        for _ in 0..8 {
            let low = state & 1;
            state >>= 1;
            if low == 1 {
                state ^= 0x82f6_3b78;
            }
        }
    }
    !state
}

/// The checksum of an SCTP packet, as its header has it at byte 8 (RFC 9260, section 6.8).
pub fn of_sctp(packet: &[u8]) -> [u8; 4] {
    let mut zeroed = packet.to_vec();
    zeroed[8..12].fill(0);
    // The least significant byte goes first.
    crc32c(&zeroed).to_le_bytes()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_standard_check_value() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
