//! Datagrams that do not fit: asked and answered in fragments, in any order.

use std::net::{IpAddr, SocketAddr};

use weft_tests::playground::Family;

use crate::scene::{HOST_UDP, NODE_UDP, Place, SERVICE_UDP, Scene, UDP};

/// Someone who sends, what to, who answers, and whom that sees.
type Way<'a> = (Place, SocketAddr, &'a str, IpAddr);

/// Runs the checks.
pub fn check(scene: &Scene, family: Family) {
    let server = scene.serve_outside(family);
    let pod = |name| scene.pod(name, family);
    let node = |name| scene.node(name, family);
    let outside = scene.outside().address(family);
    let ways: [Way; 10] = [
        (
            Place::Pod("a"),
            SocketAddr::new(pod("b"), UDP),
            "b",
            pod("a"),
        ),
        (
            Place::Pod("a"),
            SocketAddr::new(pod("c"), UDP),
            "c",
            pod("a"),
        ),
        (
            Place::Pod("c"),
            SocketAddr::new(pod("a"), UDP),
            "a",
            pod("c"),
        ),
        (
            Place::Pod("a"),
            SocketAddr::new(scene.service("b", family), SERVICE_UDP),
            "b",
            pod("a"),
        ),
        (
            Place::Pod("a"),
            SocketAddr::new(scene.service("c", family), SERVICE_UDP),
            "c",
            pod("a"),
        ),
        (
            Place::Pod("a"),
            SocketAddr::new(outside, UDP),
            "outside",
            node("node1"),
        ),
        (
            Place::Outside,
            SocketAddr::new(node("node1"), HOST_UDP),
            "b",
            scene.client(family),
        ),
        (
            Place::Host("node1"),
            SocketAddr::new(pod("a"), UDP),
            "a",
            node("node1"),
        ),
        (
            Place::Host("node1"),
            SocketAddr::new(pod("c"), UDP),
            "c",
            node("node1"),
        ),
        (
            Place::Pod("a"),
            SocketAddr::new(node("node2"), NODE_UDP),
            "host2",
            pod("a"),
        ),
    ];
    for way in &ways {
        whole(scene, way);
        // A node's own fragments come to its pods in order: nothing is between them.
        if !matches!((way.0, way.2), (Place::Host("node1"), "a")) {
            in_pieces(scene, way);
        }
    }
    drop(server);
}

/// The kernels at both ends cut the datagrams and put them together.
fn whole(scene: &Scene, (from, to, server, client): &Way) {
    for size in ["2000", "8000", "30000"] {
        scene.expect(*from, "udp", *to, &["--size", size], (server, *client));
    }
}

/// Three fragments in the worst orders: the first comes last, and all come apart.
fn in_pieces(scene: &Scene, (from, to, server, client): &Way) {
    for (id, order) in [(1, "0,1,2"), (2, "2,1,0"), (3, "1,0,2"), (4, "2,0,1")] {
        let (id, target) = (format!("{}", 4700 + id), to.to_string());
        let args = [
            "fragments",
            &target,
            "--size",
            "3000",
            "--order",
            order,
            "--gap",
            "0.005",
            "--id",
            &id,
        ];
        scene.check(&format!("{from}: {}", args.join(" ")), || {
            let answer = scene.says(*from, &args)?;
            let expected = format!("{server} {}", SocketAddr::new(*client, 0));
            let expected = expected.trim_end_matches('0');
            anyhow::ensure!(
                answer.starts_with(expected),
                "{answer:?} is not {expected:?}..."
            );
            Ok(())
        });
    }
}
