//! Whole clusters, whole answers. What holds for every cluster is checked in `tests/properties`.

use weft_abi::{
    ipcache::{
        IPCACHE_NO_MASQUERADE, IpcacheEntry, KIND_HOST, KIND_LOCAL_POD, KIND_REMOTE_NODE,
        KIND_REMOTE_POD, KIND_WORLD,
    },
    policy::DENY,
};

use super::*;
use crate::{
    family::underlay,
    lookup,
    model::{
        IpBlock, LocalEndpoint, Namespace, NamespaceScope, NetworkPolicy, Node, ObjectKey, Peer,
        Peers, Pod, PolicyRule, PortMatch, PortSpec, Ports, Protocol, Routing,
    },
    selector::{Requirement, Selector},
};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Two nodes; `shop/web` is here, `shop/client` and `shop/other` are on the other one.
pub(crate) fn mk_state() -> ClusterState {
    let mut state = ClusterState {
        node_name: "here".to_owned(),
        ..ClusterState::default()
    };
    for (name, address, cidr) in [
        ("here", "192.0.2.1", "10.0.0.0/24"),
        ("there", "192.0.2.2", "10.0.1.0/24"),
    ] {
        let node = Node {
            name: name.to_owned(),
            internal_ips: vec![ip(address)],
            pod_cidrs: vec![cidr.parse().expect("a network")],
            labels: [].into(),
            leaving: false,
        };
        state.nodes.insert(node.name.clone(), node);
    }
    let namespace = Namespace {
        name: "shop".to_owned(),
        labels: [].into(),
    };
    state.namespaces.insert("shop".to_owned(), namespace);
    mk_pod(&mut state, "web", "here", "10.0.0.2");
    mk_pod(&mut state, "client", "there", "10.0.1.2");
    mk_pod(&mut state, "other", "there", "10.0.1.3");
    state
}

/// A pod with the label `app` of its own name, and its interface if it is here.
pub(crate) fn mk_pod(state: &mut ClusterState, name: &str, node: &str, address: &str) {
    let pod = Pod {
        key: ObjectKey::new("shop", name),
        uid: format!("uid-{name}"),
        static_uid: None,
        labels: [("app".to_owned(), name.to_owned())].into(),
        node: Some(node.to_owned()),
        ips: vec![ip(address)],
        host_network: false,
        terminal: false,
        terminating: false,
        named_ports: BTreeMap::new(),
    };
    if node == "here" {
        let endpoint = LocalEndpoint {
            pod: pod.key.clone(),
            uid: Some(pod.uid.clone()),
            container_id: name.to_owned(),
            ips: pod.ips.clone(),
            ifindex: 7,
            mac: [2, 0, 0, 0, 0, 7],
            host_ports: Vec::new(),
            egress_limit: None,
            ingress_limit: None,
        };
        state.endpoints.insert(name.to_owned(), endpoint);
    }
    state.pods.insert(pod.key.clone(), pod);
}

fn selector(app: &str) -> Selector {
    Selector::new([Requirement::In("app".to_owned(), [app.to_owned()].into())])
}

fn peer(app: &str) -> Peer {
    let namespaces = NamespaceScope::Own("shop".to_owned());
    Peer::Pods {
        namespaces,
        pods: selector(app),
    }
}

/// A policy that lets `peers` reach TCP port 80 of `app`.
fn mk_policy(state: &mut ClusterState, name: &str, app: &str, peers: Vec<Peer>) {
    let port = PortMatch {
        protocol: Protocol::Tcp,
        port: PortSpec::Range(80, 80),
    };
    let rule = PolicyRule {
        peers: Peers::Only(peers),
        ports: Ports::Only(vec![port]),
    };
    let policy = NetworkPolicy {
        key: ObjectKey::new("shop", name),
        pods: selector(app),
        ingress: Some(vec![rule]),
        egress: None,
    };
    state.policies.insert(policy.key.clone(), policy);
}

pub(crate) fn pod_mut<'a>(state: &'a mut ClusterState, name: &str) -> &'a mut Pod {
    state
        .pods
        .get_mut(&ObjectKey::new("shop", name))
        .expect("a pod of the cluster")
}

fn identity(desired: &Desired, address: &str) -> u32 {
    lookup::identity(&desired.contents, ip(address))
}

#[test]
fn without_policies_there_are_nodes_only() {
    let desired = Compiler::new().compile(&mk_state());
    let kinds: Vec<_> = desired
        .contents
        .v4
        .ipcache
        .iter()
        .map(|(key, entry)| (key.prefix_len, entry.kind))
        .collect();
    assert_eq!(
        kinds,
        [
            (24, KIND_LOCAL_POD),
            (24, KIND_REMOTE_POD),
            (32, KIND_HOST),
            (32, KIND_REMOTE_NODE)
        ]
    );
    let (_, remote) = lookup::ipcache(&desired.contents, ip("10.0.1.77")).expect("a pod network");
    assert_eq!(remote.tunnel, underlay(ip("192.0.2.2")));
    let endpoint = lookup::endpoint(&desired.contents, ip("10.0.0.2")).expect("an endpoint");
    assert_eq!(
        (endpoint.policy_set, endpoint.enforce),
        (POLICY_SET_OPEN, 0)
    );
    assert_eq!((endpoint.ifindex, endpoint.identity), (7, IDENTITY_NONE));
    assert!(desired.contents.verdicts.is_empty() && desired.warnings.is_empty());
}

#[test]
fn only_what_a_policy_here_mentions_exists() {
    let mut state = mk_state();
    mk_policy(&mut state, "elsewhere", "other", vec![peer("web")]);
    let without = Compiler::new().compile(&state);
    assert!(without.contents.verdicts.is_empty() && without.identities.is_empty());

    mk_policy(&mut state, "web", "web", vec![peer("client")]);
    let desired = Compiler::new().compile(&state);
    let meaning = desired.identities.values().flatten().collect::<Vec<_>>();
    assert_eq!(meaning, ["pods app=client in namespace shop"]);
    assert_ne!(identity(&desired, "10.0.1.2"), IDENTITY_NONE);
    assert_eq!(identity(&desired, "10.0.1.3"), IDENTITY_NONE);
    // One more address than the nodes have; a denial, and one allowed port.
    assert_eq!(
        desired.contents.v4.ipcache.len(),
        without.contents.v4.ipcache.len() + 1
    );
    assert_eq!(desired.contents.verdicts.len(), 2);
}

#[test]
fn verdicts_name_their_rules() {
    let mut state = mk_state();
    mk_policy(&mut state, "a", "web", vec![peer("client")]);
    mk_policy(&mut state, "b", "web", vec![]);
    let desired = Compiler::new().compile(&state);
    let set = lookup::endpoint(&desired.contents, ip("10.0.0.2"))
        .expect("an endpoint")
        .policy_set;
    let rule = |identity: u32, port: u16| {
        let found = lookup::policy(
            &desired.contents,
            set,
            Direction::Ingress,
            identity,
            6,
            port,
        );
        let verdict = found
            .expect("an isolated pod has at least the denial")
            .verdict;
        let rule = desired
            .rules
            .get(verdict.rule)
            .expect("every verdict's rule is known");
        (verdict.verdict == DENY, rule.to_string())
    };
    let client = identity(&desired, "10.0.1.2");
    let denial = (
        true,
        "no ingress rule of NetworkPolicy shop/a, shop/b".to_owned(),
    );
    assert_eq!(
        rule(client, 80),
        (false, "NetworkPolicy shop/a ingress[0]".to_owned())
    );
    assert_eq!(rule(client, 81), denial);
    assert_eq!(rule(IDENTITY_NONE, 80), denial);
}

#[test]
fn new_pods_of_known_peers_add_no_policy() {
    let mut state = mk_state();
    mk_policy(&mut state, "web", "web", vec![peer("client")]);
    let mut compiler = Compiler::new();
    let before = compiler.compile(&state);
    let mut twin = pod_mut(&mut state, "client").clone();
    twin.key.name = "client-2".to_owned();
    twin.ips = vec![ip("10.0.1.9")];
    state.pods.insert(twin.key.clone(), twin);
    let after = compiler.compile(&state);
    assert_eq!(identity(&after, "10.0.1.9"), identity(&before, "10.0.1.2"));
    assert_eq!(after.changes(&before.contents).entries(), 1);
}

#[test]
fn an_interface_without_its_pod_passes_nothing() {
    let set = |state: &ClusterState| {
        let contents = Compiler::new().compile(state).contents;
        lookup::endpoint(&contents, ip("10.0.0.2"))
            .expect("an endpoint")
            .policy_set
    };
    let mut state = mk_state();
    // A new pod of the same name: the interface is not its own.
    pod_mut(&mut state, "web").uid = "another".to_owned();
    assert_eq!(set(&state), 0);
    // The mirror of a static pod is the same pod.
    pod_mut(&mut state, "web").static_uid = Some("uid-web".to_owned());
    assert_eq!(set(&state), POLICY_SET_OPEN);
    state.pods.clear();
    assert_eq!(set(&state), 0);
}

#[test]
fn labels_count_for_believable_addresses_only() {
    let known = |state: &ClusterState, address: &str| {
        let desired = Compiler::new().compile(state);
        (
            identity(&desired, address) != IDENTITY_NONE,
            desired.warnings.len(),
        )
    };
    let mut state = mk_state();
    mk_policy(&mut state, "web", "web", vec![peer("client")]);
    assert_eq!(known(&state, "10.0.1.2"), (true, 0));

    let with = |change: &dyn Fn(&mut Pod)| {
        let mut state = state.clone();
        change(pod_mut(&mut state, "client"));
        state
    };
    let terminal = with(&|pod| pod.terminal = true);
    assert_eq!(
        known(&terminal, "10.0.1.2"),
        (false, 0),
        "it may be another pod's by now"
    );
    let terminating = with(&|pod| pod.terminating = true);
    assert_eq!(known(&terminating, "10.0.1.2"), (true, 0), "it still talks");
    let host = with(&|pod| {
        pod.host_network = true;
        pod.ips = vec![ip("192.0.2.2")];
    });
    assert_eq!(known(&host, "192.0.2.2"), (false, 0), "it is its node");
    for stolen in ["10.0.0.2", "10.0.0.99", "192.0.2.1"] {
        let thief = with(&|pod| pod.ips = vec![ip(stolen)]);
        assert_eq!(known(&thief, stolen), (false, 1), "{stolen}");
    }
    let outside = with(&|pod| pod.ips = vec![ip("172.16.0.1")]);
    assert_eq!(
        known(&outside, "172.16.0.1"),
        (true, 0),
        "another IPAM gave it"
    );
    let contents = Compiler::new().compile(&outside).contents;
    let (_, entry) = lookup::ipcache(&contents, ip("172.16.0.1")).expect("an entry");
    assert_eq!(
        (entry.kind, entry.tunnel),
        (KIND_REMOTE_POD, underlay(ip("192.0.2.2")))
    );
}

#[test]
fn a_reused_address_belongs_to_the_pod_that_lives() {
    let known = |client_terminating: bool, other_terminating: bool| {
        let mut state = mk_state();
        mk_policy(&mut state, "web", "web", vec![peer("client")]);
        pod_mut(&mut state, "client").terminating = client_terminating;
        let other = pod_mut(&mut state, "other");
        other.terminating = other_terminating;
        other.ips = vec![ip("10.0.1.2")];
        identity(&Compiler::new().compile(&state), "10.0.1.2") != IDENTITY_NONE
    };
    assert!(!known(true, false), "the other one lives");
    assert!(known(false, true));
    assert!(!known(false, false), "only what both have in common holds");
}

/// The peers that an address is known as.
fn known_as(desired: &Desired, address: &str) -> Vec<String> {
    let identity = identity(desired, address);
    desired
        .identities
        .get(&identity)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn an_address_of_a_pod_that_is_over_is_its_successors() {
    let mut state = mk_state();
    mk_pod(&mut state, "done", "here", "10.0.0.9");
    let peers = ["web", "client", "other", "done"].map(peer).to_vec();
    mk_policy(&mut state, "web", "web", peers);
    let own = |app: &str| vec![format!("pods app={app} in namespace shop")];
    let over = |state: &mut ClusterState, name: &str, address: &str| {
        let pod = pod_mut(state, name);
        pod.terminal = true;
        pod.ips = vec![ip(address)];
    };

    // Another node's address, after a pod of that node and after one of this.
    for old in ["client", "done"] {
        let mut state = state.clone();
        over(&mut state, old, "10.0.1.3");
        let desired = Compiler::new().compile(&state);
        assert_eq!(known_as(&desired, "10.0.1.3"), own("other"), "after {old}");
        assert_eq!(warned(&desired), [""; 0]);
    }
    // This node's likewise. The old pod's sandbox may even be there still.
    for old in ["client", "done"] {
        let mut state = state.clone();
        over(&mut state, old, "10.0.0.2");
        let desired = Compiler::new().compile(&state);
        assert_eq!(known_as(&desired, "10.0.0.2"), own("web"), "after {old}");
        let sandbox = if old == "done" { vec![] } else { own("done") };
        assert_eq!(known_as(&desired, "10.0.0.9"), sandbox);
        assert_eq!(warned(&desired), [""; 0]);
    }
}

#[test]
fn an_interface_takes_nothing_over_from_a_pod_of_the_same_name() {
    let mut state = mk_state();
    mk_policy(&mut state, "web", "web", vec![peer("web")]);
    let mut compiler = Compiler::new();
    let before = compiler.compile(&state);
    let entry = |desired: &Desired| {
        lookup::endpoint(&desired.contents, ip("10.0.0.2")).expect("an endpoint")
    };
    assert!(entry(&before).policy_set > POLICY_SET_OPEN);
    assert_ne!(entry(&before).identity, IDENTITY_NONE);

    // The old sandbox is still there when the pod's successor is known.
    pod_mut(&mut state, "web").uid = "another".to_owned();
    let desired = compiler.compile(&state);
    let Endpoint {
        policy_set,
        identity,
        enforce,
        ..
    } = entry(&desired);
    assert_eq!((policy_set, identity, enforce), (0, IDENTITY_NONE, 0));
    assert!(desired.contents.verdicts.is_empty());

    // Then the new one, with another address, gets what is the pod's.
    let mut new = state.endpoints["web"].clone();
    new.uid = Some("another".to_owned());
    new.container_id = "new".to_owned();
    new.ips = vec![ip("10.0.0.3")];
    new.ifindex = 8;
    state.endpoints.insert(new.container_id.clone(), new);
    let desired = compiler.compile(&state);
    assert_eq!(entry(&desired).policy_set, 0);
    let new = lookup::endpoint(&desired.contents, ip("10.0.0.3")).expect("an endpoint");
    assert_eq!(new.policy_set, entry(&before).policy_set);
    assert_ne!(new.identity, IDENTITY_NONE);
}

#[test]
fn ipv6_is_as_good_as_ipv4() {
    let mut state = mk_state();
    for (node, cidr) in [("here", "fd00:0:0:0::/64"), ("there", "fd00:0:0:1::/64")] {
        let node = state.nodes.get_mut(node).expect("a node");
        node.pod_cidrs.push(cidr.parse().expect("a network"));
    }
    readdress(&mut state, "there", &["192.0.2.2", "2001:db8::2"]);
    mk_pod(&mut state, "six", "here", "fd00::6");
    let endpoint = state.endpoints.get_mut("web").expect("an endpoint");
    endpoint.ips.push(ip("fd00::2"));
    pod_mut(&mut state, "client").ips.push(ip("fd00:0:0:1::2"));
    pod_mut(&mut state, "other").ips = vec![ip("fd00:0:0:1::3")];
    let block = IpBlock {
        cidr: "2001:db8:f::/48".parse().expect("a network"),
        except: vec!["2001:db8:f:1::/64".parse().expect("a network")],
    };
    let peers = vec![peer("client"), peer("six"), Peer::Block(block)];
    mk_policy(&mut state, "web", "web", peers);
    let desired = Compiler::new().compile(&state);

    let six = lookup::endpoint(&desired.contents, ip("fd00::6")).expect("an endpoint");
    assert_eq!((six.policy_set, six.enforce), (POLICY_SET_OPEN, 0));
    let web =
        |address: &str| lookup::endpoint(&desired.contents, ip(address)).expect("an endpoint");
    assert_eq!(web("fd00::2"), web("10.0.0.2"), "one pod, one entry");
    for (peer, allowed) in [
        ("10.0.1.2", true),
        ("fd00:0:0:1::2", true),
        ("fd00:0:0:1::3", false),
        ("fd00::6", true),
        ("2001:db8:f::1", true),
        ("2001:db8:f:1::1", false),
        ("2001:db8::2", false),
    ] {
        let endpoint = web(if ip(peer).is_ipv4() {
            "10.0.0.2"
        } else {
            "fd00::2"
        });
        let contents = &desired.contents;
        let found = lookup::allows(contents, &endpoint, Direction::Ingress, ip(peer), 6, 80);
        assert_eq!(found, allowed, "{peer}");
    }
    // The overlay is one for both families.
    let there = Some(ip("192.0.2.2"));
    for (address, expected) in [
        ("fd00::77", (KIND_LOCAL_POD, None)),
        ("fd00:0:0:1::77", (KIND_REMOTE_POD, there)),
        ("2001:db8::2", (KIND_REMOTE_NODE, there)),
        ("2001:db8:f::1", (KIND_WORLD, None)),
    ] {
        assert_eq!(kind_and_tunnel(&desired, address), expected, "{address}");
    }
    assert_eq!(warned(&desired), [""; 0]);
}

#[test]
fn blocks_match_pods_and_leave_out_their_exceptions() {
    let mut state = mk_state();
    let block = IpBlock {
        cidr: "0.0.0.0/0".parse().expect("a network"),
        except: vec!["10.0.1.0/29".parse().expect("a network")],
    };
    mk_policy(
        &mut state,
        "web",
        "web",
        vec![Peer::Block(block), peer("other")],
    );
    let desired = Compiler::new().compile(&state);
    let kind = |address: &str| {
        lookup::ipcache(&desired.contents, ip(address)).map_or(KIND_WORLD, |(_, entry)| entry.kind)
    };
    let world = identity(&desired, "198.51.100.1");
    assert_ne!(world, IDENTITY_NONE);
    assert_eq!(identity(&desired, "10.0.1.200"), world);
    assert_eq!(identity(&desired, "192.0.2.2"), world);
    assert_eq!(identity(&desired, "10.0.1.2"), IDENTITY_NONE);
    assert!(![IDENTITY_NONE, world].contains(&identity(&desired, "10.0.1.3")));
    assert_eq!(kind("10.0.1.2"), KIND_REMOTE_POD);
    assert_eq!(kind("10.0.1.200"), KIND_REMOTE_POD);
    assert_eq!(kind("198.51.100.1"), KIND_WORLD);
}

#[test]
fn nodes_that_claim_what_others_have_are_told() {
    let mut state = mk_state();
    let mut twin = state.nodes["there"].clone();
    twin.name = "twin".to_owned();
    state.nodes.insert(twin.name.clone(), twin);
    let bare = state.nodes.get_mut("here").expect("a node");
    bare.internal_ips.clear();
    let mut lost = bare.clone();
    lost.name = "lost".to_owned();
    lost.pod_cidrs = vec!["10.0.3.0/24".parse().expect("a network")];
    state.nodes.insert(lost.name.clone(), lost);
    let desired = Compiler::new().compile(&state);
    let told: Vec<_> = desired
        .warnings
        .iter()
        .map(|warning| warning.object.as_str())
        .collect();
    // The own node has no InternalIP any more: nothing is tunnelled to the others.
    assert_eq!(told, ["Node lost", "Node there", "Node twin", "Node twin"]);
    assert_eq!(
        kind_and_tunnel(&desired, "10.0.3.1"),
        (KIND_LOCAL_POD, None)
    );
}

/// How an address is reached, and the underlay address that it is reached through.
fn kind_and_tunnel(desired: &Desired, address: &str) -> (u8, Option<IpAddr>) {
    let entry = lookup::ipcache(&desired.contents, ip(address)).map(|(_, entry)| entry);
    let IpcacheEntry { kind, tunnel, .. } = entry.unwrap_or_default();
    let tunnel = crate::model::canonical(tunnel.to_ip());
    (kind, (!tunnel.is_unspecified()).then_some(tunnel))
}

pub(crate) fn warned(desired: &Desired) -> Vec<String> {
    desired.warnings.iter().map(ToString::to_string).collect()
}

/// Gives a node other InternalIPs.
pub(crate) fn readdress(state: &mut ClusterState, node: &str, addresses: &[&str]) {
    let node = state.nodes.get_mut(node).expect("a node of the cluster");
    node.internal_ips = addresses.iter().map(|address| ip(address)).collect();
}

#[test]
fn tunnels_are_of_a_family_that_both_nodes_have() {
    let tunnel = |own: &[&str], other: &[&str]| {
        let mut state = mk_state();
        readdress(&mut state, "here", own);
        readdress(&mut state, "there", other);
        let desired = Compiler::new().compile(&state);
        let (kind, tunnel) = kind_and_tunnel(&desired, "10.0.1.77");
        assert_eq!(tunnel.is_none(), kind == KIND_LOCAL_POD);
        assert_eq!(tunnel.is_none(), desired.warnings.len() == 1);
        tunnel
    };
    let dual = ["2001:db8::1", "2001:db8::2", "192.0.2.7"];
    assert_eq!(tunnel(&["192.0.2.1"], &dual), Some(ip("192.0.2.7")));
    assert_eq!(tunnel(&["2001:db8::9"], &dual), Some(ip("2001:db8::1")));
    assert_eq!(tunnel(&dual, &["2001:db8::9"]), Some(ip("2001:db8::9")));
    assert_eq!(tunnel(&["192.0.2.1"], &["2001:db8::9"]), None);
    assert_eq!(tunnel(&[], &["192.0.2.2"]), None);
}

#[test]
fn pods_of_an_unreachable_node_are_nowhere() {
    let mut state = mk_state();
    mk_policy(&mut state, "web", "web", vec![peer("client")]);
    pod_mut(&mut state, "other").ips = vec![ip("172.16.0.1")];
    readdress(&mut state, "there", &["2001:db8::2"]);
    let desired = Compiler::new().compile(&state);
    for address in ["10.0.1.2", "10.0.1.77", "172.16.0.1"] {
        assert_eq!(kind_and_tunnel(&desired, address), (KIND_LOCAL_POD, None));
    }
    // The node itself is reached like any other address.
    assert_eq!(kind_and_tunnel(&desired, "2001:db8::2"), (KIND_WORLD, None));
    assert_eq!(desired.warnings.len(), 2, "{:?}", warned(&desired));

    // Nobody knows where this one is.
    let mut state = mk_state();
    let lost = pod_mut(&mut state, "other");
    lost.ips = vec![ip("172.16.0.1")];
    lost.node = Some("gone".to_owned());
    let desired = Compiler::new().compile(&state);
    assert_eq!(
        kind_and_tunnel(&desired, "172.16.0.1"),
        (KIND_LOCAL_POD, None)
    );
    assert_eq!(desired.warnings.len(), 1, "{:?}", warned(&desired));
}

#[test]
fn native_routing_has_no_tunnels() {
    let mut state = mk_state();
    state.settings.routing = Routing::Native;
    // No underlay in common is needed either: the routes are the underlay's business.
    readdress(&mut state, "there", &["2001:db8::2"]);
    pod_mut(&mut state, "other").ips = vec![ip("172.16.0.1")];
    mk_policy(
        &mut state,
        "web",
        "web",
        vec![peer("client"), peer("other")],
    );
    let desired = Compiler::new().compile(&state);
    for (address, kind) in [
        ("10.0.1.2", KIND_REMOTE_POD),
        ("10.0.1.77", KIND_REMOTE_POD),
        ("172.16.0.1", KIND_REMOTE_POD),
        ("2001:db8::2", KIND_REMOTE_NODE),
        ("10.0.0.77", KIND_LOCAL_POD),
        ("192.0.2.1", KIND_HOST),
    ] {
        assert_eq!(
            kind_and_tunnel(&desired, address),
            (kind, None),
            "{address}"
        );
    }
    assert_ne!(identity(&desired, "10.0.1.2"), IDENTITY_NONE);
    assert_ne!(identity(&desired, "172.16.0.1"), IDENTITY_NONE);
    assert_eq!(warned(&desired), [""; 0]);
}

#[test]
fn what_the_interfaces_have_is_the_nodes() {
    let mut state = mk_state();
    state.own_addresses = [
        "192.0.2.1",
        "198.51.100.7",
        "2001:db8::7",
        "10.0.0.1",
        "10.0.0.2",
    ]
    .map(ip)
    .into();
    let block = |cidr: &str| {
        Peer::Block(IpBlock {
            cidr: cidr.parse().expect("a network"),
            except: Vec::new(),
        })
    };
    mk_policy(&mut state, "web", "web", vec![block("198.51.100.0/24")]);
    let desired = Compiler::new().compile(&state);
    for address in ["192.0.2.1", "198.51.100.7", "2001:db8::7", "10.0.0.1"] {
        assert_eq!(
            kind_and_tunnel(&desired, address),
            (KIND_HOST, None),
            "{address}"
        );
    }
    assert_ne!(identity(&desired, "198.51.100.7"), IDENTITY_NONE);
    assert_eq!(
        identity(&desired, "198.51.100.7"),
        identity(&desired, "198.51.100.8")
    );
    assert_eq!(
        kind_and_tunnel(&desired, "10.0.0.2"),
        (KIND_LOCAL_POD, None),
        "it is a pod's"
    );
    assert_eq!(warned(&desired), [""; 0]);

    // Neither nodes nor pods can claim it.
    readdress(&mut state, "there", &["198.51.100.7", "192.0.2.2"]);
    pod_mut(&mut state, "client").ips = vec![ip("2001:db8::7")];
    let desired = Compiler::new().compile(&state);
    assert_eq!(kind_and_tunnel(&desired, "198.51.100.7"), (KIND_HOST, None));
    assert_eq!(kind_and_tunnel(&desired, "2001:db8::7"), (KIND_HOST, None));
    assert_eq!(desired.warnings.len(), 2, "{:?}", warned(&desired));
}

#[test]
fn what_is_not_masqueraded_is_said_of_the_outside_only() {
    let mut state = mk_state();
    state.settings.non_masquerade = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]
        .map(|text| text.parse().expect("a network"))
        .to_vec();
    let block = IpBlock {
        cidr: "10.7.0.0/16".parse().expect("a network"),
        except: vec!["10.7.1.0/24".parse().expect("a network")],
    };
    mk_policy(&mut state, "web", "web", vec![Peer::Block(block)]);
    let desired = Compiler::new().compile(&state);
    let flags = |address: &str| {
        let entry = lookup::ipcache(&desired.contents, ip(address));
        entry.map_or(0, |(_, entry)| entry.flags)
    };
    for address in [
        "10.9.9.9",
        "10.7.0.1",
        "10.7.1.1",
        "192.0.2.200",
        "2001:db8::1",
    ] {
        assert_eq!(flags(address), IPCACHE_NO_MASQUERADE, "{address}");
    }
    for address in [
        "11.0.0.1",
        "10.0.0.9",
        "10.0.1.9",
        "192.0.2.2",
        "2001:db9::1",
    ] {
        assert_eq!(flags(address), 0, "{address}");
    }
    assert_ne!(identity(&desired, "10.7.0.1"), IDENTITY_NONE);
    assert_eq!(identity(&desired, "10.7.1.1"), IDENTITY_NONE);
}

#[test]
fn broken_pod_networks_take_nothing_away() {
    for cidr in [
        "0.0.0.0/0",
        "192.0.2.0/24",
        "10.0.0.0/25",
        "127.0.0.0/8",
        "::/0",
    ] {
        let mut state = mk_state();
        let node = state.nodes.get_mut("there").expect("a node");
        node.pod_cidrs = vec![cidr.parse().expect("a network")];
        pod_mut(&mut state, "other").ips = vec![ip("127.0.0.1")];
        mk_policy(
            &mut state,
            "web",
            "web",
            vec![peer("client"), peer("other")],
        );
        let desired = Compiler::new().compile(&state);
        for (address, kind) in [
            ("198.51.100.1", KIND_WORLD),
            ("2001:db8::1", KIND_WORLD),
            ("127.0.0.1", KIND_WORLD),
            ("192.0.2.200", KIND_WORLD),
            ("192.0.2.1", KIND_HOST),
            ("10.0.0.77", KIND_LOCAL_POD),
            ("10.0.1.77", KIND_WORLD),
        ] {
            assert_eq!(
                kind_and_tunnel(&desired, address).0,
                kind,
                "{cidr} {address}"
            );
        }
        // Its pods are found one by one.
        assert_eq!(
            kind_and_tunnel(&desired, "10.0.1.2"),
            (KIND_REMOTE_POD, Some(ip("192.0.2.2")))
        );
        assert_ne!(identity(&desired, "10.0.1.2"), IDENTITY_NONE);
        assert_eq!(identity(&desired, "127.0.0.1"), IDENTITY_NONE);
        let told = warned(&desired);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].starts_with(&format!("Node there: its podCIDR {cidr} ")),
            "{told:?}"
        );
    }
}
