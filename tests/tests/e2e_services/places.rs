//! Nodes that come, move and have more than one uplink; clients that look alike; and servers of the
//! nodes' own where services are.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_tests::playground::{
    Family, Place, Playground, Went,
    families::{FIRST_NODE, NODES, SECOND},
};

use crate::scene::{BOTH, Scene, host, pod, server, usual_ports};

fn node_port_service() -> Value {
    json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports() })
}

#[test]
fn nodes_that_come_and_move_take_part() {
    let plan = Playground::builder().name("svcmove").nodes(2);
    let mut scene = Scene::start(
        plan,
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("c", "node1", "client"),
        ],
    );
    scene.create("web", node_port_service());
    let both = ["a", "b"];
    let check = |scene: &Scene, node: &str, seen_of_others: bool| {
        for family in scene.families.iter().copied() {
            for protocol in BOTH {
                let number = scene.node_port("web", 80, &protocol.to_uppercase());
                let to = scene.at_node(node, family, number);
                for from in [pod("c"), host("node1"), host(node)] {
                    scene.served(from, protocol, to, &both);
                }
                let own = scene.node(node, family);
                let mut seen = vec![own];
                if !seen_of_others {
                    seen.push(scene.outside(family));
                }
                scene.served_to(Place::Outside, protocol, to, &both, &seen);
            }
        }
    };
    check(&scene, "node2", false);
    let added = scene.playground.add_node().unwrap();
    check(&scene, &added, true);
    // Another address: the node's ports are there, and its name for clients is another, too.
    let old = scene
        .families
        .iter()
        .map(|family| scene.node("node2", *family));
    let old: Vec<IpAddr> = old.collect();
    for family in scene.families.iter().copied() {
        let new = NODES.host(family, 90);
        scene.playground.readdress("node2", new).unwrap();
    }
    check(&scene, "node2", false);
    check(&scene, "node1", false);
    check(&scene, &added, true);
    for address in old {
        let number = scene.node_port("web", 80, "TCP");
        for from in [pod("c"), host("node1"), Place::Outside] {
            scene.gone(from, "tcp", SocketAddr::new(address, number));
        }
    }
    scene.finish();
}

#[test]
fn every_uplink_has_the_node_ports_and_takes_the_answers() {
    // The second network leads to no node and to no router, so that it has to be named.
    let flags = ["--uplink=eth0", "--uplink=eth1"];
    let plan = Playground::builder().name("svcsecond").nodes(3);
    let scene = Scene::start(
        plan.second_uplink().agent_flags(&flags),
        &[server("a", "node1", "web"), server("b", "node2", "web")],
    );
    scene.create("web", node_port_service());
    let machine = scene.playground.second_machine().unwrap();
    for family in scene.families.iter().copied() {
        let client = machine.address(family);
        for protocol in BOTH {
            let number = scene.node_port("web", 80, &protocol.to_uppercase());
            for (index, node, own) in [(0, "node1", Some("a")), (2, "node3", None)] {
                let address = SECOND.host(family, FIRST_NODE + index);
                let to = SocketAddr::new(address, number).to_string();
                let more = ["--size", "2000", "--timeout", "2"];
                let args = [&["connect", protocol, &to], &more[..]].concat();
                let what = format!("the second machine to {protocol} {to}, {node}");
                scene.soon(&what, || {
                    // Often enough that each server has its turn.
                    let mut names = Vec::new();
                    for _ in 0..20 {
                        let answer = Went::of(&machine.exec(&args)?).answer()?;
                        let mut words = answer.split_whitespace();
                        let name = words.next().context("no name")?.to_owned();
                        let seen: SocketAddr = words.next().context("no client")?.parse()?;
                        // Others see the node, by any address of its own.
                        let is_client = seen.ip() == client;
                        ensure!(is_client == (own == Some(name.as_str())), "{answer}");
                        names.push(name);
                    }
                    names.sort();
                    names.dedup();
                    ensure!(names == ["a", "b"], "{names:?} answered");
                    Ok(())
                });
            }
        }
    }
    scene.finish();
}

#[test]
fn clients_with_the_same_port_are_told_apart() {
    let scene = Scene::start(
        Playground::builder().name("svcsame").nodes(2),
        &[server("b", "node2", "web")],
    );
    scene.create("web", node_port_service());
    let outside = scene.playground.outside();
    for family in scene.families.iter().copied() {
        for protocol in BOTH {
            let number = scene.node_port("web", 80, &protocol.to_uppercase());
            let to = scene.at_node("node1", family, number);
            scene.served(Place::Outside, protocol, to, &["b"]);
            let to = to.to_string();
            let streams: Vec<_> = outside
                .addresses(family)
                .iter()
                .map(|source| {
                    let source = source.to_string();
                    let args = [
                        "stream",
                        protocol,
                        &to,
                        "--rate",
                        "20",
                        "--duration",
                        "1",
                        "--source",
                        &source,
                        "--source-port",
                        "20000",
                    ];
                    (source.clone(), outside.spawn(&args).unwrap())
                })
                .collect();
            for (source, stream) in streams {
                scene.check(&format!("{source} to {protocol} {to}"), || {
                    let output = stream.finish()?;
                    let report = String::from_utf8_lossy(&output.stdout);
                    ensure!(output.status.success(), "{report}");
                    Ok(())
                });
            }
        }
    }
    scene.finish();
}

#[test]
fn a_server_at_a_node_port_is_hidden_while_there_is_the_service() {
    let scene = Scene::start(
        Playground::builder().name("svcshadow").nodes(2),
        &[server("b", "node2", "web"), server("c", "node1", "client")],
    );
    scene.create("web", node_port_service());
    let (tcp, udp) = (
        scene.node_port("web", 80, "TCP"),
        scene.node_port("web", 80, "UDP"),
    );
    let own = scene
        .families
        .iter()
        .map(|family| scene.node("node1", *family).to_string());
    let own = own.collect::<Vec<_>>().join(",");
    let (tcp_text, udp_text) = (tcp.to_string(), udp.to_string());
    let args = [
        "serve",
        "--name",
        "own",
        "--address",
        &own,
        "--tcp",
        &tcp_text,
        "--udp",
        &udp_text,
    ];
    let _own = scene.playground.spawn_host("node1", &args).unwrap();
    let expect = |server: &str| {
        for family in scene.families.iter().copied() {
            for (protocol, number) in [("tcp", tcp), ("udp", udp)] {
                let to = scene.at_node("node1", family, number);
                for from in [pod("c"), host("node1"), host("node2"), Place::Outside] {
                    scene.served(from, protocol, to, &[server]);
                }
            }
        }
    };
    expect("b");
    scene.remove("web");
    expect("own");
    scene.finish();
}

#[test]
fn the_api_server_is_a_service_like_others() {
    let mut scene = Scene::start(
        Playground::builder().name("svckube").nodes(2),
        &[
            server("c", "node1", "client"),
            server("f", "node2", "client"),
        ],
    );
    let address = scene
        .playground
        .cluster_ip("default", "kubernetes", Family::V4);
    let to = SocketAddr::new(address.unwrap(), 443);
    let everyone = [pod("c"), pod("f"), host("node1"), host("node2")];
    let ask = |scene: &Scene, from| -> Result<Went> {
        let more = ["--path", "/version"];
        scene.playground.connect(from, "http", to, &more)
    };
    let answers = |scene: &Scene| {
        for from in everyone {
            scene.soon(&format!("{from:?} asks the API server"), || {
                let answer = ask(scene, from)?.answer()?;
                ensure!(answer.contains("gitVersion"), "{answer}");
                Ok(())
            });
        }
    };
    answers(&scene);
    scene.playground.stop_api();
    for from in everyone {
        scene.soon(&format!("{from:?} asks nobody"), || {
            let went = ask(&scene, from)?;
            ensure!(!matches!(went, Went::Answered(_)), "{went:?}");
            Ok(())
        });
    }
    scene.playground.restart_api().unwrap();
    answers(&scene);
    scene.finish();
}
