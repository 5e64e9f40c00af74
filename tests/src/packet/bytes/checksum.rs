//! Internet checksums, computed the plain way.

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
