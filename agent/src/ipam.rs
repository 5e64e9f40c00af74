//! Host-local address management: which pod has which address of the node's pod networks.
//!
//! One file per allocation, named by the address, holds its owner. A freed address leaves a file
//! `freed-<address>` with a growing number: addresses that were never used are given out first, then
//! the one that was freed the longest ago. Peers may still remember who had a just freed one.
//!
//! Invariants, at whatever instruction the agent dies:
//! - An address is given out only after its file is on disk, and is free only after it is gone.
//! - That an address was freed is on disk before its allocation is gone. Where a crash left both,
//!   the address is allocated.
//! - Allocations outside the current pod networks (the node got others) stay their owners' until
//!   released.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use crate::persist;

/// What the names of the notes about freed addresses begin with.
const FREED: &str = "freed-";
/// How many freed addresses are remembered.
const RESTING: usize = 1024;

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

/// The allocations of this node.
#[derive(Debug)]
pub struct Ipam {
    dir: PathBuf,
    pools: Vec<IpNet>,
    allocated: BTreeMap<IpAddr, Owner>,
    /// Free addresses that were in use, and when in the order of all that were freed.
    freed: BTreeMap<IpAddr, u64>,
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
        let files = persist::read_all(dir).map_err(failed("cannot read the address directory"))?;
        let mut ipam = Self {
            dir: dir.to_owned(),
            pools: Vec::new(),
            allocated: BTreeMap::new(),
            freed: BTreeMap::new(),
        };
        for (name, content) in files {
            let path = dir.join(&name);
            if let Some(address) = name.strip_prefix(FREED).and_then(|name| name.parse().ok()) {
                let order = std::str::from_utf8(&content)
                    .ok()
                    .and_then(|text| text.parse().ok());
                // Unreadable: it may have been freed just now.
                ipam.freed.insert(address, order.unwrap_or(u64::MAX / 2));
                continue;
            }
            let Ok(address) = name.parse::<IpAddr>() else {
                warn!(file = %path.display(), "file in the address directory is no allocation; \
                    ignored");
                continue;
            };
            let owner = serde_json::from_slice(&content).unwrap_or_else(|error| {
                warn!(file = %path.display(), %error, "allocation has no readable owner; its \
                    address stays taken until the file is removed");
                Owner {
                    container_id: String::new(),
                    ifname: String::new(),
                }
            });
            ipam.allocated.insert(address, owner);
        }
        ipam.freed
            .retain(|address, _| !ipam.allocated.contains_key(address));
        Ok(ipam)
    }

    /// Sets the pod networks, at most one per family is used: the first of each.
    pub fn set_pools(&mut self, pools: &[IpNet]) {
        self.pools.clear();
        for pool in pools {
            if !self.pools.iter().any(|known| is_v4(known) == is_v4(pool)) {
                self.pools.push(pool.trunc());
            }
        }
    }

    /// The pod networks in use.
    pub fn pools(&self) -> &[IpNet] {
        &self.pools
    }

    /// Every allocation.
    pub fn allocations(&self) -> &BTreeMap<IpAddr, Owner> {
        &self.allocated
    }

    /// The addresses of this owner.
    pub fn addresses_of(&self, owner: &Owner) -> Vec<IpAddr> {
        self.allocated
            .iter()
            .filter(|(_, o)| *o == owner)
            .map(|(a, _)| *a)
            .collect()
    }

    /// Gives the owner one address of each pod network. An owner that has addresses keeps them.
    ///
    /// # Errors
    ///
    /// When there is no pod network, a network is exhausted, or the disk fails; then the owner has
    /// nothing new.
    pub fn allocate(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        if self.pools.is_empty() {
            return Err(IpamError::NoPool);
        }
        let had = self.addresses_of(owner);
        let mut addresses = Vec::new();
        for pool in self.pools.clone() {
            if let Some(address) = had.iter().find(|address| address.is_ipv4() == is_v4(&pool)) {
                addresses.push(*address);
                continue;
            }
            match self.allocate_from(pool, owner) {
                Ok(address) => addresses.push(address),
                Err(error) => {
                    for address in addresses.iter().filter(|address| !had.contains(address)) {
                        if let Err(error) = self.release_address(*address) {
                            warn!(%address, %error, "address could not be given back");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(addresses)
    }

    /// Takes back whatever the owner has; nothing is fine.
    ///
    /// # Errors
    ///
    /// When the disk fails; what could not be removed stays allocated.
    pub fn release(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        let addresses = self.addresses_of(owner);
        for address in &addresses {
            self.release_address(*address)?;
        }
        Ok(addresses)
    }

    fn allocate_from(&mut self, pool: IpNet, owner: &Owner) -> Result<IpAddr, IpamError> {
        let range = Range::of(&pool);
        let unused = |address: &IpAddr| {
            !self.allocated.contains_key(address) && !self.freed.contains_key(address)
        };
        let longest_freed = || {
            let freed = self
                .freed
                .iter()
                .filter(|(address, _)| range.contains(**address));
            freed
                .min_by_key(|(_, order)| **order)
                .map(|(address, _)| *address)
        };
        let address = range
            .addresses()
            .find(unused)
            .or_else(longest_freed)
            .ok_or(IpamError::Exhausted {
                pool,
                size: range.size(),
            })?;

        let path = self.dir.join(address.to_string());
        let failed = |error| IpamError::Io {
            what: "cannot write the allocation",
            path: path.clone(),
            error,
        };
        let content = serde_json::to_vec(owner).map_err(|error| failed(error.into()))?;
        persist::write(&path, &content, 0o600).map_err(failed)?;
        self.allocated.insert(address, owner.clone());
        self.forget_freed(address);
        Ok(address)
    }

    fn release_address(&mut self, address: IpAddr) -> Result<(), IpamError> {
        let order = self
            .freed
            .values()
            .max()
            .map_or(0, |last| last.saturating_add(1));
        let path = self.freed_file(address);
        persist::write(&path, order.to_string().as_bytes(), 0o600).map_err(|error| {
            IpamError::Io {
                what: "cannot note that an address is free",
                path,
                error,
            }
        })?;
        let path = self.dir.join(address.to_string());
        persist::remove(&path).map_err(|error| IpamError::Io {
            what: "cannot remove the allocation",
            path,
            error,
        })?;
        self.allocated.remove(&address);
        self.freed.insert(address, order);
        // In a large network nothing else would ever end their number.
        if self.freed.len() > RESTING
            && let Some((address, _)) = self.freed.iter().min_by_key(|(_, order)| **order)
        {
            self.forget_freed(*address);
        }
        Ok(())
    }

    /// Forgets that an address was in use. A file that stays says it again at the next start, which
    /// only makes the address wait.
    fn forget_freed(&mut self, address: IpAddr) {
        if self.freed.remove(&address).is_some()
            && let Err(error) = std::fs::remove_file(self.freed_file(address))
        {
            warn!(%address, %error, "cannot remove the note that an address was freed");
        }
    }

    fn freed_file(&self, address: IpAddr) -> PathBuf {
        self.dir.join(format!("{FREED}{address}"))
    }
}

/// The usable addresses of a network, as numbers, both ends included.
///
/// The network address is never used, nor, in IPv4, the broadcast address. The gateway is
/// link-local and needs none. Networks too small for that (/31, /32, /127, /128) are used whole.
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
        if last - first < 2 {
            Self { first, last, v4 }
        } else {
            Self {
                first: first + 1,
                last: last - u128::from(v4),
                v4,
            }
        }
    }

    fn size(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.v4 && (self.first..=self.last).contains(&number(address))
    }

    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (self.first..=self.last).map(move |number| address(number, self.v4))
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
        // Within a release: freed is noted, the allocation is still there.
        std::fs::write(dir.path().join("freed-10.1.0.1"), "9").expect("writes");
        // Within the write of an allocation.
        std::fs::write(dir.path().join(".tmp-10.1.0.2"), "{\"cont").expect("writes");
        let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
        assert_eq!(ipam.allocate(&owner(2)).expect("free"), [v4("10.1.0.3")]);
        assert_eq!(ipam.addresses_of(&owner(1)), [v4("10.1.0.1")]);
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
        let mut ipam = open(dir.path(), &["fd00::/127", "10.1.0.0/30", "10.2.0.0/24"]);
        assert_eq!(ipam.pools().len(), 2);
        assert_eq!(
            ipam.allocate(&owner(1)).expect("free"),
            [v4("fd00::"), v4("10.1.0.1")]
        );
        assert_eq!(
            ipam.allocate(&owner(2)).expect("free"),
            [v4("fd00::1"), v4("10.1.0.2")]
        );
        ipam.release(&owner(2)).expect("released");
        std::fs::write(dir.path().join("10.1.0.2"), "garbage").expect("writes");
        let mut ipam = open(dir.path(), &["fd00::/127", "10.1.0.0/30"]);
        ipam.allocate(&owner(3)).expect_err("no IPv4 address");
        assert_eq!(ipam.addresses_of(&owner(3)), [] as [IpAddr; 0]);
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
