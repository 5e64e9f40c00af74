//! Packets as bytes: built from parts, taken apart, checksums proven. One form for both families.

mod checksum;
mod parse;
mod write;

use std::net::IpAddr;

use super::Family;

pub use parse::{finish, sound, tcp_numbers};

/// A MAC address.
pub type Mac = [u8; 6];

/// What follows the IP header and its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// TCP with these flags (`FIN` 1, `SYN` 2, `RST` 4, `ACK` 16). What is sent has the sequence
    /// number 1 and the acknowledgement number 2.
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
    /// SCTP.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Whether the checksum is computed, or zero: left to a device.
        checksum: bool,
        /// Chunks.
        data: Vec<u8>,
    },
    /// An echo request or reply, of the packet's family.
    Echo {
        /// A request, or a reply.
        request: bool,
        /// Identifier.
        identifier: u16,
        /// Sequence number.
        sequence: u16,
        /// Data.
        data: Vec<u8>,
    },
    /// An ICMP error of the packet's family.
    Error {
        /// What is wrong.
        error: IcmpError,
        /// The start of the packet it is about, from its IP header on.
        quote: Vec<u8>,
    },
    /// Other ICMP of the packet's family.
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
    /// Another protocol; or of any, a piece.
    Other {
        /// Its number.
        protocol: u8,
        /// Data.
        data: Vec<u8>,
    },
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody listens.
    PortUnreachable,
    /// No way there.
    NoRoute,
    /// Forbidden by an administrator.
    Prohibited,
    /// Too big; what fits, in bytes.
    TooBig(u32),
    /// Time to live over.
    TimeExceeded,
    /// A header that is not understood; its offset.
    Problem(u8),
}

/// A part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The datagram's identification; IPv4 has the lower 16 bits.
    pub id: u32,
    /// Where it starts, in bytes; a multiple of 8.
    pub offset: u16,
    /// Whether more follows.
    pub more: bool,
}

/// An IPv6 extension header; contents without the first two bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options.
    HopByHop(Vec<u8>),
    /// Routing.
    Routing(Vec<u8>),
    /// Fragment.
    Fragment(Fragment),
    /// Authentication.
    Authentication(Vec<u8>),
    /// Destination options.
    Destination(Vec<u8>),
}

/// An IP packet on Ethernet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source MAC address.
    pub source_mac: Mac,
    /// Destination MAC address.
    pub destination_mac: Mac,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// IPv4: routers must not fragment it. (IPv6: never.)
    pub dont_fragment: bool,
    /// IPv4: which fragment it is. IPv6 has an extension header for that; see [`Packet::fragment`].
    pub fragment: Option<Fragment>,
    /// IPv4 options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers, in their order.
    pub extensions: Vec<Extension>,
    /// The rest.
    pub payload: Payload,
}

/// The start of a packet, as an ICMP error quotes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// As much as is there of what follows the IP header and its extensions.
    pub transport: Vec<u8>,
    /// Whether that is all of it.
    pub complete: bool,
}

/// The type of an SCTP chunk that opens an association.
pub const INIT: u8 = 1;
/// The type of the one that makes it one.
pub const COOKIE_ECHO: u8 = 10;
/// The type of an SCTP chunk with data.
pub const DATA: u8 = 0;
/// TCP SYN.
pub const SYN: u8 = 2;
/// TCP ACK.
pub const ACK: u8 = 16;
/// TCP FIN.
pub const FIN: u8 = 1;
/// TCP RST.
pub const RST: u8 = 4;

impl Packet {
    /// A packet with a TTL of 64, no options and no extensions.
    #[must_use]
    pub fn new(
        source: impl Into<IpAddr>,
        destination: impl Into<IpAddr>,
        payload: Payload,
    ) -> Self {
        Self {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: weft_abi::GATEWAY_MAC,
            source: source.into(),
            destination: destination.into(),
            ttl: 64,
            dont_fragment: false,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
            payload,
        }
    }

    /// Sent by the interface with this MAC address.
    #[must_use]
    pub fn sent_by(mut self, mac: Mac) -> Self {
        self.source_mac = mac;
        self
    }

    /// With these extension headers, in their order; IPv6.
    #[must_use]
    pub fn with_extensions(mut self, extensions: &[Extension]) -> Self {
        self.extensions = extensions.to_vec();
        self
    }

    /// As it is when it goes on after a router.
    #[must_use]
    pub fn routed(mut self) -> Self {
        self.ttl -= 1;
        self
    }

    /// Its family.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.source)
    }

    /// Which part of a datagram it is; `None`: it is whole and does not say otherwise.
    #[must_use]
    pub fn fragment(&self) -> Option<Fragment> {
        let in_extensions = self
            .extensions
            .iter()
            .find_map(|extension| match extension {
                Extension::Fragment(fragment) => Some(*fragment),
                _ => None,
            });
        self.fragment.or(in_extensions)
    }

    /// Makes it a fragment: its payload is what the fragment carries. The IPv6 header goes behind
    /// the extensions that are there.
    #[must_use]
    pub fn with_fragment(mut self, fragment: Fragment) -> Self {
        match self.family() {
            Family::V4 => self.fragment = Some(fragment),
            Family::V6 => self.extensions.push(Extension::Fragment(fragment)),
        }
        self
    }

    /// Its fragments, of `size` bytes of the payload each (a multiple of 8).
    #[must_use]
    pub fn split(&self, size: usize, id: u32) -> Vec<Self> {
        self.split_behind(self.extensions.len(), size, id)
    }

    /// Its fragments, of `size` bytes each (a multiple of 8), all of which have the first
    /// `unfragmented` extension headers; the others are in the first.
    #[must_use]
    pub fn split_behind(&self, unfragmented: usize, size: usize, id: u32) -> Vec<Self> {
        let mut protocol = self.payload.protocol(self.family());
        let mut whole = self.transport();
        for extension in self.extensions[unfragmented..].iter().rev() {
            let mut header = extension.to_bytes(protocol);
            header.extend(whole);
            whole = header;
            protocol = extension.number();
        }
        let last = whole.len().div_ceil(size) - 1;
        let pieces = whole.chunks(size).enumerate();
        let pieces = pieces.map(|(index, data)| {
            let mut piece = self.clone();
            piece.extensions.truncate(unfragmented);
            piece.payload = Payload::Other {
                protocol,
                data: data.to_vec(),
            };
            piece.with_fragment(Fragment {
                id,
                offset: u16::try_from(index * size).unwrap_or(u16::MAX),
                more: index < last,
            })
        });
        pieces.collect()
    }

    /// The ICMP error that `router` sends about it, quoting that many bytes of its transport.
    #[must_use]
    pub fn error(&self, router: IpAddr, error: IcmpError, transport: usize) -> Self {
        let quote = self.quote(transport);
        Self::new(router, self.source, Payload::Error { error, quote })
    }

    /// Length of the IP packet in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.to_ip().len()
    }
}

impl Payload {
    /// A TCP segment without data.
    #[must_use]
    pub const fn tcp(source: u16, destination: u16, flags: u8) -> Self {
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
        Self::udp_with(source, destination, b"hello".to_vec())
    }

    /// A UDP datagram with these bytes.
    #[must_use]
    pub const fn udp_with(source: u16, destination: u16, data: Vec<u8>) -> Self {
        Self::Udp {
            source,
            destination,
            checksum: true,
            data,
        }
    }

    /// An SCTP packet with one chunk of this type, such as [`INIT`].
    #[must_use]
    pub fn sctp(source: u16, destination: u16, chunk: u8) -> Self {
        let mut data = vec![chunk, 0, 0, 20];
        data.extend([7; 16]);
        Self::Sctp {
            source,
            destination,
            checksum: true,
            data,
        }
    }

    /// An echo request, or its reply.
    #[must_use]
    pub fn echo(request: bool, identifier: u16) -> Self {
        Self::Echo {
            request,
            identifier,
            sequence: 1,
            data: b"ping".to_vec(),
        }
    }

    /// Source and destination port, of TCP, UDP and SCTP.
    ///
    /// # Panics
    ///
    /// When it has none.
    #[must_use]
    #[track_caller]
    pub fn ports(&self) -> (u16, u16) {
        match self {
            Self::Tcp {
                source,
                destination,
                ..
            }
            | Self::Udp {
                source,
                destination,
                ..
            }
            | Self::Sctp {
                source,
                destination,
                ..
            } => (*source, *destination),
            other => panic!("no ports in {other:?}"),
        }
    }

    /// What tells its flow from others of the same addresses, as far as the sender chooses it: the
    /// source port, or the identifier.
    ///
    /// # Panics
    ///
    /// When it has neither.
    #[must_use]
    #[track_caller]
    pub fn source_port(&self) -> u16 {
        match self {
            Self::Echo { identifier, .. } => *identifier,
            other => other.ports().0,
        }
    }

    /// The same from another source port, or with another identifier.
    ///
    /// # Panics
    ///
    /// When it has neither.
    #[must_use]
    #[track_caller]
    pub fn with_source_port(mut self, port: u16) -> Self {
        match &mut self {
            Self::Tcp { source, .. } | Self::Udp { source, .. } | Self::Sctp { source, .. } => {
                *source = port;
            }
            Self::Echo { identifier, .. } => *identifier = port,
            other => panic!("no source port in {other:?}"),
        }
        self
    }

    /// The same to another destination port.
    ///
    /// # Panics
    ///
    /// When it has none.
    #[must_use]
    #[track_caller]
    pub fn with_destination_port(mut self, port: u16) -> Self {
        match &mut self {
            Self::Tcp { destination, .. }
            | Self::Udp { destination, .. }
            | Self::Sctp { destination, .. } => *destination = port,
            other => panic!("no destination port in {other:?}"),
        }
        self
    }

    /// What the other end answers: ports turned around, a reply for a request.
    ///
    /// # Panics
    ///
    /// When nobody answers such a thing.
    #[must_use]
    #[track_caller]
    pub fn answer(&self) -> Self {
        let mut answer = self.clone();
        match &mut answer {
            Self::Tcp {
                source,
                destination,
                flags,
                ..
            } => {
                std::mem::swap(source, destination);
                *flags |= ACK;
            }
            Self::Udp {
                source,
                destination,
                ..
            } => std::mem::swap(source, destination),
            Self::Sctp {
                source,
                destination,
                data,
                ..
            } => {
                std::mem::swap(source, destination);
                if data.first() == Some(&INIT) {
                    // INIT ACK.
                    data[0] = 2;
                }
            }
            Self::Echo { request, .. } => *request = !*request,
            other => panic!("no answer to {other:?}"),
        }
        answer
    }

    /// The protocol number in this family.
    #[must_use]
    pub const fn protocol(&self, family: Family) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Sctp { .. } => 132,
            Self::Echo { .. } | Self::Error { .. } | Self::Icmp { .. } => family.icmp(),
            Self::Other { protocol, .. } => *protocol,
        }
    }
}

impl IcmpError {
    /// Type, code and the four bytes after the checksum.
    const fn encode(self, family: Family) -> (u8, u8, [u8; 4]) {
        match (family, self) {
            (Family::V4, Self::PortUnreachable) => (3, 3, [0; 4]),
            (Family::V4, Self::NoRoute) => (3, 0, [0; 4]),
            (Family::V4, Self::Prohibited) => (3, 13, [0; 4]),
            (Family::V4, Self::TooBig(mtu)) => {
                let [_, _, high, low] = mtu.to_be_bytes();
                (3, 4, [0, 0, high, low])
            }
            (Family::V4, Self::TimeExceeded) => (11, 0, [0; 4]),
            (Family::V4, Self::Problem(at)) => (12, 0, [at, 0, 0, 0]),
            (Family::V6, Self::PortUnreachable) => (1, 4, [0; 4]),
            (Family::V6, Self::NoRoute) => (1, 0, [0; 4]),
            (Family::V6, Self::Prohibited) => (1, 1, [0; 4]),
            (Family::V6, Self::TooBig(mtu)) => (2, 0, mtu.to_be_bytes()),
            (Family::V6, Self::TimeExceeded) => (3, 0, [0; 4]),
            (Family::V6, Self::Problem(at)) => (4, 0, [0, 0, 0, at]),
        }
    }

    fn decode(family: Family, kind: u8, code: u8, rest: [u8; 4]) -> Option<Self> {
        let mtu = u32::from_be_bytes(rest);
        let at = family.pick(rest[0], rest[3]);
        [
            Self::PortUnreachable,
            Self::NoRoute,
            Self::Prohibited,
            Self::TooBig(mtu),
            Self::TimeExceeded,
            Self::Problem(at),
        ]
        .into_iter()
        .find(|error| error.encode(family) == (kind, code, rest))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::packet::{FAMILIES, Place, Somewhere as _};

    const A: Place = Place {
        v4: Ipv4Addr::new(10, 0, 0, 1),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
    };
    const B: Place = Place {
        v4: Ipv4Addr::new(10, 0, 0, 2),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
    };

    fn long() -> Payload {
        let bytes = (0..3_001_u16).map(|index| (index % 251) as u8);
        Payload::udp_with(3, 4, bytes.collect())
    }

    /// All kinds of extension headers but the fragment header.
    fn extensions() -> Vec<Extension> {
        vec![
            Extension::HopByHop(vec![1, 4, 0, 0, 0, 0]),
            Extension::Destination(vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Extension::Routing(vec![0; 6]),
            Extension::Authentication(vec![7; 22]),
        ]
    }

    #[test]
    fn round_trips() {
        for family in FAMILIES {
            let sent = family.packet(A, B, long());
            for payload in [
                Payload::tcp(1, 2, SYN),
                Payload::udp(3, 4),
                Payload::sctp(5, 6, INIT),
                Payload::Sctp {
                    source: 5,
                    destination: 6,
                    checksum: false,
                    data: Vec::new(),
                },
                Payload::echo(true, 7),
                Payload::echo(false, 7),
                Payload::Other {
                    protocol: 47,
                    data: vec![1; 12],
                },
                Payload::Error {
                    error: IcmpError::TooBig(1400),
                    quote: sent.quote(8),
                },
                Payload::Error {
                    error: IcmpError::Problem(9),
                    quote: sent.quote(usize::MAX),
                },
            ] {
                let mut packet = family.packet(A, B, payload);
                assert_eq!(Packet::parse(&packet.to_bytes()), Ok(packet.clone()));
                match family {
                    Family::V4 => packet.options = vec![1; 8],
                    Family::V6 => packet.extensions = extensions(),
                }
                assert_eq!(Packet::parse(&packet.to_bytes()), Ok(packet));
            }
        }
    }

    #[test]
    fn one_wrong_bit_is_seen_wherever_a_checksum_covers_it() {
        for family in FAMILIES {
            for payload in [
                Payload::tcp(1, 2, SYN),
                Payload::udp(3, 4),
                Payload::echo(true, 7),
            ] {
                let whole = family.packet(A, B, payload);
                let transport = 14 + family.header();
                let bytes = whole.to_bytes();
                // Addresses and all that follows; not the UDP length, which is no checksum's matter.
                for at in (transport - 2 * usize::from(family.bits()) / 8)..bytes.len() {
                    let mut broken = bytes.clone();
                    broken[at] ^= 4;
                    assert!(Packet::parse(&broken).is_err(), "{family:?}, byte {at}");
                }
                // Also inside of a quote, whose own checksums cover it.
                let error = whole.error(B.at(family), IcmpError::TimeExceeded, usize::MAX);
                let Payload::Error { error, quote } = error.payload else {
                    panic!("an error")
                };
                let mut broken = quote.clone();
                let last = broken.len() - 1;
                broken[last] ^= 1;
                let broken = family.packet(
                    A,
                    B,
                    Payload::Error {
                        error,
                        quote: broken,
                    },
                );
                assert!(Packet::parse(&broken.to_bytes()).is_err());
            }
        }
    }

    #[test]
    fn fragments_make_the_whole_again() {
        for family in FAMILIES {
            let mut packet = family.packet(A, B, long());
            if family == Family::V6 {
                packet.extensions = extensions();
            }
            for unfragmented in 0..=packet.extensions.len() {
                let mut pieces = packet.split_behind(unfragmented, 1_400, 77);
                assert_eq!(pieces.len(), 3);
                for piece in &pieces {
                    assert_eq!(Packet::parse(&piece.to_bytes()), Ok(piece.clone()));
                }
                pieces.reverse();
                assert_eq!(Packet::reassemble(&pieces), Ok(packet.clone()));
                assert!(Packet::reassemble(&pieces[1..]).is_err());
                assert!(Packet::reassemble(&pieces[..2]).is_err());
                if let Payload::Other { data, .. } = &mut pieces[0].payload {
                    data[0] ^= 1;
                }
                assert!(Packet::reassemble(&pieces).is_err(), "a wrong checksum");
            }
        }
    }

    #[test]
    fn the_families_icmp_numbers() {
        for (error, v4, v6) in [
            (IcmpError::PortUnreachable, (3, 3), (1, 4)),
            (IcmpError::NoRoute, (3, 0), (1, 0)),
            (IcmpError::Prohibited, (3, 13), (1, 1)),
            (IcmpError::TooBig(1280), (3, 4), (2, 0)),
            (IcmpError::TimeExceeded, (11, 0), (3, 0)),
            (IcmpError::Problem(6), (12, 0), (4, 0)),
        ] {
            for (family, (kind, code)) in [(Family::V4, v4), (Family::V6, v6)] {
                let encoded = error.encode(family);
                assert_eq!((encoded.0, encoded.1), (kind, code));
                assert_eq!(
                    IcmpError::decode(family, kind, code, encoded.2),
                    Some(error)
                );
            }
        }
    }
}
