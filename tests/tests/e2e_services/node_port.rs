//! Node ports: at every node, for everybody, without a socket.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::playground::{Families, Family, Place, Playground, Routing, families::NODES};

use crate::scene::{
    BOTH, NAMESPACE, NODE_TCP, NODE_UDP, Scene, TCP, UDP, host, pod, port, server, usual_ports,
};

/// Who asks, in most checks: of a node with a server, and of one without.
const EVERYONE: [Place<'_>; 5] = [
    pod("c"),
    pod("f"),
    host("node1"),
    host("node3"),
    Place::Outside,
];

fn three_nodes(name: &str) -> Scene {
    Scene::start(
        Playground::builder().name(name).nodes(3),
        &three_nodes_pods(),
    )
}

fn three_nodes_pods() -> [serde_json::Value; 4] {
    [
        server("a", "node1", "web"),
        server("b", "node2", "web"),
        server("c", "node1", "client"),
        server("f", "node3", "client"),
    ]
}

#[test]
fn every_node_answers_everybody() {
    check_every_node(three_nodes("svcnp"));
}

#[test]
fn every_node_answers_everybody_in_native_routing() {
    let plan = Playground::builder().name("svcnpnat").nodes(3);
    let scene = Scene::start(plan.routing(Routing::Native), &three_nodes_pods());
    check_every_node(scene);
}

#[test]
fn every_node_answers_everybody_with_ipv6_only() {
    let plan = Playground::builder().name("svcnp6").nodes(3);
    check_every_node(Scene::start_with(Families::V6, plan, &three_nodes_pods()));
}

/// Checks who answers whom, and whom it sees.
fn check_every_node(scene: Scene) {
    let web = json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", web);
    let both = ["a", "b"];
    for family in scene.families.iter().copied() {
        let node = |name| scene.node(name, family);
        let (c, f) = (scene.pod("c", family), scene.pod("f", family));
        let outside = scene.outside(family);
        for protocol in BOTH {
            let number = scene.node_port("web", 80, &protocol.to_uppercase());
            for (from, to, seen) in [
                // A pod's own node serves it like a cluster address.
                (pod("c"), "node1", vec![c]),
                (pod("f"), "node3", vec![f]),
                // Another one takes it for a client from outside: what is served elsewhere must answer
                // by way of that node.
                (pod("c"), "node2", vec![c, node("node2")]),
                (pod("c"), "node3", vec![node("node3")]),
                (pod("f"), "node1", vec![f, node("node1")]),
                // Processes: their own node at the socket, others as above.
                (host("node1"), "node1", vec![node("node1")]),
                (host("node3"), "node3", vec![node("node3")]),
                (host("node1"), "node2", vec![node("node1"), node("node2")]),
                (host("node1"), "node3", vec![node("node3")]),
                (host("node3"), "node1", vec![node("node3"), node("node1")]),
                // The outside is seen by the node's own, and the node by others.
                (Place::Outside, "node1", vec![outside, node("node1")]),
                (Place::Outside, "node2", vec![outside, node("node2")]),
                (Place::Outside, "node3", vec![node("node3")]),
            ] {
                let to = scene.at_node(to, family, number);
                scene.served_to(from, protocol, to, &both, &seen);
            }
        }
    }
    scene.finish();
}

/// The TCP ports that somebody listens at, and the UDP ports that are bound, in a node's namespace.
fn sockets(scene: &Scene, node: &str) -> BTreeSet<u16> {
    let read = || -> Result<BTreeSet<u16>> {
        let mut found = BTreeSet::new();
        for (table, is_tcp) in [
            ("tcp", true),
            ("tcp6", true),
            ("udp", false),
            ("udp6", false),
        ] {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
            for line in text.lines().skip(1) {
                let mut words = line.split_whitespace().skip(1);
                let local = words.next().unwrap_or_default();
                let state = words.nth(1).unwrap_or_default();
                if is_tcp && state != "0A" {
                    continue;
                }
                let (_, number) = local.rsplit_once(':').unwrap_or_default();
                found.insert(u16::from_str_radix(number, 16)?);
            }
        }
        Ok(found)
    };
    let netns = &scene.playground.node(node).unwrap().netns;
    netns.run(read).unwrap().unwrap()
}

#[test]
fn node_ports_come_and_go_without_a_socket() {
    let scene = three_nodes("svcnps");
    let at = |name: &str, protocol: &str, target: u16, node_port: u16| {
        let mut port = port(name, 80, protocol, target);
        port["nodePort"] = json!(node_port);
        port
    };
    let service = |ports: serde_json::Value| json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": ports });
    // The same number over both protocols; and two services of the same pods.
    let shared = json!([at("tcp", "TCP", TCP, 30080), at("udp", "UDP", UDP, 30080)]);
    scene.create("shared", service(shared));
    scene.create(
        "twin",
        service(json!([
            at("tcp", "TCP", TCP, 30081),
            at("udp", "UDP", UDP, 30082)
        ])),
    );
    let everywhere = |check: &dyn Fn(Place<'_>, Family, &str)| {
        for family in scene.families.iter().copied() {
            for from in EVERYONE {
                for node in ["node1", "node3"] {
                    check(from, family, node);
                }
            }
        }
    };
    let served = |protocol: &str, number: u16| {
        everywhere(&|from, family, node| {
            let to = scene.at_node(node, family, number);
            scene.served(from, protocol, to, &["a", "b"]);
        });
    };
    let refused = |protocol: &str, number: u16| {
        everywhere(&|from, family, node| {
            scene.refused(from, protocol, scene.at_node(node, family, number));
        });
    };
    served("tcp", 30080);
    served("udp", 30080);
    served("tcp", 30081);
    served("udp", 30082);
    // A protocol that is not listed is nobody's.
    refused("udp", 30081);
    refused("tcp", 30082);
    // Nothing of the nodes' own is in anybody's way.
    for node in ["node1", "node2", "node3"] {
        let found = sockets(&scene, node);
        let taken = [30080, 30081, 30082].map(|number| found.contains(&number));
        scene.check(&format!("the sockets of {node}"), || {
            ensure!(taken == [false; 3], "some are taken: {found:?}");
            Ok(())
        });
    }
    // Another number.
    scene.change(
        "shared",
        json!({ "ports": [at("tcp", "TCP", TCP, 30090), at("udp", "UDP", UDP, 30080)] }),
    );
    served("tcp", 30090);
    refused("tcp", 30080);
    // One of two services that share their pods.
    scene.remove("shared");
    refused("tcp", 30090);
    refused("udp", 30080);
    served("tcp", 30081);
    served("udp", 30082);
    // From the type with the number to the one without, and back.
    let addresses: Vec<_> = scene
        .families
        .iter()
        .map(|family| scene.cluster("twin", *family, 80))
        .collect();
    scene.change("twin", json!({ "type": "ClusterIP" }));
    refused("tcp", 30081);
    for address in &addresses {
        scene.served(pod("f"), "tcp", *address, &["a", "b"]);
    }
    scene.change(
        "twin",
        service(json!([
            at("tcp", "TCP", TCP, 30099),
            at("udp", "UDP", UDP, 30082)
        ])),
    );
    served("tcp", 30099);
    // Without the pods, it says so.
    for name in ["a", "b"] {
        scene.playground.delete_pod(NAMESPACE, name).unwrap();
    }
    refused("tcp", 30099);
    refused("udp", 30082);
    scene.finish();
}

#[test]
fn backends_in_the_nodes_network_are_served_like_others() {
    check_host_backends("svcnphost", Routing::Vxlan);
}

#[test]
fn backends_in_the_nodes_network_are_served_like_others_in_native_routing() {
    check_host_backends("svcnphostn", Routing::Native);
}

fn check_host_backends(name: &str, routing: Routing) {
    let scene = Scene::start(
        Playground::builder().name(name).nodes(3).routing(routing),
        &[
            server("c", "node1", "client"),
            server("f", "node3", "client"),
        ],
    );
    let web = json!({ "type": "NodePort", "selector": { "app": "host" }, "ports": [
        port("tcp", 80, "TCP", "tcp"),
        port("udp", 80, "UDP", "udp"),
    ]});
    scene.create("web", web);
    scene.add_host_pod("h1", "node1", "host");
    let large = ["--size", "2000"];
    let check = |servers: &[&str]| {
        for family in scene.families.iter().copied() {
            for protocol in BOTH {
                let cluster = scene.cluster("web", family, 80);
                let number = scene.node_port("web", 80, &protocol.to_uppercase());
                for from in EVERYONE {
                    let inside = (from != Place::Outside).then_some(cluster);
                    let at_nodes =
                        ["node1", "node3"].map(|node| scene.at_node(node, family, number));
                    for to in inside.into_iter().chain(at_nodes) {
                        scene.served(from, protocol, to, servers);
                        // Several, so that each server has its turn.
                        for _ in 0..servers.len() * 2 {
                            scene.answers(from, protocol, to, &large, |answer| {
                                servers.iter().any(|name| answer.starts_with(name))
                            });
                        }
                    }
                }
            }
        }
    };
    check(&["h1"]);
    scene.add_host_pod("h2", "node2", "host");
    check(&["h1", "h2"]);
    scene.finish();
}

#[test]
fn a_backend_is_reached_by_itself_from_ports_that_used_its_service() {
    let scene = Scene::start(
        Playground::builder().name("svcdirect").nodes(2),
        &[server("f", "node2", "client")],
    );
    let web = json!({ "type": "NodePort", "selector": { "app": "host" }, "ports": [
        port("tcp", 80, "TCP", "tcp"),
        port("udp", 80, "UDP", "udp"),
    ]});
    scene.create("web", web);
    scene.add_host_pod("h1", "node1", "host");
    for family in scene.families.iter().copied() {
        for (protocol, own) in [("tcp", NODE_TCP), ("udp", NODE_UDP)] {
            let number = scene.node_port("web", 80, &protocol.to_uppercase());
            let by_service = scene.at_node("node1", family, number);
            let by_itself = scene.at_node("node1", family, own);
            for from in [pod("f"), host("node2"), Place::Outside] {
                scene.served(from, protocol, by_service, &["h1"]);
                for source_port in ["20001", "20002", "20003"] {
                    let more = ["--source-port", source_port];
                    for to in [by_service, by_itself] {
                        let what = format!("{from:?} from {source_port} to {protocol} {to}");
                        scene.check(&what, || {
                            let went = scene.playground.connect(from, protocol, to, &more)?;
                            let answer = went.answer()?;
                            ensure!(answer.starts_with("h1 "), "{answer}");
                            Ok(())
                        });
                    }
                }
            }
        }
    }
    scene.finish();
}

/// An address of a node that its Node object does not show.
fn second(family: Family) -> std::net::IpAddr {
    NODES.host(family, 200)
}

#[test]
fn all_addresses_of_a_node_have_its_node_ports_also_new_ones() {
    let scene = three_nodes("svcnpall");
    let web = json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", web);
    for family in scene.families.iter().copied() {
        scene
            .playground
            .add_address("node3", second(family))
            .unwrap();
        for protocol in BOTH {
            let number = scene.node_port("web", 80, &protocol.to_uppercase());
            let to = std::net::SocketAddr::new(second(family), number);
            for from in EVERYONE {
                scene.served(from, protocol, to, &["a", "b"]);
            }
        }
    }
    scene.finish();
}

#[test]
fn other_addresses_have_none_where_only_primary_ones_shall() {
    let plan = Playground::builder().name("svcnpone").nodes(2);
    let scene = Scene::start(
        plan.agent_flags(&["--nodeport-addresses", "primary"]),
        &[server("a", "node1", "web"), server("c", "node1", "client")],
    );
    let web = json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", web);
    let everyone = [pod("c"), host("node1"), host("node2"), Place::Outside];
    for family in scene.families.iter().copied() {
        scene
            .playground
            .add_address("node2", second(family))
            .unwrap();
        for protocol in BOTH {
            let number = scene.node_port("web", 80, &protocol.to_uppercase());
            for from in everyone {
                scene.served(
                    from,
                    protocol,
                    scene.at_node("node2", family, number),
                    &["a"],
                );
                let to = std::net::SocketAddr::new(second(family), number);
                scene.refused(from, protocol, to);
            }
        }
    }
    scene.finish();
}
