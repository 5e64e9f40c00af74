//! Policy sets: what an endpoint's policies allow, at the level of selectors.
//!
//! A set says nothing about which addresses exist. Its number depends on the rules alone, so that
//! pods that come and go add and remove entries of identities, and never touch an endpoint.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    model::{
        ClusterState, LocalEndpoint, NamespaceScope, NetworkPolicy, Peer, Peers, Pod, PolicyRule,
        PortMatch, PortName, PortSpec, Ports, Protocol,
    },
    rules::{Direction, Rule},
    selector::Labels,
};

/// What identities are made of: an address's identity is the set of atoms that match it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Atom {
    /// A peer of a rule.
    Peer(Peer),
    /// A pod that a peer of an egress rule matches (any pod without a peer), by the number that it
    /// has for a named port.
    Named {
        /// The peer.
        peer: Option<Peer>,
        /// The name.
        port: PortName,
    },
}

impl Atom {
    /// The peer that an address must match.
    pub const fn peer(&self) -> Option<&Peer> {
        match self {
            Self::Peer(peer) => Some(peer),
            Self::Named { peer, .. } => peer.as_ref(),
        }
    }

    /// The port name that a pod must have.
    pub const fn port(&self) -> Option<&PortName> {
        match self {
            Self::Peer(_) => None,
            Self::Named { port, .. } => Some(port),
        }
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer() {
            None => f.write_str("any pod")?,
            Some(Peer::Pods {
                namespaces: NamespaceScope::Own(namespace),
                pods,
            }) => {
                write!(f, "pods {pods} in namespace {namespace}")?;
            }
            Some(Peer::Pods {
                namespaces: NamespaceScope::Matching(namespaces),
                pods,
            }) => {
                write!(f, "pods {pods} in namespaces {namespaces}")?;
            }
            Some(Peer::Block(block)) => {
                write!(f, "{}", block.cidr)?;
                for except in &block.except {
                    write!(f, " except {except}")?;
                }
            }
        }
        match self.port() {
            Some(port) => write!(f, " with {} port {}", port.protocol, port.name),
            None => Ok(()),
        }
    }
}

/// Whom a grant is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// Every address.
    Anyone,
    /// The addresses that the atom matches.
    Matching(Arc<Atom>),
}

/// What a grant allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// Every protocol.
    Everything,
    /// Every port of a protocol.
    Protocol(Protocol),
    /// A range of ports, both ends included.
    Ports(Protocol, u16, u16),
    /// The port that the matching atom resolves.
    Resolved(Protocol),
}

/// One thing that a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The rule.
    pub rule: Arc<Rule>,
    /// Whom.
    pub who: Who,
    /// What.
    pub what: What,
}

/// One direction of a set, if some policy isolates it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side {
    /// What denies the rest.
    pub isolated: Arc<Rule>,
    /// What is allowed, in the order of policies and rules.
    pub grants: Vec<Grant>,
}

/// The policies of an endpoint, in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicySet {
    /// Ingress; `None`: not isolated.
    pub ingress: Option<Side>,
    /// Egress; `None`: not isolated.
    pub egress: Option<Side>,
}

impl PolicySet {
    /// Whether neither direction is isolated.
    pub const fn is_open(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }

    /// The isolated directions.
    pub fn sides(&self) -> impl Iterator<Item = (Direction, &Side)> {
        let ingress = self.ingress.iter().map(|side| (Direction::Ingress, side));
        ingress.chain(self.egress.iter().map(|side| (Direction::Egress, side)))
    }
}

/// The set of every local endpoint, in the order of the endpoints; `None`: its pod is not known.
pub fn of_endpoints(state: &ClusterState) -> Vec<(&LocalEndpoint, Option<Arc<PolicySet>>)> {
    let mut namespaces = BTreeMap::new();
    for endpoint in state.endpoints.values() {
        let namespace = endpoint.pod.namespace.as_str();
        namespaces
            .entry(namespace)
            .or_insert_with(|| Subjects::new(state, namespace));
    }
    let endpoints = state.endpoints.values();
    endpoints
        .map(|endpoint| {
            let subjects = namespaces.get_mut(endpoint.pod.namespace.as_str());
            let set = state
                .pod_of(endpoint)
                .zip(subjects)
                .map(|(pod, subjects)| subjects.set_of(pod));
            (endpoint, set)
        })
        .collect()
}

/// The policies of one namespace, and the sets that were made of them.
struct Subjects<'a> {
    policies: Vec<&'a NetworkPolicy>,
    /// The labels that they select pods by.
    keys: Vec<&'a str>,
    /// The port names in their ingress rules.
    ports: Vec<PortName>,
    sets: BTreeMap<Projection<'a>, Arc<PolicySet>>,
}

/// What of a pod can make a difference to somebody: its values of the labels and its numbers of the
/// port names that somebody reads.
pub type Projection<'a> = (Vec<Option<&'a str>>, Vec<Option<u16>>);

impl<'a> Subjects<'a> {
    fn new(state: &'a ClusterState, namespace: &str) -> Self {
        let policies: Vec<_> = state
            .policies
            .values()
            .filter(|policy| policy.key.namespace == namespace)
            .collect();
        let mut keys: Vec<_> = policies
            .iter()
            .flat_map(|policy| policy.pods.keys())
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let ingress = policies
            .iter()
            .flat_map(|policy| policy.ingress.iter().flatten());
        let mut ports: Vec<_> = ingress.flat_map(|rule| port_names(&rule.ports)).collect();
        ports.sort_unstable();
        ports.dedup();
        Self {
            policies,
            keys,
            ports,
            sets: BTreeMap::new(),
        }
    }

    fn set_of(&mut self, pod: &'a Pod) -> Arc<PolicySet> {
        let values = values_of(&pod.labels, &self.keys);
        let numbers = self
            .ports
            .iter()
            .map(|port| pod.named_ports.get(port).copied())
            .collect();
        let Self { policies, sets, .. } = self;
        let set = sets.entry((values, numbers)).or_insert_with(|| {
            let selecting: Vec<_> = policies
                .iter()
                .copied()
                .filter(|policy| policy.pods.matches(&pod.labels))
                .collect();
            Arc::new(compile(&selecting, pod))
        });
        Arc::clone(set)
    }
}

/// The values of some labels: pods that agree on them are the same to whoever reads only those.
pub fn values_of<'a>(labels: &'a Labels, keys: &[&str]) -> Vec<Option<&'a str>> {
    keys.iter()
        .map(|key| labels.get(*key).map(String::as_str))
        .collect()
}

fn port_names(ports: &Ports) -> impl Iterator<Item = PortName> {
    let listed = match ports {
        Ports::Any => [].iter(),
        Ports::Only(ports) => ports.iter(),
    };
    listed.filter_map(|port| match &port.port {
        PortSpec::Named(name) => Some(PortName {
            name: name.clone(),
            protocol: port.protocol,
        }),
        PortSpec::All | PortSpec::Range(..) => None,
    })
}

/// The set of a pod that `policies` select.
fn compile(policies: &[&NetworkPolicy], pod: &Pod) -> PolicySet {
    let side = |direction: Direction| {
        let rules_of = |policy: &NetworkPolicy| match direction {
            Direction::Ingress => policy.ingress.clone(),
            Direction::Egress => policy.egress.clone(),
        };
        let isolating: Vec<_> = policies
            .iter()
            .filter_map(|policy| Some((*policy, rules_of(policy)?)))
            .collect();
        if isolating.is_empty() {
            return None;
        }
        let names = isolating
            .iter()
            .map(|(policy, _)| policy.key.clone())
            .collect();
        let isolated = Arc::new(Rule::Isolated {
            direction,
            policies: names,
        });
        let mut grants = Vec::new();
        for (policy, rules) in &isolating {
            for (index, rule) in rules.iter().enumerate() {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                let name = Rule::Allow {
                    policy: policy.key.clone(),
                    direction,
                    index,
                };
                grant(&mut grants, &Arc::new(name), rule, direction, pod);
            }
        }
        Some(Side { isolated, grants })
    };
    PolicySet {
        ingress: side(Direction::Ingress),
        egress: side(Direction::Egress),
    }
}

/// Adds what a rule allows: each of its peers to each of its ports.
fn grant(
    grants: &mut Vec<Grant>,
    name: &Arc<Rule>,
    rule: &PolicyRule,
    direction: Direction,
    pod: &Pod,
) {
    let peers: Vec<Option<&Peer>> = match &rule.peers {
        Peers::Any => vec![None],
        Peers::Only(peers) => peers.iter().map(Some).collect(),
    };
    for peer in peers {
        let who = peer.map_or(Who::Anyone, |peer| {
            Who::Matching(Arc::new(Atom::Peer(peer.clone())))
        });
        let mut add = |who: Who, what: What| {
            grants.push(Grant {
                rule: Arc::clone(name),
                who,
                what,
            });
        };
        let ports = match &rule.ports {
            Ports::Any => {
                add(who, What::Everything);
                continue;
            }
            Ports::Only(ports) => ports,
        };
        for PortMatch { protocol, port } in ports {
            match port {
                PortSpec::All => add(who.clone(), What::Protocol(*protocol)),
                PortSpec::Range(first, last) => {
                    add(who.clone(), What::Ports(*protocol, *first, *last));
                }
                PortSpec::Named(name) => {
                    // A named port is one of the destination's: this pod's own, or each peer's.
                    let port = PortName {
                        name: name.clone(),
                        protocol: *protocol,
                    };
                    match direction {
                        Direction::Ingress => {
                            if let Some(number) = pod.named_ports.get(&port) {
                                add(who.clone(), What::Ports(*protocol, *number, *number));
                            }
                        }
                        Direction::Egress => {
                            let atom = Atom::Named {
                                peer: peer.cloned(),
                                port,
                            };
                            add(Who::Matching(Arc::new(atom)), What::Resolved(*protocol));
                        }
                    }
                }
            }
        }
    }
}
