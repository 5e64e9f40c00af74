//! Host-local address management: which pod has which address of the node's pod networks.
//!
//! One file per allocation, named by the address, holds its owner. A freed allocation's file is
//! renamed to `freed-<address>`, with the time of it as its modification time: addresses that were
//! not used lately are given out first, in turn, then the one that was freed the longest ago. Peers
//! may still remember who had a just freed one.
//!
//! Invariants, at whatever instruction the agent dies:
//! - An address is given out only after its file is on disk, and is free only after that file is
//!   gone; being freed is one rename.
//! - Allocations outside the current pod networks (the node got others) stay their owners' until
//!   released.
//!
//! Memory decides, under a lock; files are written and renamed without it, so that pods that come
//! and go at once do not wait for each other's disk: an address is taken in memory before its file
//! is written ([`Ipam::reserve`], [`Reservation::store`]) and until its file is renamed
//! ([`Ipam::releasing`], [`Release::store`], [`Ipam::released`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{info, warn};

use crate::persist;

/// What the names of the notes about freed addresses begin with.
const FREED: &str = "freed-";
/// How many freed addresses are remembered, once they have rested. In a large network nothing else
/// would ever end their number.
const RESTING: usize = 1024;
/// How long a freed address is remembered at least: connections to its last pod have ended, and
/// other nodes have heard of its end.
const REST: Duration = Duration::from_secs(10);

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

/// Why an address could not be given or taken back.
#[derive(Debug, Error)]
pub enum IpamError {
    /// The node has no pod network yet.
    #[error("the node has no pod network: its Node object has no spec.podCIDRs yet")]
    NoPool,
    /// Every address is taken.
    #[error("no free address: all {size} of {pool} are in use")]
    Exhausted {
        /// The pod network.
        pool: IpNet,
        /// How many addresses it has.
        size: u128,
    },
    /// An address was asked for that no pod of this node can have.
    #[error(
        "{address} was asked for, which is no pod address of this node; its pod networks: {pools}",
        pools = pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// The pod networks.
        pools: Vec<IpNet>,
    },
    /// Two addresses of one family were asked for.
    #[error("{0} was asked for beside another address of its family; a pod has one of each")]
    Second(IpAddr),
    /// The address that was asked for is somebody else's.
    #[error("{address} was asked for, and {owner} has it")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: Owner,
    },
    /// The state on disk could not be read or written.
    #[error("{what} {path}: {error}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

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

/// The allocations of this node.
#[derive(Debug)]
pub struct Ipam {
    dir: PathBuf,
    pools: Vec<Pool>,
    allocated: BTreeMap<IpAddr, Owner>,
    owned: BTreeMap<Owner, BTreeSet<IpAddr>>,
    freed: Freed,
}

/// A pod network, and where the search for the next address begins.
#[derive(Clone, Copy, Debug)]
struct Pool {
    cidr: IpNet,
    range: Range,
    next: u128,
}

/// Addresses that are to be an owner's: taken in memory, not yet on disk.
#[derive(Debug)]
#[must_use = "an address whose allocation is not on disk must not be given out"]
pub struct Reservation {
    dir: PathBuf,
    owner: Owner,
    addresses: Vec<IpAddr>,
    /// Those of the addresses that the owner did not have before.
    fresh: Vec<IpAddr>,
}

/// Addresses that are to be free: free on disk first, then in memory.
#[derive(Debug)]
#[must_use = "the addresses are taken until they are noted as free"]
pub struct Release {
    dir: PathBuf,
    addresses: Vec<IpAddr>,
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
        let failed = |what| {
            let path = dir.to_owned();
            move |error| IpamError::Io { what, path, error }
        };
        persist::open_dir(dir).map_err(failed("cannot open the address directory"))?;
        let names = persist::names(dir).map_err(failed("cannot read the address directory"))?;
        let mut ipam = Self {
            dir: dir.to_owned(),
            pools: Vec::new(),
            allocated: BTreeMap::new(),
            owned: BTreeMap::new(),
            freed: Freed::default(),
        };
        let mut freed = Vec::new();
        for name in names {
            let path = dir.join(&name);
            if let Some(address) = name.strip_prefix(FREED).and_then(|name| name.parse().ok()) {
                let modified = std::fs::metadata(&path).and_then(|file| file.modified());
                // Without a time: it may have been freed just now.
                let at = modified.unwrap_or_else(|_| SystemTime::now());
                freed.push((nanoseconds(at), address));
                continue;
            }
            let Ok(address) = name.parse::<IpAddr>() else {
                warn!(file = %path.display(), "file in the address directory is no allocation; \
                    ignored");
                continue;
            };
            let content = std::fs::read(&path)
                .map_err(failed("cannot read an allocation in the address directory"))?;
            let owner = serde_json::from_slice(&content).unwrap_or_else(|error| {
                warn!(file = %path.display(), %error, "allocation has no readable owner; its \
                    address stays taken until the file is removed");
                Owner {
                    container_id: String::new(),
                    ifname: String::new(),
                }
            });
            ipam.take(address, owner);
        }
        freed.sort_unstable();
        for (at, address) in freed {
            if ipam.allocated.contains_key(&address) {
                // A crash between the allocation and the removal of the note.
                let _ = std::fs::remove_file(freed_file(dir, address));
            } else {
                ipam.freed.insert(address, at);
            }
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
                let known = old.iter().find(|pool| pool.cidr == *cidr);
                known.copied().unwrap_or_else(|| {
                    let range = Range::of(cidr);
                    let next = range.first;
                    Pool {
                        cidr: *cidr,
                        range,
                        next,
                    }
                })
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
        self.pools.iter().map(|pool| pool.cidr).collect()
    }

    /// How full the pod networks are.
    pub fn usage(&self) -> Vec<Usage> {
        let usage = |pool: &Pool| Usage {
            pool: pool.cidr,
            size: u64::try_from(pool.range.size()).unwrap_or(u64::MAX),
            used: self.allocated.range(pool.range.bounds()).count(),
        };
        self.pools.iter().map(usage).collect()
    }

    /// How many allocated addresses are of no pod network of the node. None before the networks are
    /// known.
    pub fn outside(&self) -> usize {
        if self.pools.is_empty() {
            return 0;
        }
        let inside = |address: &IpAddr| self.pools.iter().any(|pool| pool.cidr.contains(address));
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
            dir: self.dir.clone(),
            owner: owner.clone(),
            addresses: Vec::new(),
            fresh: Vec::new(),
        };
        for index in 0..self.pools.len() {
            let v4 = self.pools[index].range.v4;
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
                None => self.find_free(index),
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
            self.freed.insert(*address, nanoseconds(SystemTime::now()));
        }
    }

    /// What the owner has, to be released on disk.
    pub fn releasing(&self, owner: &Owner) -> Release {
        Release {
            dir: self.dir.clone(),
            addresses: self.addresses_of(owner),
        }
    }

    /// Frees in memory what is free on disk.
    pub fn released(&mut self, release: &Release) {
        let now = SystemTime::now();
        for address in &release.addresses {
            self.give_back(*address);
            self.freed.insert(*address, nanoseconds(now));
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
            if !self.pools.iter().any(|pool| pool.range.contains(*address)) {
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

    /// The next address of a pool: in turn among those that nobody had lately, else the one that was
    /// freed the longest ago.
    fn find_free(&mut self, index: usize) -> Result<IpAddr, IpamError> {
        let Pool { cidr, range, next } = self.pools[index];
        let known = |address: &IpAddr| {
            self.allocated.contains_key(address) || self.freed.contains(*address)
        };
        let count = self.allocated.range(range.bounds()).count() + self.freed.count_in(range);
        let unused = if u128::try_from(count).is_ok_and(|count| count >= range.size()) {
            None
        } else {
            // At most one step more than there are addresses in use or at rest.
            range.from(next).find(|address| !known(address))
        };
        let found = unused.or_else(|| self.freed.longest(range));
        let address = found.ok_or(IpamError::Exhausted {
            pool: cidr,
            size: range.size(),
        })?;
        self.pools[index].next = range.after(address);
        Ok(address)
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

    /// Forgets notes beyond their number, the oldest first, if they have rested. A file that stays
    /// says it again at the next start, which only makes the address wait.
    fn forget_rested(&mut self, now: SystemTime) {
        let rested = nanoseconds(now.checked_sub(REST).unwrap_or(SystemTime::UNIX_EPOCH));
        while self.freed.len() > RESTING
            && let Some((at, address)) = self.freed.oldest()
            && at < rested
        {
            self.freed.remove(address);
            if let Err(error) = std::fs::remove_file(freed_file(&self.dir, address))
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(%address, %error, "cannot remove the note that an address was freed");
            }
        }
    }
}

impl Reservation {
    /// The owner's addresses, one of each pod network.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Writes the allocations down.
    ///
    /// # Errors
    ///
    /// When the disk fails; then none is on disk, as far as the disk lets, and the caller abandons
    /// the reservation.
    pub fn store(&self) -> Result<(), IpamError> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        let failed = |error| IpamError::Io {
            what: "cannot write allocations in",
            path: self.dir.clone(),
            error,
        };
        let content = serde_json::to_vec(&self.owner).map_err(|error| failed(error.into()))?;
        let files: Vec<_> = self
            .fresh
            .iter()
            .map(|address| (address.to_string(), content.as_slice()))
            .collect();
        if let Err(error) = persist::write_many(&self.dir, &files, 0o600) {
            for (name, _) in &files {
                // Restored as an orphan at the next start if it stays.
                let _ = std::fs::remove_file(self.dir.join(name));
            }
            return Err(failed(error));
        }
        for address in &self.fresh {
            // Should it stay: an allocation beside it says more.
            let _ = std::fs::remove_file(freed_file(&self.dir, *address));
        }
        Ok(())
    }
}

impl Release {
    /// The addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Notes on disk that the addresses are free.
    ///
    /// # Errors
    ///
    /// When the disk fails; what is noted already may be noted again.
    pub fn store(&self) -> Result<(), IpamError> {
        if self.addresses.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = self
            .addresses
            .iter()
            .map(|address| {
                let name = address.to_string();
                let freed = format!("{FREED}{name}");
                (name, freed)
            })
            .collect();
        persist::rename_many(&self.dir, &names).map_err(|error| IpamError::Io {
            what: "cannot note that addresses are free in",
            path: self.dir.clone(),
            error,
        })
    }
}

fn freed_file(dir: &Path, address: IpAddr) -> PathBuf {
    dir.join(format!("{FREED}{address}"))
}

/// Since 1970; enough until 2554.
fn nanoseconds(at: SystemTime) -> u64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Free addresses that were in use, and when they were freed, in nanoseconds since 1970.
#[derive(Debug, Default)]
struct Freed {
    times: BTreeMap<IpAddr, u64>,
    order: BTreeSet<(u64, IpAddr)>,
}

impl Freed {
    /// Within this process later is later, whatever the clock does.
    fn insert(&mut self, address: IpAddr, at: u64) {
        self.remove(address);
        let last = self.order.last().map_or(0, |(last, _)| *last);
        let at = at.max(last.saturating_add(1));
        self.times.insert(address, at);
        self.order.insert((at, address));
    }

    fn remove(&mut self, address: IpAddr) {
        if let Some(at) = self.times.remove(&address) {
            self.order.remove(&(at, address));
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.times.contains_key(&address)
    }

    fn len(&self) -> usize {
        self.times.len()
    }

    fn count_in(&self, range: Range) -> usize {
        self.times.range(range.bounds()).count()
    }

    fn oldest(&self) -> Option<(u64, IpAddr)> {
        self.order.first().copied()
    }

    fn longest(&self, range: Range) -> Option<IpAddr> {
        let mut addresses = self.order.iter().map(|(_, address)| *address);
        addresses.find(|address| range.contains(*address))
    }
}

/// The usable addresses of a network, as numbers, both ends included.
///
/// The first address is never used: in IPv4 it is the network's, in IPv6 it is every router's
/// (subnet-router anycast, RFC 4291 2.6.1). Nor is, in IPv4, the broadcast address. The gateway is
/// link-local and needs none. IPv4 networks too small for that (/31, /32) and a single IPv6 address
/// are used whole.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u128,
    last: u128,
    v4: bool,
}

impl Range {
    fn of(pool: &IpNet) -> Self {
        let (first, last) = (number(pool.network()), number(pool.broadcast()));
        let v4 = is_v4(pool);
        let spare = if v4 { last - first >= 2 } else { last > first };
        Self {
            first: first + u128::from(spare),
            last: last - u128::from(spare && v4),
            v4,
        }
    }

    fn size(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.v4 && (self.first..=self.last).contains(&number(address))
    }

    fn bounds(&self) -> std::ops::RangeInclusive<IpAddr> {
        address(self.first, self.v4)..=address(self.last, self.v4)
    }

    /// Every address once, beginning with this one.
    fn from(self, start: u128) -> impl Iterator<Item = IpAddr> {
        let start = start.clamp(self.first, self.last);
        (start..=self.last)
            .chain(self.first..start)
            .map(move |number| address(number, self.v4))
    }

    /// The number after this address, round the end.
    fn after(&self, address: IpAddr) -> u128 {
        match number(address) {
            number if number < self.last => number + 1,
            _ => self.first,
        }
    }
}

fn is_v4(pool: &IpNet) -> bool {
    matches!(pool, IpNet::V4(_))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        // Within a range of IPv4 addresses, so the upper bits are zero.
        Ipv4Addr::from_bits(number as u32).into()
    } else {
        Ipv6Addr::from_bits(number).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner(n: u32) -> Owner {
        Owner {
            container_id: format!("c{n}"),
            ifname: "eth0".to_owned(),
        }
    }

    fn open(dir: &Path, pools: &[&str]) -> Ipam {
        let mut ipam = Ipam::open(dir).expect("opens");
        let pools: Vec<IpNet> = pools
            .iter()
            .map(|pool| pool.parse().expect("a network"))
            .collect();
        ipam.set_pools(&pools);
        ipam
    }

    fn v4(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn network_and_broadcast_are_never_given() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["10.1.0.0/30"]);
        assert_eq!(ipam.allocate(&owner(1)).expect("free"), [v4("10.1.0.1")]);
        assert_eq!(ipam.allocate(&owner(2)).expect("free"), [v4("10.1.0.2")]);
        let error = ipam.allocate(&owner(3)).expect_err("exhausted");
        assert_eq!(
            error.to_string(),
            "no free address: all 2 of 10.1.0.0/30 are in use"
        );
    }

    #[test]
    fn an_owner_keeps_its_address() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
        let first = ipam.allocate(&owner(1)).expect("free");
        assert_eq!(ipam.allocate(&owner(1)).expect("kept"), first);
        assert_eq!(
            open(dir.path(), &["10.1.0.0/24"])
                .allocate(&owner(1))
                .expect("kept"),
            first
        );
        assert_eq!(ipam.release(&owner(1)).expect("released"), first);
        assert_eq!(
            ipam.release(&owner(1)).expect("nothing left"),
            [] as [IpAddr; 0]
        );
        assert!(open(dir.path(), &[]).allocations().is_empty());
    }

    #[test]
    fn a_freed_address_rests_also_across_restarts() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut given = Vec::new();
        for n in 0..6 {
            // A new process each time.
            let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
            given.extend(ipam.allocate(&owner(n)).expect("free"));
            ipam.release(&owner(n)).expect("released");
        }
        let mut distinct = given.clone();
        distinct.dedup();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 6, "{given:?}");
        let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
        assert_eq!(ipam.allocate(&owner(9)).expect("wraps"), [v4("10.1.0.1")]);
    }

    #[test]
    fn the_one_freed_the_longest_ago_is_next() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
        for n in 1..=6 {
            ipam.allocate(&owner(n)).expect("free");
        }
        // A cursor that goes round would come to 10.1.0.1 next, which has just been freed.
        for n in [3, 5, 1] {
            ipam.release(&owner(n)).expect("released");
        }
        let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
        let given: Vec<_> = (7..=9)
            .flat_map(|n| ipam.allocate(&owner(n)).expect("free"))
            .collect();
        assert_eq!(given, ["10.1.0.3", "10.1.0.5", "10.1.0.1"].map(v4));
    }

    #[test]
    fn every_state_a_crash_can_leave_is_safe() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
        ipam.allocate(&owner(1)).expect("free");
        ipam.allocate(&owner(2)).expect("free");
        ipam.release(&owner(2)).expect("released");
        // Within an allocation: its file is there, and the note that the address was freed as well.
        std::fs::write(dir.path().join("freed-10.1.0.1"), "9").expect("writes");
        // Within the write of an allocation.
        std::fs::write(dir.path().join(".tmp-10.1.0.2~"), "{\"cont").expect("writes");
        let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
        assert_eq!(ipam.allocate(&owner(2)).expect("free"), [v4("10.1.0.3")]);
        assert_eq!(ipam.addresses_of(&owner(1)), [v4("10.1.0.1")]);
        assert!(!dir.path().join("freed-10.1.0.1").exists());
        // Before the allocation is on disk, nobody has it; after, its owner does.
        let reservation = ipam.reserve(&owner(4), &[]).expect("free");
        let mut after_a_crash = open(dir.path(), &["10.1.0.0/24"]);
        assert!(after_a_crash.addresses_of(&owner(4)).is_empty());
        reservation.store().expect("writes");
        after_a_crash = open(dir.path(), &["10.1.0.0/24"]);
        assert_eq!(
            after_a_crash.addresses_of(&owner(4)),
            reservation.addresses()
        );
        // Free on disk, not yet in memory.
        let release = ipam.releasing(&owner(4));
        release.store().expect("renames");
        after_a_crash = open(dir.path(), &["10.1.0.0/24"]);
        assert!(after_a_crash.addresses_of(&owner(4)).is_empty());
        assert_ne!(
            after_a_crash.allocate(&owner(5)).expect("free"),
            release.addresses()
        );
        release.store().expect("again");
        ipam.released(&release);
        assert!(ipam.addresses_of(&owner(4)).is_empty());
    }

    #[test]
    fn what_cannot_be_written_is_not_given() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = dir.path().join("ipam");
        let mut ipam = open(&state, &["10.1.0.0/29", "fd00::/64"]);
        // Where a file should go there is a directory.
        std::fs::create_dir(state.join("fd00::1")).expect("makes");
        let error = ipam.allocate(&owner(1)).expect_err("cannot write");
        assert!(matches!(error, IpamError::Io { .. }), "{error}");
        assert!(ipam.allocations().is_empty());
        assert!(!state.join("10.1.0.1").exists());
        let given = ipam.allocate(&owner(1)).expect("the next ones");
        assert_eq!(given, ["10.1.0.2", "fd00::2"].map(v4));
    }

    #[test]
    fn addresses_can_be_asked_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["10.1.0.0/24", "fd00::/64"]);
        let wanted = ["10.1.0.77", "fd00::7:7"].map(v4);
        let reservation = ipam.reserve(&owner(1), &wanted).expect("free");
        assert_eq!(reservation.addresses(), wanted);
        reservation.store().expect("writes");
        for (wanted, why) in [
            (vec!["10.1.0.77"], "has it"),
            (vec!["10.2.0.1"], "no pod address of this node"),
            (vec!["10.1.0.0"], "no pod address of this node"),
            (vec!["10.1.0.255"], "no pod address of this node"),
            (vec!["fd00::"], "no pod address of this node"),
            (vec!["10.1.0.9", "10.1.0.8"], "one of each"),
        ] {
            let wanted: Vec<IpAddr> = wanted.into_iter().map(v4).collect();
            let error = ipam.reserve(&owner(2), &wanted).expect_err(why);
            assert!(error.to_string().contains(why), "{error}");
            assert!(ipam.addresses_of(&owner(2)).is_empty());
        }
        // One family asked for, the other by turn; and what its owner has may be asked for again.
        let reservation = ipam.reserve(&owner(2), &[v4("fd00::9")]).expect("free");
        assert_eq!(reservation.addresses(), ["10.1.0.1", "fd00::9"].map(v4));
        reservation.store().expect("writes");
        let again = ipam.reserve(&owner(1), &wanted).expect("kept");
        assert_eq!(again.addresses(), wanted);
    }

    #[test]
    fn a_node_that_gets_another_network_keeps_what_pods_have() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
        let old = ipam.allocate(&owner(1)).expect("free");
        assert_eq!(ipam.outside(), 0);
        ipam.set_pools(&["10.2.0.0/24".parse().expect("a network")]);
        assert_eq!(ipam.outside(), 1);
        assert_eq!(ipam.allocate(&owner(1)).expect("kept"), old);
        assert_eq!(ipam.allocate(&owner(2)).expect("free"), [v4("10.2.0.1")]);
        ipam.release(&owner(1)).expect("released");
        assert_eq!(ipam.outside(), 0);
    }

    #[test]
    fn exhaustion_is_told_per_family() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["10.1.0.0/30", "fd00::/64"]);
        for n in 1..=2 {
            assert!(!ipam.usage()[0].is_exhausted());
            ipam.allocate(&owner(n)).expect("free");
        }
        let usage = ipam.usage();
        assert_eq!((usage[0].used, usage[0].size), (2, 2));
        assert!(usage[0].is_exhausted() && !usage[1].is_exhausted());
        assert_eq!(usage[1].size, u64::MAX);
        ipam.release(&owner(1)).expect("released");
        assert!(!ipam.usage()[0].is_exhausted());
    }

    #[test]
    fn notes_end_but_not_before_their_rest() {
        let dir = tempfile::tempdir().expect("tempdir");
        let now = SystemTime::now();
        let old = now - REST - Duration::from_secs(60);
        for n in 0..3000_u32 {
            let path = dir
                .path()
                .join(format!("freed-{}", Ipv4Addr::from(0x0a01_0001 + n)));
            let file = std::fs::File::create(path).expect("makes");
            // The later half was freed just now.
            let at = if n < 1500 { old } else { now };
            file.set_modified(at).expect("sets");
        }
        let mut ipam = open(dir.path(), &["10.1.0.0/20"]);
        assert_eq!(ipam.freed.len(), 1500, "all that still rest, and no others");
        let given = ipam.allocate(&owner(1)).expect("free");
        assert_eq!(given, [v4("10.1.0.1")]);
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1501);
    }

    #[test]
    fn a_large_network_is_gone_through_in_turn() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["fd00::/64"]);
        let mut last = None;
        for n in 0..50 {
            let given = ipam.allocate(&owner(n)).expect("free");
            ipam.release(&owner(n)).expect("released");
            assert!(Some(&given) > last.as_ref(), "{given:?} after {last:?}");
            last = Some(given);
        }
    }

    #[test]
    fn unreadable_files_take_nothing_but_their_address() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("10.1.0.1"), "garbage").expect("writes");
        std::fs::write(dir.path().join("freed-10.1.0.2"), "garbage").expect("writes");
        std::fs::write(dir.path().join("README"), "hello").expect("writes");
        let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
        assert_eq!(ipam.allocate(&owner(1)).expect("free"), [v4("10.1.0.3")]);
    }

    #[test]
    fn both_families_or_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ipam = open(dir.path(), &["fd00::/126", "10.1.0.0/30", "10.2.0.0/24"]);
        assert_eq!(ipam.pools().len(), 2);
        // The first one is every router's.
        assert_eq!(
            ipam.allocate(&owner(1)).expect("free"),
            [v4("fd00::1"), v4("10.1.0.1")]
        );
        assert_eq!(
            ipam.allocate(&owner(2)).expect("free"),
            [v4("fd00::2"), v4("10.1.0.2")]
        );
        ipam.release(&owner(2)).expect("released");
        std::fs::write(dir.path().join("10.1.0.2"), "garbage").expect("writes");
        let mut ipam = open(dir.path(), &["fd00::/126", "10.1.0.0/30"]);
        ipam.allocate(&owner(3)).expect_err("no IPv4 address");
        assert_eq!(ipam.addresses_of(&owner(3)), [] as [IpAddr; 0]);
    }

    #[test]
    fn the_smallest_networks() {
        for (pool, addresses) in [
            ("10.1.0.0/31", 2),
            ("10.1.0.0/32", 1),
            ("10.1.0.0/30", 2),
            ("fd00::/128", 1),
            ("fd00::/127", 1),
            ("fd00::/126", 3),
        ] {
            let range = Range::of(&pool.parse().expect("a network"));
            assert_eq!(range.size(), addresses, "{pool}");
        }
    }

    #[test]
    fn without_a_pod_network_there_is_no_address() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(matches!(
            open(dir.path(), &[]).allocate(&owner(1)),
            Err(IpamError::NoPool)
        ));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u32),
        Release(u32),
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..8_u32).prop_map(Step::Allocate),
            3 => (0..8_u32).prop_map(Step::Release),
            1 => Just(Step::Restart),
        ];
        proptest::collection::vec(step, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_happens_an_address_has_one_owner_and_rests(steps in steps()) {
            let dir = tempfile::tempdir().expect("tempdir");
            // Six usable addresses for up to eight owners.
            let pool: IpNet = "10.1.0.0/29".parse().expect("a network");
            let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
            let mut model: BTreeMap<u32, IpAddr> = BTreeMap::new();
            let mut freed = None;
            for step in steps {
                match step {
                    Step::Restart => ipam = open(dir.path(), &["10.1.0.0/29"]),
                    Step::Release(n) => {
                        let released = ipam.release(&owner(n)).expect("released");
                        let had = model.remove(&n);
                        prop_assert_eq!(released, had.into_iter().collect::<Vec<_>>());
                        freed = had.or(freed);
                    }
                    Step::Allocate(n) => match ipam.allocate(&owner(n)) {
                        Err(error) => {
                            let exhausted = matches!(error, IpamError::Exhausted { .. });
                            prop_assert!(exhausted);
                            prop_assert_eq!(model.len(), 6);
                        }
                        Ok(addresses) => {
                            let address = addresses[0];
                            let kept = model.insert(n, address);
                            prop_assert!(kept.is_none_or(|kept| kept == address));
                            let others = model.iter().filter(|(m, _)| **m != n);
                            prop_assert!(others.clone().all(|(_, other)| *other != address));
                            prop_assert!(pool.contains(&address));
                            prop_assert!(address != pool.network() && address != pool.broadcast());
                            // With another address to give, the one freed last is not given.
                            if kept.is_none() && model.len() < 6 {
                                prop_assert_ne!(Some(address), freed);
                            }
                        }
                    },
                }
                prop_assert_eq!(ipam.allocations().len(), model.len());
            }
        }
    }
}
