//! Frontends, slots and backends: the machinery that services and hostPorts share.
//!
//! A port is what clients use: one or more addresses of one family that lead to the same backends. It
//! has one number for all of them, and its frontends are written whole or not at all: an address that
//! an earlier port has stays that one's.
//!
//! Backends hold more than the slots do: every candidate that serves keeps its number, so that the
//! connections it has go on while no new ones come.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_abi::service::{
    BACKEND_CLUSTER, BACKEND_LOCAL, Backend, FRONTEND_AFFINITY, FRONTEND_LOCAL_ONLY,
    FRONTEND_REJECT, Frontend, FrontendKey, LOCAL_SLOTS, Slot, SlotKey,
};

use super::numbers::Numbers;
use crate::{
    contents::{Contents, FamilyTables},
    family::Address,
    model::{ObjectKey, Protocol},
};

/// What a service number stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortKey {
    /// One port of a service, for one family.
    Service {
        /// The service.
        service: ObjectKey,
        /// The port's name.
        port: String,
        /// Its protocol: for another protocol the same name may be another port.
        protocol: Protocol,
        /// The family.
        ipv4: bool,
    },
    /// One hostPort of a pod, for one family.
    HostPort {
        /// The pod.
        pod: ObjectKey,
        /// The address that was asked for; `None`: all of them.
        address: Option<IpAddr>,
        /// The port on the node.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The family.
        ipv4: bool,
    },
}

/// What a backend number stands for: service number, address and port.
type BackendKey = (u32, IpAddr, u16);

/// An address that clients use: address, port, protocol number, scope.
type FrontendTuple = (IpAddr, u16, u8, u8);

/// A backend that a port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// It is on this node.
    pub local: bool,
    /// It takes new connections.
    pub ready: bool,
    /// It would, were it not terminating.
    pub serving: bool,
    /// It is being shut down.
    pub terminating: bool,
}

impl Candidate {
    /// Of two endpoints with one address, the one that lives: the other one's pod is going, and its
    /// address was given again.
    pub const fn rank(self) -> (bool, bool, bool) {
        (!self.terminating, self.ready, self.serving)
    }

    const fn is_last_resort(self) -> bool {
        self.serving && self.terminating
    }
}

/// Candidates by address and port, of both families.
pub type Candidates = BTreeMap<(IpAddr, u16), Candidate>;

/// A port, apart from the addresses at which clients find it.
pub struct Port<'a> {
    /// What its number stands for.
    pub key: PortKey,
    /// What its number means to an operator.
    pub name: String,
    /// What its backends are chosen from; only those of the port's family are.
    pub candidates: &'a Candidates,
    /// Only backends of this node are used.
    pub local_only: bool,
    /// Duration of the session affinity, in seconds; 0 without.
    pub affinity_seconds: u32,
}

/// The numbers of ports and backends, and the order of the slots. Established flows hold the
/// numbers, and a slot that keeps its backend needs no write.
#[derive(Clone, Debug)]
pub struct Memory {
    ports: Numbers<PortKey>,
    backends: Numbers<BackendKey>,
    /// The backends in the slots of each port, by its number and the first slot.
    slots: BTreeMap<(u32, u32), Vec<u32>>,
    /// What an earlier agent's maps said.
    adopted_ports: BTreeMap<FrontendTuple, u32>,
    adopted_backends: BTreeMap<BackendKey, u32>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            ports: Numbers::new(1),
            backends: Numbers::new(1),
            slots: BTreeMap::new(),
            adopted_ports: BTreeMap::new(),
            adopted_backends: BTreeMap::new(),
        }
    }
}

impl Memory {
    /// Takes over what the maps hold.
    pub fn adopt(&mut self, current: &Contents) {
        self.adopt_family(&current.v4);
        self.adopt_family(&current.v6);
        // Slots are sorted by service and slot.
        for (key, slot) in &current.slots {
            self.slots
                .entry((key.service, key.slot & LOCAL_SLOTS))
                .or_default()
                .push(slot.backend);
        }
    }

    fn adopt_family<A: Address>(&mut self, current: &FamilyTables<A>) {
        for (key, frontend) in &current.frontends {
            self.adopted_ports.insert(tuple(key), frontend.service);
            self.ports.reserve(frontend.service);
        }
        for (number, backend) in &current.backends {
            let key = (backend.service, backend.address.to_ip(), backend.port);
            self.adopted_backends.insert(key, *number);
            self.backends.reserve(*number);
        }
    }

    /// Begins a compilation into `contents`.
    pub fn writer<'a>(&'a mut self, contents: &'a mut Contents) -> Writer<'a> {
        self.ports.begin();
        self.backends.begin();
        Writer {
            previous: std::mem::take(&mut self.slots),
            memory: self,
            contents,
            names: BTreeMap::new(),
        }
    }
}

fn tuple<A: Address>(key: &FrontendKey<A>) -> FrontendTuple {
    (key.address.to_ip(), key.port, key.protocol, key.scope)
}

/// Writes ports, one after the other.
pub struct Writer<'a> {
    memory: &'a mut Memory,
    contents: &'a mut Contents,
    previous: BTreeMap<(u32, u32), Vec<u32>>,
    names: BTreeMap<u32, String>,
}

impl Writer<'_> {
    /// What the service numbers mean.
    pub fn names(self) -> BTreeMap<u32, String> {
        self.names
    }

    /// The name of the port that has this address already.
    pub fn holder<A: Address>(&self, key: &FrontendKey<A>) -> Option<&str> {
        let frontend = A::tables(self.contents).frontends.get(key)?;
        self.names.get(&frontend.service).map(String::as_str)
    }

    /// Writes a port with its backends, to be found at `keys`, which no other port has; without any,
    /// there is nothing to write.
    pub fn write<A: Address>(&mut self, port: &Port<'_>, keys: &[FrontendKey<A>]) {
        if keys.is_empty() {
            return;
        }
        let mut before = keys
            .iter()
            .filter_map(|key| self.memory.adopted_ports.get(&tuple(key)));
        let before = before.next().copied();
        let number = self.memory.ports.number(&port.key, before);
        self.names.insert(number, port.name.clone());

        let usable = self.backends::<A>(number, port);
        let reject = if usable.cluster.is_empty() {
            FRONTEND_REJECT
        } else {
            0
        };
        let (first, set, mut flags) = if port.local_only {
            (LOCAL_SLOTS, usable.local, FRONTEND_LOCAL_ONLY | reject)
        } else {
            (0, usable.cluster, reject)
        };
        if port.affinity_seconds > 0 {
            flags |= FRONTEND_AFFINITY;
        }
        let frontend = Frontend {
            service: number,
            first,
            count: u32::try_from(set.len()).unwrap_or(u32::MAX),
            table: 0,
            affinity_seconds: port.affinity_seconds,
            flags,
            reserved: [0; 3],
        };
        let frontends = &mut A::tables_mut(self.contents).frontends;
        frontends.extend(keys.iter().map(|key| (*key, frontend)));
        let previous = self.previous.get(&(number, first));
        let order = arrange(previous.map_or(&[], Vec::as_slice), &set);
        for (slot, backend) in (first..).zip(&order) {
            let key = SlotKey {
                service: number,
                slot,
            };
            self.contents.slots.insert(key, Slot { backend: *backend });
        }
        self.memory.slots.insert((number, first), order);
    }

    /// The backends that new connections get; adds these and all that serve.
    fn backends<A: Address>(&mut self, number: u32, port: &Port<'_>) -> Usable {
        let candidates: Vec<_> = port
            .candidates
            .iter()
            .filter_map(|((ip, port), candidate)| {
                let address = A::from_ip(*ip)?;
                let serves = candidate.ready || candidate.serving;
                serves.then_some((address, *ip, *port, *candidate))
            })
            .collect();
        let takes_new = |wanted: &dyn Fn(Candidate) -> bool| {
            let matching = || candidates.iter().map(|(.., candidate)| *candidate);
            // Each list falls back on its own, whatever there is elsewhere.
            let any_ready = matching().any(|candidate| wanted(candidate) && candidate.ready);
            move |candidate: Candidate| {
                if any_ready {
                    candidate.ready
                } else {
                    candidate.is_last_resort()
                }
            }
        };
        let (cluster, local) = (
            takes_new(&|_| true),
            takes_new(&|candidate| candidate.local),
        );
        let mut usable = Usable::default();
        for (address, ip, port, candidate) in candidates {
            let key = (number, ip, port);
            let before = self.memory.adopted_backends.get(&key).copied();
            let backend = self.memory.backends.number(&key, before);
            let mut flags = 0;
            if cluster(candidate) {
                flags |= BACKEND_CLUSTER;
                usable.cluster.insert(backend);
            }
            if candidate.local && local(candidate) {
                flags |= BACKEND_LOCAL;
                usable.local.insert(backend);
            }
            let value = Backend {
                address,
                service: number,
                port,
                flags,
            };
            A::tables_mut(self.contents).backends.insert(backend, value);
        }
        usable
    }
}

/// Backends for new connections.
#[derive(Default)]
struct Usable {
    /// Those of the whole cluster.
    cluster: BTreeSet<u32>,
    /// Those of this node.
    local: BTreeSet<u32>,
}

/// The order of the slots: each backend where it was as far as that is possible.
fn arrange(previous: &[u32], wanted: &BTreeSet<u32>) -> Vec<u32> {
    let mut rest = wanted.clone();
    let kept: Vec<_> = (0..wanted.len())
        .map(|slot| {
            previous
                .get(slot)
                .copied()
                .filter(|backend| rest.remove(backend))
        })
        .collect();
    let mut rest = rest.into_iter();
    kept.into_iter()
        .filter_map(|kept| kept.or_else(|| rest.next()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_move_no_more_than_they_must() {
        let set = |list: &[u32]| list.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(arrange(&[], &set(&[2, 1])), [1, 2]);
        assert_eq!(arrange(&[2, 1, 9], &set(&[1, 2, 5, 9])), [2, 1, 9, 5]);
        assert_eq!(arrange(&[7, 3, 5, 4], &set(&[3, 4, 7])), [7, 3, 4]);
        assert_eq!(arrange(&[7, 3, 5, 4], &set(&[4, 5, 7])), [7, 4, 5]);
    }

    proptest! {
        #[test]
        fn an_order_has_each_backend_once(
            previous in proptest::collection::vec(0_u32..12, 0..12),
            all in proptest::collection::btree_set(0_u32..12, 0..12),
        ) {
            let order = arrange(&previous, &all);
            prop_assert_eq!(order.len(), all.len());
            prop_assert_eq!(order.into_iter().collect::<BTreeSet<_>>(), all);
        }
    }
}
