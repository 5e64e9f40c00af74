//! Ports on their way into the maps: numbers, backends, lists of slots, tables, frontends.
//!
//! A port is what has backends of its own: a port of a service for one family, or of a pod. It has
//! one number, whatever the addresses at which clients find it.
//!
//! Backends hold more than the lists do: every endpoint that serves keeps its number, so that the
//! connections it has go on while no new ones come.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weft_abi::{
    addr::{Addr4, Addr6},
    service::{
        BACKEND_CLUSTER, BACKEND_LOCAL, Backend, FRONTEND_AFFINITY, FRONTEND_DIRECT_RETURN,
        FRONTEND_LOCAL_ONLY, FRONTEND_REFUSES_NODE, FRONTEND_REJECT, FRONTEND_SOURCE_RANGES,
        Frontend, FrontendKey, LOCAL_SLOTS, MAGLEV_BLOCK, MaglevKey, SCOPE_EXTERNAL,
        SCOPE_FORWARDED, SCOPE_INTERNAL, Slot, SlotKey, SourceRange,
    },
};

use super::{
    claims::Claim,
    endpoints::{self, Endpoint},
    maglev,
};
use crate::{
    compile::numbers::candidate,
    contents::{LpmKey, ServiceContents},
    family::Address,
    model::{ObjectKey, Protocol},
};

/// How many of a port's hashes are compared with the number it may have had before.
const RECOGNISED_PROBES: u32 = 16;
/// The lowest number of ports and backends: 0 is nobody's.
const LOWEST: u32 = 1;

/// What a port's number stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortKey {
    /// One port of a service, for one family.
    Service {
        /// The service.
        service: Arc<ObjectKey>,
        /// The port's name.
        port: Box<str>,
        /// Its protocol: for another protocol the same name may be another port.
        protocol: Protocol,
        /// The family.
        ipv4: bool,
    },
    /// The cluster IPs of a service as such, for one family.
    Addresses {
        /// The service.
        service: Arc<ObjectKey>,
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

impl PortKey {
    /// Whether it is of IPv4.
    pub const fn is_ipv4(&self) -> bool {
        match self {
            Self::Service { ipv4, .. }
            | Self::Addresses { ipv4, .. }
            | Self::HostPort { ipv4, .. } => *ipv4,
        }
    }
}

/// A frontend as one scope sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Only backends of this node are used.
    pub local: bool,
    /// Only sources in the port's ranges are let in.
    pub filtered: bool,
    /// Remote backends answer by themselves: their nodes know the frontend, too.
    pub direct: bool,
}

/// An address at which clients find a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// The address.
    pub claim: Claim,
    /// As this node's pods and processes see it.
    pub internal: View,
    /// As what comes from outside sees it; `None`: nothing there comes from outside.
    pub external: Option<View>,
}

/// A port with all that is said of it.
pub struct Port<'a> {
    /// What its number stands for.
    pub key: PortKey,
    /// What its number means to an operator.
    pub name: &'a str,
    /// Its endpoints, all of the key's family.
    pub endpoints: &'a [Endpoint],
    /// Where clients find it: nobody else is there. At least one.
    pub exposures: &'a [Exposure],
    /// Whether some of that is not a cluster IP.
    pub is_external: bool,
    /// Duration of the session affinity, in seconds; 0 without.
    pub affinity_seconds: u32,
    /// Backends are chosen by a Maglev table.
    pub maglev: bool,
    /// Who is let in at filtered exposures.
    pub ranges: &'a [IpNet],
    /// Whether the node's own processes are let in there.
    pub lets_node_in: bool,
}

/// What was written of a port, to find it again.
#[derive(Clone, Debug)]
pub struct Record {
    /// What its number stands for.
    pub key: PortKey,
    /// Its number.
    pub number: u32,
    /// Its frontends.
    pub claims: Box<[Claim]>,
    /// Its backends.
    pub backends: Box<[u32]>,
    /// Its source ranges.
    pub ranges: Box<[IpNet]>,
    /// Whether some endpoint takes new connections, and whether one of this node does.
    pub usable: Usable,
    /// Whether clients find it elsewhere than at cluster IPs.
    pub is_external: bool,
    /// Whether there was no room for its Maglev table: backends are chosen at random.
    pub lacks_table: bool,
}

/// Where a port has endpoints for new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usable {
    /// Anywhere.
    pub cluster: bool,
    /// On this node.
    pub local: bool,
}

/// What an earlier agent's maps say of backends, until their ports have come back for them: their
/// numbers, by the number of the port.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    backends: BTreeMap<u32, Vec<u32>>,
}

impl Adopted {
    /// What the maps say.
    pub fn new(contents: &ServiceContents) -> Self {
        let mut adopted = Self::default();
        adopted.add::<Addr4>(contents);
        adopted.add::<Addr6>(contents);
        adopted
    }

    fn add<A: Address>(&mut self, contents: &ServiceContents) {
        for (number, backend) in &A::services(contents).backends {
            let backends = self.backends.entry(backend.service).or_default();
            backends.push(*number);
        }
    }
}

/// The keys of a claim's frontends: from inside, from outside, from another node.
pub fn keys<A: Address>(claim: Claim) -> Option<[FrontendKey<A>; 3]> {
    let address = A::from_ip(claim.address)?;
    let key = |scope| FrontendKey {
        address,
        port: claim.port,
        protocol: claim.protocol,
        scope,
    };
    Some([SCOPE_INTERNAL, SCOPE_EXTERNAL, SCOPE_FORWARDED].map(key))
}

/// The keys of a record's source ranges.
pub fn range_keys<A: Address>(
    number: u32,
    ranges: &[IpNet],
) -> impl Iterator<Item = LpmKey<SourceRange<A>>> {
    ranges.iter().filter_map(move |range| {
        let address = A::from_ip(range.network())?;
        Some(LpmKey::sources(
            number,
            address,
            u32::from(range.prefix_len()),
        ))
    })
}

/// Writes ports.
pub struct Writer<'a> {
    /// What the maps hold of the units that are compiled.
    pub before: &'a ServiceContents,
    /// What they hold of all others.
    pub others: &'a ServiceContents,
    /// What they shall hold of those that are compiled.
    pub after: &'a mut ServiceContents,
    /// What the numbers of ports mean: all in `before`, `others` and `after`.
    pub names: &'a mut BTreeMap<u32, Arc<str>>,
    /// Backends that are nobody's yet.
    pub adopted: &'a mut Adopted,
    /// For how many blocks of Maglev tables there is room besides those in `before` and `others`.
    pub maglev_room: &'a mut usize,
}

impl Writer<'_> {
    /// Writes a port; `previous` is what was written of it before.
    pub fn write(&mut self, port: Port<'_>, previous: Option<&Record>) -> Record {
        if port.key.is_ipv4() {
            self.write_family::<Addr4>(port, previous)
        } else {
            self.write_family::<Addr6>(port, previous)
        }
    }

    fn write_family<A: Address>(&mut self, port: Port<'_>, previous: Option<&Record>) -> Record {
        let number = match previous {
            Some(previous) => previous.number,
            None => self.number::<A>(&port),
        };
        if self
            .names
            .get(&number)
            .is_none_or(|name| **name != *port.name)
        {
            self.names.insert(number, port.name.into());
        }
        let adopted = self.adopted.backends.remove(&number).unwrap_or_default();
        let known = previous.map_or(&*adopted, |previous| &*previous.backends);
        let backends = self.backends::<A>(number, port.endpoints, known);
        let member = |bit: u16| {
            backends
                .iter()
                .filter(move |backend| backend.flags & bit != 0)
        };
        let usable = Usable {
            cluster: member(BACKEND_CLUSTER).next().is_some(),
            local: member(BACKEND_LOCAL).next().is_some(),
        };

        // A list that no frontend leads to is not written.
        let views = || {
            let exposures = port.exposures.iter();
            exposures.flat_map(|exposure| [Some(exposure.internal), exposure.external])
        };
        let views = || views().flatten();
        let list = |wanted: bool, bit: u16| {
            let members = member(bit).filter(|_| wanted);
            members
                .map(|backend| backend.number)
                .collect::<BTreeSet<_>>()
        };
        let cluster = list(views().any(|view| !view.local), BACKEND_CLUSTER);
        // What another node forwards to this one gets one of its backends.
        let local = list(views().any(|view| view.local || view.direct), BACKEND_LOCAL);
        let wants_table = port.maglev && !cluster.is_empty();
        let table = wants_table
            .then(|| self.table(number, member(BACKEND_CLUSTER), cluster.len()))
            .flatten();
        let lacks_table = wants_table && table.is_none();
        let table = table.unwrap_or(0);
        let cluster = self.list(number, 0, &cluster);
        let local = self.list(number, LOCAL_SLOTS, &local);

        let filters = views().any(|view| view.filtered);
        let ranges = if filters { port.ranges } else { &[] };
        let sources = &mut A::services_mut(self.after).source_ranges;
        sources.extend(range_keys(number, ranges).map(|key| (key, 1)));

        let frontend = |view: View| {
            let mut flags = 0;
            let mut set = |bit: u8, wanted: bool| {
                if wanted {
                    flags |= bit;
                }
            };
            set(FRONTEND_LOCAL_ONLY, view.local);
            set(FRONTEND_REJECT, !usable.cluster);
            set(FRONTEND_AFFINITY, port.affinity_seconds > 0);
            set(FRONTEND_SOURCE_RANGES, view.filtered);
            set(FRONTEND_REFUSES_NODE, view.filtered && !port.lets_node_in);
            set(FRONTEND_DIRECT_RETURN, view.direct);
            Frontend {
                service: number,
                first: if view.local { LOCAL_SLOTS } else { 0 },
                count: if view.local { local } else { cluster },
                table: if view.local { 0 } else { table },
                affinity_seconds: port.affinity_seconds,
                flags,
                reserved: [0; 3],
            }
        };
        let frontends = &mut A::services_mut(self.after).frontends;
        for exposure in port.exposures {
            let Some([inside, outside, forwarded]) = keys(exposure.claim) else {
                continue;
            };
            frontends.insert(inside, frontend(exposure.internal));
            let Some(external) = exposure.external else {
                continue;
            };
            frontends.insert(outside, frontend(external));
            if external.direct {
                let here = Frontend {
                    // By the table both nodes find the same backend.
                    table,
                    ..frontend(View {
                        local: true,
                        direct: false,
                        ..external
                    })
                };
                frontends.insert(forwarded, here);
            }
        }
        let claims = port.exposures.iter().map(|exposure| exposure.claim);
        Record {
            number,
            claims: claims.collect(),
            backends: backends.iter().map(|backend| backend.number).collect(),
            ranges: ranges.into(),
            usable,
            is_external: port.is_external,
            lacks_table,
            key: port.key,
        }
    }

    /// The number of a port that was not written before by this agent.
    fn number<A: Address>(&self, port: &Port<'_>) -> u32 {
        let frontends = &A::services(self.before).frontends;
        let claims = port.exposures.iter();
        let keys = claims.filter_map(|exposure| keys::<A>(exposure.claim));
        let mut held = keys
            .flatten()
            .filter_map(|key| Some(frontends.get(&key)?.service));
        // The address may have been another port's, whose number means that one in old flows.
        let own = |number: &u32| {
            let mut probes = 0..RECOGNISED_PROBES;
            !self.names.contains_key(number)
                && probes.any(|probe| candidate(&port.key, LOWEST, probe) == *number)
        };
        held.find(own)
            .unwrap_or_else(|| fresh(&port.key, |number| self.names.contains_key(&number)))
    }

    /// Writes the backends of those endpoints that serve; `known` are the numbers of those that the
    /// port had.
    fn backends<A: Address>(
        &mut self,
        service: u32,
        endpoints: &[Endpoint],
        known: &[u32],
    ) -> Vec<Chosen> {
        let before = &A::services(self.before).backends;
        let known = known.iter().filter_map(|number| {
            let backend = before.get(number)?;
            Some(((backend.address, backend.port), *number))
        });
        let known: BTreeMap<_, _> = known.collect();
        let selected = endpoints::select(endpoints);
        let mut chosen = Vec::with_capacity(endpoints.len());
        for (endpoint, flags) in endpoints.iter().zip(selected) {
            let Some(address) = A::from_ip(endpoint.address).filter(|_| endpoint.serves()) else {
                continue;
            };
            let others = &A::services(self.others).backends;
            let after = &mut A::services_mut(self.after).backends;
            let number = known.get(&(address, endpoint.port)).copied();
            let number = number.unwrap_or_else(|| {
                let taken = |number: u32| {
                    let in_maps = before.contains_key(&number) || others.contains_key(&number);
                    in_maps || after.contains_key(&number)
                };
                fresh(&(service, endpoint.address, endpoint.port), taken)
            });
            let backend = Backend {
                address,
                service,
                port: endpoint.port,
                flags,
            };
            after.insert(number, backend);
            chosen.push(Chosen {
                address: endpoint.address,
                port: endpoint.port,
                number,
                flags,
            });
        }
        chosen
    }

    /// Writes a list of slots; how long it is. Each backend stays where it was as far as possible.
    fn list(&mut self, service: u32, first: u32, members: &BTreeSet<u32>) -> u32 {
        let key = |slot| SlotKey { service, slot };
        let slots = key(first)..=key(first | (LOCAL_SLOTS - 1));
        let previous = self.before.slots.range(slots);
        let previous: Vec<_> = previous.map(|(_, slot)| slot.backend).collect();
        let order = arrange(&previous, members);
        let slots = (first..).zip(&order);
        self.after
            .slots
            .extend(slots.map(|(slot, backend)| (key(slot), Slot { backend: *backend })));
        u32::try_from(order.len()).unwrap_or(LOCAL_SLOTS)
    }

    /// Writes the Maglev table of the backends, of which there are so many, and at least one; its
    /// size. `None` if there is no room for it.
    fn table<'a>(
        &mut self,
        service: u32,
        members: impl Iterator<Item = &'a Chosen>,
        count: usize,
    ) -> Option<u32> {
        // What it has already takes no more room; what others give up is there until the end.
        let key = |block| MaglevKey { service, block };
        let had = self.before.maglev.range(key(0)..=key(u32::MAX)).count();
        let more = (maglev::size(count) / MAGLEV_BLOCK).saturating_sub(had);
        *self.maglev_room = self.maglev_room.checked_sub(more)?;
        let backend = |chosen: &Chosen| (chosen.address, chosen.port, chosen.number);
        let members: Vec<_> = members.map(backend).collect();
        let blocks = maglev::table(&members);
        let entries = blocks.len() * MAGLEV_BLOCK;
        for (block, entries) in (0..).zip(blocks) {
            self.after.maglev.insert(key(block), entries);
        }
        u32::try_from(entries).ok()
    }
}

/// A backend of a port, with its `BACKEND_` bits.
struct Chosen {
    address: IpAddr,
    port: u16,
    number: u32,
    flags: u16,
}

/// The first of a key's numbers that is not taken.
fn fresh(key: &impl std::hash::Hash, taken: impl Fn(u32) -> bool) -> u32 {
    let mut probe = 0_u32;
    loop {
        let number = candidate(key, LOWEST, probe);
        if !taken(number) {
            return number;
        }
        probe = probe.wrapping_add(1);
    }
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

    #[test]
    fn a_number_that_is_taken_is_passed_over() {
        let first = fresh(&"a", |_| false);
        let second = fresh(&"a", |number| number == first);
        assert_ne!(first, second);
        assert_eq!(fresh(&"a", |number| number == first), second);
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
