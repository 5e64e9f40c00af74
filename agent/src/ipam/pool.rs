//! A pod network: which of its addresses is given out next, and how full it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::freed::Freed;
use super::range::Range;
use super::{IpamError, Owner};

/// How full a pod network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The pod network.
    pub pool: IpNet,
    /// How many addresses it has for pods; as many as there are numbers if there are more.
    pub size: u64,
    /// How many of them are allocated.
    pub used: usize,
}

impl Usage {
    /// Whether there is no address left.
    pub fn is_exhausted(&self) -> bool {
        u64::try_from(self.used).is_ok_and(|used| used >= self.size)
    }
}

/// A pod network, and where the search for the next address begins.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    cidr: IpNet,
    range: Range,
    next: u128,
}

impl Pool {
    /// A network of which no address was given out yet.
    pub fn new(cidr: IpNet) -> Self {
        let range = Range::of(&cidr);
        Self {
            cidr,
            range,
            next: range.first(),
        }
    }

    /// The network.
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// Its addresses for pods.
    pub fn range(&self) -> &Range {
        &self.range
    }

    /// How full it is.
    pub fn usage(&self, allocated: &BTreeMap<IpAddr, Owner>) -> Usage {
        Usage {
            pool: self.cidr,
            size: u64::try_from(self.range.size()).unwrap_or(u64::MAX),
            used: allocated.range(self.range.bounds()).count(),
        }
    }

    /// The next address: in turn among those that nobody had lately, else the one that was freed the
    /// longest ago. The next search begins behind it.
    ///
    /// # Errors
    ///
    /// When every address is allocated.
    pub fn find_free(
        &mut self,
        allocated: &BTreeMap<IpAddr, Owner>,
        freed: &Freed,
    ) -> Result<IpAddr, IpamError> {
        let Self { cidr, range, next } = *self;
        let known = |address: &IpAddr| allocated.contains_key(address) || freed.contains(*address);
        let count = allocated.range(range.bounds()).count() + freed.count_in(range);
        let unused = if u128::try_from(count).is_ok_and(|count| count >= range.size()) {
            None
        } else {
            // At most one step more than there are addresses in use or at rest.
            range.from(next).find(|address| !known(address))
        };
        let found = unused.or_else(|| freed.longest(range));
        let address = found.ok_or(IpamError::Exhausted {
            pool: cidr,
            size: range.size(),
        })?;
        self.next = range.after(address);
        Ok(address)
    }
}
