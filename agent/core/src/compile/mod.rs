//! From the cluster state to the maps that say whether, whither and how fast; [`crate::services`] says
//! which backend.
//!
//! ```text
//!   local endpoints -> policy sets -> atoms -+-> identities -> ipcache, endpoints
//!   (what selects them)  (rules)     (peers) |                    |
//!                                            +--> members --------+-> policy entries
//! ```
//!
//! Only the policies that select a pod of this node are read, and only what their peers mention
//! exists. All precedence is resolved here; the datapath has none to resolve.

mod entries;
mod identities;
mod ipcache;
pub(crate) mod numbers;
mod sets;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use weft_abi::{
    addr::{Addr4, Addr6},
    endpoint::{
        Bandwidth, Bucket, ENFORCE_EGRESS, ENFORCE_INGRESS, Endpoint, LIMIT_EGRESS, LIMIT_INGRESS,
    },
    ipcache::IDENTITY_NONE,
};

use self::{
    identities::{Atoms, Identities, Matcher},
    numbers::Numbers,
    sets::{Atom, PolicySet},
};
use crate::{
    contents::PolicyContents,
    diff::{Changes, diff_policy},
    family::Address,
    model::{ClusterState, Limit, LocalEndpoint, Warning},
    rules::{Direction, Rule, RuleTable},
};

/// The number of the policy set without policies: nothing is isolated.
pub const POLICY_SET_OPEN: u32 = 1;

/// What the maps should hold, and what the numbers in them mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The maps.
    pub contents: PolicyContents,
    /// Meaning of rule numbers.
    pub rules: RuleTable,
    /// Meaning of identities: the peers of policies that match such an address.
    pub identities: BTreeMap<u32, Vec<String>>,
    /// What an operator should know about the objects, beyond what converting them told.
    pub warnings: Vec<Warning>,
    /// What the maps have to hold on the way there, one after the other.
    stages: Vec<PolicyContents>,
}

impl Desired {
    /// What turns `current` into the desired contents. Where endpoints change their policy set, on
    /// a way on which every packet is judged by the whole old or the whole new one.
    #[must_use]
    pub fn changes(&self, current: &PolicyContents) -> Changes {
        let mut changes = Changes::default();
        let mut from = current;
        for stage in self.stages.iter().chain([&self.contents]) {
            changes = changes.then(diff_policy(from, stage));
            from = stage;
        }
        changes
    }
}

/// Compiles the cluster state, and keeps the numbers that it gave.
#[derive(Clone, Debug)]
pub struct Compiler {
    sets: Numbers<Arc<PolicySet>>,
    identities: Numbers<Vec<(Arc<Atom>, u16)>>,
    rules: Numbers<Arc<Rule>>,
    previous: Policies,
}

/// The policy sets of a compilation, and who has them.
#[derive(Clone, Debug, Default)]
struct Policies {
    /// Numbers of the sets that isolate.
    sets: BTreeMap<Arc<PolicySet>, u32>,
    assigned: BTreeMap<IpAddr, Assignment>,
}

/// What an endpoint's entry says about its policies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Assignment {
    container_id: String,
    set: u32,
    enforce: u8,
}

impl Default for Compiler {
    fn default() -> Self {
        Self {
            sets: Numbers::new(POLICY_SET_OPEN + 1),
            identities: Numbers::new(1),
            rules: Numbers::new(1),
            previous: Policies::default(),
        }
    }
}

impl Compiler {
    /// A compiler that gave no numbers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the maps should hold.
    pub fn compile(&mut self, state: &ClusterState) -> Desired {
        let mut desired = Desired::default();
        self.sets.begin();
        self.identities.begin();
        self.rules.begin();

        let policies = self.policies(state, &mut desired.warnings);
        desired.stages = self.stages(state, &policies);
        self.assemble(state, &policies, &mut desired);
        self.previous = policies;
        desired.warnings.sort();
        desired.warnings.dedup();
        desired
    }

    fn policies(&mut self, state: &ClusterState, warnings: &mut Vec<Warning>) -> Policies {
        let mut policies = Policies::default();
        for (endpoint, set) in sets::of_endpoints(state) {
            let number = match &set {
                None => 0,
                Some(set) if set.is_open() => POLICY_SET_OPEN,
                Some(set) => {
                    let number = self.sets.number(set);
                    policies.sets.insert(Arc::clone(set), number);
                    number
                }
            };
            let sides = set.iter().flat_map(|set| set.sides());
            let enforce = sides.fold(0, |bits, (direction, _)| {
                bits | match direction {
                    Direction::Ingress => ENFORCE_INGRESS,
                    Direction::Egress => ENFORCE_EGRESS,
                }
            });
            for ip in &endpoint.ips {
                let container_id = endpoint.container_id.clone();
                let assignment = Assignment {
                    container_id,
                    set: number,
                    enforce,
                };
                if let Some(other) = policies.assigned.insert(*ip, assignment) {
                    warnings.push(Warning {
                        object: format!("Pod {}", endpoint.pod),
                        message: format!(
                            "two interfaces of this node have its address {ip}; that of container \
                             {} is used, that of {} is not",
                            endpoint.container_id, other.container_id
                        ),
                    });
                }
            }
        }
        policies
    }

    /// The way to a state in which endpoints have other policy sets than before.
    ///
    /// Sets and identities change together: the old set knows nothing of identities that only new
    /// policies distinguish, nor the new set of the old ones. So first every address gets the
    /// identity by which both old and new sets know it; then the endpoints are flipped, each in one
    /// write; and then, with the final contents, addresses lose what only the old sets needed.
    fn stages(&mut self, state: &ClusterState, policies: &Policies) -> Vec<PolicyContents> {
        let previous = std::mem::take(&mut self.previous);
        let before = |ip: &IpAddr, now: &Assignment| {
            let before = previous.assigned.get(ip)?;
            let flips = before != now && before.container_id == now.container_id && before.set != 0;
            flips.then(|| before.clone())
        };
        let flipping = policies
            .assigned
            .iter()
            .filter_map(|(ip, now)| Some((*ip, before(ip, now)?)));
        let flipping: Vec<_> = flipping.collect();
        if flipping.is_empty() {
            return Vec::new();
        }
        let mut both = policies.clone();
        both.sets.extend(previous.sets);
        let mut flipped = Desired::default();
        self.assemble(state, &both, &mut flipped);
        let mut unflipped = flipped.contents.clone();
        for (ip, before) in flipping {
            set_assignment::<Addr4>(&mut unflipped, ip, &before);
            set_assignment::<Addr6>(&mut unflipped, ip, &before);
        }
        vec![unflipped, flipped.contents]
    }

    /// Adds addresses, endpoints and policy entries to the contents.
    fn assemble(&mut self, state: &ClusterState, policies: &Policies, desired: &mut Desired) {
        let atoms = Atoms::of(policies.sets.keys());
        let mut matcher = Matcher::new(state, &atoms);
        let mut identities = Identities::new();
        let warnings = &mut desired.warnings;
        let v4 = ipcache::build(state, &atoms, &mut matcher, &mut identities, warnings);
        let v6 = ipcache::build(state, &atoms, &mut matcher, &mut identities, warnings);

        let numbers = self.number_identities(&atoms, &identities, &mut desired.identities);
        put_addresses::<Addr4>(&mut desired.contents, state, policies, &v4, &numbers);
        put_addresses::<Addr6>(&mut desired.contents, state, policies, &v6, &numbers);

        let members = entries::members(&identities, &numbers);
        let mut writer = entries::Writer {
            atoms: &atoms,
            members: &members,
            numbers: &mut self.rules,
            rules: &mut desired.rules,
            contents: &mut desired.contents,
        };
        for (set, number) in &policies.sets {
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
                return IDENTITY_NONE;
            }
            let content: Vec<_> = elements
                .iter()
                .filter_map(|(atom, port)| Some((Arc::clone(atoms.get(*atom)?), *port)))
                .collect();
            let number = self.identities.number(&content);
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

fn put_addresses<A: Address>(
    contents: &mut PolicyContents,
    state: &ClusterState,
    policies: &Policies,
    table: &ipcache::Table<A>,
    numbers: &[u32],
) {
    A::policy_mut(contents).ipcache.extend(
        table
            .entries
            .iter()
            .map(|(key, draft)| (*key, draft.entry(numbers))),
    );
    for endpoint in state.endpoints.values() {
        for ip in &endpoint.ips {
            let assigned = policies.assigned.get(ip);
            let assigned = assigned.filter(|other| other.container_id == endpoint.container_id);
            let (Some(address), Some(assigned)) = (A::from_ip(*ip), assigned) else {
                continue;
            };
            let identity = table
                .endpoints
                .get(&address)
                .and_then(|index| numbers.get(*index));
            let limits = limits(endpoint);
            let value = Endpoint {
                ifindex: endpoint.ifindex,
                policy_set: assigned.set,
                identity: identity.copied().unwrap_or(IDENTITY_NONE),
                mac: endpoint.mac,
                enforce: assigned.enforce,
                limits: limits.map_or(0, |(bits, _)| bits),
            };
            A::policy_mut(contents).endpoints.insert(address, value);
            if let Some((_, bandwidth)) = limits {
                contents.bandwidth.insert(endpoint.ifindex, bandwidth);
            }
        }
    }
}

/// An endpoint's limits as the maps hold them, with the bits that say which there are.
fn limits(endpoint: &LocalEndpoint) -> Option<(u8, Bandwidth)> {
    let side = |limit: Option<Limit>, bit: u8| match limit {
        None => (0, Bucket::default()),
        Some(limit) => {
            let bucket = Bucket {
                bytes_per_second: limit.bytes_per_second,
                burst: limit.burst,
                full_at: 0,
            };
            (bit, bucket)
        }
    };
    let (sends, egress) = side(endpoint.egress_limit, LIMIT_EGRESS);
    let (receives, ingress) = side(endpoint.ingress_limit, LIMIT_INGRESS);
    let bits = sends | receives;
    (bits != 0).then_some((bits, Bandwidth { egress, ingress }))
}

fn set_assignment<A: Address>(contents: &mut PolicyContents, ip: IpAddr, assigned: &Assignment) {
    let Some(address) = A::from_ip(ip) else {
        return;
    };
    if let Some(endpoint) = A::policy_mut(contents).endpoints.get_mut(&address) {
        endpoint.policy_set = assigned.set;
        endpoint.enforce = assigned.enforce;
    }
}
