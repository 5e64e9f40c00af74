//! Compiled policy against an evaluator that is too simple to be wrong: for each question it reads
//! every policy anew, as the Kubernetes documentation describes it.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::prelude::*;
use weft_abi::{
    endpoint::{Bandwidth, Bucket, LIMIT_EGRESS, LIMIT_INGRESS},
    ipcache::{
        IPCACHE_NO_MASQUERADE, IPCACHE_NODEPORT, KIND_HOST, KIND_LOCAL_POD, KIND_REMOTE_NODE,
        KIND_REMOTE_POD, KIND_SERVICE, KIND_WORLD,
    },
};
use weft_core::{
    compile::Compiler,
    contents::{Contents, PolicyContents},
    diff::{Batch, Changes, Step, Writes, diff_policy},
    family::underlay,
    lookup,
    model::{
        ClusterState, Limit, LocalEndpoint, NamespaceScope, Node, NodePortAddresses, Peer, Peers,
        Pod, PolicyRule, PortName, PortSpec, Ports, Protocol, Routing,
    },
    rules::Direction,
};

use crate::common::{OWN_NODE, addresses, cluster, policies, singles};

/// Protocol and destination port; protocol 1 is ICMP, with type and code.
const PROBES: [(u8, u16); 9] = [
    (6, 53),
    (6, 75),
    (6, 80),
    (6, 81),
    (6, 95),
    (17, 53),
    (17, 80),
    (132, 80),
    (1, 0x0800),
];

/// The pod that has an address, as far as policy is concerned.
fn pod_at(state: &ClusterState, address: IpAddr) -> Option<&Pod> {
    state
        .pods
        .values()
        .find(|pod| pod.ips.contains(&address) && !pod.host_network && !pod.terminal)
}

fn peer_matches(state: &ClusterState, peer: &Peer, address: IpAddr) -> bool {
    match peer {
        Peer::Block(block) => block.contains(address),
        Peer::Pods { namespaces, pods } => pod_at(state, address).is_some_and(|pod| {
            let namespace = state.namespaces.get(&pod.key.namespace);
            let in_scope = match namespaces {
                NamespaceScope::Own(own) => *own == pod.key.namespace,
                NamespaceScope::Matching(selector) => match namespace {
                    Some(namespace) => selector.matches(&namespace.labels),
                    None => selector.is_everything(),
                },
            };
            in_scope && pods.matches(&pod.labels)
        }),
    }
}

fn rule_matches(
    state: &ClusterState,
    rule: &PolicyRule,
    peer: IpAddr,
    destination: Option<&Pod>,
    protocol: u8,
    port: u16,
) -> bool {
    let peers = match &rule.peers {
        Peers::Any => true,
        Peers::Only(peers) => peers.iter().any(|one| peer_matches(state, one, peer)),
    };
    let ports = match &rule.ports {
        Ports::Any => true,
        Ports::Only(ports) => ports.iter().any(|one| {
            one.protocol.number() == protocol
                && match &one.port {
                    PortSpec::All => true,
                    PortSpec::Range(first, last) => (*first..=*last).contains(&port),
                    PortSpec::Named(name) => {
                        let name = PortName {
                            name: name.clone(),
                            protocol: one.protocol,
                        };
                        let number = destination.and_then(|pod| pod.named_ports.get(&name));
                        number == Some(&port)
                    }
                }
        }),
    };
    peers && ports
}

fn model_allows(
    state: &ClusterState,
    endpoint: &LocalEndpoint,
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    port: u16,
) -> bool {
    let Some(pod) = state.pods.get(&endpoint.pod) else {
        return false;
    };
    let destination = match direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => pod_at(state, peer),
    };
    let mut isolated = false;
    for policy in state.policies.values() {
        if policy.key.namespace != pod.key.namespace || !policy.pods.matches(&pod.labels) {
            continue;
        }
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let Some(rules) = rules else { continue };
        isolated = true;
        if rules
            .iter()
            .any(|rule| rule_matches(state, rule, peer, destination, protocol, port))
        {
            return true;
        }
    }
    !isolated
}

/// How an address is reached, as the objects say it: its kind, and where the tunnel ends.
fn model_route(state: &ClusterState, address: IpAddr) -> (u8, Option<IpAddr>) {
    let own = state.nodes.get(OWN_NODE).expect("the own node");
    let endpoint = |ip: &IpAddr| {
        let mut endpoints = state.endpoints.values();
        endpoints.any(|endpoint| endpoint.ips.contains(ip))
    };
    let to = |node: &Node, kind: u8, without: u8| {
        let first = |node: &Node, ipv4: bool| {
            let mut addresses = node.internal_ips.iter().filter(|ip| ip.is_ipv4() == ipv4);
            addresses.next().copied()
        };
        let v4 = first(own, true).and_then(|_| first(node, true));
        let v6 = first(own, false).and_then(|_| first(node, false));
        match (state.settings.routing, v4.or(v6)) {
            (Routing::Native, _) => (kind, None),
            (Routing::Vxlan, Some(tunnel)) => (kind, Some(tunnel)),
            (Routing::Vxlan, None) => (without, None),
        }
    };
    if own.internal_ips.contains(&address)
        || state.own_addresses.contains(&address) && !endpoint(&address)
    {
        return (KIND_HOST, None);
    }
    let mut nodes = state.nodes.values();
    if let Some(node) = nodes.find(|node| node.internal_ips.contains(&address)) {
        return to(node, KIND_REMOTE_NODE, KIND_WORLD);
    }
    // The fourth node has no pod network that counts.
    let mut nodes = state.nodes.values().take(3);
    let network = nodes.find(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address)));
    match network {
        Some(node) if node.name == OWN_NODE => return (KIND_LOCAL_POD, None),
        Some(node) => return to(node, KIND_REMOTE_POD, KIND_LOCAL_POD),
        None => {}
    }
    let pod = pod_at(state, address).filter(|_| !endpoint(&address));
    let node = pod.and_then(|pod| state.nodes.get(pod.node.as_ref()?));
    match node {
        Some(node) if node.name != OWN_NODE => to(node, KIND_REMOTE_POD, KIND_LOCAL_POD),
        _ => {
            let networks = state.service_cidrs.values();
            let mut networks = networks.flat_map(|networks| &networks.cidrs);
            if networks.any(|network| network.contains(&address)) {
                (KIND_SERVICE, None)
            } else {
                (KIND_WORLD, None)
            }
        }
    }
}

/// Whether this node has its NodePorts at an address of its own.
fn model_has_nodeports(state: &ClusterState, own: &Node, address: IpAddr) -> bool {
    match &state.settings.nodeport_addresses {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => {
            let mut internal = own.internal_ips.iter();
            internal.find(|ip| ip.is_ipv4() == address.is_ipv4()) == Some(&address)
        }
        NodePortAddresses::Cidrs(networks) => {
            let family: Vec<_> = networks
                .iter()
                .filter(|network| network.addr().is_ipv4() == address.is_ipv4())
                .collect();
            family.is_empty() || family.iter().any(|network| network.contains(&address))
        }
    }
}

/// Every question about a cluster, with what the maps and the model answer.
fn compare(state: &ClusterState, contents: &PolicyContents) -> Result<(), TestCaseError> {
    for endpoint in state.endpoints.values() {
        for own in &endpoint.ips {
            let Some(entry) = lookup::endpoint(contents, *own) else {
                return Err(TestCaseError::fail(format!("{own} has no endpoint")));
            };
            let peers = addresses(state);
            for peer in peers
                .into_iter()
                .filter(|peer| peer.is_ipv4() == own.is_ipv4())
            {
                for direction in Direction::ALL {
                    for (protocol, port) in PROBES {
                        let model = model_allows(state, endpoint, direction, peer, protocol, port);
                        let compiled =
                            lookup::allows(contents, &entry, direction, peer, protocol, port);
                        prop_assert_eq!(
                            compiled,
                            model,
                            "{} {} {} protocol {} port {}",
                            endpoint.pod,
                            direction,
                            peer,
                            protocol,
                            port
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whether there is one epoch for all changes, after which only unused policy entries go.
fn ends_with_an_epoch(changes: &Changes) -> bool {
    let unused = |step: &Step| matches!(step, Step::Write(Batch::Policy(Writes::Delete(_))));
    let mut parts = changes.steps.split(|step| *step == Step::BumpEpoch);
    let decisive = parts.next().is_some_and(|steps| !steps.iter().all(unused));
    let after = parts.next();
    parts.next().is_none()
        && decisive == after.is_some()
        && after.unwrap_or_default().iter().all(unused)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The verdicts of the maps are those of the policies, for each pod and address.
    #[test]
    fn verdicts_are_those_of_the_policies(state in cluster()) {
        let desired = Compiler::new().compile(&state);
        compare(&state, &desired.contents)?;
    }

    /// An address's kind and way do not depend on the policies.
    #[test]
    fn routes_are_those_of_the_nodes(state in cluster()) {
        let contents = Compiler::new().compile(&state).contents;
        for address in addresses(&state) {
            let entry = lookup::ipcache(&contents, address).map(|(_, entry)| entry);
            let entry = entry.unwrap_or_default();
            let (kind, tunnel) = model_route(&state, address);
            prop_assert_eq!(entry.kind, kind, "{}", address);
            prop_assert_eq!(entry.tunnel, tunnel.map(underlay).unwrap_or_default(), "{}", address);
            let mut plain = state.settings.non_masquerade.iter();
            let plain = kind == KIND_WORLD && plain.any(|network| network.contains(&address));
            let ports = state.own_node().expect("the own node");
            let ports = kind == KIND_HOST && model_has_nodeports(&state, ports, address);
            let expected = match (plain, ports) {
                (true, _) => IPCACHE_NO_MASQUERADE,
                (false, true) => IPCACHE_NODEPORT,
                (false, false) => 0,
            };
            prop_assert_eq!(entry.flags, expected, "{}", address);
        }
    }

    /// The limits of an endpoint are in the map, under its interface, and nothing else is.
    #[test]
    fn limits_are_those_of_the_interfaces(state in cluster()) {
        let contents = Compiler::new().compile(&state).contents;
        let mut expected = BTreeMap::new();
        for endpoint in state.endpoints.values() {
            let bucket = |limit: Option<Limit>| limit.map_or_else(Bucket::default, |limit| Bucket {
                bytes_per_second: limit.bytes_per_second,
                burst: limit.burst,
                full_at: 0,
            });
            let bandwidth = Bandwidth {
                egress: bucket(endpoint.egress_limit),
                ingress: bucket(endpoint.ingress_limit),
            };
            if bandwidth != Bandwidth::default() {
                expected.insert(endpoint.ifindex, bandwidth);
            }
            for own in &endpoint.ips {
                let limits = lookup::endpoint(&contents, *own).expect("an endpoint").limits;
                prop_assert_eq!(limits & LIMIT_EGRESS != 0, endpoint.egress_limit.is_some());
                prop_assert_eq!(limits & LIMIT_INGRESS != 0, endpoint.ingress_limit.is_some());
            }
        }
        prop_assert_eq!(contents.bandwidth, expected);
    }

    /// Another process compiles the same; so does the same one, whatever it compiled in between.
    #[test]
    fn the_same_state_compiles_to_the_same_contents(first in cluster(), second in cluster()) {
        let mut compiler = Compiler::new();
        let contents = compiler.compile(&first).contents;
        compiler.compile(&second);
        prop_assert_eq!(&compiler.compile(&first).contents, &contents);
        let restarted = Compiler::new().compile(&first).contents;
        prop_assert!(diff_policy(&contents, &restarted).is_empty());
    }

    /// Applying the changes between any two states ends in the second.
    #[test]
    fn changes_lead_to_the_desired_contents(first in cluster(), second in cluster()) {
        let mut compiler = Compiler::new();
        let mut contents = Contents::default();
        for state in [&first, &second] {
            let desired = compiler.compile(state);
            let changes = desired.changes(&contents.policy);
            prop_assert!(ends_with_an_epoch(&changes), "{:?}", changes);
            for step in changes.steps {
                if let Step::Write(batch) = step {
                    batch.apply(&mut contents);
                }
            }
            prop_assert_eq!(&contents.policy, &desired.contents);
            compare(state, &contents.policy)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// While policies are replaced, each verdict is at every moment that of the old ones or that of
    /// the new ones, whatever the order in which a packet's lookups meet the writes between them.
    #[test]
    fn no_half_policy_is_ever_live(state in cluster(), later in policies()) {
        let mut compiler = Compiler::new();
        let policy = compiler.compile(&state).contents;
        let mut contents = Contents { policy, ..Contents::default() };
        let new = ClusterState { policies: later, ..state.clone() };
        let desired = compiler.compile(&new);
        let peers = addresses(&state);
        for step in desired.changes(&contents.policy).steps {
            let Step::Write(batch) = step else { continue };
            for write in singles(&batch) {
                write.apply(&mut contents);
                for endpoint in state.endpoints.values() {
                    let own = endpoint.ips.first().expect("endpoints have addresses");
                    let entry = lookup::endpoint(&contents.policy, *own).expect("they stay");
                    for peer in peers.iter().filter(|peer| peer.is_ipv4() == own.is_ipv4()) {
                        for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53)] {
                            for direction in Direction::ALL {
                                let protocol = protocol.number();
                                let model = |state: &ClusterState| {
                                    model_allows(state, endpoint, direction, *peer, protocol, port)
                                };
                                let now = lookup::allows(
                                    &contents.policy, &entry, direction, *peer, protocol, port,
                                );
                                prop_assert!(
                                    now == model(&state) || now == model(&new),
                                    "{} {direction} {peer} {protocol} {port} after {write:?}",
                                    endpoint.pod,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
