//! What a sender that forbids fragmenting learns of its path. Prints one line of JSON, [`Report`].

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::{PathMtuArgs, connect, options};

/// Headers of an IP packet and a UDP datagram.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;

/// What was learnt.
#[derive(Default, Serialize)]
struct Report {
    /// Datagrams of the given size that were sent.
    sent: u32,
    /// Whether one of them was answered.
    answered: bool,
    /// Whether the kernel refused to send one more.
    refused: bool,
    /// The path MTU in the end, in bytes of IP packet.
    mtu: i32,
    /// Who said that it was too big; this machine's own refusal names nobody.
    told_by: Option<IpAddr>,
    /// The MTU that was told.
    told: Option<u32>,
    /// Whether, after that, a datagram that just fits was answered.
    fitting_answered: bool,
}

/// Sends until one is answered or refused, and then one that fits; succeeds when one is answered.
pub fn run(args: &PathMtuArgs) -> Result<ExitCode> {
    let is_v4 = args.target.is_ipv4();
    let socket = UdpSocket::bind(connect::any(args.target, 0))?;
    socket.connect(args.target)?;
    options::keep_errors(&socket, is_v4)?;
    options::forbid_fragments(&socket, is_v4)?;
    socket.set_read_timeout(Some(args.timeout))?;
    let headers = if is_v4 { HEADERS_V4 } else { HEADERS_V6 };
    let payload = vec![b'x'; args.size.saturating_sub(headers)];
    let mut report = Report::default();
    while report.sent < args.tries && !report.answered && !report.refused {
        match socket.send(&payload) {
            Ok(_) => {
                report.sent += 1;
                report.answered = hears(&socket)?;
            }
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => report.refused = true,
            Err(error) => return Err(error.into()),
        }
        while let Some(error) = options::next_error(&socket)? {
            if let Some(from) = error.from {
                report.told_by = Some(from);
                report.told = Some(error.info);
            }
        }
    }
    report.mtu = options::path_mtu(&socket, is_v4)?;
    let fitting = usize::try_from(report.mtu).unwrap_or_default();
    if !report.answered && fitting < args.size {
        // The answer is larger, and the server may have to learn from the first one as well.
        for _ in 0..args.tries {
            if !report.fitting_answered {
                forget_errors(&socket)?;
                socket.send(&vec![b'y'; fitting.saturating_sub(headers)])?;
                report.fitting_answered = hears(&socket)?;
            }
        }
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(if report.answered || report.fitting_answered {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether there is an answer before the next ICMP error.
fn hears(socket: &UdpSocket) -> Result<bool> {
    match socket.recv(&mut [0; 65_536]) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(false)
        }
        // What it was is in the error queue.
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Forgets the errors of what was sent so far.
fn forget_errors(socket: &UdpSocket) -> Result<()> {
    while options::next_error(socket)?.is_some() {}
    // The last error is kept apart from the queue until it is asked for.
    socket.take_error()?;
    Ok(())
}
