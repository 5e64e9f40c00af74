//! Between pods, nodes and services of the cluster: nobody's address is hidden from anybody.

use std::net::{IpAddr, SocketAddr};

use weft_abi::{GATEWAY_V4, HAIRPIN_V6};
use weft_tests::playground::Family;

use crate::scene::{NODE_TCP, NODE_UDP, Place, SERVICE_TCP, SERVICE_UDP, Scene, TCP, UDP};

/// Runs the checks.
pub fn check(scene: &Scene, family: Family) {
    pods(scene, family);
    services(scene, family);
    if scene.nodes_have(family) {
        services_from_hosts(scene, family);
        hosts(scene, family);
    }
}

/// What a pod that reaches itself through a service sees.
pub fn hairpin(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from(GATEWAY_V4.octets),
        Family::V6 => IpAddr::from(HAIRPIN_V6.octets),
    }
}

/// Pods of the same node and of different ones, both ways.
fn pods(scene: &Scene, family: Family) {
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("a", "a")] {
        let (client, server) = (scene.pod(from, family), scene.pod(to, family));
        reaches(scene, Place::Pod(from), server, (TCP, UDP), (to, client));
    }
}

/// Every protocol leads to `server`, by these ports of TCP and UDP; who answers and whom it sees is
/// `expected`.
fn reaches(
    scene: &Scene,
    place: Place,
    server: IpAddr,
    (tcp, udp): (u16, u16),
    expected: (&str, IpAddr),
) {
    for (protocol, port) in [("tcp", tcp), ("udp", udp)] {
        let target = SocketAddr::new(server, port);
        scene.expect(place, protocol, target, &[], expected);
    }
    // More than one segment, and than one packet.
    let target = SocketAddr::new(server, tcp);
    scene.expect(place, "tcp", target, &["--size", "200000"], expected);
    scene.expect_echo(place, server);
}

fn services(scene: &Scene, family: Family) {
    for (from, to) in [("a", "b"), ("a", "c"), ("c", "a"), ("a", "a"), ("c", "c")] {
        let service = scene.service(to, family);
        let client = if from == to {
            hairpin(family)
        } else {
            scene.pod(from, family)
        };
        for (protocol, port) in [("tcp", SERVICE_TCP), ("udp", SERVICE_UDP)] {
            let target = SocketAddr::new(service, port);
            scene.expect(Place::Pod(from), protocol, target, &[], (to, client));
        }
        let target = SocketAddr::new(service, SERVICE_TCP);
        scene.expect(
            Place::Pod(from),
            "tcp",
            target,
            &["--size", "200000"],
            (to, client),
        );
    }
}

fn services_from_hosts(scene: &Scene, family: Family) {
    for (node, to) in [("node1", "a"), ("node1", "c"), ("node2", "a")] {
        let service = scene.service(to, family);
        let expected = (to, scene.node(node, family));
        for (protocol, port) in [("tcp", SERVICE_TCP), ("udp", SERVICE_UDP)] {
            let target = SocketAddr::new(service, port);
            scene.expect(Place::Host(node), protocol, target, &[], expected);
            if protocol == "udp" {
                scene.expect(
                    Place::Host(node),
                    protocol,
                    target,
                    &["--unconnected"],
                    expected,
                );
            }
        }
    }
}

/// Processes of a node with pods of it and of the other one, and pods with host-network pods.
fn hosts(scene: &Scene, family: Family) {
    for (node, to) in [
        ("node1", "a"),
        ("node1", "c"),
        ("node2", "a"),
        ("node2", "c"),
    ] {
        let (client, server) = (scene.node(node, family), scene.pod(to, family));
        reaches(scene, Place::Host(node), server, (TCP, UDP), (to, client));
    }
    for (from, node, to) in [
        ("a", "node1", "host1"),
        ("a", "node2", "host2"),
        ("c", "node1", "host1"),
        ("c", "node2", "host2"),
    ] {
        let (client, server) = (scene.pod(from, family), scene.node(node, family));
        let ports = (NODE_TCP, NODE_UDP);
        reaches(scene, Place::Pod(from), server, ports, (to, client));
    }
}
