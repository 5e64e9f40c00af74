//! The ports that the node's own sockets must not pick: those that the datapath masquerades with.
//!
//! What others reserved stays reserved, and what Weft added to it is kept on disk, so that a cleanup
//! takes exactly that back. Only ports that the kernel would pick are added.
//!
//! Invariant: the record names at least what was added. It is written first, so a crash in between
//! leaves ports in it that nobody reserved, and taking those back changes nothing. A record from before
//! a reboot counts for nothing: the setting went with the kernel.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::sysctl::{read, set};
use crate::persist;

/// The record's name in the state directory.
pub const FILE: &str = "reserved-ports.json";

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
const PICKED: &str = "net/ipv4/ip_local_port_range";
const BOOT: &str = "kernel/random/boot_id";

/// What was added to the kernel's list.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The boot that it was added in.
    boot: String,
    /// Ports and ranges, as the kernel writes them.
    ports: String,
}

/// Keeps the node's own sockets from picking these source ports by themselves. `state` is the state
/// directory.
pub fn reserve(first: u16, last: u16, state: &Path) {
    let range = read(PICKED).unwrap_or_default();
    let mut ends = range
        .split_whitespace()
        .filter_map(|port| port.parse().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else {
        return;
    };
    let wanted = Ports::range(first.max(low), last.min(high));
    let current = Ports::parse(&read(RESERVED).unwrap_or_default());
    let added = wanted.without(&current);
    if added.is_empty() {
        return;
    }
    let path = state.join(FILE);
    let record = Record {
        boot: boot(),
        ports: ours(&path).with(&added).to_string(),
    };
    let written = serde_json::to_vec(&record)
        .map_err(io::Error::from)
        .and_then(|content| persist::write(&path, &content, 0o600));
    if let Err(error) = written {
        warn!(file = %path.display(), %error, "cannot write down which ports are reserved; they are \
            not: processes of the node may pick ports that pods' connections use");
        return;
    }
    // A failure is logged there.
    let _ = set(RESERVED, &current.with(&added).to_string());
}

/// What [`give_back`] would take back: ports and ranges, if there are any.
pub fn to_give_back(state: &Path) -> Option<String> {
    let current = Ports::parse(&read(RESERVED)?);
    let there = ours(&state.join(FILE)).and(&current);
    (!there.is_empty()).then(|| there.to_string())
}

/// Takes what was added to the kernel's list out of it.
///
/// # Errors
///
/// When the kernel refuses.
pub fn give_back(state: &Path) -> io::Result<()> {
    let current = Ports::parse(&read(RESERVED).unwrap_or_default());
    let left = current.without(&ours(&state.join(FILE)));
    set(RESERVED, &left.to_string())
}

/// What was added since the node booted.
fn ours(path: &Path) -> Ports {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ports::parse(""),
        Err(error) => {
            warn!(file = %path.display(), %error, "cannot read which ports Weft reserved");
            return Ports::parse("");
        }
    };
    match serde_json::from_slice::<Record>(&content) {
        Ok(record) if record.boot == boot() => Ports::parse(&record.ports),
        Ok(_) => Ports::parse(""),
        Err(error) => {
            warn!(file = %path.display(), %error, "which ports Weft reserved is unreadable");
            Ports::parse("")
        }
    }
}

fn boot() -> String {
    read(BOOT).unwrap_or_default()
}

/// A set of ports.
struct Ports(Vec<bool>);

impl Ports {
    /// The kernel's way to write them: `1-5,7`. What it would not write is left out.
    fn parse(list: &str) -> Self {
        let mut ports = Self(vec![false; usize::from(u16::MAX) + 1]);
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<u16>(), last.trim().parse::<u16>());
            if let (Ok(first), Ok(last)) = (first, last)
                && first <= last
            {
                ports.0[usize::from(first)..=usize::from(last)].fill(true);
            }
        }
        ports
    }

    fn range(first: u16, last: u16) -> Self {
        Self::parse(&format!("{first}-{last}"))
    }

    fn combine(&self, other: &Self, keep: impl Fn(bool, bool) -> bool) -> Self {
        let pairs = self.0.iter().zip(&other.0);
        Self(pairs.map(|(a, b)| keep(*a, *b)).collect())
    }

    fn with(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a || b)
    }

    fn without(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && !b)
    }

    fn and(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && b)
    }

    fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = 0;
        let mut comma = "";
        for run in self.0.chunk_by(|a, b| a == b) {
            let last = first + run.len() - 1;
            if run[0] && first == last {
                write!(f, "{comma}{first}")?;
            } else if run[0] {
                write!(f, "{comma}{first}-{last}")?;
            }
            if run[0] {
                comma = ",";
            }
            first = last + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_the_kernel_does() {
        for list in ["", "0", "5-9", "8080,9000-9010,32768-40000", "1,3,65535"] {
            assert_eq!(Ports::parse(list).to_string(), list);
        }
        assert_eq!(Ports::parse("50,1-3,2-7, 51").to_string(), "1-7,50-51");
        assert_eq!(Ports::parse("9-5,x,70000").to_string(), "");
        assert!(Ports::range(10, 9).is_empty());
    }

    #[test]
    fn what_others_reserved_is_not_ours() {
        let (wanted, others) = (Ports::range(100, 200), Ports::parse("50,150-160,300"));
        let added = wanted.without(&others);
        assert_eq!(added.to_string(), "100-149,161-200");
        let all = others.with(&added);
        assert_eq!(all.to_string(), "50,100-200,300");
        assert_eq!(all.without(&added).to_string(), others.to_string());
        assert_eq!(all.and(&Ports::parse("1-120")).to_string(), "50,100-120");
    }
}
