//! Datagrams that do not fit: asked and answered in fragments, in any order.

use std::net::{IpAddr, SocketAddr};

use weft_tests::playground::Family;

use crate::scene::{HOST_UDP, NODE_UDP, Place, SERVICE_UDP, Scene, UDP};

/// Someone who sends, what to, who answers, and whom that sees.
type Way<'a> = (Place, (IpAddr, u16), &'a str, IpAddr);

/// Runs the checks between pods, straight and through services.
pub fn check_inside(scene: &Scene, family: Family) {
    let pod = |name| scene.pod(name, family);
    let service = |name| scene.service(name, family);
    let ways: [Way; 5] = [
        (Place::Pod("a"), (pod("b"), UDP), "b", pod("a")),
        (Place::Pod("a"), (pod("c"), UDP), "c", pod("a")),
        (Place::Pod("c"), (pod("a"), UDP), "a", pod("c")),
        (Place::Pod("a"), (service("b"), SERVICE_UDP), "b", pod("a")),
        (Place::Pod("a"), (service("c"), SERVICE_UDP), "c", pod("a")),
    ];
    for way in ways {
        whole(scene, way);
        in_pieces(scene, way);
    }
}

/// Runs the checks with nodes and the outside.
pub fn check(scene: &Scene, family: Family) {
    let server = scene.serve_outside(family);
    let pod = |name| scene.pod(name, family);
    let [node1, node2] = ["node1", "node2"].map(|name| scene.node(name, family));
    let (outside, client) = (scene.outside().address(family), scene.client(family));
    let ways: [Way; 5] = [
        (Place::Pod("a"), (outside, UDP), "outside", node1),
        (Place::Pod("a"), (node2, NODE_UDP), "host2", pod("a")),
        (Place::Outside, (node1, HOST_UDP), "b", client),
        (Place::Host("node1"), (pod("c"), UDP), "c", node1),
        (Place::Host("node2"), (node1, HOST_UDP), "b", node2),
    ];
    for way in ways {
        whole(scene, way);
        in_pieces(scene, way);
    }
    // A node's own fragments come to its pods in order: nothing is between them.
    let own = (Place::Host("node1"), (pod("a"), UDP), "a", node1);
    whole(scene, own);
    drop(server);
}

/// The kernels at both ends cut the datagrams and put them together.
fn whole(scene: &Scene, (from, to, server, client): Way) {
    for size in ["2000", "8000", "30000"] {
        scene.expect(from, "udp", to.into(), &["--size", size], (server, client));
    }
}

/// Three fragments in the worst orders: the first comes last, and all come apart.
fn in_pieces(scene: &Scene, (from, to, server, client): Way) {
    for (id, order) in [(1, "0,1,2"), (2, "2,1,0"), (3, "1,0,2"), (4, "2,0,1")] {
        let (id, target) = (format!("{}", 4700 + id), SocketAddr::from(to).to_string());
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
            let answer = scene.says(from, &args)?;
            let expected = format!("{server} {}", SocketAddr::new(client, 0));
            let expected = expected.trim_end_matches('0');
            anyhow::ensure!(
                answer.starts_with(expected),
                "{answer:?} is not {expected:?}..."
            );
            Ok(())
        });
    }
}
