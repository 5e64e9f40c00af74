//! Cluster addresses: who answers, whom it sees, and what becomes of changes.

use std::net::SocketAddr;

use serde_json::json;
use weft_tests::playground::{Family, Place, Playground};

use crate::scene::{
    BOTH, NAMESPACE, Scene, TCP, UDP, hairpin, host, pod, port, server, server_of, usual_ports,
};

#[test]
fn a_cluster_address_serves_pods_and_nodes_and_shows_them_as_they_are() {
    let scene = Scene::start(
        Playground::builder().name("svcip").nodes(2),
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("c", "node1", "client"),
        ],
    );
    scene.create(
        "web",
        json!({ "selector": { "app": "web" }, "ports": usual_ports() }),
    );
    let both = ["a", "b"];
    for family in scene.families.iter().copied() {
        let web = scene.cluster("web", family, 80);
        let seen = |name| scene.pod(name, family);
        for protocol in BOTH {
            scene.served_to(pod("c"), protocol, web, &both, &[seen("c")]);
            // Each reaches the other, and itself.
            for name in both {
                let clients = [seen(name), hairpin(family)];
                scene.served_to(pod(name), protocol, web, &both, &clients);
            }
            for node in ["node1", "node2"] {
                let clients = [scene.node(node, family)];
                scene.served_to(host(node), protocol, web, &both, &clients);
            }
        }
        // A node is a gateway of the service range, if somebody takes it for one: the answers of what is
        // elsewhere have to come back to it.
        let node = scene.node("node1", family);
        scene.playground.show_outside(web.ip(), node).unwrap();
        for protocol in BOTH {
            let clients = [scene.outside(family), node];
            scene.served_to(Place::Outside, protocol, web, &both, &clients);
        }
    }
    scene.finish();
}

#[test]
fn endpoints_come_and_go() {
    let scene = Scene::start(
        Playground::builder().name("svcends").nodes(2),
        &[server("c", "node1", "client")],
    );
    scene.create(
        "web",
        json!({ "selector": { "app": "web" }, "ports": usual_ports() }),
    );
    let expect = |servers: &[&str]| {
        for family in scene.families.iter().copied() {
            let web = scene.cluster("web", family, 80);
            for protocol in BOTH {
                for from in [pod("c"), host("node1"), host("node2")] {
                    if servers.is_empty() {
                        scene.refused(from, protocol, web);
                    } else {
                        scene.served(from, protocol, web, servers);
                    }
                }
            }
        }
    };
    expect(&[]);
    scene.add(&[server("a", "node1", "web")]);
    expect(&["a"]);
    scene.add(&[server("b", "node2", "web")]);
    expect(&["a", "b"]);
    scene.playground.delete_pod(NAMESPACE, "a").unwrap();
    expect(&["b"]);
    scene.playground.delete_pod(NAMESPACE, "b").unwrap();
    expect(&[]);
    scene.finish();
}

#[test]
fn ports_lead_to_the_pods_that_have_them() {
    let scene = Scene::start(
        Playground::builder().name("svcports").nodes(2),
        &[
            server_of("a", "node1", "web", &[("first", 7001, "TCP")]),
            server_of("b", "node2", "web", &[("second", 7002, "TCP")]),
            // The same name, and another number on each.
            server_of(
                "d",
                "node1",
                "named",
                &[("main", 7003, "TCP"), ("talk", 5303, "UDP")],
            ),
            server_of(
                "e",
                "node2",
                "named",
                &[("main", 7004, "TCP"), ("talk", 5304, "UDP")],
            ),
            server("c", "node1", "client"),
        ],
    );
    scene.create(
        "several",
        json!({ "selector": { "app": "web" }, "ports": [
            port("first", 80, "TCP", "first"),
            port("second", 81, "TCP", "second"),
        ]}),
    );
    scene.create(
        "named",
        json!({ "selector": { "app": "named" }, "ports": [
            port("main", 80, "TCP", "main"),
            port("talk", 80, "UDP", "talk"),
        ]}),
    );
    for family in scene.families.iter().copied() {
        for from in [pod("c"), host("node1"), host("node2")] {
            scene.served(from, "tcp", scene.cluster("several", family, 80), &["a"]);
            scene.served(from, "tcp", scene.cluster("several", family, 81), &["b"]);
            for protocol in BOTH {
                let named = scene.cluster("named", family, 80);
                scene.served(from, protocol, named, &["d", "e"]);
            }
        }
    }
    // A port more, and one less.
    scene.change(
        "several",
        json!({ "ports": [
            port("second", 81, "TCP", "second"),
            port("third", 82, "TCP", "first"),
        ]}),
    );
    for family in scene.families.iter().copied() {
        for from in [pod("c"), host("node1"), host("node2")] {
            scene.refused(from, "tcp", scene.cluster("several", family, 80));
            scene.served(from, "tcp", scene.cluster("several", family, 81), &["b"]);
            scene.served(from, "tcp", scene.cluster("several", family, 82), &["a"]);
        }
    }
    scene.finish();
}

#[test]
fn a_protocol_that_is_taken_away_stops_and_the_other_goes_on() {
    let scene = Scene::start(
        Playground::builder().name("svcproto").nodes(2),
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("c", "node1", "client"),
        ],
    );
    let (tcp, udp) = (port("tcp", 80, "TCP", TCP), port("udp", 80, "UDP", UDP));
    scene.create(
        "web",
        json!({ "selector": { "app": "web" }, "ports": [tcp, udp] }),
    );
    let both = ["a", "b"];
    let everyone = [pod("c"), host("node1"), host("node2")];
    let at = |family| scene.cluster("web", family, 80);
    // A flow that exists goes by its own entry.
    let same_flow = ["--source-port", "12345"];
    let flow = |from, to: SocketAddr| {
        let is_ours = |answer: &str| answer.starts_with("a ") || answer.starts_with("b ");
        scene.answers(from, "udp", to, &same_flow, is_ours);
    };
    for family in scene.families.iter().copied() {
        for from in everyone {
            scene.served(from, "tcp", at(family), &both);
            scene.served(from, "udp", at(family), &both);
            flow(from, at(family));
        }
    }
    scene.change("web", json!({ "ports": [tcp] }));
    for family in scene.families.iter().copied() {
        for from in everyone {
            let refused = weft_tests::playground::Went::Refused;
            scene.goes(from, "udp", at(family), &same_flow, &refused);
            scene.refused(from, "udp", at(family));
            scene.served(from, "tcp", at(family), &both);
        }
    }
    scene.change("web", json!({ "ports": [udp] }));
    for family in scene.families.iter().copied() {
        for from in everyone {
            scene.refused(from, "tcp", at(family));
            scene.served(from, "udp", at(family), &both);
            flow(from, at(family));
        }
    }
    scene.finish();
}

#[test]
fn services_come_and_go_beside_others() {
    let scene = Scene::start(
        Playground::builder().name("svcupdown").nodes(2),
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("d", "node2", "other"),
            server("c", "node1", "client"),
        ],
    );
    let web = json!({ "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", web.clone());
    scene.create("twin", web.clone());
    scene.create(
        "other",
        json!({ "selector": { "app": "other" }, "ports": usual_ports() }),
    );
    let everyone = [pod("c"), host("node1"), host("node2")];
    let expect = |service: &str, servers: &[&str]| {
        for family in scene.families.iter().copied() {
            let to = scene.cluster(service, family, 80);
            for (from, protocol) in everyone.iter().zip(BOTH.iter().cycle()) {
                scene.served(*from, protocol, to, servers);
            }
        }
    };
    for service in ["web", "twin"] {
        expect(service, &["a", "b"]);
    }
    expect("other", &["d"]);
    let old: Vec<SocketAddr> = scene
        .families
        .iter()
        .map(|family| scene.cluster("web", *family, 80))
        .collect();
    scene.remove("web");
    for address in &old {
        for protocol in BOTH {
            for from in everyone {
                scene.gone(from, protocol, *address);
            }
            scene.silent(pod("c"), protocol, *address);
        }
    }
    expect("twin", &["a", "b"]);
    expect("other", &["d"]);
    // The same pods behind a service of that name, wherever it is now.
    scene.create("web", web);
    expect("web", &["a", "b"]);
    scene.remove("twin");
    expect("web", &["a", "b"]);
    scene.finish();
}

#[test]
fn families_come_and_go() {
    let scene = Scene::start(
        Playground::builder().name("svcfam").nodes(2),
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("c", "node1", "client"),
        ],
    );
    let service = |families: &[Family]| {
        let names: Vec<_> = families.iter().map(|family| family.name()).collect();
        let policy = ["SingleStack", "RequireDualStack"][families.len() - 1];
        json!({
            "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports(),
            "ipFamilyPolicy": policy, "ipFamilies": names,
        })
    };
    // With the other family than the cluster's first, and with that one first.
    scene.create("six", service(&[Family::V6]));
    scene.create("sixfirst", service(&[Family::V6, Family::V4]));
    let four = json!({ "ipFamilyPolicy": "SingleStack", "type": "NodePort",
                       "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("four", four);
    let everyone = [pod("c"), host("node1"), host("node2"), Place::Outside];
    let expect = |service: &str, families: &[Family]| {
        for family in scene.families.iter().copied() {
            for protocol in BOTH {
                let number = scene.node_port(service, 80, &protocol.to_uppercase());
                let at_node = scene.at_node("node2", family, number);
                for from in everyone {
                    if !families.contains(&family) {
                        scene.refused(from, protocol, at_node);
                        continue;
                    }
                    scene.served(from, protocol, at_node, &["a", "b"]);
                    if from != Place::Outside {
                        let cluster = scene.cluster(service, family, 80);
                        scene.served(from, protocol, cluster, &["a", "b"]);
                    }
                }
            }
        }
    };
    expect("six", &[Family::V6]);
    expect("sixfirst", &Family::BOTH);
    expect("four", &[Family::V4]);
    // A second family is added, and taken away.
    scene.change("four", json!({ "ipFamilyPolicy": "PreferDualStack" }));
    expect("four", &Family::BOTH);
    let second = scene.cluster("four", Family::V6, 80);
    scene.change(
        "four",
        json!({
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            "clusterIPs": [scene.cluster("four", Family::V4, 80).ip()],
        }),
    );
    expect("four", &[Family::V4]);
    for from in [pod("c"), host("node1")] {
        scene.gone(from, "tcp", second);
    }
    scene.finish();
}
