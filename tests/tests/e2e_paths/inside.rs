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
        let place = Place::Pod(from);
        for (protocol, port) in [("tcp", TCP), ("udp", UDP)] {
            let target = SocketAddr::new(server, port);
            scene.expect(place, protocol, target, &[], (to, client));
        }
        // More than one segment, and than one packet.
        let target = SocketAddr::new(server, TCP);
        scene.expect(place, "tcp", target, &["--size", "200000"], (to, client));
        scene.expect_echo(place, server);
    }
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
        for (protocol, port) in [("tcp", TCP), ("udp", UDP)] {
            let target = SocketAddr::new(server, port);
            scene.expect(Place::Host(node), protocol, target, &[], (to, client));
        }
        let target = SocketAddr::new(server, TCP);
        scene.expect(
            Place::Host(node),
            "tcp",
            target,
            &["--size", "200000"],
            (to, client),
        );
        scene.expect_echo(Place::Host(node), server);
    }
    for (from, node, to) in [
        ("a", "node1", "host1"),
        ("a", "node2", "host2"),
        ("c", "node1", "host1"),
        ("c", "node2", "host2"),
    ] {
        let (client, server) = (scene.pod(from, family), scene.node(node, family));
        for (protocol, port) in [("tcp", NODE_TCP), ("udp", NODE_UDP)] {
            let target = SocketAddr::new(server, port);
            scene.expect(Place::Pod(from), protocol, target, &[], (to, client));
        }
        let target = SocketAddr::new(server, NODE_TCP);
        scene.expect(
            Place::Pod(from),
            "tcp",
            target,
            &["--size", "200000"],
            (to, client),
        );
        scene.expect_echo(Place::Pod(from), server);
    }
}
