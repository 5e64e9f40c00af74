//! hostPorts: from outside, from the nodes' processes, and from pods, the one behind it included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weft_tests::playground::Family;

use crate::inside::hairpin;
use crate::scene::{HOST_TCP, HOST_UDP, Place, SHARED, Scene};

const PORTS: [(&str, u16); 2] = [("tcp", HOST_TCP), ("udp", HOST_UDP)];

/// Runs the checks.
pub fn check(scene: &Scene, family: Family) {
    from_outside(scene, family);
    from_nodes(scene, family);
    from_pods(scene, family);
    shared(scene, family);
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn from_outside(scene: &Scene, family: Family) {
    for client in scene.outside().addresses(family) {
        for (protocol, port) in PORTS {
            let target = SocketAddr::new(scene.node("node1", family), port);
            let source = ["--source", &client.to_string()];
            scene.expect(Place::Outside, protocol, target, &source, ("b", client));
        }
    }
    let target = SocketAddr::new(scene.node("node1", family), HOST_TCP);
    let client = scene.client(family);
    let large = ["--size", "200000"];
    scene.expect(Place::Outside, "tcp", target, &large, ("b", client));
    // Only the pod's own node has it.
    for (protocol, port) in PORTS {
        let target = SocketAddr::new(scene.node("node2", family), port).to_string();
        scene.expect_code(Place::Outside, &["connect", protocol, &target], 10);
    }
}

fn from_nodes(scene: &Scene, family: Family) {
    let (node1, node2) = (scene.node("node1", family), scene.node("node2", family));
    for (protocol, port) in PORTS {
        let target = SocketAddr::new(node1, port);
        scene.expect(Place::Host("node2"), protocol, target, &[], ("b", node2));
        for address in [node1, loopback(family)] {
            let target = SocketAddr::new(address, port);
            let place = Place::Host("node1");
            scene.expect(place, protocol, target, &[], ("b", node1));
            let source = ["--source", &node1.to_string()];
            scene.expect(place, protocol, target, &source, ("b", node1));
            if protocol == "udp" {
                scene.expect(place, protocol, target, &["--unconnected"], ("b", node1));
            }
        }
    }
}

fn from_pods(scene: &Scene, family: Family) {
    let node1 = scene.node("node1", family);
    for (from, client) in [
        ("a", scene.pod("a", family)),
        ("b", hairpin(family)),
        ("c", scene.pod("c", family)),
    ] {
        for (protocol, port) in PORTS {
            let target = SocketAddr::new(node1, port);
            scene.expect(Place::Pod(from), protocol, target, &[], ("b", client));
        }
    }
}

/// One port of three pods: of the loopback address, and of the node's address by protocol.
fn shared(scene: &Scene, family: Family) {
    let node1 = scene.node("node1", family);
    let place = Place::Host("node1");
    let from_node = ["--source", &node1.to_string()];
    for (address, protocol, pod) in [
        (loopback(family), "tcp", "shared-loopback"),
        (node1, "tcp", "shared-tcp"),
        (node1, "udp", "shared-udp"),
    ] {
        let target = SocketAddr::new(address, SHARED);
        scene.expect(place, protocol, target, &from_node, (pod, node1));
        scene.expect(place, protocol, target, &[], (pod, node1));
    }
    for (protocol, pod) in [("tcp", "shared-tcp"), ("udp", "shared-udp")] {
        let target = SocketAddr::new(node1, SHARED);
        let client = scene.client(family);
        scene.expect(Place::Outside, protocol, target, &[], (pod, client));
        let client = scene.pod("a", family);
        scene.expect(Place::Pod("a"), protocol, target, &[], (pod, client));
    }
}
