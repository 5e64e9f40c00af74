//! Services: from objects to the maps that balance their traffic, a service at a time.
//!
//! ```text
//!   services ---ports----> wishes --claims--> exposures --.
//!   slices -----endpoints--select----------> backends ----+--writer--> frontends, backends, slots,
//!   interfaces -hostports----------------------------------'           source ranges, Maglev tables
//! ```
//!
//! # How the agent uses it
//!
//! ```text
//!   start:   compiler.adopt(what the maps hold)
//!            compiler.update(state, everything)    -> changes from there; apply them
//!   change:  compiler.update(state, dirty)         -> changes; apply them
//!   failure: diff_services(maps read back, compiler.contents()), until it can be applied
//! ```
//!
//! [`ServiceCompiler::contents`] is what the maps hold whenever all changes were applied: no other
//! mirror is needed. [`Dirty`] is what a watch collects: the keys of services and slices that were
//! added, changed or removed, and "everything" after a new list. What pods and the node itself have to
//! do with services is found out at each update: their hostPorts are few, and another zone, address
//! or setting of this node compiles everything by itself.
//!
//! # Invariants
//!
//! - An update costs as much as the services that changed, with all their ports and endpoints, and the
//!   ports of this node's pods. It walks no others.
//! - After any sequence of updates the contents are those of a fresh compilation. Only the order of
//!   the slots within a list depends on the past, so that a slot that keeps its backend needs no
//!   write; and of two things whose hashes are the same, which has the first number.
//! - Where there is no room for all Maglev tables, services go without, and are told. Which of them do
//!   depends on the past, too.
//! - The changes are in the order of [`crate::diff`]. While they are applied one by one no frontend
//!   leads to a slot or backend that is not there, nor to another backend than its service had before
//!   or will have; and what leads to local backends only never leads to another.
//! - A number means one thing as long as maps or flows may hold it: see [`crate::compile`] for how
//!   numbers are made.

mod claims;
mod context;
mod endpoints;
mod hostports;
mod maglev;
mod parts;
mod ports;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use self::{
    claims::{Claims, Unit, Wish},
    context::Context,
    writer::{Adopted, PortKey, Record, Writer},
};
use crate::{
    contents::ServiceContents,
    diff::{Changes, diff_services},
    model::{ClusterState, EndpointSlice, ObjectKey, Service, Warning},
};

/// What may have changed since the last update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    everything: bool,
    services: BTreeSet<ObjectKey>,
    slices: BTreeSet<ObjectKey>,
}

impl Dirty {
    /// Anything.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    /// Also this service: it is new, another one or gone.
    pub fn service(&mut self, key: ObjectKey) {
        self.services.insert(key);
    }

    /// Also this slice: it is new, another one or gone.
    pub fn slice(&mut self, key: ObjectKey) {
        self.slices.insert(key);
    }

    /// The slices that changed.
    pub fn slices(&self) -> impl Iterator<Item = &ObjectKey> {
        self.slices.iter()
    }

    /// Also all of these.
    pub fn merge(&mut self, other: Self) {
        self.everything |= other.everything;
        self.services.extend(other.services);
        self.slices.extend(other.slices);
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.everything && self.services.is_empty() && self.slices.is_empty()
    }
}

/// What the health check port of a service tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port on every node.
    pub port: u16,
    /// How many addresses the service's ready endpoints on this node have, of IPv4; `None`: it is no
    /// IPv4 service.
    pub v4: Option<usize>,
    /// The same for IPv6.
    pub v6: Option<usize>,
}

/// How many ports of services of one family have endpoints, but none on this node, although their
/// traffic policy asks for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// `internalTrafficPolicy: Local`.
    pub internal: usize,
    /// `externalTrafficPolicy: Local`.
    pub external: usize,
}

/// Compiles services, and remembers what it compiled.
#[derive(Clone, Debug, Default)]
pub struct ServiceCompiler {
    /// What the maps hold when all changes were applied.
    contents: ServiceContents,
    /// Whether there was an update.
    compiled: bool,
    context: Context,
    claims: Claims,
    units: BTreeMap<Unit, Compiled>,
    /// The slices of each service, and the service of each slice.
    slices: BTreeSet<(Arc<ObjectKey>, Arc<ObjectKey>)>,
    owners: BTreeMap<Arc<ObjectKey>, Arc<ObjectKey>>,
    /// What the numbers of ports mean.
    names: BTreeMap<u32, Arc<str>>,
    adopted: Adopted,
    warnings: BTreeMap<Unit, Vec<Warning>>,
    health_checks: BTreeMap<Arc<ObjectKey>, HealthCheck>,
    without_local: [WithoutLocal; 2],
}

/// What was compiled of a unit.
#[derive(Clone, Debug, Default)]
struct Compiled {
    wishes: Box<[Wish]>,
    ports: Box<[Record]>,
    /// The traffic policies that ask for local endpoints: internal, external.
    local: [bool; 2],
}

impl ServiceCompiler {
    /// A compiler that gave no numbers yet, for empty maps.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over maps that an earlier agent filled: the changes of the first update begin there, and
    /// services and backends keep the numbers that established flows have. Call it before the first
    /// update.
    pub fn adopt(&mut self, current: &ServiceContents) {
        self.adopted = Adopted::new(current);
        self.contents = current.clone();
    }

    /// Compiles what changed; what the maps need for it.
    pub fn update(&mut self, state: &ClusterState, dirty: &Dirty) -> Changes {
        let context = Context::of(state);
        let everything = dirty.everything || !self.compiled || context != self.context;
        self.context = context;
        self.compiled = true;
        let mut units = if everything {
            self.everything(state)
        } else {
            self.dirty(state, dirty)
        };
        units.insert(Unit::HostPorts);

        let mut host_port_warnings = Vec::new();
        let host_ports = hostports::wanted(state, &mut host_port_warnings);
        let wishes = |unit: &Unit| match unit {
            Unit::Service(key) => service(state, key).map_or_else(Vec::new, ports::wishes),
            Unit::HostPorts => hostports::wishes(&host_ports),
        };
        // What they want must be known of all before any is written.
        let mut touched = BTreeSet::new();
        for unit in &units {
            let compiled = self.units.entry(unit.clone()).or_default();
            let wishes = wishes(unit);
            self.claims
                .replace(unit, &compiled.wishes, &wishes, &mut touched);
            compiled.wishes = wishes.into();
        }
        units.append(&mut touched);

        let mut before = if everything {
            std::mem::take(&mut self.contents)
        } else {
            ServiceContents::default()
        };
        if !everything {
            let ports = units.iter().filter_map(|unit| self.units.get(unit));
            for record in ports.flat_map(|compiled| &compiled.ports) {
                parts::take(&mut self.contents, record, &mut before);
            }
        }
        let held = before.maglev.len() + self.contents.maglev.len();
        let mut maglev_room = self.context.maglev_blocks.saturating_sub(held);
        let mut after = ServiceContents::default();
        let mut freed = BTreeSet::new();
        for unit in &units {
            let mut warnings = match unit {
                Unit::Service(_) => Vec::new(),
                Unit::HostPorts => std::mem::take(&mut host_port_warnings),
            };
            let previous = self.units.remove(unit).unwrap_or_default();
            let mut writer = Writer {
                before: &before,
                others: &self.contents,
                after: &mut after,
                names: &mut self.names,
                adopted: &mut self.adopted,
                maglev_room: &mut maglev_room,
            };
            let mut compiled = Compiled::default();
            match unit {
                Unit::Service(key) => {
                    let found = service(state, key);
                    let slices: Vec<_> = slices_of(&self.slices, state, key).collect();
                    let health =
                        found.and_then(|found| ports::health_check(found, &slices, &self.context));
                    match health {
                        Some(health) => self.health_checks.insert(Arc::clone(key), health),
                        None => self.health_checks.remove(key),
                    };
                    if let Some(service) = found {
                        let mut job = ports::Job {
                            service,
                            key,
                            slices: &slices,
                            previous: &previous.ports,
                            claims: &self.claims,
                            context: &self.context,
                            warnings: &mut warnings,
                        };
                        compiled.ports = job.write(&mut writer).into();
                        compiled.local = [service.internal_local, service.external_local];
                    }
                }
                Unit::HostPorts => {
                    let records = hostports::write(
                        state,
                        &host_ports,
                        &previous.ports,
                        &self.claims,
                        &mut writer,
                        &mut warnings,
                    );
                    compiled.ports = records.into();
                }
            }
            freed.extend(previous.ports.iter().map(|record| record.number));
            for record in &compiled.ports {
                freed.remove(&record.number);
            }
            count(&mut self.without_local, &previous, |count| *count -= 1);
            count(&mut self.without_local, &compiled, |count| *count += 1);
            if warnings.is_empty() {
                self.warnings.remove(unit);
            } else {
                self.warnings.insert(unit.clone(), warnings);
            }
            compiled.wishes = previous.wishes;
            if !compiled.wishes.is_empty() {
                self.units.insert(unit.clone(), compiled);
            }
        }
        // Only now, so that nothing else could get these numbers while the maps hold them.
        for number in freed {
            self.names.remove(&number);
        }
        if everything {
            self.adopted = Adopted::default();
        }
        let changes = diff_services(&before, &after);
        parts::add(&mut self.contents, after);
        changes
    }

    /// What the maps should hold.
    #[must_use]
    pub const fn contents(&self) -> &ServiceContents {
        &self.contents
    }

    /// What a service number means: `namespace/name:port`, `namespace/name` for the cluster IPs of a
    /// service as such, or `hostPort namespace/pod address:port/protocol`, where 0.0.0.0 and :: are
    /// every address.
    #[must_use]
    pub fn name(&self, number: u32) -> Option<&str> {
        self.names.get(&number).map(|name| &**name)
    }

    /// All service numbers and what they mean.
    pub fn names(&self) -> impl Iterator<Item = (u32, &str)> {
        self.names.iter().map(|(number, name)| (*number, &**name))
    }

    /// What an operator should know about the objects, beyond what converting them told.
    pub fn warnings(&self) -> impl Iterator<Item = &Warning> {
        self.warnings.values().flatten()
    }

    /// The health check ports that this node should have, by service.
    pub fn health_checks(&self) -> impl Iterator<Item = (&ObjectKey, HealthCheck)> {
        let checks = self.health_checks.iter();
        checks.map(|(key, check)| (&**key, *check))
    }

    /// Service ports that ask for local endpoints in vain: of IPv4, of IPv6.
    #[must_use]
    pub const fn without_local(&self) -> [WithoutLocal; 2] {
        self.without_local
    }

    /// All units that there are or were; what is known of slices and claims is forgotten.
    fn everything(&mut self, state: &ClusterState) -> BTreeSet<Unit> {
        let mut keys: BTreeMap<&ObjectKey, Arc<ObjectKey>> = BTreeMap::new();
        let (mut slices, mut owners) = (BTreeSet::new(), BTreeMap::new());
        for service in state.services.values() {
            keys.insert(&service.key, Arc::new(service.key.clone()));
        }
        for (slice, owner) in state.slices.values().filter_map(with_owner) {
            let shared = keys.get(&owner).cloned();
            let owner = shared.unwrap_or_else(|| Arc::new(owner));
            let slice = Arc::new(slice.key.clone());
            slices.insert((Arc::clone(&owner), Arc::clone(&slice)));
            owners.insert(slice, owner);
        }
        self.slices = slices;
        self.owners = owners;
        self.claims.clear();
        for compiled in self.units.values_mut() {
            compiled.wishes = Box::default();
        }
        let mut units: BTreeSet<_> = keys.into_values().map(Unit::Service).collect();
        units.extend(self.units.keys().cloned());
        units
    }

    /// The units that changed; keeps track of the slices that did.
    fn dirty(&mut self, state: &ClusterState, dirty: &Dirty) -> BTreeSet<Unit> {
        let services = dirty.services.iter();
        let mut units: BTreeSet<_> = services
            .map(|key| Unit::Service(self.shared(key)))
            .collect();
        for key in &dirty.slices {
            let before = self.owners.get(key).cloned();
            let now = state.slices.get(key).and_then(with_owner);
            let now = now.map(|(_, owner)| self.shared(&owner));
            if before != now {
                let key = Arc::new(key.clone());
                if let Some(before) = &before {
                    self.slices.remove(&(Arc::clone(before), Arc::clone(&key)));
                    self.owners.remove(&key);
                }
                if let Some(now) = &now {
                    self.slices.insert((Arc::clone(now), Arc::clone(&key)));
                    self.owners.insert(key, Arc::clone(now));
                }
            }
            units.extend(before.into_iter().chain(now).map(Unit::Service));
        }
        units
    }

    /// The key of a service, shared with what is known of it.
    fn shared(&self, key: &ObjectKey) -> Arc<ObjectKey> {
        let key = Unit::Service(Arc::new(key.clone()));
        let known = self.units.get_key_value(&key).map(|(known, _)| known);
        match known.cloned().unwrap_or(key) {
            Unit::Service(key) => key,
            Unit::HostPorts => Arc::default(),
        }
    }
}

/// A service that has something to be compiled.
fn service<'a>(state: &'a ClusterState, key: &ObjectKey) -> Option<&'a Service> {
    let service = state.services.get(key)?;
    (!service.cluster_ips.is_empty()).then_some(service)
}

/// A slice and the service that it is of.
fn with_owner(slice: &EndpointSlice) -> Option<(&EndpointSlice, ObjectKey)> {
    let service = slice.service.as_ref()?;
    Some((slice, ObjectKey::new(&slice.key.namespace, service)))
}

/// The slices of a service, by name.
fn slices_of<'a>(
    slices: &BTreeSet<(Arc<ObjectKey>, Arc<ObjectKey>)>,
    state: &'a ClusterState,
    service: &Arc<ObjectKey>,
) -> impl Iterator<Item = &'a EndpointSlice> {
    let first = (Arc::clone(service), Arc::default());
    slices
        .range(first..)
        .take_while(move |(owner, _)| owner == service)
        .filter_map(|(_, slice)| state.slices.get(&**slice))
}

/// Adds what a unit has to the ports that ask for local endpoints in vain, or takes it from them.
fn count(counts: &mut [WithoutLocal; 2], compiled: &Compiled, mut change: impl FnMut(&mut usize)) {
    let [v4, v6] = counts;
    let [internal, external] = compiled.local;
    for record in &compiled.ports {
        let PortKey::Service { ipv4, .. } = record.key else {
            continue;
        };
        if !record.usable.cluster || record.usable.local {
            continue;
        }
        let counts = if ipv4 { &mut *v4 } else { &mut *v6 };
        if internal {
            change(&mut counts.internal);
        }
        if external && record.is_external {
            change(&mut counts.external);
        }
    }
}
