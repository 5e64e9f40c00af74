//! What a client's own socket shows of the other end, and datagrams of several packets.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use weft_tests::playground::{Place, Playground};

use crate::scene::{BOTH, Scene, host, pod, same, server, usual_ports};

/// Checks what a client's socket shows.
fn shows(scene: &Scene, from: Place<'_>, protocol: &str, to: SocketAddr, is_unconnected: bool) {
    let more: &[&str] = if is_unconnected {
        &["--ends", "--unconnected"]
    } else {
        &["--ends"]
    };
    scene.soon(
        &format!("{from:?} shows the end of {protocol} {to} {more:?}"),
        || {
            let said = scene
                .playground
                .connect(from, protocol, to, more)?
                .answer()?;
            let ends: Value = serde_json::from_str(said.lines().next().context("no line")?)?;
            let address = |name: &str| -> Result<Option<SocketAddr>> {
                ends[name]
                    .as_str()
                    .map(|text| Ok(text.parse()?))
                    .transpose()
            };
            same(address("peer")?, (!is_unconnected).then_some(to))?;
            same(address("from")?, (protocol == "udp").then_some(to))
        },
    );
}

#[test]
fn clients_see_the_services_address_and_their_large_datagrams_whole() {
    let scene = Scene::start(
        Playground::builder()
            .name("svcsock")
            .nodes(3)
            .load_balancers(),
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("c", "node1", "client"),
            server("f", "node3", "client"),
        ],
    );
    let service =
        json!({ "type": "LoadBalancer", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", service);
    for family in scene.families.iter().copied() {
        let balancer = scene
            .playground
            .wait_balancer_ip(crate::scene::NAMESPACE, "web", family);
        let balancer = SocketAddr::new(balancer.unwrap(), 80);
        scene
            .playground
            .show_outside(balancer.ip(), scene.node("node3", family))
            .unwrap();
        for protocol in BOTH {
            let number = scene.node_port("web", 80, &protocol.to_uppercase());
            let own = |node| scene.at_node(node, family, number);
            let cluster = scene.cluster("web", family, 80);
            for (from, targets) in [
                (
                    pod("c"),
                    vec![cluster, balancer, own("node1"), own("node3")],
                ),
                (
                    pod("f"),
                    vec![cluster, balancer, own("node1"), own("node3")],
                ),
                (pod("a"), vec![cluster, own("node1")]),
                (
                    host("node1"),
                    vec![cluster, balancer, own("node1"), own("node3")],
                ),
                (
                    host("node3"),
                    vec![cluster, balancer, own("node1"), own("node3")],
                ),
                (Place::Outside, vec![balancer, own("node1"), own("node3")]),
            ] {
                for to in targets {
                    scene.served(from, protocol, to, &["a", "b"]);
                    shows(&scene, from, protocol, to, false);
                    if protocol == "udp" {
                        shows(&scene, from, protocol, to, true);
                    }
                    // Several, so that each server has its turn.
                    for size in ["2000", "2000", "2000", "20000"] {
                        let more = ["--size", size];
                        scene.answers(from, protocol, to, &more, |answer| {
                            ["a", "b"].iter().any(|name| answer.starts_with(name))
                        });
                    }
                }
            }
        }
        let cluster = scene.cluster("web", family, 80);
        for from in [pod("c"), host("node1")] {
            scene.answers(
                from,
                "udp",
                cluster,
                &["--size", "2000", "--unconnected"],
                |_| true,
            );
        }
    }
    scene.finish();
}
