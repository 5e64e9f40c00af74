//! SCTP, also where its port changes, and without the kernel's own.

use std::path::Path;

use anyhow::ensure;
use serde_json::json;
use weft_tests::playground::{Place, Playground};

use crate::scene::{NAMESPACE, Scene, hairpin, host, pod, port, server, server_of};

/// The pods' port.
const SCTP: u16 = 7132;

#[test]
fn sctp_is_balanced_with_its_checksum_and_without_the_kernels_module() {
    let ports = [("tcp", 7000, "TCP"), ("sctp", SCTP, "SCTP")];
    let was_loaded = Path::new("/proc/net/sctp").exists();
    let scene = Scene::start(
        Playground::builder().name("svcsctp").nodes(3),
        &[
            server_of("a", "node1", "web", &ports),
            server_of("b", "node2", "web", &ports),
            server("c", "node1", "client"),
            server("f", "node3", "client"),
        ],
    );
    scene.create(
        "web",
        json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": [
            port("same", SCTP, "SCTP", SCTP),
            port("other", 9132, "SCTP", SCTP),
        ]}),
    );
    let both = ["a", "b"];
    for family in scene.families.iter().copied() {
        for number in [SCTP, 9132] {
            let web = scene.cluster("web", family, number);
            for client in ["c", "f"] {
                scene.served_to(
                    pod(client),
                    "sctp",
                    web,
                    &both,
                    &[scene.pod(client, family)],
                );
            }
            let clients = [scene.pod("a", family), hairpin(family)];
            scene.served_to(pod("a"), "sctp", web, &both, &clients);
            let at_node = scene.node_port("web", number, "SCTP");
            let node3 = scene.at_node("node3", family, at_node);
            scene.served_to(Place::Outside, "sctp", node3, &both, &[node3.ip()]);
            let node1 = scene.at_node("node1", family, at_node);
            let clients = [scene.outside(family), node1.ip()];
            scene.served_to(Place::Outside, "sctp", node1, &both, &clients);
            scene.served(host("node3"), "sctp", node1, &both);
            // Nobody listens to the others.
            scene.refused(pod("c"), "tcp", web);
            scene.refused(pod("c"), "udp", web);
        }
    }
    // Without endpoints somebody says so, and it is not the kernel.
    for name in both {
        scene.playground.delete_pod(NAMESPACE, name).unwrap();
    }
    for family in scene.families.iter().copied() {
        scene.gone(pod("c"), "sctp", scene.cluster("web", family, 9132));
    }
    scene.check("nobody loaded the kernel's SCTP", || {
        ensure!(was_loaded || !Path::new("/proc/net/sctp").exists());
        Ok(())
    });
    scene.finish();
}
