//! A UDP datagram in IP fragments that this program makes itself, sent in any order.
//!
//! The fragments leave by a raw socket; an ordinary one with the same port hears the answer, which is
//! printed without the payload's echo, as [`crate::connect`] does.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

use crate::connect::{self, pattern};
use crate::{Extension, FragmentsArgs};

/// The protocol number of UDP.
const UDP: u8 = 17;

/// The next-header number of a fragment header.
const FRAGMENT: u8 = 44;

/// Sends the fragments and waits for the answer.
pub fn run(args: &FragmentsArgs) -> Result<ExitCode> {
    if args.fragment_size == 0 || !args.fragment_size.is_multiple_of(8) {
        bail!("a fragment's size is a multiple of 8");
    }
    let hearing = UdpSocket::bind(connect::any(args.target, args.source_port))?;
    hearing.connect(args.target)?;
    hearing.set_read_timeout(Some(args.timeout))?;
    let source = hearing.local_addr()?;
    let payload = pattern(args.size);
    let datagram = datagram(source, args.target, &payload)?;
    let fragments = fragments(args, source.ip(), &datagram)?;
    let order: Vec<usize> = if args.order.is_empty() {
        (0..fragments.len()).collect()
    } else {
        args.order.clone()
    };
    let raw = open(args.target)?;
    for (n, index) in order.iter().enumerate() {
        if n > 0 {
            thread::sleep(args.gap);
        }
        let fragment = fragments
            .get(*index)
            .with_context(|| format!("there are {} fragments, no {index}", fragments.len()))?;
        send(&raw, args.target.ip(), fragment)?;
    }
    if args.no_answer {
        return Ok(ExitCode::SUCCESS);
    }
    let mut buffer = vec![0; 65_536];
    let length = hearing.recv(&mut buffer)?;
    println!("{}", connect::without_payload(&buffer[..length], &payload)?);
    Ok(ExitCode::SUCCESS)
}

/// A UDP datagram with its header.
fn datagram(source: SocketAddr, target: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(payload.len() + 8).context("the datagram is too large")?;
    let mut datagram = Vec::with_capacity(usize::from(length));
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(target.port().to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let mut pseudo = octets(source.ip());
    pseudo.extend(octets(target.ip()));
    pseudo.extend(u32::from(length).to_be_bytes());
    pseudo.extend([0, 0, 0, UDP]);
    pseudo.extend(&datagram);
    // A checksum of 0 would say that there is none.
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    Ok(datagram)
}

/// The Internet checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or_default();
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// The packets, in order.
fn fragments(args: &FragmentsArgs, source: IpAddr, datagram: &[u8]) -> Result<Vec<Vec<u8>>> {
    let size = usize::from(args.fragment_size);
    let mut packets = Vec::new();
    for (index, part) in datagram.chunks(size).enumerate() {
        let offset = u16::try_from(index * size / 8).context("the datagram is too large")?;
        let more = (index + 1) * size < datagram.len();
        packets.push(match (source, args.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                v4(args, source, target, offset, more, part)?
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                v6(args, source, target, offset, more, part)?
            }
            _ => bail!("the source and the target are of different families"),
        });
    }
    Ok(packets)
}

/// The kernel fills in length and checksum.
fn v4(
    args: &FragmentsArgs,
    source: Ipv4Addr,
    target: Ipv4Addr,
    offset: u16,
    more: bool,
    part: &[u8],
) -> Result<Vec<u8>> {
    let length = u16::try_from(part.len() + 20)?;
    let id = u16::try_from(args.id).context("an IPv4 packet's id has 16 bits")?;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend((offset | u16::from(more) << 13).to_be_bytes());
    packet.extend([64, UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend(part);
    Ok(packet)
}

fn v6(
    args: &FragmentsArgs,
    source: Ipv6Addr,
    target: Ipv6Addr,
    offset: u16,
    more: bool,
    part: &[u8],
) -> Result<Vec<u8>> {
    // A header of 8 bytes whose only option is padding.
    let extension = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let mut headers = Vec::new();
    let first = match args.extension {
        Some(Extension::HopByHop) => {
            headers.extend(extension(FRAGMENT));
            0
        }
        Some(Extension::Destination) => {
            headers.extend(extension(FRAGMENT));
            60
        }
        None => FRAGMENT,
    };
    headers.extend([UDP, 0]);
    headers.extend((offset << 3 | u16::from(more)).to_be_bytes());
    headers.extend(args.id.to_be_bytes());
    let length = u16::try_from(headers.len() + part.len())?;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([first, 64]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend(headers);
    packet.extend(part);
    Ok(packet)
}

fn open(target: SocketAddr) -> io::Result<OwnedFd> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, SockType::Raw, flags, SockProtocol::Raw)?)
}

fn send(raw: &OwnedFd, target: IpAddr, packet: &[u8]) -> io::Result<()> {
    let (fd, flags) = (raw.as_raw_fd(), MsgFlags::empty());
    match target {
        IpAddr::V4(target) => {
            let target = SockaddrIn::from(SocketAddrV4::new(target, 0));
            sendto(fd, packet, &target, flags)?;
        }
        IpAddr::V6(target) => {
            let target = SockaddrIn6::from(SocketAddrV6::new(target, 0, 0, 0));
            sendto(fd, packet, &target, flags)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }
}
