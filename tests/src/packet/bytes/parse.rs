//! Bytes to packets, and the proof of every checksum on the way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Extension, Fragment, IcmpError, Packet, Payload, Quote,
    checksum::{checksum, of_sctp, of_segment, pseudo_header},
};
use crate::packet::Family;

impl Packet {
    /// Takes a frame apart, and proves every checksum, also those inside of what an ICMP error
    /// quotes.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        let family = match word(frame, 12)? {
            0x0800 => Family::V4,
            0x86dd => Family::V6,
            other => return Err(format!("EtherType {other:#06x}")),
        };
        let header = Header::parse(family, get(frame, 14, frame.len())?)?;
        let ip = get(frame, 14, 14 + header.end)?;
        let segment = get(ip, header.transport, header.end)?;
        let payload = if header.is_piece() {
            Payload::Other {
                protocol: header.protocol,
                data: segment.to_vec(),
            }
        } else {
            Payload::parse(&header, segment)?
        };
        Ok(Self {
            source_mac: array(frame, 6)?,
            destination_mac: array(frame, 0)?,
            source: header.source,
            destination: header.destination,
            ttl: header.ttl,
            dont_fragment: header.dont_fragment,
            fragment: header.fragment,
            options: header.options,
            extensions: header.extensions,
            payload,
        })
    }

    /// What an ICMP error quotes.
    ///
    /// # Panics
    ///
    /// When it is no error, or its quote is broken: that fails the test.
    #[must_use]
    #[track_caller]
    pub fn quoted(&self) -> Quote {
        match &self.payload {
            Payload::Error { quote, .. } => match Quote::parse(self.family(), quote) {
                Ok(quote) => quote,
                Err(error) => panic!("the quote is broken: {error}"),
            },
            other => panic!("no ICMP error: {other:?}"),
        }
    }

    /// The datagram that these fragments make, its checksums proven.
    ///
    /// # Errors
    ///
    /// Says what is missing, or wrong.
    pub fn reassemble(pieces: &[Self]) -> Result<Self, String> {
        let mut sorted = Vec::new();
        for piece in pieces {
            let fragment = piece.fragment().ok_or("one is no fragment")?;
            let Payload::Other { data, .. } = &piece.payload else {
                return Err("one is complete in itself".to_owned());
            };
            sorted.push((fragment, piece, data));
        }
        sorted.sort_by_key(|(fragment, ..)| fragment.offset);
        let (first_fragment, first, _) = *sorted.first().ok_or("no fragments")?;
        let mut whole = Vec::new();
        for (index, (fragment, piece, data)) in sorted.iter().enumerate() {
            let ends = (piece.source, piece.destination);
            if fragment.id != first_fragment.id || ends != (first.source, first.destination) {
                return Err("they are of several datagrams".to_owned());
            }
            if usize::from(fragment.offset) != whole.len() {
                return Err(format!("a gap or overlap at {}", fragment.offset));
            }
            if fragment.more == (index + 1 == sorted.len()) {
                return Err("the end is missing, or in between".to_owned());
            }
            whole.extend_from_slice(data);
        }
        let mut datagram = first.clone();
        datagram.fragment = None;
        datagram
            .extensions
            .retain(|extension| !matches!(extension, Extension::Fragment(_)));
        let Payload::Other { protocol, .. } = datagram.payload else {
            return Err("no protocol".to_owned());
        };
        datagram.payload = Payload::Other {
            protocol,
            data: whole,
        };
        Self::parse(&datagram.to_bytes())
    }
}

/// Whether a frame is a packet whose headers are there and announce no more than there is. Checksums
/// are not looked at: those are for whom the packet is for.
///
/// # Errors
///
/// Says what is wrong with it.
pub fn sound(frame: &[u8]) -> Result<(), String> {
    let family = match word(frame, 12)? {
        0x0800 => Family::V4,
        0x86dd => Family::V6,
        other => return Err(format!("EtherType {other:#06x}")),
    };
    let ip = get(frame, 14, frame.len())?;
    let header = Header::walk(family, ip)?;
    get(ip, header.transport, header.end)?;
    let least = match header.protocol {
        _ if header.is_later() => 0,
        6 => 20,
        17 => 8,
        protocol if protocol == family.icmp() => 8,
        _ => 0,
    };
    let there = header.end - header.transport;
    if there < least {
        return Err(format!("{there} bytes of protocol {}", header.protocol));
    }
    Ok(())
}

/// Takes a frame apart whose TCP or UDP checksum a device was to finish: so far it is the sum of the
/// pseudo-header, which is proven.
///
/// # Errors
///
/// Says what is wrong with it.
pub fn finish(frame: &[u8]) -> Result<Packet, String> {
    let family = match word(frame, 12)? {
        0x0800 => Family::V4,
        _ => Family::V6,
    };
    let header = Header::parse(family, get(frame, 14, frame.len())?)?;
    let (from, to) = (14 + header.transport, 14 + header.end);
    let length = get(frame, from, to)?.len();
    let pseudo = pseudo_header(header.source, header.destination, header.protocol, length);
    let at = from + if header.protocol == 6 { 16 } else { 6 };
    if word(frame, at)? != !checksum(&[&pseudo]) {
        return Err("the checksum is not that of the pseudo-header".to_owned());
    }
    let mut whole = frame.to_vec();
    whole[at..at + 2].fill(0);
    let sum = checksum(&[&pseudo, &whole[from..to]]);
    whole[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Packet::parse(&whole)
}

/// The sequence and acknowledgement numbers of a TCP segment.
///
/// # Errors
///
/// When it is none.
pub fn tcp_numbers(frame: &[u8]) -> Result<(u32, u32), String> {
    let family = match word(frame, 12)? {
        0x0800 => Family::V4,
        _ => Family::V6,
    };
    let ip = get(frame, 14, frame.len())?;
    let header = Header::parse(family, ip)?;
    if header.protocol != 6 {
        return Err(format!("protocol {}", header.protocol));
    }
    let number = |at| Ok::<_, String>(u32::from_be_bytes(array(ip, header.transport + at)?));
    Ok((number(4)?, number(8)?))
}

/// An IP header with all that comes before the transport header.
struct Header {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    protocol: u8,
    dont_fragment: bool,
    fragment: Option<Fragment>,
    options: Vec<u8>,
    extensions: Vec<Extension>,
    /// Where the transport header starts.
    transport: usize,
    /// Where the packet ends, as its header says.
    end: usize,
}

impl Header {
    /// Takes it apart, and proves its checksum.
    fn parse(family: Family, ip: &[u8]) -> Result<Self, String> {
        let header = Self::walk(family, ip)?;
        if family == Family::V4 && checksum(&[get(ip, 0, header.transport)?]) != 0 {
            return Err("the IP checksum is wrong".to_owned());
        }
        Ok(header)
    }

    /// Takes it apart.
    fn walk(family: Family, ip: &[u8]) -> Result<Self, String> {
        match family {
            Family::V4 => Self::parse_v4(ip),
            Family::V6 => Self::parse_v6(ip),
        }
    }

    fn parse_v4(ip: &[u8]) -> Result<Self, String> {
        let first = byte(ip, 0)?;
        let header = usize::from(first & 0xf) * 4;
        if first >> 4 != 4 || header < 20 {
            return Err(format!("version and header length {first:#04x}"));
        }
        let flags = word(ip, 6)?;
        let piece = Fragment {
            id: word(ip, 4)?.into(),
            offset: (flags & 0x1fff) * 8,
            more: flags & 0x2000 != 0,
        };
        Ok(Self {
            source: Ipv4Addr::from(array(ip, 12)?).into(),
            destination: Ipv4Addr::from(array(ip, 16)?).into(),
            ttl: byte(ip, 8)?,
            protocol: byte(ip, 9)?,
            dont_fragment: flags & 0x4000 != 0,
            fragment: (piece.more || piece.offset != 0).then_some(piece),
            options: get(ip, 20, header)?.to_vec(),
            extensions: Vec::new(),
            transport: header,
            end: word(ip, 2)?.into(),
        })
    }

    fn parse_v6(ip: &[u8]) -> Result<Self, String> {
        if byte(ip, 0)? >> 4 != 6 {
            return Err("not version 6".to_owned());
        }
        let mut header = Self {
            source: Ipv6Addr::from(array::<16>(ip, 8)?).into(),
            destination: Ipv6Addr::from(array::<16>(ip, 24)?).into(),
            ttl: byte(ip, 7)?,
            protocol: byte(ip, 6)?,
            dont_fragment: false,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
            transport: 40,
            end: 40 + usize::from(word(ip, 4)?),
        };
        while !header.is_piece() {
            let at = header.transport;
            let length = |unit: usize, more: usize| -> Result<usize, String> {
                Ok((usize::from(byte(ip, at + 1)?) + more) * unit)
            };
            let (length, make): (_, fn(Vec<u8>) -> Extension) = match header.protocol {
                0 => (length(8, 1)?, Extension::HopByHop),
                43 => (length(8, 1)?, Extension::Routing),
                60 => (length(8, 1)?, Extension::Destination),
                51 => (length(4, 2)?, Extension::Authentication),
                44 => {
                    let offset = word(ip, at + 2)?;
                    header.extensions.push(Extension::Fragment(Fragment {
                        id: u32::from_be_bytes(array(ip, at + 4)?),
                        offset: offset & !7,
                        more: offset & 1 != 0,
                    }));
                    header.protocol = byte(ip, at)?;
                    header.transport += 8;
                    continue;
                }
                _ => break,
            };
            header
                .extensions
                .push(make(get(ip, at + 2, at + length)?.to_vec()));
            header.protocol = byte(ip, at)?;
            header.transport += length;
        }
        Ok(header)
    }

    /// Whether what follows is a piece from within a transport segment, without its header.
    fn is_later(&self) -> bool {
        let later = |fragment: &Fragment| fragment.offset != 0;
        self.fragment.as_ref().is_some_and(later)
            || self.extensions.iter().any(|extension| match extension {
                Extension::Fragment(fragment) => later(fragment),
                _ => false,
            })
    }

    /// Whether what follows is a piece of a transport segment, not the whole.
    fn is_piece(&self) -> bool {
        self.fragment.is_some()
            || self.extensions.iter().any(|extension| match extension {
                Extension::Fragment(fragment) => fragment.more || fragment.offset != 0,
                _ => false,
            })
    }
}

impl Payload {
    fn parse(header: &Header, segment: &[u8]) -> Result<Self, String> {
        let family = Family::of(header.source);
        let rest = |from: usize| Ok::<_, String>(get(segment, from, segment.len())?.to_vec());
        prove(header, segment)?;
        Ok(match header.protocol {
            6 => Self::Tcp {
                source: word(segment, 0)?,
                destination: word(segment, 2)?,
                flags: byte(segment, 13)?,
                data: rest(20)?,
            },
            17 => Self::Udp {
                source: word(segment, 0)?,
                destination: word(segment, 2)?,
                checksum: word(segment, 6)? != 0,
                data: rest(8)?,
            },
            132 if segment.len() >= 12 => Self::Sctp {
                source: word(segment, 0)?,
                destination: word(segment, 2)?,
                checksum: array(segment, 8)? != [0; 4],
                data: rest(12)?,
            },
            protocol if protocol == family.icmp() => {
                let (kind, code) = (byte(segment, 0)?, byte(segment, 1)?);
                let four = array(segment, 4)?;
                let echo = family.pick([8, 0], [128, 129]);
                if echo.contains(&kind) && code == 0 {
                    Self::Echo {
                        request: kind == echo[0],
                        identifier: word(segment, 4)?,
                        sequence: word(segment, 6)?,
                        data: rest(8)?,
                    }
                } else if let Some(error) = IcmpError::decode(family, kind, code, four) {
                    let quote = rest(8)?;
                    Quote::parse(family, &quote).map_err(|error| format!("the quote: {error}"))?;
                    Self::Error { error, quote }
                } else {
                    Self::Icmp {
                        kind,
                        code,
                        rest: four,
                        data: rest(8)?,
                    }
                }
            }
            protocol => Self::Other {
                protocol,
                data: segment.to_vec(),
            },
        })
    }
}

impl Quote {
    /// Takes a quote apart. Its IP header's checksum is proven, and that of the transport when the
    /// quote has all that it covers.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn parse(family: Family, quote: &[u8]) -> Result<Self, String> {
        let header = Header::parse(family, quote)?;
        let transport = get(quote, header.transport, quote.len().min(header.end))?;
        let complete = header.end <= quote.len() && !header.is_piece();
        if complete {
            prove(&header, transport)?;
        }
        Ok(Self {
            source: header.source,
            destination: header.destination,
            ttl: header.ttl,
            protocol: header.protocol,
            transport: transport.to_vec(),
            complete,
        })
    }
}

/// Proves the checksum of a whole transport segment.
fn prove(header: &Header, segment: &[u8]) -> Result<(), String> {
    let (name, with_pseudo_header) = match (header.protocol, Family::of(header.source)) {
        (6, _) => ("TCP", true),
        (17, _) if word(segment, 4)? as usize != segment.len() => {
            return Err("the UDP length is not the packet's".to_owned());
        }
        (17, Family::V4) if word(segment, 6)? == 0 => return Ok(()),
        (17, Family::V6) if word(segment, 6)? == 0 => {
            return Err("a UDP checksum of zero, which IPv6 does not have".to_owned());
        }
        (17, _) => ("UDP", true),
        (1, Family::V4) => ("ICMP", false),
        (58, Family::V6) => ("ICMPv6", true),
        (132, _) if segment.len() >= 12 => {
            let sum = array(segment, 8)?;
            return if sum == [0; 4] || sum == of_sctp(segment) {
                Ok(())
            } else {
                Err("the SCTP checksum is wrong".to_owned())
            };
        }
        _ => return Ok(()),
    };
    let sum = if with_pseudo_header {
        of_segment(header.source, header.destination, header.protocol, segment)
    } else {
        checksum(&[segment])
    };
    if sum == 0 {
        Ok(())
    } else {
        Err(format!("the {name} checksum is wrong"))
    }
}

fn get(bytes: &[u8], from: usize, to: usize) -> Result<&[u8], String> {
    bytes
        .get(from..to)
        .ok_or_else(|| format!("no bytes {from}..{to} of {}", bytes.len()))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    get(bytes, at, at + N)?
        .try_into()
        .map_err(|_| "short".to_owned())
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, String> {
    Ok(array::<1>(bytes, at)?[0])
}

fn word(bytes: &[u8], at: usize) -> Result<u16, String> {
    Ok(u16::from_be_bytes(array(bytes, at)?))
}
