//! As much of SCTP as its first two packets, by raw sockets: kernels need not have it. The client sends
//! an INIT; the server answers with an INIT ACK, whose state cookie says who answered and whom it saw.
//! Checksums are verified on both sides, and ports are the protocol's own, so that whoever rewrites
//! either is found out.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{ConnectArgs, ServeArgs};

/// The protocol's number.
const SCTP: i32 = 132;

/// Bytes of the header that all chunks of a packet share: ports, tag, checksum.
const HEADER: usize = 12;

/// Bytes of an INIT or INIT ACK before its parameters.
const FIXED: usize = 20;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;

/// The parameter that a client sends back as it came; here it tells the client something.
const COOKIE: u16 = 7;

/// Answers on the ports, in a thread for each address.
pub fn serve(args: &ServeArgs) -> Result<()> {
    if args.sctp.is_empty() {
        return Ok(());
    }
    let mut addresses = args.address.clone();
    if addresses.is_empty() {
        addresses.push(Ipv4Addr::UNSPECIFIED.into());
        if UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
            addresses.push(Ipv6Addr::UNSPECIFIED.into());
        }
    }
    for address in addresses {
        let socket = open(address).with_context(|| format!("SCTP {address}"))?;
        let (ports, name) = (args.sctp.clone(), args.name.clone());
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            loop {
                match answer(&socket, &mut buffer, &ports, &name) {
                    Ok(()) => {}
                    Err(error) => eprintln!("SCTP: {error}"),
                }
            }
        });
    }
    Ok(())
}

/// Sends an INIT and returns what the answer says.
pub fn connect(args: &ConnectArgs) -> Result<String> {
    let any: IpAddr = match args.target.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = open(args.source.unwrap_or(any))?;
    socket.connect(SocketAddr::new(args.target.ip(), 0))?;
    let tag = random();
    let port = match args.source_port {
        // Outside of what is well known.
        0 => 0x8000 | u16::try_from(tag & 0x7fff).unwrap_or_default(),
        port => port,
    };
    let ports = (port, args.target.port());
    socket.send(&packet(INIT, ports, 0, tag, b""))?;
    let deadline = Instant::now() + args.timeout;
    let mut buffer = vec![0; 65_536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        let Some(found) = Packet::parse(payload(&buffer[..length], args.target.is_ipv4())) else {
            continue;
        };
        if found.ports != (ports.1, ports.0) || found.tag != tag {
            continue;
        }
        if !found.is_sound {
            bail!("the checksum of the answer is wrong");
        }
        match found.kind {
            INIT_ACK => return Ok(String::from_utf8_lossy(found.cookie).into_owned()),
            ABORT => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            kind => bail!("the server answered with a chunk of type {kind}"),
        }
    }
}

/// A raw socket at the address. The standard library's datagram socket does what is needed here.
fn open(address: IpAddr) -> io::Result<UdpSocket> {
    let at = SocketAddr::new(address, 0);
    let socket = Socket::new(
        Domain::for_address(at),
        Type::RAW,
        Some(Protocol::from(SCTP)),
    )?;
    socket.bind(&at.into())?;
    Ok(UdpSocket::from(OwnedFd::from(socket)))
}

fn answer(socket: &UdpSocket, buffer: &mut [u8], ports: &[u16], name: &str) -> io::Result<()> {
    let (length, client) = socket.recv_from(buffer)?;
    let Some(asked) = Packet::parse(payload(&buffer[..length], client.is_ipv4())) else {
        return Ok(());
    };
    if asked.kind != INIT || !ports.contains(&asked.ports.1) {
        return Ok(());
    }
    if !asked.is_sound {
        eprintln!("SCTP: the checksum of a packet from {client} is wrong");
        return Ok(());
    }
    let client = SocketAddr::new(client.ip(), asked.ports.0);
    let cookie = format!("{name} {client}");
    let ports = (asked.ports.1, asked.ports.0);
    let packet = packet(INIT_ACK, ports, asked.initiate, random(), cookie.as_bytes());
    socket.send_to(&packet, SocketAddr::new(client.ip(), 0))?;
    Ok(())
}

/// What a raw socket received, without the IP header: those of IPv4 are given it.
fn payload(received: &[u8], is_v4: bool) -> &[u8] {
    let skipped = match received.first() {
        Some(first) if is_v4 => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    received.get(skipped..).unwrap_or_default()
}

/// A packet with one chunk.
struct Packet<'a> {
    ports: (u16, u16),
    tag: u32,
    kind: u8,
    /// The tag that an INIT or INIT ACK asks for; 0 in others.
    initiate: u32,
    cookie: &'a [u8],
    /// Whether the checksum is right.
    is_sound: bool,
}

impl<'a> Packet<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let kind = *bytes.get(HEADER)?;
        let mut plain = bytes.to_vec();
        plain[8..HEADER].fill(0);
        let parameters = HEADER + FIXED;
        let mut cookie: &[u8] = &[];
        if kind == INIT_ACK && short(parameters)? == COOKIE {
            let length = usize::from(short(parameters + 2)?);
            cookie = bytes.get(parameters + 4..parameters + length)?;
        }
        Some(Packet {
            ports: (short(0)?, short(2)?),
            tag: long(4)?,
            kind,
            initiate: long(HEADER + 4).filter(|_| kind <= INIT_ACK).unwrap_or(0),
            cookie,
            is_sound: bytes[8..HEADER] == crc32c(&plain).to_le_bytes(),
        })
    }
}

/// An INIT, or an INIT ACK with a cookie.
fn packet(kind: u8, ports: (u16, u16), tag: u32, initiate: u32, cookie: &[u8]) -> Vec<u8> {
    let mut chunk = Vec::new();
    chunk.extend(initiate.to_be_bytes());
    // The window, one stream each way, and the first sequence number.
    chunk.extend(65_536_u32.to_be_bytes());
    chunk.extend([0, 1, 0, 1]);
    chunk.extend(initiate.to_be_bytes());
    if !cookie.is_empty() {
        chunk.extend(COOKIE.to_be_bytes());
        chunk.extend(size(4 + cookie.len()));
        chunk.extend(cookie);
    }
    let mut packet = Vec::new();
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, 0]);
    packet.extend(size(4 + chunk.len()));
    packet.extend(chunk);
    packet.resize(packet.len().next_multiple_of(4), 0);
    let checksum = crc32c(&packet);
    packet[8..HEADER].copy_from_slice(&checksum.to_le_bytes());
    packet
}

fn size(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// CRC32c: reflected, polynomial 0x1edc6f41.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let add = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(u32::MAX, add)
}

/// A number that differs from run to run, not 0.
fn random() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    // Each state has keys of its own, from the system's source of randomness at first.
    let hash = std::hash::RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).unwrap_or_default() | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_say_what_they_were_made_of_and_notice_changes() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut bytes = packet(INIT_ACK, (1, 2), 3, 4, b"hello");
        let parsed = Packet::parse(&bytes).unwrap();
        assert_eq!((parsed.ports, parsed.tag), ((1, 2), 3));
        assert_eq!((parsed.initiate, parsed.cookie), (4, &b"hello"[..]));
        assert!(parsed.is_sound);
        bytes[3] = 9;
        assert!(!Packet::parse(&bytes).unwrap().is_sound);
        assert!(Packet::parse(&bytes[..HEADER]).is_none());
    }
}
