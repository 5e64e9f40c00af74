//! Compiled services against an evaluator that is too simple to be wrong, and after each single write.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*, sample::select};
use weft_abi::{
    addr::{Addr4, Addr6},
    service::{
        BACKEND_CLUSTER, BACKEND_LOCAL, FRONTEND_AFFINITY, FRONTEND_DIRECT_RETURN,
        FRONTEND_LOCAL_ONLY, FRONTEND_REFUSES_NODE, FRONTEND_REJECT, FRONTEND_SOURCE_RANGES,
        Frontend, FrontendKey, LOCAL_SLOTS, MAGLEV_BLOCK, MaglevKey, SCOPE_EXTERNAL,
        SCOPE_FORWARDED, SCOPE_INTERNAL, SlotKey,
    },
};
use weft_core::{
    contents::{Contents, LpmKey, ServiceContents},
    diff::diff_services,
    family::Address,
    model::{
        ClusterState, EndpointSlice, Hints, HostPort, LoadBalancing, LoadBalancingReturn,
        LocalEndpoint, Node, ObjectKey, Protocol, Service, ServicePort, SliceEndpoint, SlicePort,
    },
    name::Name,
    services::{Dirty, ServiceCompiler},
};

use crate::{
    changes::replay,
    common::{OWN_NODE, ip},
};

const OWN_ZONE: &str = "a";
const OWN_IPS: [&str; 2] = ["10.9.0.1", "fd00:9::1"];

fn names(all: [&'static str; 2]) -> impl Strategy<Value = Vec<Name>> {
    vec(select(all.map(Name::from).to_vec()), 0..2)
}

fn slice_endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let hints = (names([OWN_ZONE, "b"]), names([OWN_NODE, "node1"]));
    let hints = option::weighted(0.7, hints.prop_map(|(zones, nodes)| Hints { zones, nodes }));
    (
        (1_u8..6, any::<bool>()),
        select(vec![Some(OWN_NODE), Some("node1"), None]),
        prop::bool::weighted(0.7),
        any::<bool>(),
        any::<bool>(),
        hints,
    )
        .prop_map(|((last, ipv4), node, ready, serving, terminating, hints)| {
            let text = if ipv4 {
                format!("10.0.0.{last}")
            } else {
                format!("fd00::{last}")
            };
            SliceEndpoint {
                ready,
                serving,
                terminating,
                node: node.map(Name::from),
                hints: hints.map(Box::new),
                ..SliceEndpoint::new(ip(&text))
            }
        })
}

/// A protocol that is mostly the same.
fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp])
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let node_ports = || select(vec![0, 0, 30080, 30081]);
    let one = (protocol(), 80_u16..82, node_ports());
    let other = (protocol(), 80_u16..82, node_ports());
    (one, option::of(other)).prop_map(|(one, other)| {
        let port = |name: &str, (protocol, port, node_port)| ServicePort {
            name: name.to_owned(),
            protocol,
            port,
            node_port,
        };
        let mut ports = vec![port("http", one)];
        ports.extend(other.map(|other| port("admin", other)));
        ports
    })
}

/// Addresses that several services may say they have.
fn shared_addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    let addresses = ["203.0.113.1", "203.0.113.2", "2001:db8::1"];
    vec(select(addresses.map(ip).to_vec()), 0..2)
}

fn source_ranges() -> impl Strategy<Value = Option<Vec<IpNet>>> {
    let networks = [
        "0.0.0.0/0",
        "0.0.0.0/1",
        "10.0.0.0/8",
        "10.9.0.1/32",
        "198.51.100.0/24",
        "2001:db8:1::/48",
        "fd00:9::/64",
    ];
    let networks = networks.map(|network| network.parse().expect("a network"));
    option::of(vec(select(networks.to_vec()), 0..3))
}

fn service() -> impl Strategy<Value = Service> {
    let algorithm = select(vec![LoadBalancing::Random, LoadBalancing::Maglev]);
    let way = select(vec![LoadBalancingReturn::Snat, LoadBalancingReturn::Direct]);
    (
        (select(vec!["web", "api", "db"]), 1_u8..4, 0_u8..5, 0_i64..2),
        (shared_addresses(), shared_addresses(), ports()),
        (any::<bool>(), any::<bool>(), source_ranges()),
        (0_u32..2, 0_u16..2),
        (option::of(algorithm), option::of(way)),
    )
        .prop_map(
            |(
                (name, last, families, created),
                (load_balancer_ips, external_ips, ports),
                (internal_local, external_local, source_ranges),
                (affinity_seconds, health_check_node_port),
                (load_balancing, load_balancing_return),
            )| {
                let v4 = ip(&format!("10.96.0.{last}"));
                let v6 = ip(&format!("fd96::{last}"));
                let cluster_ips = match families {
                    0 => vec![],
                    1 => vec![v4],
                    2 => vec![v6],
                    3 => vec![v4, v6],
                    _ => vec![v6, v4],
                };
                Service {
                    key: ObjectKey::new("a", name),
                    created,
                    cluster_ips,
                    load_balancer_ips,
                    external_ips,
                    ports,
                    internal_local,
                    external_local,
                    health_check_node_port,
                    source_ranges,
                    affinity_seconds,
                    load_balancing,
                    load_balancing_return,
                }
            },
        )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let name = select(vec![Some("web"), Some("api"), Some("db"), None]);
    (
        0_u8..5,
        name,
        vec(slice_endpoint(), 0..5),
        80_u16..82,
        protocol(),
    )
        .prop_map(
            |(index, service, endpoints, port, protocol)| EndpointSlice {
                key: ObjectKey::new("a", format!("slice{index}")),
                service: service.map(str::to_owned),
                ports: ["http", "admin"]
                    .map(|name| SlicePort {
                        name: name.to_owned(),
                        protocol,
                        port,
                    })
                    .to_vec(),
                endpoints,
                triggered: None,
            },
        )
}

fn host_port() -> impl Strategy<Value = HostPort> {
    let addresses = ["127.0.0.1", "10.9.0.1", "203.0.113.1"].map(ip);
    let ports = select(vec![80, 30080]);
    (option::of(select(addresses.to_vec())), ports, protocol()).prop_map(
        |(host_ip, host_port, protocol)| HostPort {
            host_ip,
            host_port,
            protocol,
            container_port: 8080,
        },
    )
}

/// A cluster of which only the services matter. The keys of objects are few, so that from one to the
/// next some stay, some change, and some come and go.
fn services() -> impl Strategy<Value = ClusterState> {
    let algorithm = select(vec![LoadBalancing::Random, LoadBalancing::Maglev]);
    let own = (
        select(vec![
            Some(OWN_ZONE),
            Some(OWN_ZONE),
            Some(OWN_ZONE),
            Some("c"),
            None,
        ]),
        select(vec![0_usize, 2, 2, 2, 2]),
        prop::bool::weighted(0.8).prop_flat_map(move |usual| {
            let usual_one = Just(LoadBalancing::Random).boxed();
            if usual {
                usual_one
            } else {
                algorithm.clone().boxed()
            }
        }),
    );
    (
        vec(service(), 0..4),
        vec(slice(), 0..6),
        vec(host_port(), 0..3),
        own,
    )
        .prop_map(
            |(services, slices, host_ports, (zone, addresses, load_balancing))| {
                let zone =
                    zone.map(|zone| ("topology.kubernetes.io/zone".to_owned(), zone.to_owned()));
                let node = Node {
                    name: OWN_NODE.to_owned(),
                    internal_ips: OWN_IPS.into_iter().take(addresses).map(ip).collect(),
                    labels: zone.into_iter().collect(),
                    ..Node::default()
                };
                let endpoint = LocalEndpoint {
                    pod: ObjectKey::new("a", "pod"),
                    uid: None,
                    container_id: "container".to_owned(),
                    ips: vec![ip("10.0.0.99"), ip("fd00::99")],
                    ifindex: 7,
                    mac: [2, 0, 0, 0, 0, 1],
                    host_ports,
                    egress_limit: None,
                    ingress_limit: None,
                };
                let mut state = ClusterState {
                    node_name: OWN_NODE.to_owned(),
                    nodes: [(OWN_NODE.to_owned(), node)].into(),
                    own_addresses: ["10.9.0.1", "203.0.113.1"].map(ip).into(),
                    services: services
                        .into_iter()
                        .map(|one| (one.key.clone(), one))
                        .collect(),
                    slices: slices
                        .into_iter()
                        .map(|one| (one.key.clone(), one))
                        .collect(),
                    endpoints: [("container".to_owned(), endpoint)].into(),
                    ..ClusterState::default()
                };
                state.settings.load_balancing = load_balancing;
                state
            },
        )
}

/// What happens to one object.
#[derive(Clone, Debug)]
enum Event {
    Service(Service),
    NoService(&'static str),
    Slice(EndpointSlice),
    NoSlice(u8),
    /// What concerns everything.
    Node(Box<ClusterState>),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => service().prop_map(Event::Service),
        4 => select(vec!["web", "api", "db"]).prop_map(Event::NoService),
        8 => slice().prop_map(Event::Slice),
        4 => (0_u8..5).prop_map(Event::NoSlice),
        1 => services().prop_map(|state| Event::Node(Box::new(state))),
    ]
}

/// A cluster, and what becomes of it.
fn history() -> impl Strategy<Value = Vec<ClusterState>> {
    (services(), vec(event(), 0..10)).prop_map(|(first, events)| {
        let mut states = vec![first];
        for event in events {
            let mut state = states.last().expect("there is one").clone();
            match event {
                Event::Service(one) => {
                    state.services.insert(one.key.clone(), one);
                }
                Event::NoService(name) => {
                    state.services.remove(&ObjectKey::new("a", name));
                }
                Event::Slice(one) => {
                    state.slices.insert(one.key.clone(), one);
                }
                Event::NoSlice(index) => {
                    let key = ObjectKey::new("a", format!("slice{index}"));
                    state.slices.remove(&key);
                }
                Event::Node(other) => {
                    state.nodes = other.nodes;
                    state.settings = other.settings;
                    state.endpoints = other.endpoints;
                }
            }
            states.push(state);
        }
        states
    })
}

/// What watches would say of the change from one state to the next.
fn dirty(before: &ClusterState, after: &ClusterState) -> Dirty {
    let mut dirty = Dirty::default();
    for key in before.services.keys().chain(after.services.keys()) {
        if before.services.get(key) != after.services.get(key) {
            dirty.service(key.clone());
        }
    }
    for key in before.slices.keys().chain(after.slices.keys()) {
        if before.slices.get(key) != after.slices.get(key) {
            dirty.slice(key.clone());
        }
    }
    dirty
}

fn fresh(state: &ClusterState) -> ServiceCompiler {
    let mut compiler = ServiceCompiler::new();
    compiler.update(state, &Dirty::everything());
    compiler
}

/// The contents with slots in one order: which that is depends on the past.
fn in_order(contents: &ServiceContents) -> ServiceContents {
    let mut ordered = contents.clone();
    let mut lists = BTreeMap::<(u32, u32), Vec<_>>::new();
    for (key, slot) in &contents.slots {
        let list = lists
            .entry((key.service, key.slot & LOCAL_SLOTS))
            .or_default();
        list.push(*slot);
    }
    for ((service, first), mut slots) in lists {
        slots.sort_unstable();
        let keys = (first..).map(|slot| SlotKey { service, slot });
        ordered.slots.extend(keys.zip(slots));
    }
    ordered
}

/// Address and port of a backend.
type Target = (IpAddr, u16);

/// Where a frontend leads: by its slots, and by its Maglev table.
fn targets_of<A: Address>(
    contents: &ServiceContents,
    frontend: &Frontend,
) -> Result<[Vec<Target>; 2], TestCaseError> {
    let target = |number: u32| {
        let backend = A::services(contents).backends.get(&number);
        let backend = backend.filter(|backend| backend.service == frontend.service);
        let backend = backend.ok_or_else(|| TestCaseError::fail(format!("no backend {number}")))?;
        Ok((backend.address.to_ip(), backend.port))
    };
    let slot = |index: u32| {
        let key = SlotKey {
            service: frontend.service,
            slot: frontend.first + index,
        };
        let slot = contents.slots.get(&key);
        target(
            slot.ok_or_else(|| TestCaseError::fail(format!("no {key:?}")))?
                .backend,
        )
    };
    let blocks = frontend.table / u32::try_from(MAGLEV_BLOCK).expect("small");
    let mut in_table = BTreeSet::new();
    for block in 0..blocks {
        let key = MaglevKey {
            service: frontend.service,
            block,
        };
        let entries = contents.maglev.get(&key);
        let entries = entries.ok_or_else(|| TestCaseError::fail(format!("no {key:?}")))?;
        in_table.extend(entries.backends);
    }
    let slots: Result<_, TestCaseError> = (0..frontend.count).map(slot).collect();
    let table: Result<_, TestCaseError> = in_table.into_iter().map(target).collect();
    Ok([slots?, table?])
}

/// Where the slots of each frontend lead, and whether it lets everybody in; whom each service lets in where it
/// does not; and where each list of slots and each table leads, by the service's number and the first
/// slot, whatever frontends lead there.
struct Shown<A: Address> {
    targets: BTreeMap<FrontendKey<A>, Vec<Target>>,
    filters: BTreeMap<FrontendKey<A>, bool>,
    lets_in: BTreeMap<u32, Vec<bool>>,
    lists: BTreeMap<(u32, u32), BTreeSet<Target>>,
    tables: BTreeMap<u32, BTreeSet<Target>>,
}

fn shown<A: Address>(contents: &ServiceContents) -> Result<Shown<A>, TestCaseError> {
    let tables = A::services(contents);
    let mut shown = Shown {
        targets: BTreeMap::new(),
        filters: BTreeMap::new(),
        lets_in: BTreeMap::new(),
        lists: BTreeMap::new(),
        tables: BTreeMap::new(),
    };
    let target = |number: u32| {
        let backend = tables.backends.get(&number)?;
        Some((backend.address.to_ip(), backend.port))
    };
    for (key, slot) in &contents.slots {
        let list = (key.service, key.slot & LOCAL_SLOTS);
        shown
            .lists
            .entry(list)
            .or_default()
            .extend(target(slot.backend));
    }
    for (key, block) in &contents.maglev {
        let targets = block.backends.iter().filter_map(|number| target(*number));
        shown.tables.entry(key.service).or_default().extend(targets);
    }
    let sources = ["10.9.0.1", "10.1.1.1", "198.51.100.1", "200.1.1.1"];
    let sources = sources
        .into_iter()
        .chain(["fd00:9::1", "2001:db8:1::1", "2001:db8:2::1"]);
    let sources: Vec<_> = sources.filter_map(|text| A::from_ip(ip(text))).collect();
    for (key, frontend) in &tables.frontends {
        let [slots, _] = targets_of::<A>(contents, frontend)?;
        shown.targets.insert(*key, slots);
        let filters = frontend.flags & FRONTEND_SOURCE_RANGES != 0;
        shown.filters.insert(*key, filters);
        let in_ranges = |source: &A| {
            (0..=A::BITS).any(|length| {
                let key = LpmKey::sources(frontend.service, *source, length);
                tables.source_ranges.contains_key(&key)
            })
        };
        if filters {
            let lets_in = sources.iter().map(in_ranges).collect();
            shown.lets_in.insert(frontend.service, lets_in);
        }
    }
    Ok(shown)
}

/// What every instant between two states must look like.
fn is_between<A: Address>(
    now: &ServiceContents,
    (before, after): (&Shown<A>, &Shown<A>),
    is_local: impl Fn(Target) -> bool,
) -> Result<(), TestCaseError> {
    let shown = shown::<A>(now)?;
    for key in shown.targets.keys() {
        let (old, new) = (before.targets.get(key), after.targets.get(key));
        let frontend = &A::services(now).frontends[key];
        let [slots, table] = targets_of::<A>(now, frontend)?;
        let list = (frontend.service, frontend.first);
        let in_list = |target: &Target| {
            [before, after].iter().any(|shown| {
                shown
                    .lists
                    .get(&list)
                    .is_some_and(|targets| targets.contains(target))
            })
        };
        let in_table = |target: &Target| {
            [before, after].iter().any(|shown| {
                let table = shown.tables.get(&frontend.service);
                table.is_some_and(|targets| targets.contains(target))
            })
        };
        prop_assert!(slots.iter().all(in_list), "{:?} leads to {:?}", key, slots);
        prop_assert!(table.iter().all(in_table), "{:?} leads to {:?}", key, table);
        if frontend.flags & FRONTEND_LOCAL_ONLY != 0 {
            // Of the table, only what is in the list counts.
            prop_assert!(slots.into_iter().all(&is_local), "{:?}", key);
        }
        let has_some = |targets: Option<&Vec<_>>| targets.is_some_and(|all| !all.is_empty());
        if has_some(old) && has_some(new) {
            prop_assert!(frontend.count > 0, "{:?} leads nowhere", key);
        }
        let filters = Some(&shown.filters[key]);
        let known = [before, after].map(|shown| shown.filters.get(key));
        prop_assert!(known.contains(&filters), "{:?}", key);
        if let Some(now) = shown.lets_in.get(&frontend.service) {
            let known = [before, after].map(|shown| shown.lets_in.get(&frontend.service));
            for (index, lets_in) in now.iter().enumerate() {
                // Without ranges, everybody was let in.
                let mut known = known
                    .iter()
                    .map(|known| known.is_none_or(|known| known[index]));
                prop_assert!(known.any(|known| known == *lets_in), "{:?} {}", key, index);
            }
        }
    }
    for key in before.targets.keys() {
        let stays = after.targets.contains_key(key);
        prop_assert!(
            !stays || shown.targets.contains_key(key),
            "{:?} is not there",
            key
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever came before, the contents are those of a new agent, and it finds nothing to change;
    /// and at no instant on the way is anything half there.
    #[test]
    fn changes_lead_to_what_a_new_agent_compiles(states in history()) {
        let mut compiler = ServiceCompiler::new();
        let mut contents = Contents::default();
        let mut previous = ClusterState::default();
        for state in &states {
            let changes = compiler.update(state, &dirty(&previous, state));
            let before = contents.services.clone();
            let after = compiler.contents();
            let v4 = (&shown::<Addr4>(&before)?, &shown::<Addr4>(after)?);
            let v6 = (&shown::<Addr6>(&before)?, &shown::<Addr6>(after)?);
            let is_local = |target: Target| is_local(&previous, target) || is_local(state, target);
            replay(&mut contents, &changes, |now| {
                is_between(&now.services, v4, is_local)?;
                is_between(&now.services, v6, is_local)
            })?;
            prop_assert_eq!(&contents.services, after);

            let fresh = fresh(state);
            prop_assert_eq!(in_order(after), in_order(fresh.contents()));
            prop_assert!(compiler.names().eq(fresh.names()));
            prop_assert!(compiler.warnings().eq(fresh.warnings()));
            prop_assert!(compiler.health_checks().eq(fresh.health_checks()));
            prop_assert_eq!(compiler.without_local(), fresh.without_local());

            let mut restarted = ServiceCompiler::new();
            restarted.adopt(after);
            prop_assert!(restarted.update(state, &Dirty::everything()).is_empty());
            prop_assert!(restarted.names().eq(compiler.names()));
            let unchanged = compiler.update(state, &Dirty::everything());
            prop_assert!(unchanged.is_empty(), "{:?}", unchanged);
            previous = state.clone();
        }
    }

    /// An agent that finds the maps half written goes on from there.
    #[test]
    fn half_written_maps_are_completed(first in services(), second in services(), at in 0_usize..40) {
        let mut compiler = fresh(&first);
        let mut contents = Contents { services: compiler.contents().clone(), ..Contents::default() };
        let changes = compiler.update(&second, &dirty(&first, &second));
        let mut written = 0;
        let stopped = replay(&mut contents, &changes, |_| {
            written += 1;
            if written > at { Err(TestCaseError::reject("enough")) } else { Ok(()) }
        });
        prop_assume!(stopped.is_err() || at >= written);
        let mut repaired = contents.clone();
        replay(&mut repaired, &diff_services(&contents.services, compiler.contents()), |_| Ok(()))?;
        prop_assert_eq!(&repaired.services, compiler.contents());

        let mut restarted = ServiceCompiler::new();
        restarted.adopt(&contents.services);
        let changes = restarted.update(&second, &Dirty::everything());
        replay(&mut contents, &changes, |_| Ok(()))?;
        prop_assert_eq!(in_order(&contents.services), in_order(fresh(&second).contents()));
    }

    /// What clients get at each address is what kube-proxy would give them.
    #[test]
    fn frontends_are_those_of_kube_proxy(state in services()) {
        let compiler = fresh(&state);
        of_family::<Addr4>(&state, &compiler)?;
        of_family::<Addr6>(&state, &compiler)?;
    }
}

/// Whether an endpoint of this address is on this node, as far as slices say; a hostPort's is.
fn is_local(state: &ClusterState, (address, _): Target) -> bool {
    let endpoints = state.slices.values().flat_map(|slice| &slice.endpoints);
    let mut same = endpoints.filter(|endpoint| endpoint.address == address);
    same.any(|endpoint| endpoint.node.as_deref() == Some(OWN_NODE))
}

/// What a service port's endpoints are to kube-proxy: all that serve, those of the cluster that get
/// new connections, and those of this node.
#[derive(Debug, Default)]
struct Sets {
    serving: BTreeSet<Target>,
    cluster: BTreeSet<Target>,
    local: BTreeSet<Target>,
}

fn model(state: &ClusterState, service: &Service, port: &ServicePort, ipv4: bool) -> Sets {
    let mut all = BTreeMap::<Target, &SliceEndpoint>::new();
    for slice in state.slices.values() {
        if slice.service.as_ref() != Some(&service.key.name) {
            continue;
        }
        let ports = slice.ports.iter();
        for own in ports.filter(|own| (&own.name, own.protocol) == (&port.name, port.protocol)) {
            for endpoint in slice
                .endpoints
                .iter()
                .filter(|one| one.address.is_ipv4() == ipv4)
            {
                let known = all.entry((endpoint.address, own.port)).or_insert(endpoint);
                let life = |one: &SliceEndpoint| (!one.terminating, one.ready, one.serving);
                if life(endpoint) > life(known) {
                    *known = endpoint;
                }
            }
        }
    }
    let zone = state.nodes[OWN_NODE].zone();
    let hinted = |endpoint: &SliceEndpoint, nodes: bool, own: &str| -> Option<bool> {
        let hints = endpoint.hints.as_ref()?;
        let names = if nodes { &hints.nodes } else { &hints.zones };
        (!names.is_empty()).then(|| names.iter().any(|name| **name == *own))
    };
    let ready: Vec<_> = all.iter().filter(|(_, endpoint)| endpoint.ready).collect();
    let reserved = |nodes: bool, own: &str| {
        let hints: Option<Vec<bool>> = ready
            .iter()
            .map(|(_, endpoint)| hinted(endpoint, nodes, own))
            .collect();
        hints.filter(|hints| hints.contains(&true))
    };
    let allowed = reserved(true, OWN_NODE).or_else(|| reserved(false, zone?));
    let allowed = allowed.unwrap_or_else(|| vec![true; ready.len()]);
    let local = |endpoint: &SliceEndpoint| endpoint.node.as_deref() == Some(OWN_NODE);
    let last = |wanted: &dyn Fn(&SliceEndpoint) -> bool| {
        let terminating = all
            .iter()
            .filter(|(_, one)| one.serving && one.terminating && wanted(one));
        terminating
            .map(|(target, _)| *target)
            .collect::<BTreeSet<_>>()
    };
    let cluster = ready.iter().zip(&allowed).filter(|(_, allowed)| **allowed);
    let mut cluster: BTreeSet<_> = cluster.map(|((target, _), _)| **target).collect();
    if cluster.is_empty() {
        cluster = last(&|_| true);
    }
    let own = ready.iter().filter(|(_, endpoint)| local(endpoint));
    let mut own: BTreeSet<_> = own.map(|(target, _)| **target).collect();
    if own.is_empty() {
        own = last(&local);
    }
    let serving = all
        .iter()
        .filter(|(_, endpoint)| endpoint.ready || endpoint.serving);
    Sets {
        serving: serving.map(|(target, _)| *target).collect(),
        cluster,
        local: own,
    }
}

/// The ranges that load balancers' addresses of a family are for, if not for everybody.
fn model_ranges(service: &Service, ipv4: bool) -> Option<Vec<IpNet>> {
    let given = service.source_ranges.clone()?;
    let own: Vec<_> = given
        .iter()
        .copied()
        .filter(|range| range.addr().is_ipv4() == ipv4)
        .collect();
    let everybody = own.iter().any(|range| range.prefix_len() == 0);
    (!everybody && (given.is_empty() || !own.is_empty())).then_some(own)
}

fn of_family<A: Address>(
    state: &ClusterState,
    compiler: &ServiceCompiler,
) -> Result<(), TestCaseError> {
    let contents = compiler.contents();
    let ipv4 = A::BITS == 32;
    let any = A::default().to_ip();
    let mut expected_keys = BTreeSet::new();
    for service in state.services.values() {
        let is_family = |ip: &&IpAddr| ip.is_ipv4() == ipv4;
        if !service.cluster_ips.iter().any(|ip| ip.is_ipv4() == ipv4) {
            continue;
        }
        let of = |ips: &[IpAddr]| ips.iter().filter(is_family).copied().collect::<Vec<_>>();
        let claim = |address: IpAddr, port: u16, protocol: u8| {
            let address = A::from_ip(address).expect("of the family");
            [SCOPE_INTERNAL, SCOPE_EXTERNAL, SCOPE_FORWARDED].map(|scope| FrontendKey {
                address,
                port,
                protocol,
                scope,
            })
        };
        let own_name = format!("a/{}", service.key.name);
        for address in of(&service.cluster_ips) {
            let [inside, outside, _] = claim(address, 0, 0);
            for key in [inside, outside] {
                let frontend = A::services(contents).frontends.get(&key);
                let found = frontend.map(|frontend| (frontend.count, frontend.flags));
                prop_assert_eq!(found, Some((0, FRONTEND_REJECT)));
                expected_keys.insert(key);
            }
        }
        for port in &service.ports {
            let sets = model(state, service, port, ipv4);
            let ranges = model_ranges(service, ipv4);
            let name = format!("{own_name}:{}", port.name);
            let protocol = port.protocol.number();
            // Better claims first: a later one of the same service says nothing new.
            let mut claims: Vec<(IpAddr, u16, u8)> = Vec::new();
            claims.extend(
                of(&service.cluster_ips)
                    .into_iter()
                    .map(|ip| (ip, port.port, 0)),
            );
            if port.node_port != 0 {
                claims.push((any, port.node_port, 1));
            }
            claims.extend(
                of(&service.load_balancer_ips)
                    .into_iter()
                    .map(|ip| (ip, port.port, 2)),
            );
            claims.extend(
                of(&service.external_ips)
                    .into_iter()
                    .map(|ip| (ip, port.port, 1)),
            );
            let mut seen = BTreeSet::new();
            claims.retain(|(address, port, _)| seen.insert((*address, *port)));
            let default = state.settings.load_balancing;
            let maglev = service.load_balancing.unwrap_or(default) == LoadBalancing::Maglev;
            for (address, number, class) in claims {
                let keys = claim(address, number, protocol);
                let frontends = keys.map(|key| A::services(contents).frontends.get(&key));
                let [inside, outside, forwarded] = frontends;
                expected_keys.extend(keys);
                let [Some(inside), Some(outside)] = [inside, outside] else {
                    return Err(TestCaseError::fail(format!("{keys:?} is missing")));
                };
                // Another service, or another port of this one, may have it.
                if compiler.name(inside.service) != Some(&name) {
                    continue;
                }
                let direct = class != 0
                    && !service.external_local
                    && service.load_balancing_return == Some(LoadBalancingReturn::Direct);
                let outside_local = if class == 0 {
                    service.internal_local
                } else {
                    service.external_local
                };
                let views = [
                    (Some(inside), class == 0 && service.internal_local, false),
                    (Some(outside), outside_local, direct),
                    (forwarded, true, false),
                ];
                prop_assert_eq!(forwarded.is_some(), direct);
                for (frontend, local, direct) in views {
                    let Some(frontend) = frontend else { continue };
                    let [slots, table] = targets_of::<A>(contents, frontend)?;
                    let wanted = if local { &sets.local } else { &sets.cluster };
                    prop_assert_eq!(slots.len(), wanted.len());
                    prop_assert_eq!(&slots.into_iter().collect::<BTreeSet<_>>(), wanted);
                    let table: BTreeSet<_> = table.into_iter().collect();
                    let by_table = maglev && (!local || Some(frontend) == forwarded);
                    let wanted = if by_table {
                        sets.cluster.clone()
                    } else {
                        BTreeSet::new()
                    };
                    prop_assert_eq!(table, wanted);
                    let filtered = class == 2 && ranges.is_some();
                    let node: Vec<_> = state.nodes[OWN_NODE].internal_ips.clone();
                    let mut node = node.iter().filter(|ip| ip.is_ipv4() == ipv4);
                    let lets_node_in =
                        node.any(|ip| ranges.iter().flatten().any(|range| range.contains(ip)));
                    let bits = [
                        (FRONTEND_LOCAL_ONLY, local),
                        (FRONTEND_REJECT, sets.cluster.is_empty()),
                        (FRONTEND_AFFINITY, service.affinity_seconds > 0),
                        (FRONTEND_SOURCE_RANGES, filtered),
                        (FRONTEND_REFUSES_NODE, filtered && !lets_node_in),
                        (FRONTEND_DIRECT_RETURN, direct),
                    ];
                    let bits = bits.into_iter().filter(|(_, set)| *set);
                    prop_assert_eq!(frontend.flags, bits.fold(0, |bits, (bit, _)| bits | bit));
                    prop_assert_eq!(frontend.affinity_seconds, service.affinity_seconds);
                    if filtered {
                        let service = frontend.service;
                        for (source, own) in [
                            ("198.51.100.7", false),
                            ("10.1.2.3", false),
                            ("2001:db8:1::7", false),
                            ("fd00:9::7", false),
                            (&address.to_string(), true),
                        ] {
                            let Some(source) = A::from_ip(ip(source)) else {
                                continue;
                            };
                            let ranges = ranges.iter().flatten();
                            let mut ranges = ranges.filter(|range| range.contains(&source.to_ip()));
                            let wanted = ranges.next().is_some() || own && lets_node_in;
                            let sources = &A::services(contents).source_ranges;
                            let found = (0..=A::BITS).any(|length| {
                                sources.contains_key(&LpmKey::sources(service, source, length))
                            });
                            prop_assert_eq!(found, wanted);
                        }
                    }
                }
                let backends = A::services(contents).backends.values();
                let backends = backends.filter(|backend| backend.service == inside.service);
                let mut serving = BTreeSet::new();
                for backend in backends {
                    let target = (backend.address.to_ip(), backend.port);
                    serving.insert(target);
                    let in_cluster = backend.flags & BACKEND_CLUSTER != 0;
                    prop_assert_eq!(in_cluster, sets.cluster.contains(&target));
                    let in_local = backend.flags & BACKEND_LOCAL != 0;
                    prop_assert_eq!(in_local, sets.local.contains(&target));
                }
                prop_assert_eq!(&serving, &sets.serving);
            }
        }
    }
    // Whatever else there is belongs to pods.
    for (key, frontend) in &A::services(contents).frontends {
        let name = compiler.name(frontend.service).unwrap_or_default();
        prop_assert!(expected_keys.contains(key) || name.starts_with("hostPort a/pod"));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whoever has a port of this node asked for it, and whatever can be had is somebody's.
    #[test]
    fn host_ports_lead_to_who_asked_for_them(state in crate::common::cluster()) {
        let compiler = fresh(&state);
        host_ports_are_as_asked::<Addr4>(&state, compiler.contents())?;
        host_ports_are_as_asked::<Addr6>(&state, compiler.contents())?;
    }
}
/// The ports of this node, of a cluster without services.
fn host_ports_are_as_asked<A: Address>(
    state: &ClusterState,
    contents: &ServiceContents,
) -> Result<(), TestCaseError> {
    let tables = A::services(contents);
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
