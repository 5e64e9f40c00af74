//! ICMP echo over the kernel's ping socket: no raw socket, no privilege beyond
//! `net.ipv4.ping_group_range`.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::PingArgs;
use crate::connect::pattern;

/// ICMP header: type, code, checksum, identifier, sequence number. The kernel fills in checksum and
/// identifier.
const HEADER: usize = 8;

/// Sends the requests one after the other; one answer makes it a success.
pub fn run(args: &PingArgs) -> Result<ExitCode> {
    let socket = open(args.target)?;
    socket.set_read_timeout(Some(args.timeout))?;

    let mut answers = 0;
    let mut last_error = None;
    for sequence in 0..args.count {
        match echo(&socket, args.target, sequence, args.size) {
            Ok(time) => {
                answers += 1;
                println!(
                    "{} bytes from {}: seq={sequence} {time:?}",
                    args.size, args.target
                );
            }
            Err(error) => last_error = Some(error),
        }
    }
    match last_error {
        Some(error) if answers == 0 => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A ping socket that hears only the target.
pub fn open(target: IpAddr) -> Result<UdpSocket> {
    let (family, protocol) = match target {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)
        .map_err(io::Error::from)
        .context("opening a ping socket; is net.ipv4.ping_group_range set here?")?;
    // The standard library's datagram socket does for any protocol what is needed here.
    let socket = UdpSocket::from(socket);
    socket.connect(SocketAddr::new(target, 0))?;
    Ok(socket)
}

/// An echo request with this many bytes of payload.
pub fn request(target: IpAddr, sequence: u16, size: usize) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[0] = if target.is_ipv4() { 8 } else { 128 };
    message[6..HEADER].copy_from_slice(&sequence.to_be_bytes());
    message.extend(pattern(size));
    message
}

fn echo(
    socket: &UdpSocket,
    target: IpAddr,
    sequence: u16,
    size: usize,
) -> io::Result<std::time::Duration> {
    let message = request(target, sequence, size);
    let start = Instant::now();
    socket.send(&message)?;
    let mut answer = vec![0; HEADER + size];
    // The answer to an earlier request may come late.
    loop {
        let length = socket.recv(&mut answer)?;
        if length == message.len() && answer[6..] == message[6..] {
            return Ok(start.elapsed());
        }
    }
}
