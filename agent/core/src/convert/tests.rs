//! Objects as manifests have them, and as they should not.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::serde::de::DeserializeOwned;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    model::{
        Hints, IpBlock, LoadBalancing, LoadBalancingReturn, NamespaceScope, NetworkPolicy, Peer,
        Peers, PolicyRule, PortMatch, PortName, PortSpec, Ports, Protocol,
    },
    selector::{Requirement, Selector},
};

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a manifest of the kind")
}

fn policy_of(spec: &Value) -> Converted<NetworkPolicy> {
    let policy = object(json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec}));
    network_policy(&policy).expect("it has a name")
}

/// The only ingress rule of a policy, and how many warnings there were.
fn rule_of(rule: &Value) -> (PolicyRule, usize) {
    let converted = policy_of(&json!({"podSelector": {}, "ingress": [rule]}));
    let rules = converted.object.ingress.expect("it isolates ingress");
    let [rule] = <[_; 1]>::try_from(rules).expect("one rule stays one rule");
    (rule, converted.warnings.len())
}

#[test]
fn policy_types_default_as_in_the_api_server() {
    let table = [
        (json!({}), (true, false)),
        (json!({"egress": []}), (true, false)),
        (json!({"egress": [{}]}), (true, true)),
        (json!({"ingress": [{}]}), (true, false)),
        (json!({"policyTypes": []}), (true, false)),
        (
            json!({"policyTypes": ["Ingress"], "egress": [{}]}),
            (true, false),
        ),
        (
            json!({"policyTypes": ["Egress"], "ingress": [{}]}),
            (false, true),
        ),
        (json!({"policyTypes": ["Ingress", "Egress"]}), (true, true)),
        (json!({"policyTypes": ["Sideways"]}), (true, false)),
    ];
    for (spec, expected) in table {
        let policy = policy_of(&spec).object;
        assert_eq!(
            (policy.ingress.is_some(), policy.egress.is_some()),
            expected,
            "{spec}"
        );
        assert!(policy.pods.is_everything());
    }
}

#[test]
fn empty_lists_match_everything_and_bad_items_nothing() {
    let everything = PolicyRule {
        peers: Peers::Any,
        ports: Ports::Any,
    };
    assert_eq!(rule_of(&json!({})), (everything.clone(), 0));
    assert_eq!(rule_of(&json!({"from": [], "ports": []})), (everything, 0));

    let nothing = |rule: Value| {
        let (rule, warnings) = rule_of(&rule);
        let none = rule.peers == Peers::Only(vec![]) || rule.ports == Ports::Only(vec![]);
        assert!(none && warnings == 1, "{rule:?}, {warnings} warnings");
    };
    nothing(json!({"from": [{}]}));
    nothing(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}));
    nothing(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1/16"]}}]}));
    nothing(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}));
    nothing(json!({"ports": [{"protocol": "ICMP"}]}));
    nothing(json!({"ports": [{"port": 0}]}));
    nothing(json!({"ports": [{"port": 65536}]}));
    nothing(json!({"ports": [{"port": -1}]}));
    nothing(json!({"ports": [{"port": 80, "endPort": 79}]}));
    nothing(json!({"ports": [{"port": "http", "endPort": 80}]}));
    nothing(json!({"ports": [{"endPort": 80}]}));
}

#[test]
fn peers_have_the_scope_they_say() {
    let peers = |peer: Value| match rule_of(&json!({"from": [peer]})).0.peers {
        Peers::Only(peers) => peers,
        Peers::Any => panic!("a peer is never everyone"),
    };
    let any = Selector::default;
    let own = || NamespaceScope::Own("shop".to_owned());
    assert_eq!(
        peers(json!({"podSelector": {}})),
        [Peer::Pods {
            namespaces: own(),
            pods: any()
        }]
    );
    assert_eq!(
        peers(json!({"namespaceSelector": {}})),
        [Peer::Pods {
            namespaces: NamespaceScope::Matching(any()),
            pods: any()
        }]
    );
    let web = Selector::new([Requirement::In("app".into(), ["web".to_owned()].into())]);
    assert_eq!(
        peers(json!({"podSelector": {"matchLabels": {"app": "web"}}, "namespaceSelector": {}})),
        [Peer::Pods {
            namespaces: NamespaceScope::Matching(any()),
            pods: web
        }]
    );
    let block = json!({"ipBlock": {"cidr": "010.0.0.5/8", "except": ["10.2.3.4/16"]}});
    let expected = IpBlock {
        cidr: "10.0.0.0/8".parse().expect("a network"),
        except: vec!["10.2.0.0/16".parse().expect("a network")],
    };
    assert_eq!(peers(block), [Peer::Block(expected)]);
}

#[test]
fn ports_have_their_defaults() {
    let ports = |port: Value| match rule_of(&json!({"ports": [port]})).0.ports {
        Ports::Only(ports) => ports,
        Ports::Any => panic!("a port is never every port"),
    };
    let tcp = |port| {
        [PortMatch {
            protocol: Protocol::Tcp,
            port,
        }]
    };
    assert_eq!(ports(json!({})), tcp(PortSpec::All));
    assert_eq!(ports(json!({"port": 80})), tcp(PortSpec::Range(80, 80)));
    assert_eq!(
        ports(json!({"port": 80, "endPort": 80})),
        tcp(PortSpec::Range(80, 80))
    );
    assert_eq!(
        ports(json!({"port": 80, "endPort": 90})),
        tcp(PortSpec::Range(80, 90))
    );
    assert_eq!(
        ports(json!({"port": "http"})),
        tcp(PortSpec::Named("http".into()))
    );
    let sctp = PortMatch {
        protocol: Protocol::Sctp,
        port: PortSpec::All,
    };
    assert_eq!(ports(json!({"protocol": "SCTP"})), [sctp]);
}

#[test]
fn unknown_requirements_isolate_more_and_allow_less() {
    let strange = json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "tier", "operator": "Near", "values": ["x"]}],
    });
    let spec = json!({"podSelector": strange, "ingress": [{"from": [{"podSelector": strange}]}]});
    let Converted { object, warnings } = policy_of(&spec);
    assert_eq!(warnings.len(), 2);
    let web = [("app".to_owned(), "web".to_owned())].into();
    assert!(
        object.pods.matches(&web),
        "the policy isolates what it can be understood to select"
    );
    let Some(
        [
            PolicyRule {
                peers: Peers::Only(peers),
                ..
            },
        ],
    ) = object.ingress.as_deref()
    else {
        panic!("one rule with peers: {:?}", object.ingress);
    };
    let [Peer::Pods { pods, .. }] = peers.as_slice() else {
        panic!("one peer: {peers:?}")
    };
    assert!(!pods.matches(&web), "what is not understood is not let in");

    for (operator, values) in [
        ("In", json!([])),
        ("NotIn", json!(null)),
        ("Exists", json!(["x"])),
    ] {
        let expression = json!({"key": "a", "operator": operator, "values": values});
        let spec = json!({"podSelector": {"matchExpressions": [expression]}});
        assert_eq!(policy_of(&spec).warnings.len(), 1, "{operator} {values}");
    }
}

#[test]
fn pods() {
    let full = json!({
        "metadata": {
            "namespace": "shop", "name": "web-0", "uid": "1",
            "labels": {"app": "web"},
            "annotations": {"kubernetes.io/config.hash": "static", "other": "x"},
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {
            "nodeName": "node0",
            "initContainers": [
                {"name": "once", "ports": [{"name": "once", "containerPort": 1}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [
                    {"name": "proxy", "containerPort": 15001},
                    {"name": "http", "containerPort": 9999},
                ]},
            ],
            "containers": [
                {"name": "quiet", "image": "x"},
                {"name": "web", "image": "x", "ports": [
                    {"name": "http", "containerPort": 8080},
                    {"name": "http", "containerPort": 8081, "protocol": "UDP"},
                    {"containerPort": 7},
                    {"name": "bad", "containerPort": 0},
                ]},
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "nonsense"}],
        },
    });
    let raw: k8s_openapi::api::core::v1::Pod = object(full);
    let converted = pod(&raw).expect("it has a name");
    let pod_object = &converted.object;
    assert_eq!(pod_object.key.to_string(), "shop/web-0");
    assert_eq!(pod_object.static_uid.as_deref(), Some("static"));
    assert_eq!(pod_object.ips.len(), 2);
    assert!(pod_object.terminating && !pod_object.terminal && !pod_object.host_network);
    let port = |name: &str, protocol| {
        let name = PortName {
            name: name.to_owned(),
            protocol,
        };
        pod_object.named_ports.get(&name).copied()
    };
    assert_eq!(port("http", Protocol::Tcp), Some(8080));
    assert_eq!(port("http", Protocol::Udp), Some(8081));
    assert_eq!(port("proxy", Protocol::Tcp), Some(15001));
    assert_eq!(port("once", Protocol::Tcp), None);
    assert_eq!(converted.warnings.len(), 2, "{:?}", converted.warnings);

    let phase = |phase: &str| {
        let raw = object(json!({
            "metadata": {"namespace": "a", "name": "b"}, "status": {"phase": phase},
        }));
        pod(&raw).expect("it has a name").object.terminal
    };
    assert!(phase("Succeeded") && phase("Failed") && !phase("Running") && !phase("Unknown"));
}

#[test]
fn services() {
    let convert = |labels: Value, spec: Value| {
        let meta = json!({"namespace": "shop", "name": "web", "labels": labels});
        let raw = object(json!({"metadata": meta, "spec": spec}));
        service(&raw).expect("it has a name")
    };
    let ips = json!({
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1", "fd96::1"],
        "ports": [{"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 0}],
        "internalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP",
    });
    let Converted {
        object: web,
        warnings,
    } = convert(json!({}), ips.clone());
    assert_eq!(web.cluster_ips.len(), 2);
    assert_eq!(web.ports.len(), 2);
    assert_eq!((web.internal_local, web.affinity_seconds), (true, 10_800));
    assert_eq!(warnings.len(), 1);

    let unproxied = |labels, spec| convert(labels, spec).object.cluster_ips.is_empty();
    assert!(unproxied(
        json!({"service.kubernetes.io/service-proxy-name": "x"}),
        ips
    ));
    assert!(unproxied(
        json!({}),
        json!({"clusterIP": "None", "clusterIPs": ["None"]})
    ));
    assert!(unproxied(
        json!({}),
        json!({"type": "ExternalName", "clusterIP": "10.96.0.1"})
    ));
    assert!(unproxied(json!({}), json!({"clusterIP": ""})));
}

/// A service with a cluster IP of each family, changed as told; and how many warnings there were.
fn service_with(change: impl FnOnce(&mut Value)) -> (crate::model::Service, usize) {
    let mut raw = json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1", "fd96::1"],
            "ports": [{"port": 80, "nodePort": 30080}, {"name": "plain", "port": 81}],
        },
    });
    change(&mut raw);
    let converted = service(&object(raw)).expect("it has a name");
    (converted.object, converted.warnings.len())
}

#[test]
fn addresses_from_outside() {
    let ips = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (web, warnings) = service_with(|raw| {
        raw["metadata"]["creationTimestamp"] = json!("1970-01-01T00:01:00Z");
        raw["spec"]["externalIPs"] = json!(["203.0.113.9", "203.0.113.9", "127.0.0.1", "x"]);
        raw["status"]["loadBalancer"]["ingress"] = json!([
            {"ip": "198.51.100.1"},
            {"ip": "198.51.100.2", "ipMode": "VIP"},
            {"ip": "198.51.100.3", "ipMode": "Proxy"},
            {"hostname": "balancer.example"},
            {"ip": "2001:db8::1"},
        ]);
    });
    assert_eq!(ips(&web.external_ips), ["203.0.113.9"]);
    let expected = ["198.51.100.1", "198.51.100.2", "2001:db8::1"];
    assert_eq!(ips(&web.load_balancer_ips), expected);
    assert_eq!(web.created, 60);
    let node_ports: Vec<_> = web.ports.iter().map(|port| port.node_port).collect();
    assert_eq!(node_ports, [30080, 0]);
    assert_eq!(warnings, 2, "loopback, and no address");

    // Of a family that the service does not have.
    let (web, warnings) = service_with(|raw| {
        raw["spec"]["clusterIPs"] = json!(["10.96.0.1"]);
        raw["spec"]["externalIPs"] = json!(["2001:db8::1"]);
    });
    assert_eq!((web.external_ips.len(), warnings), (0, 1));
}

#[test]
fn health_check_ports_are_of_local_load_balancers() {
    let port = |kind: &str, policy: &str| {
        let (web, _) = service_with(|raw| {
            raw["spec"]["type"] = json!(kind);
            raw["spec"]["externalTrafficPolicy"] = json!(policy);
            raw["spec"]["healthCheckNodePort"] = json!(31000);
        });
        (web.health_check_node_port, web.external_local)
    };
    assert_eq!(port("LoadBalancer", "Local"), (31000, true));
    assert_eq!(port("LoadBalancer", "Cluster"), (0, false));
    assert_eq!(port("NodePort", "Local"), (0, true));
}

#[test]
fn what_is_no_source_range_lets_nobody_in() {
    let ranges = |given: Value| {
        let (web, warnings) = service_with(|raw| raw["spec"]["loadBalancerSourceRanges"] = given);
        let text = |range: &IpNet| range.to_string();
        let ranges = web
            .source_ranges
            .map(|ranges| ranges.iter().map(text).collect::<Vec<_>>());
        (ranges, warnings)
    };
    assert_eq!(ranges(json!(null)), (None, 0));
    assert_eq!(ranges(json!([])), (None, 0));
    let one = |text: &str| Some(vec![text.to_owned()]);
    assert_eq!(ranges(json!([" 10.0.0.1/8 "])), (one("10.0.0.0/8"), 0));
    assert_eq!(ranges(json!(["anybody"])), (Some(vec![]), 1));
    assert_eq!(ranges(json!(["10.0.0.0/8", ""])), (one("10.0.0.0/8"), 1));
}

#[test]
fn annotations_choose_how_backends_are_chosen() {
    let choice = |algorithm: &str, way: &str| {
        let (web, warnings) = service_with(|raw| {
            raw["metadata"]["annotations"] = json!({
                "weft.dev/load-balancing": algorithm,
                "weft.dev/load-balancing-return": way,
            });
        });
        (web.load_balancing, web.load_balancing_return, warnings)
    };
    let maglev = (
        Some(LoadBalancing::Maglev),
        Some(LoadBalancingReturn::Direct),
        0,
    );
    assert_eq!(choice(" maglev", "direct"), maglev);
    let random = (
        Some(LoadBalancing::Random),
        Some(LoadBalancingReturn::Snat),
        0,
    );
    assert_eq!(choice("random", "snat"), random);
    assert_eq!(choice("Maglev", ""), (None, None, 2));
}

#[test]
fn networks_of_services() {
    let raw = object(json!({
        "metadata": {"name": "more"},
        "spec": {"cidrs": ["203.0.113.7/24", "fd97::/112", "all"]},
    }));
    let Converted {
        object: more,
        warnings,
    } = service_cidr(&raw).expect("it has a name");
    let cidrs: Vec<_> = more.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!((more.name.as_str(), warnings.len()), ("more", 1));
    assert_eq!(cidrs, ["203.0.113.0/24", "fd97::/112"]);
}

#[test]
fn slices_tell_whom_endpoints_are_for_and_when_that_changed() {
    let raw = object(json!({
        "metadata": {
            "namespace": "shop", "name": "web-x",
            "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:01.5Z",
            },
        },
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.0.0.1"], "nodeName": "n", "hints": {
                "forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n"}],
            }},
            {"addresses": ["10.0.0.2"], "hints": {}},
        ],
    }));
    let slice = endpoint_slice(&raw).expect("it has a name").object;
    assert_eq!(slice.triggered, Some(1_500_000));
    let [hinted, plain] = slice.endpoints.as_slice() else {
        panic!("two endpoints: {:?}", slice.endpoints);
    };
    let hints = Hints {
        zones: vec!["a".into(), "b".into()],
        nodes: vec!["n".into()],
    };
    assert_eq!(hinted.hints.as_deref(), Some(&hints));
    assert_eq!(hinted.node, Some("n".into()));
    assert_eq!((&plain.hints, &plain.node), (&None, &None));
}

#[test]
fn nodes_that_are_about_to_go_are_not_eligible() {
    let eligible = |change: &dyn Fn(&mut Value)| {
        let mut raw = json!({
            "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]},
        });
        change(&mut raw);
        let node = node(&object(raw)).expect("it has a name").object;
        assert_eq!(node.zone(), Some("a"));
        node.eligible()
    };
    assert!(eligible(&|_| {}));
    let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
    assert!(!eligible(&|raw| raw["spec"]["taints"] = json!([taint])));
    let deleted = json!("2026-01-01T00:00:00Z");
    assert!(!eligible(
        &|raw| raw["metadata"]["deletionTimestamp"] = deleted.clone()
    ));
}

#[test]
fn endpoint_slices() {
    let convert = |labels: Value, family: &str, endpoints: Value| {
        let raw = object(json!({
            "metadata": {"namespace": "shop", "name": "web-x", "labels": labels},
            "addressType": family,
            "ports": [{"port": 80}, {"name": "all"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            "endpoints": endpoints,
        }));
        endpoint_slice(&raw).expect("it has a name")
    };
    let web = json!({"kubernetes.io/service-name": "web"});
    let endpoints = json!([
        {"addresses": ["10.0.0.1", "10.0.0.9"]},
        {"addresses": ["10.0.0.2"], "nodeName": "n",
         "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
        {"addresses": ["fd00::1"]},
        {"addresses": []},
    ]);
    let Converted {
        object: slice,
        warnings,
    } = convert(web.clone(), "IPv4", endpoints.clone());
    assert_eq!(slice.service.as_deref(), Some("web"));
    let ports: Vec<_> = slice
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.port))
        .collect();
    assert_eq!(ports, [("", 80), ("dns", 53)]);
    let conditions: Vec<_> = slice
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.ready, endpoint.serving, endpoint.terminating))
        .collect();
    assert_eq!(
        conditions,
        [
            (true, true, false),
            (false, true, true),
            (false, true, false)
        ]
    );
    assert_eq!(warnings.len(), 1, "the IPv6 address: {warnings:?}");

    let ignored = |labels, family| {
        let slice = convert(labels, family, endpoints.clone()).object;
        slice.service.is_none() && slice.endpoints.is_empty()
    };
    assert!(ignored(web.clone(), "FQDN"));
    assert!(ignored(web.clone(), "Token"));
    assert!(ignored(json!({}), "IPv4"));
    let headless =
        json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""});
    assert!(ignored(headless, "IPv4"));
}

#[test]
fn nodes_and_namespaces() {
    let raw = object(json!({
        "metadata": {"name": "node0", "labels": {"zone": "a"}},
        "spec": {"podCIDR": "10.0.0.1/24", "podCIDRs": ["10.0.0.1/24", "fd00::/64", "10.1.0.0/24"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "node0"},
            {"type": "InternalIP", "address": "fd99::1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "elsewhere"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
        ]},
    }));
    let converted = node(&raw).expect("it has a name");
    let Converted {
        object: node0,
        warnings,
    } = converted;
    assert_eq!(
        node0
            .pod_cidrs
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.0.0.0/24", "fd00::/64"]
    );
    assert_eq!(node0.internal_ips.len(), 2);
    assert_eq!(
        node0.underlay_address(&node0),
        Some("192.0.2.1".parse().expect("an address"))
    );
    assert_eq!(warnings.len(), 2);

    let old = object(json!({"metadata": {"name": "old"}, "spec": {"podCIDR": "10.2.0.0/24"}}));
    assert_eq!(node(&old).expect("it has a name").object.pod_cidrs.len(), 1);

    let shop = namespace(&object(json!({"metadata": {"name": "shop"}}))).expect("it has a name");
    let name = shop.object.labels.get("kubernetes.io/metadata.name");
    assert_eq!(name.map(String::as_str), Some("shop"));
}

#[test]
fn objects_without_a_name_are_errors() {
    let nameless = object(json!({"metadata": {"namespace": "shop"}}));
    assert_eq!(
        service(&nameless),
        Err(ConvertError::NoName { kind: "Service" })
    );
    let homeless = object(json!({"metadata": {"name": "web", "namespace": ""}}));
    assert_eq!(
        pod(&homeless),
        Err(ConvertError::NoNamespace {
            kind: "Pod",
            name: "web".to_owned()
        })
    );
}

proptest! {
    #[test]
    fn no_text_is_a_reason_to_panic(text in ".{0,24}", other in "[0-9a-f:./]{0,20}") {
        for text in [&text, &other] {
            if let Some(network) = net::parse_network(text) {
                prop_assert_eq!(network.trunc(), network);
            }
            let spec = json!({
                "podSelector": {"matchExpressions": [{"key": text, "operator": text}]},
                "policyTypes": [text],
                "egress": [{
                    "to": [{"ipBlock": {"cidr": text, "except": [text]}}],
                    "ports": [{"protocol": text, "port": text}],
                }],
            });
            policy_of(&spec);
        }
    }
}
