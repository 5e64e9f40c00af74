//! How a connection went, as an exit code that a test can tell apart.

use std::io::{self, ErrorKind};
use std::process::ExitCode;

/// The result of a client, and its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Anything that is none of the below.
    Failed = 1,
    /// Somebody said no: a TCP reset or an ICMP port unreachable.
    Refused = 10,
    /// Nobody said anything.
    TimedOut = 11,
    /// The network said that there is no way.
    Unreachable = 12,
}

impl Outcome {
    /// The outcome that an error stands for.
    pub fn of(error: &anyhow::Error) -> Self {
        if error.is::<tokio::time::error::Elapsed>() {
            return Outcome::TimedOut;
        }
        let Some(error) = error.downcast_ref::<io::Error>() else {
            return Outcome::Failed;
        };
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Outcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::TimedOut,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Outcome::Unreachable,
            // Without a stable kind: EPERM and EACCES come from a prohibiting ICMP error.
            _ => match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => Outcome::Unreachable,
                _ => Outcome::Failed,
            },
        }
    }

    fn word(self) -> &'static str {
        match self {
            Outcome::Failed => "FAILED",
            Outcome::Refused => "REFUSED",
            Outcome::TimedOut => "TIMEOUT",
            Outcome::Unreachable => "UNREACHABLE",
        }
    }
}

/// Says on stderr how it went, and makes the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let outcome = Outcome::of(error);
    eprintln!("{}: {error:#}", outcome.word());
    ExitCode::from(outcome as u8)
}
