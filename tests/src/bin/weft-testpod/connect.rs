//! One connection, and how it went.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Result, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::{ConnectArgs, Protocol};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// Connects once and prints the answer.
pub async fn run(args: &ConnectArgs) -> Result<ExitCode> {
    let answer = match args.protocol {
        Protocol::Tcp => timeout(args.timeout, tcp(args)).await,
        Protocol::Udp => timeout(args.timeout, udp(args)).await,
        Protocol::Http => timeout(args.timeout, http(args)).await,
    };
    println!("{}", answer??.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// A connection from the given local port, 0 for any.
pub async fn open(target: SocketAddr, source_port: u16) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if source_port != 0 {
        // So that a test can use the same port again at once.
        socket.set_reuseaddr(true)?;
        socket.bind(any(target, source_port))?;
    }
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A datagram socket that hears only the target, ICMP errors included.
pub async fn open_udp(target: SocketAddr, source_port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(target, source_port)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

fn any(target: SocketAddr, port: u16) -> SocketAddr {
    let address: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(address, port)
}

async fn tcp(args: &ConnectArgs) -> Result<String> {
    let stream = open(args.target, args.source_port).await?;
    let mut line = String::new();
    BufReader::new(stream)
        .take(MAX_ANSWER)
        .read_line(&mut line)
        .await?;
    if line.is_empty() {
        bail!("the server closed the connection without a greeting");
    }
    Ok(line)
}

async fn udp(args: &ConnectArgs) -> Result<String> {
    let socket = open_udp(args.target, args.source_port).await?;
    socket.send(b"hello").await?;
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).await?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

async fn http(args: &ConnectArgs) -> Result<String> {
    let mut stream = open(args.target, args.source_port).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        args.path, args.target
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("the server's answer is not HTTP: {answer:?}");
    };
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(body.to_owned()),
        _ => bail!("the server answered {status:?}"),
    }
}
