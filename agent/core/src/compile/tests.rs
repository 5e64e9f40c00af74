//! Whole clusters, whole answers. What holds for every cluster is checked in `tests/properties`.

use weft_abi::{
    ipcache::{KIND_HOST, KIND_LOCAL_POD, KIND_REMOTE_NODE, KIND_REMOTE_POD, KIND_WORLD},
    policy::DENY,
};

use super::*;
use crate::{
    family::underlay,
    lookup,
    model::{
        IpBlock, LocalEndpoint, Namespace, NamespaceScope, NetworkPolicy, Node, ObjectKey, Peer,
        Peers, Pod, PolicyRule, PortMatch, PortSpec, Ports, Protocol,
    },
    selector::{Requirement, Selector},
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Two nodes; `shop/web` is here, `shop/client` and `shop/other` are on the other one.
fn mk_state() -> ClusterState {
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
fn mk_pod(state: &mut ClusterState, name: &str, node: &str, address: &str) {
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

fn pod_mut<'a>(state: &'a mut ClusterState, name: &str) -> &'a mut Pod {
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
    assert!(desired.contents.policy.is_empty() && desired.warnings.is_empty());
}

#[test]
fn only_what_a_policy_here_mentions_exists() {
    let mut state = mk_state();
    mk_policy(&mut state, "elsewhere", "other", vec![peer("web")]);
    let without = Compiler::new().compile(&state);
    assert!(without.contents.policy.is_empty() && without.identities.is_empty());

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
    assert_eq!(desired.contents.policy.len(), 2);
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
    assert_eq!(told, ["Node lost", "Node twin", "Node twin"]);
    assert_eq!(lookup::ipcache(&desired.contents, ip("10.0.3.1")), None);
}
