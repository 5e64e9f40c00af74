//! Traffic policies: who is let through to which endpoints, and whom these see.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_tests::playground::{Families, Family, Place, Playground, Routing, Went};

use crate::scene::{
    NAMESPACE, PORT, PROTOCOLS, SERVICE_PORT, Scene, client, health_check_port, host, http, only,
    pod, server, service,
};

/// Who asks, on which node. The servers are on the first one.
const CLIENTS: [(Place<'_>, &str); 6] = [
    (pod("a"), "node1"),
    (host("node1"), "node1"),
    (pod("b"), "node2"),
    (host("node2"), "node2"),
    (pod("c"), "node3"),
    (host("node3"), "node3"),
];

const NODES: [&str; 3] = ["node1", "node2", "node3"];

#[test]
fn policies_decide_who_is_let_through() {
    check("policies", Routing::Vxlan);
}

#[test]
fn policies_decide_over_native_routing_too() {
    check("policiesn", Routing::Native);
}

fn check(name: &str, routing: Routing) {
    let plan = Playground::builder()
        .name(name)
        .nodes(3)
        .routing(routing)
        .families(Families::Dual)
        .load_balancers();
    let objects = [
        client("a", "node1"),
        client("b", "node2"),
        client("c", "node3"),
        server("s", "node1", "web", "", ""),
        service("inner", "web", ""),
        service("node-inner", "node-web", ""),
        service("outer", "web", "type: LoadBalancer"),
    ];
    let scene = Scene::start(plan, &objects);
    scene.playground.apply(&on_node(&scene)).unwrap();
    scene.playground.wait_pod_ready(NAMESPACE, "h").unwrap();
    internal(&scene, "inner", "s");
    internal(&scene, "node-inner", "h");
    external(&scene);
    scene.finish();
}

/// A server in its node's network. It answers from the address that it is asked at.
fn on_node(scene: &Scene) -> String {
    let own = Family::BOTH.map(|family| scene.node("node1", family).to_string());
    let arguments = format!(", --address, \"{}\"", own.join(","));
    server("h", "node1", "node-web", &arguments, "hostNetwork: true")
}

/// `internalTrafficPolicy`: with `Local`, only clients on the server's node get through.
fn internal(scene: &Scene, service: &str, server: &str) {
    for local in [false, true, false] {
        let policy = if local { "Local" } else { "Cluster" };
        let patch = json!({ "spec": { "internalTrafficPolicy": policy } });
        scene.patch(service, &patch);
        let mut silent = Vec::new();
        for family in Family::BOTH {
            let to = scene.at_cluster_ip(service, family);
            for (from, node) in CLIENTS {
                for (protocol, _) in PROTOCOLS {
                    if local && node != "node1" {
                        silent.push((from, protocol, to));
                    } else {
                        scene.expect(from, protocol, to, &[server], None);
                    }
                }
            }
            let own = only(scene.pod("b", family));
            if !local {
                scene.expect(pod("b"), "tcp", to, &[server], Some(&own));
            }
        }
        scene.expect_silence(&silent);
    }
}

fn set_external(scene: &Scene, policy: &str, health_check: Option<u16>) {
    let mut patch = json!({ "spec": { "externalTrafficPolicy": policy } });
    if let Some(port) = health_check {
        patch["spec"]["healthCheckNodePort"] = port.into();
    }
    scene.patch("outer", &patch);
}

/// `externalTrafficPolicy`, from `Cluster` to `Local` and back, and once more; at last no load balancer
/// at all.
fn external(scene: &Scene) {
    through_any_node(scene);
    set_external(scene, "Local", None);
    only_through_the_servers_node(scene);
    let port = health_check_port(scene, "outer").unwrap();
    told_by_health_checks(scene, port);

    set_external(scene, "Cluster", None);
    nobody_listens(scene, port);
    through_any_node(scene);

    set_external(scene, "Local", Some(port));
    told_by_health_checks(scene, port);
    only_through_the_servers_node(scene);

    let none = json!({ "spec": {
        "type": "ClusterIP",
        "externalTrafficPolicy": null,
        "healthCheckNodePort": null,
        "allocateLoadBalancerNodePorts": null,
    } });
    let family = Family::V4;
    let at = NODES.map(|node| scene.at_node("outer", node, family, "TCP"));
    scene.patch("outer", &none);
    nobody_listens(scene, port);
    for to in at {
        scene.expect_refusal(Place::Outside, "tcp", to);
    }
}

/// Whatever the node, everybody gets through; from outside with the client's own address only on the
/// server's.
fn through_any_node(scene: &Scene) {
    for family in Family::BOTH {
        for node in NODES {
            let seen = match node {
                "node1" => only(scene.playground.outside().address(family)),
                _ => only(scene.node(node, family)),
            };
            let balancer = scene.at_balancer("outer", node, family);
            for (protocol, name) in PROTOCOLS {
                let to = scene.at_node("outer", node, family, name);
                for to in [to, balancer] {
                    expect_from_outside(scene, protocol, to, &seen);
                    scene.expect(pod("b"), protocol, to, &["s"], None);
                    scene.expect(host("node2"), protocol, to, &["s"], None);
                }
            }
        }
    }
}

/// The outside has several addresses: it uses the first.
fn expect_from_outside(scene: &Scene, protocol: &str, to: SocketAddr, seen: &BTreeSet<IpAddr>) {
    let source = scene.playground.outside().address(Family::of(to.ip()));
    let source = source.to_string();
    let what = format!("the outside reaches s by {protocol} {to}");
    scene.soon(&what, || {
        let more = ["--source", source.as_str()];
        let counted = scene
            .playground
            .count(Place::Outside, protocol, to, 4, &more)?;
        ensure!(
            counted.failed.is_empty() && counted.names() == ["s"] && counted.clients == *seen,
            "{counted:?} instead of {seen:?}"
        );
        Ok(())
    });
}

/// Clients keep their address, and nodes without the server keep silent, except to those on them: what
/// these send has not left their node, where a load balancer would have chosen another one.
fn only_through_the_servers_node(scene: &Scene) {
    for family in Family::BOTH {
        let outside = only(scene.playground.outside().address(family));
        let (b, node2) = (
            only(scene.pod("b", family)),
            only(scene.node("node2", family)),
        );
        for (protocol, name) in PROTOCOLS {
            let at = |node| scene.at_node("outer", node, family, name);
            expect_from_outside(scene, protocol, at("node1"), &outside);
            scene.expect(host("node2"), protocol, at("node1"), &["s"], Some(&node2));
            scene.expect(pod("b"), protocol, at("node1"), &["s"], Some(&b));
            scene.expect_silence(&[
                (Place::Outside, protocol, at("node3")),
                (pod("b"), protocol, at("node3")),
                (host("node2"), protocol, at("node3")),
                (Place::Outside, protocol, at("node2")),
            ]);

            // The ways within a node.
            let balancer = scene.at_balancer("outer", "node1", family);
            for to in [at("node2"), balancer] {
                scene.expect(pod("b"), protocol, to, &["s"], Some(&b));
                scene.expect(host("node2"), protocol, to, &["s"], Some(&node2));
            }
            let cluster_ip = scene.at_cluster_ip("outer", family);
            scene.expect(pod("b"), protocol, cluster_ip, &["s"], Some(&b));

            expect_from_outside(scene, protocol, balancer, &outside);
            scene.at_balancer("outer", "node2", family);
            scene.expect_silence(&[(Place::Outside, protocol, balancer)]);
        }
    }
}

/// From outside: the server's node says that it has an endpoint, and the others that they have none.
fn told_by_health_checks(scene: &Scene, port: u16) {
    for family in Family::BOTH {
        for (node, status, endpoints) in [("node1", 200, 1), ("node2", 503, 0), ("node3", 503, 0)] {
            let to = SocketAddr::new(scene.node(node, family), port);
            for path in ["/", "/healthz", "/any?thing"] {
                let what = format!("{to}{path} answers {status}");
                scene.soon(&what, || {
                    let (found, answer) = http(scene, Place::Outside, to, path)?;
                    ensure!(found == status, "{answer}");
                    tells(&answer, endpoints)
                });
            }
        }
    }
}

fn tells(answer: &str, endpoints: u64) -> Result<()> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let weight = format!("x-load-balancing-endpoint-weight: {endpoints}");
    let head = head.to_lowercase();
    ensure!(head.lines().any(|line| line == weight), "{answer}");
    let body: Value = serde_json::from_str(body)?;
    let expected = json!({
        "service": { "namespace": NAMESPACE, "name": "outer" },
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    ensure!(body == expected, "{answer}");
    Ok(())
}

/// Nobody asks any more: the port is closed, and no socket is left, as for node ports there never was.
fn nobody_listens(scene: &Scene, port: u16) {
    let node_port = scene
        .playground
        .node_port(NAMESPACE, "outer", SERVICE_PORT, "TCP");
    for node in NODES {
        for family in Family::BOTH {
            let to = SocketAddr::new(scene.node(node, family), port);
            scene.soon(&format!("{to} is closed"), || {
                let went = scene.playground.connect(Place::Outside, "http", to, &[])?;
                ensure!(went == Went::Refused, "{went:?}");
                Ok(())
            });
        }
        scene.check(&format!("{node} listens no more"), || {
            let listening = listening(scene, node)?;
            let ports = [Some(port), node_port.as_ref().ok().copied()];
            let held = ports
                .into_iter()
                .flatten()
                .find(|port| listening.contains(port));
            ensure!(held.is_none(), "{held:?} of {listening:?}");
            // What the server in the node's network shows: the list is a list of listeners.
            ensure!(
                listening.contains(&PORT) == (node == "node1"),
                "{listening:?}"
            );
            Ok(())
        });
    }
}

/// The TCP ports that a node's processes listen at.
fn listening(scene: &Scene, node: &str) -> Result<Vec<u16>> {
    let netns = &scene.playground.node(node)?.netns;
    let read = || {
        let all = ["tcp", "tcp6"]
            .map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
        all.into_iter().collect::<io::Result<Vec<_>>>()
    };
    let tables = netns.run(read)??;
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let listeners = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let (local, state) = (words.nth(1)?, words.nth(1)?);
        // TCP_LISTEN.
        (state == "0A").then_some(local)
    });
    let port = |local: &str| u16::from_str_radix(local.rsplit(':').next()?, 16).ok();
    Ok(listeners.filter_map(port).collect())
}
