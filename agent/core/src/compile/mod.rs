//! From the cluster state to the contents of the maps.
//!
//! ```text
//!   local endpoints -> policy sets -> atoms -+-> identities -> ipcache, endpoints
//!   (what selects them)  (rules)     (peers) |                    |
//!                                            +--> members --------+-> policy entries
//!   services, slices -> services, slots, backends
//! ```
//!
//! Only the policies that select a pod of this node are read, and only what their peers mention
//! exists. All precedence is resolved here; the datapath has none to resolve.

mod entries;
mod identities;
mod ipcache;
mod numbers;
mod services;
mod sets;

use std::{collections::BTreeMap, sync::Arc};

use weft_abi::{
    addr::{Addr4, Addr6},
    endpoint::{ENFORCE_EGRESS, ENFORCE_INGRESS, Endpoint},
};

use self::{
    identities::{Atoms, Identities, Matcher},
    numbers::Numbers,
    sets::{Atom, PolicySet},
};
use crate::{
    contents::Contents,
    family::Address,
    model::{ClusterState, LocalEndpoint, Warning},
    rules::{Direction, Rule, RuleTable},
};

/// The number of the policy set without policies: nothing is isolated.
pub const POLICY_SET_OPEN: u32 = 1;

/// What the maps should hold, and what the numbers in them mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The maps.
    pub contents: Contents,
    /// Meaning of rule numbers.
    pub rules: RuleTable,
    /// Meaning of identities: the peers of policies that match such an address.
    pub identities: BTreeMap<u32, Vec<String>>,
    /// Meaning of service numbers: `namespace/name:port`.
    pub services: BTreeMap<u32, String>,
    /// What an operator should know about the objects, beyond what converting them told.
    pub warnings: Vec<Warning>,
}

/// Compiles the cluster state, and keeps the numbers that it gave.
#[derive(Clone, Debug)]
pub struct Compiler {
    sets: Numbers<Arc<PolicySet>>,
    identities: Numbers<Vec<(Arc<Atom>, u16)>>,
    rules: Numbers<Arc<Rule>>,
    services: services::Memory,
}

impl Default for Compiler {
    fn default() -> Self {
        Self {
            sets: Numbers::new(POLICY_SET_OPEN + 1),
            identities: Numbers::new(1),
            rules: Numbers::new(1),
            services: services::Memory::default(),
        }
    }
}

impl Compiler {
    /// A compiler that gave no numbers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over the numbers of maps that an earlier agent filled, so that established flows keep
    /// their backends. Call it once, before the first [`Self::compile`].
    pub fn adopt(&mut self, current: &Contents) {
        self.services.adopt(current);
    }

    /// What the maps should hold.
    pub fn compile(&mut self, state: &ClusterState) -> Desired {
        let mut desired = Desired::default();
        let Desired {
            contents, warnings, ..
        } = &mut desired;
        desired.services = self.services.compile(state, contents, warnings);
        self.compile_policy(state, &mut desired);
        desired.warnings.sort();
        desired.warnings.dedup();
        desired
    }

    fn compile_policy(&mut self, state: &ClusterState, desired: &mut Desired) {
        self.sets.begin();
        self.identities.begin();
        self.rules.begin();

        let subjects = sets::of_endpoints(state);
        let atoms = Atoms::of(subjects.iter().filter_map(|(_, set)| set.as_ref()));
        let mut matcher = Matcher::new(state, &atoms);
        let mut identities = Identities::new();
        let warnings = &mut desired.warnings;
        let v4 = ipcache::build(state, &atoms, &mut matcher, &mut identities, warnings);
        let v6 = ipcache::build(state, &atoms, &mut matcher, &mut identities, warnings);

        let numbers = self.number_identities(&atoms, &identities, &mut desired.identities);
        put_addresses::<Addr4>(&mut desired.contents, &v4, &numbers);
        put_addresses::<Addr6>(&mut desired.contents, &v6, &numbers);

        let mut written = BTreeMap::new();
        for set in subjects.iter().filter_map(|(_, set)| set.as_ref()) {
            if !set.is_open() && !written.contains_key(set) {
                written.insert(Arc::clone(set), self.sets.number(set, None));
            }
        }
        for (endpoint, set) in &subjects {
            let number = set.as_ref().map_or(0, |set| {
                written.get(set).copied().unwrap_or(POLICY_SET_OPEN)
            });
            let value = Draft {
                endpoint,
                set: set.as_deref(),
                number,
            };
            value.put::<Addr4>(desired, &v4, &numbers);
            value.put::<Addr6>(desired, &v6, &numbers);
        }

        let members = entries::members(&identities, &numbers);
        let mut writer = entries::Writer {
            atoms: &atoms,
            members: &members,
            numbers: &mut self.rules,
            rules: &mut desired.rules,
            contents: &mut desired.contents,
        };
        for (set, number) in &written {
            writer.write(*number, set);
        }
    }

    /// The numbers of the identities, by index; tells what they mean.
    fn number_identities(
        &mut self,
        atoms: &Atoms,
        identities: &Identities,
        meaning: &mut BTreeMap<u32, Vec<String>>,
    ) -> Vec<u32> {
        let number = |elements: &[identities::Element]| {
            if elements.is_empty() {
                return weft_abi::ipcache::IDENTITY_NONE;
            }
            let content: Vec<_> = elements
                .iter()
                .filter_map(|(atom, port)| Some((Arc::clone(atoms.get(*atom)?), *port)))
                .collect();
            let number = self.identities.number(&content, None);
            let told = content.iter().map(|(atom, port)| match port {
                0 => atom.to_string(),
                port => format!("{atom} = {port}"),
            });
            meaning.insert(number, told.collect());
            number
        };
        identities
            .iter()
            .map(|(_, elements)| elements)
            .map(number)
            .collect()
    }
}

fn put_addresses<A: Address>(contents: &mut Contents, table: &ipcache::Table<A>, numbers: &[u32]) {
    let entries = table
        .entries
        .iter()
        .map(|(key, draft)| (*key, draft.entry(numbers)));
    A::tables_mut(contents).ipcache.extend(entries);
}

/// A local endpoint, on its way into the maps.
struct Draft<'a> {
    endpoint: &'a LocalEndpoint,
    set: Option<&'a PolicySet>,
    number: u32,
}

impl Draft<'_> {
    fn put<A: Address>(&self, desired: &mut Desired, table: &ipcache::Table<A>, numbers: &[u32]) {
        let isolated = self.set.into_iter().flat_map(PolicySet::sides);
        let enforce = isolated.fold(0, |bits, (direction, _)| {
            bits | match direction {
                Direction::Ingress => ENFORCE_INGRESS,
                Direction::Egress => ENFORCE_EGRESS,
            }
        });
        for address in self.endpoint.ips.iter().filter_map(|ip| A::from_ip(*ip)) {
            let identity = table.endpoints.get(&address);
            let identity = identity.and_then(|index| numbers.get(*index)).copied();
            let value = Endpoint {
                ifindex: self.endpoint.ifindex,
                policy_set: self.number,
                identity: identity.unwrap_or(weft_abi::ipcache::IDENTITY_NONE),
                mac: self.endpoint.mac,
                enforce,
                reserved: 0,
            };
            let endpoints = &mut A::tables_mut(&mut desired.contents).endpoints;
            if endpoints.insert(address, value).is_some() {
                desired.warnings.push(Warning {
                    object: format!("Pod {}", self.endpoint.pod),
                    message: format!(
                        "two interfaces of this node have its address {}; container {} has it now",
                        address.to_ip(),
                        self.endpoint.container_id
                    ),
                });
            }
        }
    }
}
