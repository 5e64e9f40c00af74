//! Host-local address management: which pod has which address of the node's pod networks.
//!
//! ```text
//!   [Ipam]  who has what, in memory, under a lock
//!     |-- pool    a pod network: the next address, and how full it is
//!     |     `-- range   its addresses, as numbers
//!     |-- freed   addresses at rest
//!     |-- store   the directory: allocations and notes of freed addresses
//!     `-- [Reservation], [Release]   between memory and disk, without the lock
//! ```
//!
//! Addresses that were not used lately are given out first, in turn, then the one that was freed the
//! longest ago: peers may still remember who had a just freed one.
//!
//! Invariants, at whatever instruction the agent dies:
//! - An address is given out only after its file is on disk, and is free only after that file is
//!   gone.
//! - Allocations outside the current pod networks (the node got others) stay their owners' until
//!   released.
//!
//! Memory decides, under a lock; files are written and renamed without it, so that pods that come
//! and go at once do not wait for each other's disk: an address is taken in memory before its file
//! is written ([`Ipam::reserve`], [`Reservation::store`]) and until its file is renamed
//! ([`Ipam::releasing`], [`Release::store`], [`Ipam::released`]).

mod error;
mod freed;
mod pending;
mod pool;
mod range;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub use self::error::IpamError;
use self::freed::Freed;
pub use self::pending::{Release, Reservation};
use self::pool::Pool;
pub use self::pool::Usage;
use self::range::is_v4;
use self::store::Store;

/// Who has an address: one interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The container's (sandbox's) id.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "container {} interface {}",
            self.container_id, self.ifname
        )
    }
}

/// The allocations of this node.
#[derive(Debug)]
pub struct Ipam {
    store: Store,
    pools: Vec<Pool>,
    allocated: BTreeMap<IpAddr, Owner>,
    owned: BTreeMap<Owner, BTreeSet<IpAddr>>,
    freed: Freed,
}

impl Ipam {
    /// Opens the state in this directory, which is made when missing.
    ///
    /// A file that is no allocation is reported and kept out of use: if its name is an address, the
    /// address counts as taken, because somebody may be using it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path) -> Result<Self, IpamError> {
        let (store, stored) = Store::open(dir)?;
        let mut ipam = Self {
            store,
            pools: Vec::new(),
            allocated: BTreeMap::new(),
            owned: BTreeMap::new(),
            freed: Freed::default(),
        };
        for (address, owner) in stored.allocated {
            // Nobody asks for what an unreadable owner has.
            let owner = owner.unwrap_or_else(|| Owner {
                container_id: String::new(),
                ifname: String::new(),
            });
            ipam.take(address, owner);
        }
        for (at, address) in stored.freed {
            ipam.freed.insert(address, at);
        }
        ipam.forget_rested(SystemTime::now());
        Ok(ipam)
    }

    /// Sets the pod networks, at most one per family is used: the first of each.
    pub fn set_pools(&mut self, pools: &[IpNet]) {
        let mut wanted: Vec<IpNet> = Vec::new();
        for pool in pools {
            if !wanted.iter().any(|known| is_v4(known) == is_v4(pool)) {
                wanted.push(pool.trunc());
            }
        }
        let before = self.pools();
        if before == wanted {
            return;
        }
        let old = std::mem::take(&mut self.pools);
        self.pools = wanted
            .iter()
            .map(|cidr| {
                let known = old.iter().find(|pool| pool.cidr() == *cidr);
                known.copied().unwrap_or_else(|| Pool::new(*cidr))
            })
            .collect();
        if !before.is_empty() {
            info!(?before, now = ?wanted, "the node has other pod networks");
        }
        let outside = self.outside();
        if outside > 0 {
            warn!(
                addresses = outside,
                pools = ?wanted,
                "pods have addresses outside of the node's pod networks; they keep them until \
                 they end, and other nodes may not reach them"
            );
        }
    }

    /// The pod networks in use.
    pub fn pools(&self) -> Vec<IpNet> {
        self.pools.iter().map(Pool::cidr).collect()
    }

    /// How full the pod networks are.
    pub fn usage(&self) -> Vec<Usage> {
        let usage = self.pools.iter().map(|pool| pool.usage(&self.allocated));
        usage.collect()
    }

    /// How many allocated addresses are of no pod network of the node. None before the networks are
    /// known.
    pub fn outside(&self) -> usize {
        if self.pools.is_empty() {
            return 0;
        }
        let inside = |address: &IpAddr| self.pools.iter().any(|pool| pool.cidr().contains(address));
        let outside = self.allocated.keys().filter(|address| !inside(address));
        outside.count()
    }

    /// Every allocation.
    pub fn allocations(&self) -> &BTreeMap<IpAddr, Owner> {
        &self.allocated
    }

    /// The addresses of this owner.
    pub fn addresses_of(&self, owner: &Owner) -> Vec<IpAddr> {
        let addresses = self.owned.get(owner);
        addresses.into_iter().flatten().copied().collect()
    }

    /// Takes one address of each pod network for the owner, in memory; [`Reservation::store`] writes
    /// it down. An owner that has addresses keeps them. `wanted` addresses are taken as they are.
    ///
    /// # Errors
    ///
    /// When there is no pod network, a network is exhausted, or a wanted address cannot be had; then
    /// nothing is taken.
    pub fn reserve(&mut self, owner: &Owner, wanted: &[IpAddr]) -> Result<Reservation, IpamError> {
        if self.pools.is_empty() {
            return Err(IpamError::NoPool);
        }
        self.check_wanted(owner, wanted)?;
        let had = self.addresses_of(owner);
        let mut reservation = Reservation {
            store: self.store.clone(),
            owner: owner.clone(),
            addresses: Vec::new(),
            fresh: Vec::new(),
        };
        for index in 0..self.pools.len() {
            let v4 = self.pools[index].range().is_v4();
            let of_family = |address: &&IpAddr| address.is_ipv4() == v4;
            let chosen = wanted.iter().find(of_family).copied();
            let kept = had
                .iter()
                .filter(of_family)
                .find(|address| chosen.is_none_or(|chosen| chosen == **address));
            if let Some(address) = kept {
                reservation.addresses.push(*address);
                continue;
            }
            let found = match chosen {
                Some(address) => Ok(address),
                None => self.pools[index].find_free(&self.allocated, &self.freed),
            };
            match found {
                Ok(address) => {
                    self.freed.remove(address);
                    self.take(address, owner.clone());
                    reservation.addresses.push(address);
                    reservation.fresh.push(address);
                }
                Err(error) => {
                    self.abandon(&reservation);
                    return Err(error);
                }
            }
        }
        Ok(reservation)
    }

    /// Gives back what was taken in memory only.
    pub fn abandon(&mut self, reservation: &Reservation) {
        for address in &reservation.fresh {
            self.give_back(*address);
            // Somebody may have heard of it.
            self.freed.insert(*address, SystemTime::now());
        }
    }

    /// What the owner has, to be released on disk.
    pub fn releasing(&self, owner: &Owner) -> Release {
        Release {
            store: self.store.clone(),
            addresses: self.addresses_of(owner),
        }
    }

    /// Frees in memory what is free on disk.
    pub fn released(&mut self, release: &Release) {
        let now = SystemTime::now();
        for address in &release.addresses {
            self.give_back(*address);
            self.freed.insert(*address, now);
        }
        self.forget_rested(now);
    }

    /// [`Ipam::reserve`] and [`Reservation::store`] in one.
    ///
    /// # Errors
    ///
    /// As theirs; then the owner has nothing new.
    pub fn allocate(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        let reservation = self.reserve(owner, &[])?;
        match reservation.store() {
            Ok(()) => Ok(reservation.addresses),
            Err(error) => {
                self.abandon(&reservation);
                Err(error)
            }
        }
    }

    /// Takes back whatever the owner has; nothing is fine.
    ///
    /// # Errors
    ///
    /// When the disk fails; then everything stays allocated.
    pub fn release(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        let release = self.releasing(owner);
        release.store()?;
        self.released(&release);
        Ok(release.addresses)
    }

    fn check_wanted(&self, owner: &Owner, wanted: &[IpAddr]) -> Result<(), IpamError> {
        for (index, address) in wanted.iter().enumerate() {
            let second = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
            if wanted[..index].iter().any(second) {
                return Err(IpamError::Second(*address));
            }
            if !self
                .pools
                .iter()
                .any(|pool| pool.range().contains(*address))
            {
                return Err(IpamError::NotOurs {
                    address: *address,
                    pools: self.pools(),
                });
            }
            if let Some(other) = self.allocated.get(address).filter(|other| *other != owner) {
                return Err(IpamError::Taken {
                    address: *address,
                    owner: other.clone(),
                });
            }
        }
        Ok(())
    }

    fn take(&mut self, address: IpAddr, owner: Owner) {
        if !owner.container_id.is_empty() {
            self.owned.entry(owner.clone()).or_default().insert(address);
        }
        self.allocated.insert(address, owner);
    }

    fn give_back(&mut self, address: IpAddr) {
        let Some(owner) = self.allocated.remove(&address) else {
            return;
        };
        if let Some(addresses) = self.owned.get_mut(&owner) {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.owned.remove(&owner);
            }
        }
    }

    /// Forgets notes beyond their number, the oldest first, if they have rested.
    fn forget_rested(&mut self, now: SystemTime) {
        while let Some(address) = self.freed.pop_rested(now) {
            self.store.forget(address);
        }
    }
}
