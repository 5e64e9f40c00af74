//! The order of changes: what holds after each single write.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::select};
use weft_abi::{
    addr::{Addr4, Addr6},
    ipcache::IpcacheEntry,
    service::{FRONTEND_REJECT, SCOPE_EXTERNAL, SlotKey},
};
use weft_core::{
    compile::Compiler,
    contents::{Contents, LpmKey},
    diff::{Changes, Step, diff},
    family::Address,
    lookup,
    model::{
        ClusterState, EndpointSlice, ObjectKey, Protocol, Service, ServicePort, SliceEndpoint,
        SlicePort,
    },
};

use crate::common::{OWN_NODE, cluster, ip, singles};

/// Applies changes entry by entry, and asks `check` after each.
fn replay(
    contents: &mut Contents,
    changes: &Changes,
    mut check: impl FnMut(&Contents) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    for step in &changes.steps {
        if let Step::Write(batch) = step {
            for write in singles(batch) {
                write.apply(contents);
                check(contents)?;
            }
        }
    }
    Ok(())
}

/// Prefixes of a sixteenth of the address space and longer, all within a few addresses.
fn prefixes() -> impl Strategy<Value = BTreeMap<LpmKey<Addr4>, IpcacheEntry>> {
    let one = (0_u8..16, 0_u32..5, 0_u32..3).prop_map(|(bits, length, identity)| {
        let key = LpmKey::address(Addr4::new([bits << 4, 0, 0, 0]), length);
        (
            key,
            IpcacheEntry {
                identity,
                ..IpcacheEntry::default()
            },
        )
    });
    vec(one, 0..12).prop_map(|entries| entries.into_iter().collect())
}

fn slice_endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let node = select(vec![OWN_NODE, "node1"]);
    (
        1_u8..6,
        any::<bool>(),
        node,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(last, ipv4, node, ready, serving, terminating)| {
            let v4 = format!("10.0.0.{last}");
            let address = if ipv4 {
                ip(&v4)
            } else {
                ip(&format!("fd00::{last}"))
            };
            let node = Some(node.into());
            SliceEndpoint {
                address,
                ready,
                serving,
                terminating,
                node,
                hints: None,
            }
        })
}

/// Services `a/web` and `a/api`, on few addresses, with slices that overlap.
fn services() -> impl Strategy<Value = ClusterState> {
    let names = || select(vec!["web", "api"]).prop_map(str::to_owned);
    let service = (names(), 1_u8..3, any::<bool>(), 0_u32..2, any::<bool>()).prop_map(
        |(name, last, internal_local, affinity_seconds, more)| {
            let port = |name: &str, port| ServicePort {
                name: name.to_owned(),
                protocol: Protocol::Tcp,
                port,
                node_port: 0,
            };
            let mut ports = vec![port("http", 80)];
            ports.extend(more.then(|| port("admin", 81)));
            Service {
                key: ObjectKey::new("a", name),
                cluster_ips: vec![ip(&format!("10.96.0.{last}")), ip(&format!("fd96::{last}"))],
                ports,
                internal_local,
                affinity_seconds,
                ..Service::default()
            }
        },
    );
    let slice = (0_u8..4, names(), vec(slice_endpoint(), 0..5), 80_u16..82).prop_map(
        |(index, service, endpoints, port)| EndpointSlice {
            key: ObjectKey::new("a", format!("slice{index}")),
            service: Some(service),
            ports: ["http", "admin"]
                .map(|name| SlicePort {
                    name: name.to_owned(),
                    protocol: Protocol::Tcp,
                    port,
                })
                .to_vec(),
            endpoints,
            triggered: None,
        },
    );
    (vec(service, 0..3), vec(slice, 0..4)).prop_map(|(services, slices)| ClusterState {
        node_name: OWN_NODE.to_owned(),
        services: services
            .into_iter()
            .map(|service| (service.key.clone(), service))
            .collect(),
        slices: slices
            .into_iter()
            .map(|slice| (slice.key.clone(), slice))
            .collect(),
        ..ClusterState::default()
    })
}

/// A cluster with services.
fn world() -> impl Strategy<Value = ClusterState> {
    (cluster(), services()).prop_map(|(cluster, services)| ClusterState {
        services: services.services,
        slices: services.slices,
        ..cluster
    })
}

fn frontends_are_whole<A: Address>(contents: &Contents) -> Result<(), TestCaseError> {
    let tables = A::tables(contents);
    for (key, frontend) in &tables.frontends {
        for slot in 0..frontend.count {
            let slot_key = SlotKey {
                service: frontend.service,
                slot: frontend.first + slot,
            };
            let slot = contents.slots.get(&slot_key);
            let backend = slot.and_then(|slot| tables.backends.get(&slot.backend));
            prop_assert_eq!(
                backend.map(|backend| backend.service),
                Some(frontend.service),
                "{:?} {:?}",
                key,
                slot_key
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// An address always resolves to what it did before or to what it will.
    #[test]
    fn nested_prefixes_never_show_through(before in prefixes(), after in prefixes()) {
        let with = |ipcache: &BTreeMap<_, _>| {
            let mut contents = Contents::default();
            contents.v4.ipcache.clone_from(ipcache);
            contents
        };
        let (mut contents, before, after) = (with(&before), with(&before), with(&after));
        let identity = |contents: &Contents, bits: u8| {
            lookup::ipcache(contents, ip(&format!("{}.0.0.0", bits << 4))).map(|(_, entry)| entry)
        };
        replay(&mut contents, &diff(&before, &after), |now| {
            for bits in 0..16 {
                let found = identity(now, bits);
                prop_assert!(
                    found == identity(&before, bits) || found == identity(&after, bits),
                    "{bits}: {found:?}",
                );
            }
            Ok(())
        })?;
        prop_assert_eq!(contents, after);
    }

    /// No frontend ever leads to a slot or a backend that is not there.
    #[test]
    fn frontends_are_always_whole(states in vec(world(), 1..4)) {
        let mut compiler = Compiler::new();
        let mut contents = Contents::default();
        for state in &states {
            let desired = compiler.compile(state);
            let changes = desired.changes(&contents);
            replay(&mut contents, &changes, |now| {
                frontends_are_whole::<Addr4>(now)?;
                frontends_are_whole::<Addr6>(now)
            })?;
            prop_assert_eq!(&contents, &desired.contents);
            // An agent that starts now finds nothing to change.
            let mut restarted = Compiler::new();
            restarted.adopt(&contents);
            prop_assert_eq!(&restarted.compile(state).contents, &contents);
        }
    }

    /// Whoever has a port of this node asked for it, and whatever can be had is somebody's.
    #[test]
    fn host_ports_lead_to_who_asked_for_them(state in cluster()) {
        let desired = Compiler::new().compile(&state);
        host_ports_are_as_asked::<Addr4>(&state, &desired.contents)?;
        host_ports_are_as_asked::<Addr6>(&state, &desired.contents)?;
    }

    /// An endpoint's limit is there whenever the endpoint says so.
    #[test]
    fn limits_come_before_endpoints_and_go_after_them(states in vec(cluster(), 1..4)) {
        fn are_there<A: Address>(contents: &Contents) -> Result<(), TestCaseError> {
            for endpoint in A::tables(contents).endpoints.values() {
                let limited = contents.bandwidth.contains_key(&endpoint.ifindex);
                prop_assert!(limited || endpoint.limits == 0, "{:?}", endpoint);
            }
            Ok(())
        }
        let mut compiler = Compiler::new();
        let mut contents = Contents::default();
        for state in &states {
            let changes = compiler.compile(state).changes(&contents);
            replay(&mut contents, &changes, |now| {
                are_there::<Addr4>(now)?;
                are_there::<Addr6>(now)
            })?;
        }
    }

    /// What is selected is what kube-proxy would select, whatever the order of slots.
    #[test]
    fn backends_are_those_of_kube_proxy(state in services()) {
        let contents = Compiler::new().compile(&state).contents;
        for (key, frontend) in &contents.v4.frontends {
            let service = state.services.values().find(|service| {
                service.cluster_ips.contains(&key.address.to_ip())
                    && service.ports.iter().any(|port| port.port == key.port)
            });
            let service = service.expect("a frontend has a service");
            let all = endpoints_of(&state, service);
            let usable = |local: bool| {
                let mine = |endpoint: &&SliceEndpoint| {
                    !local || endpoint.node.as_deref() == Some(OWN_NODE)
                };
                let mut found: Vec<_> = all.iter().filter(|(_, endpoint)| {
                    mine(endpoint) && endpoint.ready
                }).collect();
                if found.is_empty() {
                    found = all.iter().filter(|(_, endpoint)| {
                        mine(endpoint) && endpoint.serving && endpoint.terminating
                    }).collect();
                }
                let mut found: Vec<_> = found.into_iter().map(|(target, _)| *target).collect();
                found.sort_unstable();
                found
            };
            let slots = {
                let mut found: Vec<_> = (0..frontend.count).map(|slot| {
                    let slot = frontend.first + slot;
                    let key = SlotKey { service: frontend.service, slot };
                    let backend = contents.v4.backends[&contents.slots[&key].backend];
                    (backend.address.to_ip(), backend.port)
                }).collect();
                found.sort_unstable();
                found
            };
            prop_assert_eq!(slots, usable(service.internal_local));
            let rejects = frontend.flags & FRONTEND_REJECT != 0;
            prop_assert_eq!(rejects, usable(false).is_empty());
        }
    }
}

/// The IPv4 endpoints of a service, one per address and port: rather one that lives.
fn endpoints_of<'a>(
    state: &'a ClusterState,
    service: &Service,
) -> Vec<((std::net::IpAddr, u16), &'a SliceEndpoint)> {
    let mut found = BTreeMap::new();
    for slice in state.slices.values() {
        if slice.service.as_ref() != Some(&service.key.name) {
            continue;
        }
        let port = slice.ports[0].port;
        for endpoint in slice
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.address.is_ipv4())
        {
            let better = |endpoint: &SliceEndpoint| {
                (!endpoint.terminating, endpoint.ready, endpoint.serving)
            };
            let slot = found.entry((endpoint.address, port)).or_insert(endpoint);
            if better(endpoint) > better(slot) {
                *slot = endpoint;
            }
        }
    }
    found.into_iter().collect()
}

/// The ports of this node, of a cluster without services.
fn host_ports_are_as_asked<A: Address>(
    state: &ClusterState,
    contents: &Contents,
) -> Result<(), TestCaseError> {
    let tables = A::tables(contents);
    let endpoints = state.endpoints.values().filter(|endpoint| {
        let pod = &state.pods[&endpoint.pod];
        !pod.terminal
    });
    let mut own = state.own_addresses.clone();
    let mut all = state.endpoints.values();
    own.retain(|own| !all.any(|endpoint| endpoint.ips.contains(own)));
    own.extend(&state.nodes[OWN_NODE].internal_ips);
    own.extend([ip("127.0.0.1"), ip("::1")]);
    own.retain(|own| A::from_ip(*own).is_some());

    // Who asked for which address, port and protocol, and with which backend.
    let mut asked = BTreeMap::<_, Vec<_>>::new();
    for endpoint in endpoints {
        let Some(target) = endpoint.ips.iter().find(|ip| A::from_ip(**ip).is_some()) else {
            continue;
        };
        for port in &endpoint.host_ports {
            for own in own
                .iter()
                .filter(|own| port.host_ip.is_none_or(|ip| ip == **own))
            {
                let key = (*own, port.host_port, port.protocol.number());
                let backend = (*target, port.container_port);
                asked.entry(key).or_default().push(backend);
            }
        }
    }
    let mut found = BTreeMap::new();
    for (key, frontend) in &tables.frontends {
        let slot = SlotKey {
            service: frontend.service,
            slot: 0,
        };
        let backend = tables.backends[&contents.slots[&slot].backend];
        let backend = (backend.address.to_ip(), backend.port);
        let key_without_scope = (key.address.to_ip(), key.port, key.protocol);
        let scopes: &mut Vec<_> = found.entry(key_without_scope).or_default();
        scopes.push(key.scope);
        let asked = asked.get(&key_without_scope);
        prop_assert!(
            asked.is_some_and(|asked| asked.contains(&backend)),
            "{:?}",
            key
        );
    }
    for (address, port, protocol) in asked.into_keys() {
        let scopes = found.remove(&(address, port, protocol)).unwrap_or_default();
        prop_assert_eq!(scopes.len(), if address.is_loopback() { 1 } else { 2 });
        prop_assert_eq!(scopes.contains(&SCOPE_EXTERNAL), !address.is_loopback());
    }
    Ok(())
}
