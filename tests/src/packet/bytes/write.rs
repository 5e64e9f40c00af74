//! Packets to bytes.

use std::net::IpAddr;

use super::{
    Extension, Fragment, Packet, Payload,
    checksum::{checksum, of_sctp, of_segment},
};
use crate::packet::Family;

/// What the headers say the identification is, of packets that are no fragments.
const IDENTIFICATION: u16 = 0x1234;
/// IPv4 "do not fragment".
const DONT_FRAGMENT: u16 = 0x4000;
/// IPv4 "more fragments".
const MORE_FRAGMENTS: u16 = 0x2000;

impl Packet {
    /// The frame on the wire, checksums right.
    ///
    /// # Panics
    ///
    /// When source and destination are of different families.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.destination_mac);
        bytes.extend(self.source_mac);
        let ether_type: u16 = self.family().pick(0x0800, 0x86dd);
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(self.to_ip());
        bytes
    }

    /// The packet without its Ethernet header.
    ///
    /// # Panics
    ///
    /// When source and destination are of different families.
    #[must_use]
    pub fn to_ip(&self) -> Vec<u8> {
        let mut bytes = self.headers();
        bytes.extend(self.transport());
        bytes
    }

    /// What an ICMP error about this packet quotes: its headers and the first bytes of what follows.
    #[must_use]
    pub fn quote(&self, transport: usize) -> Vec<u8> {
        let mut bytes = self.headers();
        bytes.extend(self.transport().iter().take(transport));
        bytes
    }

    /// What follows the IP header and its extensions.
    pub(super) fn transport(&self) -> Vec<u8> {
        self.payload.to_bytes(self.source, self.destination)
    }

    fn headers(&self) -> Vec<u8> {
        let length = self.transport().len();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = 20 + self.options.len();
                let mut ip = vec![0x40 | u8::try_from(header / 4).unwrap_or(0xf), 0];
                let total = u16::try_from(header + length).unwrap_or(u16::MAX);
                ip.extend(total.to_be_bytes());
                let (id, flags) = match &self.fragment {
                    // The lower half: IPv4 has no more.
                    Some(fragment) => (fragment.id as u16, fragment.to_v4()),
                    None => (IDENTIFICATION, 0),
                };
                let flags = flags | if self.dont_fragment { DONT_FRAGMENT } else { 0 };
                ip.extend(id.to_be_bytes());
                ip.extend(flags.to_be_bytes());
                ip.extend([self.ttl, self.payload.protocol(Family::V4), 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(&self.options);
                let sum = checksum(&[&ip]).to_be_bytes();
                ip[10..12].copy_from_slice(&sum);
                ip
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut next = self.payload.protocol(Family::V6);
                let mut chain = Vec::new();
                for extension in self.extensions.iter().rev() {
                    let mut header = extension.to_bytes(next);
                    header.extend(chain);
                    chain = header;
                    next = extension.number();
                }
                let payload = u16::try_from(chain.len() + length).unwrap_or(u16::MAX);
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend(payload.to_be_bytes());
                ip.extend([next, self.ttl]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(chain);
                ip
            }
            (source, destination) => panic!("{source} and {destination} in one packet"),
        }
    }
}

impl Fragment {
    fn to_v4(self) -> u16 {
        (self.offset / 8) | if self.more { MORE_FRAGMENTS } else { 0 }
    }
}

impl Extension {
    /// Its header number.
    #[must_use]
    pub const fn number(&self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(_) => 43,
            Self::Fragment(_) => 44,
            Self::Authentication(_) => 51,
            Self::Destination(_) => 60,
        }
    }

    /// The header, `next` being the number of what follows it.
    ///
    /// # Panics
    ///
    /// When its content does not fill whole units.
    #[must_use]
    pub fn to_bytes(&self, next: u8) -> Vec<u8> {
        let (content, unit, less) = match self {
            Self::HopByHop(content) | Self::Destination(content) | Self::Routing(content) => {
                (content, 8, 1)
            }
            Self::Authentication(content) => (content, 4, 2),
            Self::Fragment(fragment) => {
                let offset = fragment.offset | u16::from(fragment.more);
                let mut bytes = vec![next, 0];
                bytes.extend(offset.to_be_bytes());
                bytes.extend(fragment.id.to_be_bytes());
                return bytes;
            }
        };
        let length = content.len() + 2;
        assert_eq!(length % unit, 0, "{self:?} is no whole header");
        let mut bytes = vec![next, u8::try_from(length / unit - less).unwrap_or(u8::MAX)];
        bytes.extend(content);
        bytes
    }
}

impl Payload {
    pub(super) fn to_bytes(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let family = Family::of(from);
        let protocol = self.protocol(family);
        let mut bytes = Vec::new();
        // Where the checksum is, if there is one.
        let mut at = None;
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
                at = Some(16);
            }
            Self::Udp {
                source,
                destination,
                checksum,
                data,
            } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                let length = u16::try_from(8 + data.len()).unwrap_or(u16::MAX);
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(data);
                at = checksum.then_some(6);
            }
            Self::Sctp {
                source,
                destination,
                checksum,
                data,
            } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                // The verification tag.
                bytes.extend([1, 2, 3, 4]);
                bytes.extend([0; 4]);
                bytes.extend(data);
                if *checksum {
                    let sum = of_sctp(&bytes);
                    bytes[8..12].copy_from_slice(&sum);
                }
            }
            Self::Echo {
                request,
                identifier,
                sequence,
                data,
            } => {
                let kind = match (family, request) {
                    (Family::V4, true) => 8,
                    (Family::V4, false) => 0,
                    (Family::V6, true) => 128,
                    (Family::V6, false) => 129,
                };
                bytes.extend([kind, 0, 0, 0]);
                bytes.extend(identifier.to_be_bytes());
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(data);
                at = Some(2);
            }
            Self::Error { error, quote } => {
                let (kind, code, rest) = error.encode(family);
                bytes.extend([kind, code, 0, 0]);
                bytes.extend(rest);
                bytes.extend(quote);
                at = Some(2);
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
                at = Some(2);
            }
            Self::Other { data, .. } => bytes.extend(data),
        }
        if let Some(at) = at {
            let sum = if protocol == Family::V4.icmp() {
                checksum(&[&bytes])
            } else {
                of_segment(from, to, protocol, &bytes)
            };
            // UDP says "no checksum" with 0, and so writes a sum of 0 as its equal.
            let sum = if sum == 0 && matches!(self, Self::Udp { .. }) {
                u16::MAX
            } else {
                sum
            };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }
}
