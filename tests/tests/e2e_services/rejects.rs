//! Addresses that nobody serves: refused at once, or never answered.

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use serde_json::json;
use weft_tests::playground::{
    Family, Place, Playground,
    families::{BALANCED, NODES},
    until,
};

use crate::scene::{BOTH, NAMESPACE, Scene, host, pod, server, usual_ports};

const INSIDE: [Place<'_>; 4] = [pod("c"), pod("f"), host("node1"), host("node2")];

fn two_nodes(name: &str) -> Scene {
    Scene::start(
        Playground::builder().name(name).nodes(2),
        &[
            server("c", "node1", "client"),
            server("f", "node2", "client"),
        ],
    )
}

#[test]
fn without_endpoints_everybody_is_refused_until_there_are_some() {
    let scene = two_nodes("svcnone");
    let external = |family| BALANCED.host(family, 240);
    let externals: Vec<IpAddr> = scene
        .families
        .iter()
        .map(|family| external(*family))
        .collect();
    let service = json!({
        "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports(),
        "externalIPs": externals, "publishNotReadyAddresses": true,
    });
    scene.create("web", service);
    for family in scene.families.iter().copied() {
        let node = scene.node("node1", family);
        scene
            .playground
            .show_outside(external(family), node)
            .unwrap();
    }
    let everywhere = |check: &dyn Fn(Place<'_>, &str, SocketAddr)| {
        for family in scene.families.iter().copied() {
            for protocol in BOTH {
                let number = scene.node_port("web", 80, &protocol.to_uppercase());
                let at_nodes = ["node1", "node2"].map(|node| scene.at_node(node, family, number));
                let external = SocketAddr::new(external(family), 80);
                for from in INSIDE {
                    check(from, protocol, scene.cluster("web", family, 80));
                    check(from, protocol, external);
                    check(from, protocol, at_nodes[0]);
                    check(from, protocol, at_nodes[1]);
                }
                check(Place::Outside, protocol, external);
                check(Place::Outside, protocol, at_nodes[0]);
                check(Place::Outside, protocol, at_nodes[1]);
            }
        }
    };
    let refused = |from: Place<'_>, protocol: &str, to| scene.refused(from, protocol, to);
    everywhere(&refused);
    // A pod that was evicted has failed, and its addresses are nobody's: not published either.
    let mut evicted = server("evicted", "node2", "web");
    evicted["spec"]["restartPolicy"] = json!("Never");
    let container = &mut evicted["spec"]["containers"][0];
    container["args"] = json!(["connect", "tcp", "127.0.0.1:9"]);
    container.as_object_mut().unwrap().remove("readinessProbe");
    scene.apply(&evicted);
    until("the pod has failed", || {
        let pod = scene.playground.pod(NAMESPACE, "evicted")?;
        let phase = pod.and_then(|pod| pod.status?.phase);
        Ok(phase.as_deref() == Some("Failed"))
    })
    .unwrap();
    scene.check("the service has no endpoints", || {
        for family in scene.families.iter().copied() {
            let found = scene.playground.endpoints(NAMESPACE, "web", family)?;
            ensure!(found.is_empty(), "{found:?}");
        }
        Ok(())
    });
    everywhere(&refused);
    scene.add(&[server("a", "node1", "web")]);
    everywhere(&|from, protocol, to| scene.served(from, protocol, to, &["a"]));
    scene.playground.delete_pod(NAMESPACE, "a").unwrap();
    everywhere(&refused);
    scene.finish();
}

/// An address in the range that a cluster's services have, or in another, and nobody's.
fn unallocated(family: Family, third: u8) -> SocketAddr {
    let text = match family {
        Family::V4 => format!("10.{third}.0.77:80"),
        Family::V6 => format!("[fd00:10:{third}::77]:80"),
    };
    text.parse().unwrap()
}

/// Checks that a pod hears nothing; a process may be told by its own kernel.
fn leads_nowhere(scene: &Scene, from: Place<'_>, protocol: &str, to: SocketAddr) {
    match from {
        Place::Pod(..) => scene.silent(from, protocol, to),
        _ => scene.gone(from, protocol, to),
    }
}

#[test]
fn addresses_of_no_service_are_silent_and_ports_of_none_are_refused() {
    let scene = two_nodes("svcfree");
    scene.add(&[server("a", "node2", "web")]);
    scene.create(
        "web",
        json!({ "selector": { "app": "web" }, "ports": usual_ports() }),
    );
    for family in scene.families.iter().copied() {
        let web = |number| scene.cluster("web", family, number);
        for protocol in BOTH {
            for from in INSIDE {
                scene.served(from, protocol, web(80), &["a"]);
                scene.refused(from, protocol, web(81));
                leads_nowhere(&scene, from, protocol, unallocated(family, 96));
            }
        }
        // As a gateway, too.
        let node = scene.node("node1", family);
        let free = unallocated(family, 96);
        for address in [web(80).ip(), free.ip()] {
            scene.playground.show_outside(address, node).unwrap();
        }
        for protocol in BOTH {
            scene.refused(Place::Outside, protocol, web(81));
            scene.silent(Place::Outside, protocol, free);
        }
    }
    scene.finish();
}

#[test]
fn a_range_that_is_added_serves_and_is_silent_like_the_first() {
    let scene = two_nodes("svcrange");
    scene.add(&[server("a", "node2", "web")]);
    scene.apply(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": { "name": "more" },
        "spec": { "cidrs": ["10.97.0.0/24", "fd00:10:97::/112"] },
    }));
    let addresses = |last: &str| [format!("10.97.0.{last}"), format!("fd00:10:97::{last}")];
    let service = json!({
        "metadata": { "name": "more", "namespace": NAMESPACE },
        "apiVersion": "v1", "kind": "Service",
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
            "clusterIP": addresses("20")[0], "clusterIPs": addresses("20"),
            "selector": { "app": "web" }, "ports": usual_ports(),
        },
    });
    // The API server takes it once it knows of the range.
    until("the range gives addresses", || {
        Ok(scene.playground.apply(&service.to_string()).is_ok())
    })
    .unwrap();
    for family in scene.families.iter().copied() {
        let more = |number| scene.cluster("more", family, number);
        for protocol in BOTH {
            let number = scene.node_port("more", 80, &protocol.to_uppercase());
            for from in INSIDE {
                scene.served(from, protocol, more(80), &["a"]);
                scene.served(
                    from,
                    protocol,
                    scene.at_node("node1", family, number),
                    &["a"],
                );
                scene.refused(from, protocol, more(81));
                leads_nowhere(&scene, from, protocol, unallocated(family, 97));
            }
        }
    }
    scene.finish();
}

#[test]
fn a_port_of_a_node_that_is_no_node_port_is_the_nodes_own() {
    let scene = two_nodes("svcown");
    scene.add(&[server("a", "node2", "web")]);
    let service =
        json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", service);
    scene.add_host_pod("h", "node1", "host");
    for family in scene.families.iter().copied() {
        let number = scene.node_port("web", 80, "TCP");
        for from in INSIDE.into_iter().chain([Place::Outside]) {
            scene.served(from, "tcp", scene.at_node("node1", family, number), &["a"]);
            for (protocol, own) in [
                ("tcp", crate::scene::NODE_TCP),
                ("udp", crate::scene::NODE_UDP),
            ] {
                scene.served(from, protocol, scene.at_node("node1", family, own), &["h"]);
                scene.refused(from, protocol, SocketAddr::new(NODES.host(family, 10), 9));
            }
        }
    }
    scene.finish();
}
