//! Compiled policy against an evaluator that is too simple to be wrong: for each question it reads
//! every policy anew, as the Kubernetes documentation describes it.

use std::net::IpAddr;

use proptest::prelude::*;
use weft_abi::ipcache::{KIND_HOST, KIND_LOCAL_POD, KIND_REMOTE_NODE, KIND_REMOTE_POD, KIND_WORLD};
use weft_core::{
    compile::Compiler,
    contents::Contents,
    diff::{Batch, Changes, Step, Writes, diff},
    lookup,
    model::{
        ClusterState, LocalEndpoint, NamespaceScope, Peer, Peers, Pod, PolicyRule, PortName,
        PortSpec, Ports, Protocol,
    },
    rules::Direction,
};

use crate::common::{addresses, cluster, policies, singles};

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

/// Every question about a cluster, with what the maps and the model answer.
fn compare(state: &ClusterState, contents: &Contents) -> Result<(), TestCaseError> {
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
            let node = |node: &&weft_core::model::Node| node.internal_ips.contains(&address);
            let network = |node: &&weft_core::model::Node| {
                node.pod_cidrs.iter().any(|cidr| cidr.contains(&address))
            };
            let own = |node: &weft_core::model::Node| node.name == state.node_name;
            let expected = if let Some(node) = state.nodes.values().find(node) {
                (if own(node) { KIND_HOST } else { KIND_REMOTE_NODE }, Some(node))
            } else if let Some(node) = state.nodes.values().find(network) {
                (if own(node) { KIND_LOCAL_POD } else { KIND_REMOTE_POD }, Some(node))
            } else {
                (KIND_WORLD, None)
            };
            let entry = lookup::ipcache(&contents, address).map(|(_, entry)| entry);
            let entry = entry.unwrap_or_default();
            prop_assert_eq!(entry.kind, expected.0, "{}", address);
            let tunnel = expected.1.filter(|node| !own(node)).and_then(|node| {
                node.tunnel_address().map(weft_core::family::underlay)
            });
            prop_assert_eq!(entry.tunnel, tunnel.unwrap_or_default(), "{}", address);
        }
    }

    /// Another process compiles the same; so does the same one, whatever it compiled in between.
    #[test]
    fn the_same_state_compiles_to_the_same_contents(first in cluster(), second in cluster()) {
        let mut compiler = Compiler::new();
        let contents = compiler.compile(&first).contents;
        compiler.compile(&second);
        prop_assert_eq!(&compiler.compile(&first).contents, &contents);
        let mut restarted = Compiler::new();
        restarted.adopt(&contents);
        prop_assert!(diff(&contents, &restarted.compile(&first).contents).is_empty());
    }

    /// Applying the changes between any two states ends in the second.
    #[test]
    fn changes_lead_to_the_desired_contents(first in cluster(), second in cluster()) {
        let mut compiler = Compiler::new();
        let mut contents = Contents::default();
        for state in [&first, &second] {
            let desired = compiler.compile(state);
            let changes = desired.changes(&contents);
            prop_assert!(ends_with_an_epoch(&changes), "{:?}", changes);
            for step in changes.steps {
                if let Step::Write(batch) = step {
                    batch.apply(&mut contents);
                }
            }
            prop_assert_eq!(&contents, &desired.contents);
            compare(state, &contents)?;
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
        let mut contents = compiler.compile(&state).contents;
        let new = ClusterState { policies: later, ..state.clone() };
        let desired = compiler.compile(&new);
        let peers: Vec<_> = addresses(&state).into_iter().filter(IpAddr::is_ipv4).collect();
        for step in desired.changes(&contents).steps {
            let Step::Write(batch) = step else { continue };
            for write in singles(&batch) {
                write.apply(&mut contents);
                for endpoint in state.endpoints.values() {
                    let own = endpoint.ips.first().expect("endpoints have addresses");
                    let entry = lookup::endpoint(&contents, *own).expect("they stay");
                    for peer in &peers {
                        for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53)] {
                            for direction in Direction::ALL {
                                let protocol = protocol.number();
                                let model = |state: &ClusterState| {
                                    model_allows(state, endpoint, direction, *peer, protocol, port)
                                };
                                let now = lookup::allows(
                                    &contents, &entry, direction, *peer, protocol, port,
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
