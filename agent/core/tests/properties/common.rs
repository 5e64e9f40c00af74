//! Random clusters, small and crowded: few labels, few addresses, so that everything overlaps.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
    sample::{select, subsequence},
};
use weft_core::{
    diff::{Batch, FamilyBatch, Writes},
    family::Address,
    model::{
        ClusterState, HostPort, IpBlock, Limit, LocalEndpoint, Namespace, NamespaceScope,
        NetworkPolicy, Node, NodePortAddresses, ObjectKey, Peer, Peers, Pod, PolicyRule, PortMatch,
        PortName, PortSpec, Ports, Protocol, Routing, ServiceCidr, Settings,
    },
    selector::{Labels, Requirement, Selector},
};

pub const OWN_NODE: &str = "node0";
const NAMESPACES: [&str; 2] = ["a", "b"];
const NETWORKS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/23",
    "10.0.0.0/28",
    "10.0.1.0/24",
    "10.0.1.0/28",
    "10.0.1.2/32",
    "10.9.0.0/24",
    "192.0.2.0/24",
    "::/0",
    "fd00::/16",
    "fd00:0:0:1::/64",
];

/// What this node's interfaces may have; the last may be a pod's.
const OWN_ADDRESSES: [&str; 6] = [
    "10.9.0.1",
    "198.51.100.7",
    "10.0.0.254",
    "fd00:9::1",
    "2001:db8::7",
    "10.0.0.2",
];
/// Networks that can be no pod network.
const BROKEN: [&str; 6] = [
    "0.0.0.0/0",
    "::/0",
    "10.9.0.0/24",
    "10.0.0.0/26",
    "fd00::/16",
    "127.0.0.0/8",
];

/// Addresses of nobody, inside and outside the networks above.
pub const STRANGERS: [&str; 7] = [
    "10.0.1.200",
    "10.77.0.1",
    "192.0.2.9",
    "198.51.100.1",
    "127.0.0.1",
    "fd00::99",
    "2001:db8::1",
];

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("a valid address")
}

fn labels() -> impl Strategy<Value = Labels> {
    let pairs = [("app", vec!["web", "api", "db"]), ("tier", vec!["x", "y"])];
    let one = |(key, values): (&'static str, Vec<&'static str>)| {
        option::of(select(values)).prop_map(move |value| Some((key.to_owned(), value?.to_owned())))
    };
    pairs
        .map(one)
        .prop_map(|pairs| pairs.into_iter().flatten().collect())
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let key = select(vec!["app", "tier"]).prop_map(str::to_owned);
    let values = btree_set(
        select(vec!["web", "api", "x"]).prop_map(str::to_owned),
        1..3,
    );
    (key, values, 0..8).prop_map(|(key, values, kind)| match kind {
        0 | 1 => Requirement::NotIn(key, values),
        2 => Requirement::Exists(key),
        3 => Requirement::DoesNotExist(key),
        4 => Requirement::Never,
        _ => Requirement::In(key, values),
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    vec(requirement(), 0..3).prop_map(Selector::new)
}

fn peer(namespace: &'static str) -> impl Strategy<Value = Peer> {
    let network = || {
        select(
            NETWORKS
                .map(|text| text.parse().expect("a network"))
                .to_vec(),
        )
    };
    let block = (network(), vec(network(), 0..3)).prop_map(|(cidr, mut except)| {
        except.sort();
        except.dedup();
        Peer::Block(IpBlock { cidr, except })
    });
    let scope = prop_oneof![
        Just(NamespaceScope::Own(namespace.to_owned())),
        selector().prop_map(NamespaceScope::Matching),
    ];
    let pods = (scope, selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods });
    prop_oneof![block, pods]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn port() -> impl Strategy<Value = PortMatch> {
    let spec = prop_oneof![
        Just(PortSpec::All),
        (75_u16..85, 0_u16..20).prop_map(|(first, more)| PortSpec::Range(first, first + more)),
        select(vec!["http", "dns"]).prop_map(|name| PortSpec::Named(name.to_owned())),
    ];
    (protocol(), spec).prop_map(|(protocol, port)| PortMatch { protocol, port })
}

fn rule(namespace: &'static str) -> impl Strategy<Value = PolicyRule> {
    let peers = option::of(vec(peer(namespace), 0..3))
        .prop_map(|peers| peers.map_or(Peers::Any, Peers::Only));
    let ports =
        option::of(vec(port(), 0..3)).prop_map(|ports| ports.map_or(Ports::Any, Ports::Only));
    (peers, ports).prop_map(|(peers, ports)| PolicyRule { peers, ports })
}

pub fn policies() -> impl Strategy<Value = BTreeMap<ObjectKey, NetworkPolicy>> {
    let one = (select(NAMESPACES.to_vec()), 0..4).prop_flat_map(|(namespace, index)| {
        let rules = || option::of(vec(rule(namespace), 0..3));
        (selector(), rules(), rules()).prop_map(move |(pods, ingress, egress)| NetworkPolicy {
            key: ObjectKey::new(namespace, format!("policy{index}")),
            pods,
            ingress,
            egress,
        })
    });
    vec(one, 0..5).prop_map(|policies| {
        policies
            .into_iter()
            .map(|policy| (policy.key.clone(), policy))
            .collect()
    })
}

/// Networks of the list, some of them.
fn networks() -> impl Strategy<Value = Vec<IpNet>> {
    subsequence(NETWORKS.to_vec(), 0..4).prop_map(|networks| {
        let parsed = networks.into_iter();
        parsed
            .map(|text| text.parse().expect("a network"))
            .collect()
    })
}

fn pod(index: usize) -> impl Strategy<Value = Pod> {
    let port = (select(vec!["http", "dns"]), protocol()).prop_map(|(name, protocol)| PortName {
        name: name.to_owned(),
        protocol,
    });
    let flags = (0_u8..8, 0_u8..8, 0_u8..8);
    let number = select(vec![53_u16, 80, 81]);
    (
        select(NAMESPACES.to_vec()),
        labels(),
        0..3_usize,
        flags,
        btree_map(port, number, 0..3),
        (0_u8..5, 0_u8..6),
    )
        .prop_map(
            move |(namespace, labels, node, (host, terminal, terminating), named_ports, place)| {
                let host_network = host == 0;
                let (families, outside) = place;
                let ips = if host_network {
                    vec![ip(&format!("10.9.0.{}", node + 1))]
                } else {
                    let last = index + 1;
                    // Outside of every pod network, if another IPAM gave the addresses.
                    let (v4, v6) = if outside == 0 {
                        (format!("172.16.0.{last}"), format!("fd72::{last}"))
                    } else {
                        (
                            format!("10.0.{node}.{last}"),
                            format!("fd00:0:0:{node}::{last}"),
                        )
                    };
                    match families {
                        0 => vec![ip(&v4)],
                        1 => vec![ip(&v6)],
                        _ => vec![ip(&v4), ip(&v6)],
                    }
                };
                Pod {
                    key: ObjectKey::new(namespace, format!("pod{index}")),
                    uid: format!("uid{index}"),
                    static_uid: None,
                    labels,
                    node: Some(format!("node{node}")),
                    ips,
                    host_network,
                    terminal: terminal == 0,
                    terminating: terminating == 0,
                    named_ports,
                }
            },
        )
}

fn node(index: usize, families: &[bool]) -> Node {
    let address = |ipv4: &bool| {
        let last = index + 1;
        if *ipv4 {
            ip(&format!("10.9.0.{last}"))
        } else {
            ip(&format!("fd00:9::{last}"))
        }
    };
    Node {
        name: format!("node{index}"),
        internal_ips: families.iter().map(address).collect(),
        pod_cidrs: vec![
            format!("10.0.{index}.0/24").parse().expect("a network"),
            format!("fd00:0:0:{index}::/64").parse().expect("a network"),
        ],
        labels: Labels::new(),
        leaving: false,
    }
}

/// Three nodes, of one or both families; and perhaps one whose pod network is none.
fn nodes() -> impl Strategy<Value = BTreeMap<String, Node>> {
    let families = || {
        select(vec![
            vec![true],
            vec![true, false],
            vec![false, true],
            vec![false],
            vec![],
        ])
    };
    let nodes = [0_usize, 1, 2]
        .map(|index| families().prop_map(move |families| node(index, &families)))
        .to_vec();
    (nodes, option::of(select(BROKEN.to_vec()))).prop_map(|(mut nodes, broken)| {
        if let Some(cidr) = broken {
            // So that each broken network holds an address, whatever the others have.
            let mut node = node(3, &[true, false]);
            node.pod_cidrs = vec![cidr.parse().expect("a network")];
            nodes.push(node);
        }
        let named = nodes.into_iter().map(|node| (node.name.clone(), node));
        named.collect()
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let routing = select(vec![Routing::Vxlan, Routing::Native]);
    let nodeport_addresses = prop_oneof![
        Just(NodePortAddresses::All),
        Just(NodePortAddresses::Primary),
        networks().prop_map(NodePortAddresses::Cidrs),
    ];
    (routing, networks(), nodeport_addresses).prop_map(
        |(routing, non_masquerade, nodeport_addresses)| Settings {
            routing,
            non_masquerade,
            nodeport_addresses,
            ..Settings::default()
        },
    )
}

/// Networks of services: apart from all others, around them, equal to them, within them.
fn service_cidrs() -> impl Strategy<Value = BTreeMap<String, ServiceCidr>> {
    let networks = [
        "192.0.2.0/24",
        "10.9.0.0/24",
        "10.0.0.0/8",
        "10.0.1.0/24",
        "10.0.2.0/29",
        "fd00::/16",
        "fd00:0:0:1::/112",
    ];
    subsequence(networks.to_vec(), 0..3).prop_map(|networks| {
        let one = |network: &str| ServiceCidr {
            name: network.to_owned(),
            cidrs: vec![network.parse().expect("a network")],
        };
        let networks = networks.into_iter().map(one);
        networks.map(|cidr| (cidr.name.clone(), cidr)).collect()
    })
}

fn host_port() -> impl Strategy<Value = HostPort> {
    let addresses = [
        "127.0.0.1",
        "::1",
        "10.9.0.1",
        "198.51.100.7",
        "fd00:9::1",
        "203.0.113.1",
    ];
    (
        option::of(select(addresses.map(ip).to_vec())),
        80_u16..82,
        select(vec![Protocol::Tcp, Protocol::Udp]),
        8080_u16..8082,
    )
        .prop_map(|(host_ip, host_port, protocol, container_port)| HostPort {
            host_ip,
            host_port,
            protocol,
            container_port,
        })
}

fn limit() -> impl Strategy<Value = Option<Limit>> {
    let limit = (1_u64..3, 1_u64..3).prop_map(|(bytes_per_second, burst)| Limit {
        bytes_per_second,
        burst,
    });
    option::of(limit)
}

/// What the runtime asks for when it adds a pod.
type Requests = (Vec<HostPort>, Option<Limit>, Option<Limit>);

fn requests() -> impl Strategy<Value = Requests> {
    (vec(host_port(), 0..3), limit(), limit())
}

/// A cluster of a few nodes and two namespaces, one of which may be unknown.
pub fn cluster() -> impl Strategy<Value = ClusterState> {
    let pods = (0..7).map(pod).collect::<Vec<_>>();
    let namespaces = (labels(), subsequence(NAMESPACES.to_vec(), 1..=2));
    let own_addresses = subsequence(OWN_ADDRESSES.to_vec(), 0..=OWN_ADDRESSES.len());
    (
        pods,
        policies(),
        namespaces,
        nodes(),
        own_addresses,
        (settings(), service_cidrs()),
        vec(requests(), 7),
    )
        .prop_map(
            |(
                pods,
                policies,
                (labels, namespaces),
                nodes,
                own_addresses,
                (settings, service_cidrs),
                requests,
            )| {
                let mut state = ClusterState {
                    node_name: OWN_NODE.to_owned(),
                    settings,
                    own_addresses: own_addresses.into_iter().map(ip).collect(),
                    nodes,
                    service_cidrs,
                    policies,
                    ..ClusterState::default()
                };
                for name in namespaces {
                    let labels = if name == "a" {
                        labels.clone()
                    } else {
                        Labels::new()
                    };
                    let namespace = Namespace {
                        name: name.to_owned(),
                        labels,
                    };
                    state.namespaces.insert(name.to_owned(), namespace);
                }
                for ((ifindex, pod), requests) in (1..).zip(pods).zip(requests) {
                    if pod.node.as_deref() == Some(OWN_NODE) && !pod.host_network {
                        let endpoint = endpoint(&pod, ifindex, requests);
                        state
                            .endpoints
                            .insert(endpoint.container_id.clone(), endpoint);
                    }
                    state.pods.insert(pod.key.clone(), pod);
                }
                state
            },
        )
}

fn endpoint(pod: &Pod, ifindex: u32, requests: Requests) -> LocalEndpoint {
    let (host_ports, egress_limit, ingress_limit) = requests;
    LocalEndpoint {
        pod: pod.key.clone(),
        uid: Some(pod.uid.clone()),
        container_id: format!("container-{}", pod.key),
        ips: pod.ips.clone(),
        ifindex,
        mac: [2, 0, 0, 0, 0, 1],
        host_ports,
        egress_limit,
        ingress_limit,
    }
}

/// Every address that a test asks about.
pub fn addresses(state: &ClusterState) -> Vec<IpAddr> {
    let pods = state.pods.values().flat_map(|pod| pod.ips.iter().copied());
    let nodes = state
        .nodes
        .values()
        .flat_map(|node| node.internal_ips.iter().copied());
    let own = state.own_addresses.iter().copied();
    pods.chain(nodes)
        .chain(own)
        .chain(STRANGERS.map(ip))
        .collect()
}

/// The writes of a batch, one by one.
pub fn singles(batch: &Batch) -> Vec<Batch> {
    fn of_family<A: Address>(batch: &FamilyBatch<A>) -> Vec<FamilyBatch<A>> {
        match batch {
            FamilyBatch::Endpoints(writes) => split(writes, FamilyBatch::Endpoints),
            FamilyBatch::Ipcache(writes) => split(writes, FamilyBatch::Ipcache),
            FamilyBatch::Frontends(writes) => split(writes, FamilyBatch::Frontends),
            FamilyBatch::Backends(writes) => split(writes, FamilyBatch::Backends),
            FamilyBatch::SourceRanges(writes) => split(writes, FamilyBatch::SourceRanges),
        }
    }
    match batch {
        Batch::V4(batch) => of_family(batch).into_iter().map(Batch::V4).collect(),
        Batch::V6(batch) => of_family(batch).into_iter().map(Batch::V6).collect(),
        Batch::Policy(writes) => split(writes, Batch::Policy),
        Batch::Slots(writes) => split(writes, Batch::Slots),
        Batch::Maglev(writes) => split(writes, Batch::Maglev),
        Batch::Bandwidth(writes) => split(writes, Batch::Bandwidth),
    }
}

fn split<K: Clone, V: Clone, B>(writes: &Writes<K, V>, wrap: impl Fn(Writes<K, V>) -> B) -> Vec<B> {
    match writes {
        Writes::Put(entries) => entries
            .iter()
            .map(|entry| wrap(Writes::Put(vec![entry.clone()])))
            .collect(),
        Writes::Delete(keys) => keys
            .iter()
            .map(|key| wrap(Writes::Delete(vec![key.clone()])))
            .collect(),
    }
}
