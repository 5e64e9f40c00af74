//! The routers on the way, as traceroute finds them: probes with rising TTL or hop limit, and who says
//! that they ran out.
//!
//! Prints a line for each hop: its number and who answered, `*` for nobody; the last one ends in
//! `reached`, or in `refused` when a router said that there is no way.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;

use anyhow::Result;

use crate::options::{self, Report};
use crate::outcome::Outcome;
use crate::{ProbeProtocol, TraceArgs, connect, ping};

/// Who answered a probe, and whether that ends the trace.
enum Answer {
    Router(Option<IpAddr>),
    Target,
    Refused(Option<IpAddr>),
}

/// Probes each hop; succeeds when the target answers.
pub fn run(args: &TraceArgs) -> Result<ExitCode> {
    for hop in 1..=args.max_hops {
        match probe(args, hop)? {
            None => println!("{hop} *"),
            Some(Answer::Router(from)) => println!("{hop} {}", name(from)),
            Some(Answer::Target) => {
                println!("{hop} {} reached", args.target);
                return Ok(ExitCode::SUCCESS);
            }
            Some(Answer::Refused(from)) => {
                println!("{hop} {} refused", name(from));
                return Ok(ExitCode::from(Outcome::Unreachable as u8));
            }
        }
    }
    Ok(ExitCode::from(Outcome::TimedOut as u8))
}

fn name(from: Option<IpAddr>) -> String {
    from.map_or_else(|| "?".to_owned(), |from| from.to_string())
}

fn probe(args: &TraceArgs, hop: u8) -> Result<Option<Answer>> {
    let is_v4 = args.target.is_ipv4();
    let socket = match args.protocol {
        ProbeProtocol::Icmp => ping::open(args.target)?,
        ProbeProtocol::Udp => {
            let target = SocketAddr::new(args.target, args.port);
            let socket = UdpSocket::bind(connect::any(target, args.source_port))?;
            socket.connect(target)?;
            socket
        }
    };
    options::keep_errors(&socket, is_v4)?;
    options::set_hops(&socket, is_v4, hop)?;
    socket.set_read_timeout(Some(args.timeout))?;
    match args.protocol {
        ProbeProtocol::Icmp => socket.send(&ping::request(args.target, u16::from(hop), 32))?,
        ProbeProtocol::Udp => socket.send(b"trace")?,
    };
    match socket.recv(&mut [0; 2048]) {
        Ok(_) => return Ok(Some(Answer::Target)),
        Err(error) if is_timeout(&error) => return Ok(None),
        // What the error was is in the queue.
        Err(_) => {}
    }
    Ok(options::next_error(&socket)?.map(|report| judge(args, report)))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn judge(args: &TraceArgs, report: Report) -> Answer {
    let (time_exceeded, port_unreachable) = match args.target {
        IpAddr::V4(_) => (11, (3, 3)),
        IpAddr::V6(_) => (3, (1, 4)),
    };
    if report.kind == time_exceeded {
        Answer::Router(report.from)
    } else if (report.kind, report.code) == port_unreachable && report.from == Some(args.target) {
        Answer::Target
    } else {
        Answer::Refused(report.from)
    }
}
