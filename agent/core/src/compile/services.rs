//! Services: frontends, slots and backends.
//!
//! Of a service port's endpoints, new connections get the ready ones; if there is none, those that
//! still serve while they terminate. Backends hold more than the slots do: every endpoint that
//! serves keeps its number, so that the connections it has go on while no new ones come.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_abi::service::{
    Backend, FRONTEND_AFFINITY, FRONTEND_LOCAL_ONLY, Frontend, FrontendKey, SCOPE_INTERNAL, Slot,
    SlotKey,
};

use super::numbers::Numbers;
use crate::{
    contents::{Contents, FamilyTables},
    family::Address,
    model::{
        ClusterState, EndpointSlice, ObjectKey, Protocol, Service, ServicePort, SliceEndpoint,
        Warning,
    },
};

/// What a service number stands for: one port of a service, for one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    service: ObjectKey,
    port: String,
    protocol: Protocol,
    ipv4: bool,
}

/// What a backend number stands for: service number, address and port.
type BackendKey = (u32, IpAddr, u16);

/// An address that clients use: address, port, protocol number, scope.
type FrontendTuple = (IpAddr, u16, u8, u8);

/// The numbers of services and backends, and the order of the slots. Established flows hold the
/// numbers, and a slot that keeps its backend needs no write.
#[derive(Clone, Debug)]
pub struct Memory {
    services: Numbers<PortKey>,
    backends: Numbers<BackendKey>,
    /// The backends in the slots of each service.
    slots: BTreeMap<u32, Vec<u32>>,
    /// What an earlier agent's maps said.
    adopted_services: BTreeMap<FrontendTuple, u32>,
    adopted_backends: BTreeMap<BackendKey, u32>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            services: Numbers::new(1),
            backends: Numbers::new(1),
            slots: BTreeMap::new(),
            adopted_services: BTreeMap::new(),
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
                .entry(key.service)
                .or_default()
                .push(slot.backend);
        }
    }

    fn adopt_family<A: Address>(&mut self, current: &FamilyTables<A>) {
        for (key, frontend) in &current.frontends {
            let tuple = (key.address.to_ip(), key.port, key.protocol, key.scope);
            self.adopted_services.insert(tuple, frontend.service);
            self.services.reserve(frontend.service);
        }
        for (number, backend) in &current.backends {
            let key = (backend.service, backend.address.to_ip(), backend.port);
            self.adopted_backends.insert(key, *number);
            self.backends.reserve(*number);
        }
    }

    /// Adds the services to the contents; answers what the service numbers mean.
    pub fn compile(
        &mut self,
        state: &ClusterState,
        contents: &mut Contents,
        warnings: &mut Vec<Warning>,
    ) -> BTreeMap<u32, String> {
        self.services.begin();
        self.backends.begin();
        let slices = slices_by_service(state);
        let mut names = BTreeMap::new();
        let mut previous = std::mem::take(&mut self.slots);
        for service in state
            .services
            .values()
            .filter(|service| !service.cluster_ips.is_empty())
        {
            let slices = slices.get(&service.key).map_or(&[][..], Vec::as_slice);
            for port in &service.ports {
                let candidates = candidates(state, slices, port);
                let mut job = Job {
                    memory: self,
                    contents,
                    warnings,
                    previous: &mut previous,
                    names: &mut names,
                    service,
                    port,
                    candidates: &candidates,
                };
                job.compile::<weft_abi::addr::Addr4>();
                job.compile::<weft_abi::addr::Addr6>();
            }
        }
        names
    }
}

fn slices_by_service(state: &ClusterState) -> BTreeMap<ObjectKey, Vec<&EndpointSlice>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for slice in state.slices.values() {
        if let Some(service) = &slice.service {
            let key = ObjectKey::new(&slice.key.namespace, service);
            found.entry(key).or_default().push(slice);
        }
    }
    found
}

/// An endpoint of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl Candidate {
    fn new(endpoint: &SliceEndpoint, state: &ClusterState) -> Self {
        Self {
            local: endpoint.node.as_deref() == Some(&state.node_name),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
        }
    }

    /// Of two endpoints with one address, the one that lives: the other one's pod is going, and its
    /// address was given again.
    const fn rank(self) -> (bool, bool, bool) {
        (!self.terminating, self.ready, self.serving)
    }

    const fn is_last_resort(self) -> bool {
        self.serving && self.terminating
    }
}

type Candidates = BTreeMap<(IpAddr, u16), Candidate>;

fn candidates(state: &ClusterState, slices: &[&EndpointSlice], port: &ServicePort) -> Candidates {
    let mut found = Candidates::new();
    for slice in slices {
        let ports = slice
            .ports
            .iter()
            .filter(|slice| slice.name == port.name && slice.protocol == port.protocol);
        for slice_port in ports {
            for endpoint in &slice.endpoints {
                let candidate = Candidate::new(endpoint, state);
                let known = found
                    .entry((endpoint.address, slice_port.port))
                    .or_insert(candidate);
                if candidate.rank() > known.rank() {
                    *known = candidate;
                }
            }
        }
    }
    found
}

/// One service port, on its way into the maps.
struct Job<'a> {
    memory: &'a mut Memory,
    contents: &'a mut Contents,
    warnings: &'a mut Vec<Warning>,
    previous: &'a mut BTreeMap<u32, Vec<u32>>,
    names: &'a mut BTreeMap<u32, String>,
    service: &'a Service,
    port: &'a ServicePort,
    candidates: &'a Candidates,
}

impl Job<'_> {
    fn compile<A: Address>(&mut self) {
        let Self { service, port, .. } = *self;
        let mut keys = Vec::new();
        for address in service.cluster_ips.iter().filter_map(|ip| A::from_ip(*ip)) {
            let protocol = port.protocol.number();
            let key = FrontendKey {
                address,
                port: port.port,
                protocol,
                scope: SCOPE_INTERNAL,
            };
            if A::tables(self.contents).frontends.contains_key(&key) {
                self.warnings.push(Warning {
                    object: format!("Service {}", service.key),
                    message: format!(
                        "{} {} port {} is already in use, by an earlier port or another service; \
                         this port is ignored",
                        address.to_ip(),
                        port.protocol,
                        port.port
                    ),
                });
            } else {
                keys.push(key);
            }
        }
        let Some(first) = keys.first() else { return };
        let tuple = (
            first.address.to_ip(),
            first.port,
            first.protocol,
            first.scope,
        );
        let number = self.number::<A>(tuple);
        let (local, remote) = self.slots::<A>(number);
        let count = local.len() + remote.len();
        let mut flags = 0;
        if service.internal_local {
            flags |= FRONTEND_LOCAL_ONLY;
        }
        if service.affinity_seconds > 0 {
            flags |= FRONTEND_AFFINITY;
        }
        let frontend = Frontend {
            service: number,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            local: u32::try_from(local.len()).unwrap_or(u32::MAX),
            affinity_seconds: service.affinity_seconds,
            flags,
            reserved: [0; 3],
        };
        for key in keys {
            A::tables_mut(self.contents).frontends.insert(key, frontend);
        }
        let order = arrange(
            self.previous.get(&number).map_or(&[], Vec::as_slice),
            &local,
            &remote,
        );
        for (slot, backend) in (0..).zip(&order) {
            let key = SlotKey {
                service: number,
                slot,
            };
            self.contents.slots.insert(key, Slot { backend: *backend });
        }
        self.memory.slots.insert(number, order);
    }

    fn number<A: Address>(&mut self, tuple: FrontendTuple) -> u32 {
        let Self { service, port, .. } = *self;
        let key = PortKey {
            service: service.key.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            ipv4: A::BITS == 32,
        };
        let before = self.memory.adopted_services.get(&tuple).copied();
        let number = self.memory.services.number(&key, before);
        let name = if port.name.is_empty() {
            port.port.to_string()
        } else {
            port.name.clone()
        };
        self.names.insert(number, format!("{}:{name}", service.key));
        number
    }

    /// The backends that new connections get, local and remote; adds these and all that serve.
    fn slots<A: Address>(&mut self, number: u32) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let mut family = Vec::new();
        for ((ip, port), candidate) in self.candidates {
            let Some(address) = A::from_ip(*ip) else {
                continue;
            };
            if !candidate.ready && !candidate.serving {
                continue;
            }
            let key = (number, *ip, *port);
            let before = self.memory.adopted_backends.get(&key).copied();
            let backend = self.memory.backends.number(&key, before);
            let value = Backend {
                address,
                service: number,
                port: *port,
                reserved: 0,
            };
            A::tables_mut(self.contents).backends.insert(backend, value);
            family.push((backend, *candidate));
        }
        let cluster = usable(family.iter().copied());
        let local = if self.service.internal_local {
            // The local set falls back on its own, whatever there is elsewhere.
            usable(
                family
                    .iter()
                    .copied()
                    .filter(|(_, candidate)| candidate.local),
            )
        } else {
            cluster.clone()
        };
        let of = |set: Vec<(u32, Candidate)>, wanted: bool| -> BTreeSet<u32> {
            let matching = set
                .into_iter()
                .filter(|(_, candidate)| candidate.local == wanted);
            matching.map(|(backend, _)| backend).collect()
        };
        (of(local, true), of(cluster, false))
    }
}

/// The ready ones; without any, those that serve while they terminate.
fn usable(candidates: impl Iterator<Item = (u32, Candidate)> + Clone) -> Vec<(u32, Candidate)> {
    let ready: Vec<_> = candidates
        .clone()
        .filter(|(_, candidate)| candidate.ready)
        .collect();
    if !ready.is_empty() {
        return ready;
    }
    candidates
        .filter(|(_, candidate)| candidate.is_last_resort())
        .collect()
}

/// The order of the slots: local backends first, and each where it was as far as that is possible.
fn arrange(previous: &[u32], local: &BTreeSet<u32>, remote: &BTreeSet<u32>) -> Vec<u32> {
    let place = |previous: &[u32], wanted: &BTreeSet<u32>| {
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
            .collect::<Vec<_>>()
    };
    let mut order = place(previous, local);
    order.extend(place(previous.get(local.len()..).unwrap_or(&[]), remote));
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_move_no_more_than_they_must() {
        let set = |list: &[u32]| list.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(arrange(&[], &set(&[2, 1]), &set(&[9])), [1, 2, 9]);
        assert_eq!(
            arrange(&[2, 1, 9], &set(&[1, 2]), &set(&[5, 9])),
            [2, 1, 9, 5]
        );
        assert_eq!(
            arrange(&[7, 3, 5, 4], &set(&[]), &set(&[3, 4, 7])),
            [7, 3, 4]
        );
        assert_eq!(
            arrange(&[7, 3, 5, 4], &set(&[]), &set(&[4, 5, 7])),
            [7, 4, 5]
        );
    }

    proptest! {
        #[test]
        fn an_order_has_each_backend_once(
            previous in proptest::collection::vec(0_u32..12, 0..12),
            all in proptest::collection::btree_map(0_u32..12, any::<bool>(), 0..12),
        ) {
            let side = |wanted| {
                let matching = all.iter().filter(|(_, local)| **local == wanted);
                matching.map(|(backend, _)| *backend).collect::<BTreeSet<_>>()
            };
            let (local, remote) = (side(true), side(false));
            let order = arrange(&previous, &local, &remote);
            prop_assert_eq!(order.len(), all.len());
            let (first, last) = order.split_at(local.len());
            prop_assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), local);
            prop_assert_eq!(last.iter().copied().collect::<BTreeSet<_>>(), remote);
        }
    }
}
