//! From what the maps hold to what they should hold, in an order that is safe at every step.
//!
//! The order, and why (a reference never points at what is not there, and no packet is judged by
//! half a change for good):
//!
//! Of services ([`diff_services`]):
//! 1. Backends are put, then slots, blocks of Maglev tables and source ranges, then frontends. So
//!    what a frontend leads to exists before its count includes it, a slot that moves moves to a
//!    backend that exists, and nobody is let in or kept out by ranges that are not complete.
//! 2. Frontends are deleted, then source ranges, blocks, slots, and backends at last: nothing leads
//!    to a thing that is deleted.
//! 3. The epoch is bumped if something is a service now that was none, or none any more; and that of
//!    the backends if one is gone. What else changes matters to new flows only.
//!
//! Of policies ([`diff_policy`]):
//! 1. Policy entries are put. Sets and identities are numbered by their content, so these are new
//!    keys that no endpoint or address leads to yet.
//! 2. Address prefixes are put, longest first: while a prefix changes, what is nested in it already
//!    has its own entry and does not see the change.
//! 3. Limits of bandwidth are put, then endpoints: the flip to the new policy sets.
//! 4. Endpoints, limits, address prefixes (shortest first, for the same reason) are deleted.
//! 5. The epoch is bumped. Everything that can alter a decision is in place now, so a flow that is
//!    decided again is decided by the whole of it, and needs no second bump.
//! 6. Policy entries are deleted, which nothing refers to any more.
//!
//! Where both change, services come first ([`diff`]): an address of a network of services without
//! its frontends would drop.
//!
//! A failed write ends the writes of its [`Concern`] and leaves its maps somewhere in this order; the
//! next diff starts from there.

use std::collections::BTreeMap;

use weft_abi::{
    addr::{Addr4, Addr6},
    endpoint::{Bandwidth, Endpoint},
    ipcache::IpcacheEntry,
    policy::{PolicyKey, PolicyVerdict},
    service::{Backend, Frontend, FrontendKey, MaglevBlock, MaglevKey, Slot, SlotKey, SourceRange},
};

use crate::{
    contents::{
        Contents, LetIn, LpmKey, PolicyContents, PolicyTables, ServiceContents, ServiceTables,
    },
    family::Address,
};

/// Writes to one map, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writes<K, V> {
    /// Insert or overwrite.
    Put(Vec<(K, V)>),
    /// Remove.
    Delete(Vec<K>),
}

impl<K, V> Writes<K, V> {
    /// How many entries are written.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Put(entries) => entries.len(),
            Self::Delete(keys) => keys.len(),
        }
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Ord + Clone, V: Clone> Writes<K, V> {
    /// Does to `map` what the kernel's map is to get.
    pub fn apply(&self, map: &mut BTreeMap<K, V>) {
        match self {
            Self::Put(entries) => map.extend(entries.iter().cloned()),
            Self::Delete(keys) => {
                for key in keys {
                    map.remove(key);
                }
            }
        }
    }
}

/// Writes to one of a family's maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FamilyBatch<A: Address> {
    /// `endpoints4`, `endpoints6`.
    Endpoints(Writes<A, Endpoint>),
    /// `ipcache4`, `ipcache6`.
    Ipcache(Writes<LpmKey<A>, IpcacheEntry>),
    /// `frontends4`, `frontends6`.
    Frontends(Writes<FrontendKey<A>, Frontend>),
    /// `backends4`, `backends6`.
    Backends(Writes<u32, Backend<A>>),
    /// `source_ranges4`, `source_ranges6`.
    SourceRanges(Writes<LpmKey<SourceRange<A>>, LetIn>),
}

/// Writes to one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// To an IPv4 map.
    V4(FamilyBatch<Addr4>),
    /// To an IPv6 map.
    V6(FamilyBatch<Addr6>),
    /// To `policy`.
    Policy(Writes<LpmKey<PolicyKey>, PolicyVerdict>),
    /// To `slots`.
    Slots(Writes<SlotKey, Slot>),
    /// To `maglev`.
    Maglev(Writes<MaglevKey, MaglevBlock>),
    /// To `bandwidth`.
    Bandwidth(Writes<u32, Bandwidth>),
}

/// One step of applying changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write to a map; never empty.
    Write(Batch),
    /// Write a new epoch to the configuration: cached decisions end here.
    BumpEpoch,
    /// Write a new epoch of the backends: flows move off those that are gone.
    BumpBackends,
}

/// Ordered changes. They must be applied in order; the first failed write of a [`Concern`] must end
/// its writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Changes {
    /// Whether the maps are as they should be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many map entries are written.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.steps
            .iter()
            .map(|step| match step {
                Step::Write(batch) => batch.len(),
                Step::BumpEpoch | Step::BumpBackends => 0,
            })
            .sum()
    }

    /// These changes and then others, with one epoch for all of them: what is decided on the way is
    /// decided again at the end.
    #[must_use]
    pub fn then(mut self, next: Self) -> Self {
        if next.steps.contains(&Step::BumpEpoch) {
            self.steps.retain(|step| *step != Step::BumpEpoch);
        }
        self.steps.extend(next.steps);
        self
    }

    fn write(&mut self, batch: Batch) {
        if batch.len() > 0 {
            self.steps.push(Step::Write(batch));
        }
    }
}

impl<A: Address> FamilyBatch<A> {
    fn len(&self) -> usize {
        match self {
            Self::Endpoints(writes) => writes.len(),
            Self::Ipcache(writes) => writes.len(),
            Self::Frontends(writes) => writes.len(),
            Self::Backends(writes) => writes.len(),
            Self::SourceRanges(writes) => writes.len(),
        }
    }

    fn apply(&self, contents: &mut Contents) {
        let policy = A::policy_mut(&mut contents.policy);
        let services = A::services_mut(&mut contents.services);
        match self {
            Self::Endpoints(writes) => writes.apply(&mut policy.endpoints),
            Self::Ipcache(writes) => writes.apply(&mut policy.ipcache),
            Self::Frontends(writes) => writes.apply(&mut services.frontends),
            Self::Backends(writes) => writes.apply(&mut services.backends),
            Self::SourceRanges(writes) => writes.apply(&mut services.source_ranges),
        }
    }

    const fn concern(&self) -> Concern {
        match self {
            Self::Endpoints(_) | Self::Ipcache(_) => Concern::Policy,
            Self::Frontends(_) | Self::Backends(_) | Self::SourceRanges(_) => Concern::Services,
        }
    }

    const fn map_name(&self, names: [&'static str; 5]) -> &'static str {
        let [endpoints, ipcache, frontends, backends, source_ranges] = names;
        match self {
            Self::Endpoints(_) => endpoints,
            Self::Ipcache(_) => ipcache,
            Self::Frontends(_) => frontends,
            Self::Backends(_) => backends,
            Self::SourceRanges(_) => source_ranges,
        }
    }
}

/// What a map decides. Nothing of one concern needs anything of another, so a map of one that takes
/// no more does not hold the others up. An endpoint does refer to its limit; without it, it passes as
/// if it had none: a pod that is too fast does less harm than one that is not policed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Which backend: frontends, slots, backends, Maglev tables, source ranges.
    Services,
    /// Whether and whither: endpoints, address prefixes, policy entries.
    Policy,
    /// How fast: limits of bandwidth.
    Limits,
}

impl Batch {
    /// What the map decides.
    #[must_use]
    pub const fn concern(&self) -> Concern {
        match self {
            Self::V4(batch) => batch.concern(),
            Self::V6(batch) => batch.concern(),
            Self::Slots(_) | Self::Maglev(_) => Concern::Services,
            Self::Bandwidth(_) => Concern::Limits,
            Self::Policy(_) => Concern::Policy,
        }
    }

    /// How many entries are written.
    #[expect(clippy::len_without_is_empty, reason = "a step's batch is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::V4(batch) => batch.len(),
            Self::V6(batch) => batch.len(),
            Self::Policy(writes) => writes.len(),
            Self::Slots(writes) => writes.len(),
            Self::Maglev(writes) => writes.len(),
            Self::Bandwidth(writes) => writes.len(),
        }
    }

    /// Does to `contents` what the kernel's maps are to get.
    pub fn apply(&self, contents: &mut Contents) {
        match self {
            Self::V4(batch) => batch.apply(contents),
            Self::V6(batch) => batch.apply(contents),
            Self::Policy(writes) => writes.apply(&mut contents.policy.verdicts),
            Self::Slots(writes) => writes.apply(&mut contents.services.slots),
            Self::Maglev(writes) => writes.apply(&mut contents.services.maglev),
            Self::Bandwidth(writes) => writes.apply(&mut contents.policy.bandwidth),
        }
    }

    /// The name of the map, as it is pinned.
    #[must_use]
    pub const fn map_name(&self) -> &'static str {
        match self {
            Self::V4(batch) => batch.map_name([
                "endpoints4",
                "ipcache4",
                "frontends4",
                "backends4",
                "source_ranges4",
            ]),
            Self::V6(batch) => batch.map_name([
                "endpoints6",
                "ipcache6",
                "frontends6",
                "backends6",
                "source_ranges6",
            ]),
            Self::Policy(_) => "policy",
            Self::Slots(_) => "slots",
            Self::Maglev(_) => "maglev",
            Self::Bandwidth(_) => "bandwidth",
        }
    }
}

/// What turns `current` into `desired`; empty if they are equal.
#[must_use]
pub fn diff(current: &Contents, desired: &Contents) -> Changes {
    let services = diff_services(&current.services, &desired.services);
    services.then(diff_policy(&current.policy, &desired.policy))
}

/// What turns the maps of services into the desired ones; empty if they are equal. Parts of the maps
/// are as good as the whole, if each has all of the services that the other has something of.
#[must_use]
pub fn diff_services(current: &ServiceContents, desired: &ServiceContents) -> Changes {
    let mut changes = Changes::default();
    let v4 = ServicesDiff::new(&current.v4, &desired.v4);
    let v6 = ServicesDiff::new(&current.v6, &desired.v6);
    let other_services = v4.changes_services(&current.v4) || v6.changes_services(&current.v6);
    let other_backends = v4.ends_backends(&current.v4) || v6.ends_backends(&current.v6);
    let slots = MapDiff::new(&current.slots, &desired.slots);
    let maglev = MapDiff::new(&current.maglev, &desired.maglev);

    changes.write(Batch::V4(FamilyBatch::Backends(v4.backends.puts)));
    changes.write(Batch::V6(FamilyBatch::Backends(v6.backends.puts)));
    changes.write(Batch::Slots(slots.puts));
    changes.write(Batch::Maglev(maglev.puts));
    changes.write(Batch::V4(FamilyBatch::SourceRanges(v4.source_ranges.puts)));
    changes.write(Batch::V6(FamilyBatch::SourceRanges(v6.source_ranges.puts)));
    changes.write(Batch::V4(FamilyBatch::Frontends(v4.frontends.puts)));
    changes.write(Batch::V6(FamilyBatch::Frontends(v6.frontends.puts)));

    changes.write(Batch::V4(FamilyBatch::Frontends(v4.frontends.deletes)));
    changes.write(Batch::V6(FamilyBatch::Frontends(v6.frontends.deletes)));
    changes.write(Batch::V4(FamilyBatch::SourceRanges(
        v4.source_ranges.deletes,
    )));
    changes.write(Batch::V6(FamilyBatch::SourceRanges(
        v6.source_ranges.deletes,
    )));
    changes.write(Batch::Maglev(maglev.deletes));
    changes.write(Batch::Slots(slots.deletes));
    changes.write(Batch::V4(FamilyBatch::Backends(v4.backends.deletes)));
    changes.write(Batch::V6(FamilyBatch::Backends(v6.backends.deletes)));
    if other_services {
        changes.steps.push(Step::BumpEpoch);
    }
    if other_backends {
        changes.steps.push(Step::BumpBackends);
    }
    changes
}

/// What turns the maps of policies into the desired ones; empty if they are equal.
#[must_use]
pub fn diff_policy(current: &PolicyContents, desired: &PolicyContents) -> Changes {
    let mut changes = Changes::default();
    let v4 = PolicyDiff::new(&current.v4, &desired.v4);
    let v6 = PolicyDiff::new(&current.v6, &desired.v6);

    let policy = MapDiff::new(&current.verdicts, &desired.verdicts);
    changes.write(Batch::Policy(policy.puts));
    changes.write(Batch::V4(FamilyBatch::Ipcache(v4.ipcache.puts.reversed())));
    changes.write(Batch::V6(FamilyBatch::Ipcache(v6.ipcache.puts.reversed())));
    let bandwidth = MapDiff::new(&current.bandwidth, &desired.bandwidth);
    changes.write(Batch::Bandwidth(bandwidth.puts));
    changes.write(Batch::V4(FamilyBatch::Endpoints(v4.endpoints.puts)));
    changes.write(Batch::V6(FamilyBatch::Endpoints(v6.endpoints.puts)));

    changes.write(Batch::V4(FamilyBatch::Endpoints(v4.endpoints.deletes)));
    changes.write(Batch::V6(FamilyBatch::Endpoints(v6.endpoints.deletes)));
    changes.write(Batch::Bandwidth(bandwidth.deletes));
    changes.write(Batch::V4(FamilyBatch::Ipcache(v4.ipcache.deletes)));
    changes.write(Batch::V6(FamilyBatch::Ipcache(v6.ipcache.deletes)));

    if !changes.is_empty() {
        changes.steps.push(Step::BumpEpoch);
    }
    changes.write(Batch::Policy(policy.deletes));
    changes
}

/// Puts and deletes of one map, both in the order of the keys.
struct MapDiff<K, V> {
    puts: Writes<K, V>,
    deletes: Writes<K, V>,
}

impl<K: Ord + Copy, V: PartialEq + Copy> MapDiff<K, V> {
    fn new(current: &BTreeMap<K, V>, desired: &BTreeMap<K, V>) -> Self {
        let puts = desired
            .iter()
            .filter(|(key, value)| current.get(key) != Some(value))
            .map(|(key, value)| (*key, *value))
            .collect();
        let deletes = current
            .keys()
            .filter(|key| !desired.contains_key(key))
            .copied()
            .collect();
        Self {
            puts: Writes::Put(puts),
            deletes: Writes::Delete(deletes),
        }
    }
}

impl<A, V> Writes<LpmKey<A>, V> {
    /// Keys sort by prefix length first: reversed, the longest prefixes come first.
    fn reversed(mut self) -> Self {
        match &mut self {
            Self::Put(entries) => entries.reverse(),
            Self::Delete(keys) => keys.reverse(),
        }
        self
    }
}

struct PolicyDiff<A> {
    endpoints: MapDiff<A, Endpoint>,
    ipcache: MapDiff<LpmKey<A>, IpcacheEntry>,
}

impl<A: Address> PolicyDiff<A> {
    fn new(current: &PolicyTables<A>, desired: &PolicyTables<A>) -> Self {
        Self {
            endpoints: MapDiff::new(&current.endpoints, &desired.endpoints),
            ipcache: MapDiff::new(&current.ipcache, &desired.ipcache),
        }
    }
}

struct ServicesDiff<A> {
    frontends: MapDiff<FrontendKey<A>, Frontend>,
    backends: MapDiff<u32, Backend<A>>,
    source_ranges: MapDiff<LpmKey<SourceRange<A>>, LetIn>,
}

impl<A: Address> ServicesDiff<A> {
    fn new(current: &ServiceTables<A>, desired: &ServiceTables<A>) -> Self {
        Self {
            frontends: MapDiff::new(&current.frontends, &desired.frontends),
            backends: MapDiff::new(&current.backends, &desired.backends),
            source_ranges: MapDiff::new(&current.source_ranges, &desired.source_ranges),
        }
    }

    /// Whether an address becomes a service's, or another one's, or none any more.
    fn changes_services(&self, current: &ServiceTables<A>) -> bool {
        let is_other = |(key, frontend): &(FrontendKey<A>, Frontend)| {
            let before = current.frontends.get(key);
            before.is_none_or(|before| before.service != frontend.service)
        };
        !self.frontends.deletes.is_empty()
            || matches!(&self.frontends.puts, Writes::Put(puts) if puts.iter().any(is_other))
    }

    /// Whether a backend goes, or its number is another one's.
    fn ends_backends(&self, current: &ServiceTables<A>) -> bool {
        let is_other = |(number, backend): &(u32, Backend<A>)| {
            let place = |backend: &Backend<A>| (backend.address, backend.service, backend.port);
            let before = current.backends.get(number);
            before.is_some_and(|before| place(before) != place(backend))
        };
        !self.backends.deletes.is_empty()
            || matches!(&self.backends.puts, Writes::Put(puts) if puts.iter().any(is_other))
    }
}
