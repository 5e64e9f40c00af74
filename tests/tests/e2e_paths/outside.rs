//! Pods and the world outside: it knows nodes, not pods.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::thread;

use anyhow::{Result, ensure};
use weft_tests::playground::Family;

use crate::scene::{Place, Scene, TCP, UDP, same};

/// The source ports that masqueraded packets have by default: below the kernel's ephemeral ones.
const PORTS: RangeInclusive<u16> = 1024..=29_999;

/// Connections that each of two pods holds at the same time.
const MANY: usize = 1200;

/// Connections of a process of their node meanwhile.
const FEW: usize = 100;

/// Runs the checks.
pub fn check(scene: &Scene, family: Family) {
    let server = scene.serve_outside(family);
    masquerade(scene, family);
    same_ports(scene, family);
    many(scene, family);
    drop(server);
}

fn masquerade(scene: &Scene, family: Family) {
    for (from, node) in [("a", "node1"), ("b", "node1"), ("c", "node2")] {
        let node = scene.node(node, family);
        for to in scene.outside().addresses(family) {
            for (protocol, port) in [("tcp", TCP), ("udp", UDP)] {
                let target = SocketAddr::new(to, port);
                scene.check(&format!("pod {from} to {protocol} {target}"), || {
                    let (server, client) = scene.ask(Place::Pod(from), protocol, target, &[])?;
                    same((server.as_str(), client.ip()), ("outside", node))?;
                    masqueraded_port(client)
                });
            }
        }
        let to = scene.outside().address(family);
        let target = SocketAddr::new(to, TCP);
        let large = ["--size", "200000"];
        scene.expect(Place::Pod(from), "tcp", target, &large, ("outside", node));
        scene.expect_echo(Place::Pod(from), to);
    }
}

fn masqueraded_port(client: SocketAddr) -> Result<()> {
    let port = client.port();
    ensure!(PORTS.contains(&port), "port {port} is the node's own");
    Ok(())
}

/// Two pods, and a process of their node, with the same source port and destination.
fn same_ports(scene: &Scene, family: Family) {
    let node = scene.node("node1", family);
    let target = SocketAddr::new(scene.outside().address(family), UDP);
    scene.check(
        &format!("pods a and b from port 4001 to udp {target}"),
        || {
            let ask = |from| scene.ask(from, "udp", target, &["--source-port", "4001"]);
            let [a, b, host] = [Place::Pod("a"), Place::Pod("b"), Place::Host("node1")].map(ask);
            let (a, b, host) = (a?.1, b?.1, host?.1);
            same([a, b, host].map(|client| client.ip()), [node; 3])?;
            masqueraded_port(a)?;
            masqueraded_port(b)?;
            ensure!(a.port() != b.port(), "both have {a}");
            same(host.port(), 4001)?;
            // A flow that goes on keeps its port.
            same([ask(Place::Pod("a"))?.1, ask(Place::Pod("b"))?.1], [a, b])
        },
    );
}

/// So many connections at once that ports must be told apart.
fn many(scene: &Scene, family: Family) {
    let target = SocketAddr::new(scene.outside().address(family), TCP).to_string();
    thread::scope(|scope| {
        for (place, count) in [
            (Place::Pod("a"), MANY),
            (Place::Pod("b"), MANY),
            (Place::Host("node1"), FEW),
        ] {
            let target = &target;
            scope.spawn(move || {
                let what = format!("{place} holds {count} connections to {target}");
                scene.check(&what, || hold(scene, family, place, target, count));
            });
        }
    });
}

fn hold(scene: &Scene, family: Family, place: Place, target: &str, count: usize) -> Result<()> {
    let number = count.to_string();
    let args = ["many", "tcp", target, "--count", &number, "--timeout", "20"];
    let report = scene.report(place, &args)?;
    let counts = ["opened", "held", "distinct"].map(|key| report[key].as_u64());
    ensure!(counts == [Some(count as u64); 3], "{report}");
    let node = scene.node("node1", family);
    same(&report["seen"], &serde_json::json!([node]))?;
    if place != Place::Host("node1") {
        let (first, last) = serde_json::from_value(report["ports"].clone())?;
        ensure!(PORTS.contains(&first) && PORTS.contains(&last), "{report}");
    }
    Ok(())
}

/// Where pods' packets are routed as they are, the world outside can be told the way to them: it
/// reaches them by their own addresses, and is answered from those.
pub fn check_unmasqueraded(scene: &Scene, family: Family) {
    let client = scene.client(family);
    for (to, node) in [("a", "node1"), ("c", "node2")] {
        let pod = scene.pod(to, family);
        scene
            .playground
            .show_outside(pod, scene.node(node, family))
            .unwrap();
        for (protocol, port) in [("tcp", TCP), ("udp", UDP)] {
            // Connected sockets hear answers from that very address only.
            let target = SocketAddr::new(pod, port);
            scene.expect(Place::Outside, protocol, target, &[], (to, client));
        }
        let target = SocketAddr::new(pod, TCP);
        scene.expect(
            Place::Outside,
            "tcp",
            target,
            &["--size", "200000"],
            (to, client),
        );
        scene.expect_echo(Place::Outside, pod);
    }
}
