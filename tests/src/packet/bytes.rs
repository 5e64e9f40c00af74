//! Packets as bytes: built from parts, taken apart, checksums proven.

use std::net::Ipv4Addr;

/// A MAC address.
pub type Mac = [u8; 6];

/// What follows the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// TCP with these flags (`FIN` 1, `SYN` 2, `RST` 4, `ACK` 16).
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flags.
        flags: u8,
        /// Data.
        data: Vec<u8>,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Whether the checksum is computed, or zero.
        checksum: bool,
        /// Data.
        data: Vec<u8>,
    },
    /// ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum.
        rest: [u8; 4],
        /// Data.
        data: Vec<u8>,
    },
    /// Another protocol.
    Other {
        /// Its number.
        protocol: u8,
        /// Data.
        data: Vec<u8>,
    },
}

/// An IPv4 packet on Ethernet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source MAC address.
    pub source_mac: Mac,
    /// Destination MAC address.
    pub destination_mac: Mac,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// IP options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// The rest.
    pub payload: Payload,
}

/// TCP SYN.
pub const SYN: u8 = 2;
/// TCP ACK.
pub const ACK: u8 = 16;
/// TCP FIN.
pub const FIN: u8 = 1;
/// TCP RST.
pub const RST: u8 = 4;

impl Packet {
    /// A packet with a TTL of 64 and no options.
    #[must_use]
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, payload: Payload) -> Self {
        Self {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: weft_abi::GATEWAY_MAC,
            source,
            destination,
            ttl: 64,
            fragment: 0,
            options: Vec::new(),
            payload,
        }
    }

    /// Sent by the pod interface with this MAC address.
    #[must_use]
    pub fn sent_by(mut self, mac: Mac) -> Self {
        self.source_mac = mac;
        self
    }

    /// The packet on the wire, checksums right.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let l4 = self.payload.to_bytes(self.source, self.destination);
        let mut bytes = Vec::new();
        bytes.extend(self.destination_mac);
        bytes.extend(self.source_mac);
        bytes.extend(0x0800_u16.to_be_bytes());
        let header = 20 + self.options.len();
        let mut ip = vec![0x40 | u8::try_from(header / 4).unwrap_or(0xf), 0];
        ip.extend(
            u16::try_from(header + l4.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        ip.extend([0x12, 0x34]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.payload.protocol(), 0, 0]);
        ip.extend(self.source.octets());
        ip.extend(self.destination.octets());
        ip.extend(&self.options);
        let sum = checksum(&[&ip]).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        bytes.extend(ip);
        bytes.extend(l4);
        bytes
    }

    /// Takes a packet apart, and proves every checksum.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let get = |range: std::ops::Range<usize>| {
            bytes
                .get(range.clone())
                .ok_or(format!("no bytes {range:?}"))
        };
        let mac = |start: usize| -> Result<Mac, String> {
            get(start..start + 6)?
                .try_into()
                .map_err(|_| "short".to_owned())
        };
        let word = |at: usize| -> Result<u16, String> {
            let bytes = get(at..at + 2)?;
            Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let address = |at: usize| -> Result<Ipv4Addr, String> {
            let bytes: [u8; 4] = get(at..at + 4)?
                .try_into()
                .map_err(|_| "short".to_owned())?;
            Ok(bytes.into())
        };
        let header = usize::from(get(14..15)?[0] & 0xf) * 4;
        if checksum(&[get(14..14 + header)?]) != 0 {
            return Err("the IP checksum is wrong".to_owned());
        }
        let end = 14 + usize::from(word(16)?);
        let (source, destination) = (address(26)?, address(30)?);
        let l4 = 14 + header;
        let segment = get(l4..end)?;
        let pseudo = pseudo_header(source, destination, get(23..24)?[0], segment.len());
        let payload = match get(23..24)?[0] {
            6 => {
                if checksum(&[&pseudo, segment]) != 0 {
                    return Err("the TCP checksum is wrong".to_owned());
                }
                Payload::Tcp {
                    source: word(l4)?,
                    destination: word(l4 + 2)?,
                    flags: get(l4 + 13..l4 + 14)?[0],
                    data: get(l4 + 20..end)?.to_vec(),
                }
            }
            17 => {
                let has = word(l4 + 6)? != 0;
                if has && checksum(&[&pseudo, segment]) != 0 {
                    return Err("the UDP checksum is wrong".to_owned());
                }
                Payload::Udp {
                    source: word(l4)?,
                    destination: word(l4 + 2)?,
                    checksum: has,
                    data: get(l4 + 8..end)?.to_vec(),
                }
            }
            1 => {
                if checksum(&[segment]) != 0 {
                    return Err("the ICMP checksum is wrong".to_owned());
                }
                Payload::Icmp {
                    kind: segment[0],
                    code: segment[1],
                    rest: get(l4 + 4..l4 + 8)?
                        .try_into()
                        .map_err(|_| "short".to_owned())?,
                    data: get(l4 + 8..end)?.to_vec(),
                }
            }
            protocol => Payload::Other {
                protocol,
                data: segment.to_vec(),
            },
        };
        Ok(Self {
            source_mac: mac(6)?,
            destination_mac: mac(0)?,
            source,
            destination,
            ttl: get(22..23)?[0],
            fragment: word(20)?,
            options: get(34..l4)?.to_vec(),
            payload,
        })
    }
}

impl Payload {
    /// A TCP segment without data.
    #[must_use]
    pub fn tcp(source: u16, destination: u16, flags: u8) -> Self {
        Self::Tcp {
            source,
            destination,
            flags,
            data: Vec::new(),
        }
    }

    /// A UDP datagram with a few bytes.
    #[must_use]
    pub fn udp(source: u16, destination: u16) -> Self {
        Self::Udp {
            source,
            destination,
            checksum: true,
            data: b"hello".to_vec(),
        }
    }

    /// An ICMP echo request, or its reply.
    #[must_use]
    pub fn echo(request: bool, identifier: u16) -> Self {
        let [high, low] = identifier.to_be_bytes();
        let kind = if request { 8 } else { 0 };
        Self::Icmp {
            kind,
            code: 0,
            rest: [high, low, 0, 1],
            data: b"ping".to_vec(),
        }
    }

    fn protocol(&self) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Icmp { .. } => 1,
            Self::Other { protocol, .. } => *protocol,
        }
    }

    fn to_bytes(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Tcp {
                source,
                destination,
                flags,
                data,
            } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.extend(data);
                let pseudo = pseudo_header(from, to, 6, bytes.len());
                let sum = checksum(&[&pseudo, &bytes]).to_be_bytes();
                bytes[16..18].copy_from_slice(&sum);
            }
            Self::Udp {
                source,
                destination,
                checksum: has,
                data,
            } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                let length = u16::try_from(8 + data.len()).unwrap_or(u16::MAX);
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(data);
                if *has {
                    let pseudo = pseudo_header(from, to, 17, bytes.len());
                    let sum = checksum(&[&pseudo, &bytes]).to_be_bytes();
                    bytes[6..8].copy_from_slice(&sum);
                }
            }
            Self::Icmp {
                kind,
                code,
                rest,
                data,
            } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                bytes.extend(data);
                let sum = checksum(&[&bytes]).to_be_bytes();
                bytes[2..4].copy_from_slice(&sum);
            }
            Self::Other { data, .. } => bytes.extend(data),
        }
        bytes
    }
}

fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend([0, protocol]);
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    bytes
}

/// The Internet checksum of these parts, one after the other; all but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        for payload in [
            Payload::tcp(1, 2, SYN),
            Payload::udp(3, 4),
            Payload::echo(true, 7),
            Payload::Other {
                protocol: 132,
                data: vec![1; 12],
            },
        ] {
            let packet = Packet::new(a, b, payload);
            assert_eq!(Packet::parse(&packet.to_bytes()), Ok(packet));
        }
    }

    #[test]
    fn a_wrong_checksum_is_seen() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut bytes = Packet::new(a, b, Payload::udp(3, 4)).to_bytes();
        bytes[36] ^= 1;
        assert!(Packet::parse(&bytes).is_err());
    }
}
