//! One connection, and how it went.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::{ConnectArgs, Protocol, options, sctp};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// Connects once and prints the answer.
pub async fn run(args: &ConnectArgs) -> Result<ExitCode> {
    let answer = match args.protocol {
        Protocol::Tcp => timeout(args.timeout, tcp(args)).await,
        Protocol::Udp => timeout(args.timeout, udp(args)).await,
        Protocol::Http => timeout(args.timeout, http(args)).await,
        Protocol::Sctp => Ok(sctp::connect(args)),
    };
    println!("{}", answer??.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// A connection from the given local address, if any, and port, 0 for any.
pub async fn open(
    target: SocketAddr,
    source: Option<IpAddr>,
    source_port: u16,
) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if source_port != 0 || source.is_some() {
        // So that a test can use the same port again at once.
        socket.set_reuseaddr(true)?;
        socket.bind(local(target, source, source_port))?;
    }
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A datagram socket that hears only the target, ICMP errors included.
pub async fn open_udp(
    target: SocketAddr,
    source: Option<IpAddr>,
    source_port: u16,
) -> io::Result<UdpSocket> {
    let socket = bind_udp(target, source, source_port).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// A datagram socket that hears everyone.
pub async fn bind_udp(
    target: SocketAddr,
    source: Option<IpAddr>,
    source_port: u16,
) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(local(target, source, source_port)).await?;
    options::keep_datagrams(&socket)?;
    Ok(socket)
}

/// The wildcard address of the target's family.
pub fn any(target: SocketAddr, port: u16) -> SocketAddr {
    let address: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(address, port)
}

fn local(target: SocketAddr, source: Option<IpAddr>, port: u16) -> SocketAddr {
    source.map_or_else(|| any(target, port), |ip| SocketAddr::new(ip, port))
}

/// A payload of this many bytes: letters, so that an answer can be printed.
pub fn pattern(size: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(size).collect()
}

/// What a server put before the payload that it sent back.
pub fn without_payload(answer: &[u8], payload: &[u8]) -> Result<String> {
    let Some(head) = answer.strip_suffix(payload) else {
        bail!(
            "the {} bytes of answer do not end in the {} bytes that were sent",
            answer.len(),
            payload.len()
        );
    };
    Ok(String::from_utf8_lossy(head).trim_end().to_owned())
}

/// What the client's socket believes of both ends.
fn print_ends(local: SocketAddr, peer: Option<SocketAddr>, from: Option<SocketAddr>) {
    let ends = serde_json::json!({ "local": local, "peer": peer, "from": from });
    println!("{ends}");
}

pub(crate) async fn tcp(args: &ConnectArgs) -> Result<String> {
    let stream = open(args.target, args.source, args.source_port).await?;
    if args.ends {
        print_ends(stream.local_addr()?, Some(stream.peer_addr()?), None);
    }
    let mut stream = BufReader::new(stream).take(MAX_ANSWER);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if line.is_empty() {
        bail!("the server closed the connection without a greeting");
    }
    if args.size > 0 {
        let payload = pattern(args.size);
        let mut stream = stream.into_inner();
        stream.get_mut().write_all(&payload).await?;
        stream.get_mut().write_all(b"\n").await?;
        let mut answer = Vec::new();
        stream.read_until(b'\n', &mut answer).await?;
        let answer = answer.strip_suffix(b"\n").unwrap_or(&answer);
        let head = without_payload(answer, &payload)?;
        ensure!(head == line.trim_end(), "{head:?} is not {line:?}");
    }
    Ok(line)
}

pub(crate) async fn udp(args: &ConnectArgs) -> Result<String> {
    let socket = UdpSocket::bind(local(args.target, args.source, args.source_port)).await?;
    let payload = match args.size {
        0 => b"hello".to_vec(),
        size => pattern(size),
    };
    let mut buffer = vec![0; 65_536];
    let (length, from) = if args.unconnected {
        socket.send_to(&payload, args.target).await?;
        socket.recv_from(&mut buffer).await?
    } else {
        socket.connect(args.target).await?;
        socket.send(&payload).await?;
        socket.recv_from(&mut buffer).await?
    };
    if args.ends {
        print_ends(socket.local_addr()?, socket.peer_addr().ok(), Some(from));
    }
    let answer = &buffer[..length];
    match args.size {
        0 => Ok(String::from_utf8_lossy(answer).into_owned()),
        _ => without_payload(answer, &payload),
    }
}

pub(crate) async fn http(args: &ConnectArgs) -> Result<String> {
    let mut stream = open(args.target, args.source, args.source_port).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        args.path, args.target
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    if args.whole && answer.starts_with("HTTP/") {
        return Ok(answer.into_owned());
    }
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("the server's answer is not HTTP: {answer:?}");
    };
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(body.to_owned()),
        _ => bail!("the server answered {status:?}"),
    }
}
