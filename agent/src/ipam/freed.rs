//! Addresses at rest: free, but in use not long ago.
//!
//! They are given out last, the one that was freed the longest ago first. Within this process later
//! is later, whatever the clock does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::range::Range;

/// How many freed addresses are remembered, once they have rested. In a large network nothing else
/// would ever end their number.
const RESTING: usize = 1024;
/// How long a freed address is remembered at least: connections to its last pod have ended, and
/// other nodes have heard of its end.
pub const REST: Duration = Duration::from_secs(10);

/// Free addresses that were in use, and when they were freed, in nanoseconds since 1970.
#[derive(Debug, Default)]
pub struct Freed {
    times: BTreeMap<IpAddr, u64>,
    order: BTreeSet<(u64, IpAddr)>,
}

impl Freed {
    /// Notes that an address was freed, after all that were noted before.
    pub fn insert(&mut self, address: IpAddr, at: SystemTime) {
        self.remove(address);
        let last = self.order.last().map_or(0, |(last, _)| *last);
        let at = nanoseconds(at).max(last.saturating_add(1));
        self.times.insert(address, at);
        self.order.insert((at, address));
    }

    /// Forgets an address.
    pub fn remove(&mut self, address: IpAddr) {
        if let Some(at) = self.times.remove(&address) {
            self.order.remove(&(at, address));
        }
    }

    /// Forgets, and returns, the oldest address, if there are too many and it has rested.
    pub fn pop_rested(&mut self, now: SystemTime) -> Option<IpAddr> {
        let rested = nanoseconds(now.checked_sub(REST).unwrap_or(SystemTime::UNIX_EPOCH));
        let (at, address) = self.order.first().copied()?;
        if self.times.len() <= RESTING || at >= rested {
            return None;
        }
        self.remove(address);
        Some(address)
    }

    /// Whether this address is at rest.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.times.contains_key(&address)
    }

    /// How many addresses of a range are at rest.
    pub fn count_in(&self, range: Range) -> usize {
        self.times.range(range.bounds()).count()
    }

    /// The address of a range that was freed the longest ago.
    pub fn longest(&self, range: Range) -> Option<IpAddr> {
        let mut addresses = self.order.iter().map(|(_, address)| *address);
        addresses.find(|address| range.contains(*address))
    }

    /// How many addresses are at rest.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.times.len()
    }
}

/// Since 1970; enough until 2554.
fn nanoseconds(at: SystemTime) -> u64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
