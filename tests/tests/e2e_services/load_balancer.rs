//! Load balancers' addresses and externalIPs, whoever shows them to the outside.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use weft_tests::playground::{
    Family, Place, Playground,
    families::{BALANCED, NODES},
};

use crate::scene::{BOTH, NAMESPACE, Scene, TCP, UDP, host, pod, port, server, usual_ports};

fn two_nodes(name: &str) -> Scene {
    let plan = Playground::builder().name(name).nodes(2).load_balancers();
    Scene::start(
        plan,
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("c", "node1", "client"),
        ],
    )
}

fn balancer(scene: &Scene, service: &str, family: Family) -> IpAddr {
    let address = scene
        .playground
        .wait_balancer_ip(NAMESPACE, service, family);
    address.unwrap()
}

/// Checks that an address, which is not a node's, serves everybody; the outside comes in at `node1`.
fn serves_everybody(scene: &Scene, address: IpAddr, number: u16) {
    let family = Family::of(address);
    let to = SocketAddr::new(address, number);
    let node = |name| scene.node(name, family);
    scene
        .playground
        .show_outside(address, node("node1"))
        .unwrap();
    for protocol in BOTH {
        for (from, seen) in [
            (pod("c"), vec![scene.pod("c", family)]),
            (host("node1"), vec![node("node1")]),
            (host("node2"), vec![node("node2")]),
            (Place::Outside, vec![scene.outside(family), node("node1")]),
        ] {
            scene.served_to(from, protocol, to, &["a", "b"], &seen);
        }
    }
}

#[test]
fn the_address_of_a_balancer_serves_everybody_through_all_changes() {
    let scene = two_nodes("svclb");
    let web =
        json!({ "type": "LoadBalancer", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", web.clone());
    // Without node ports.
    let mut bare = web;
    bare["allocateLoadBalancerNodePorts"] = json!(false);
    scene.create("bare", bare);
    scene.check("the service has no node ports", || {
        let found = scene.playground.node_port(NAMESPACE, "bare", 80, "TCP");
        anyhow::ensure!(found.is_err(), "{found:?}");
        Ok(())
    });
    let everyone = [pod("c"), host("node1"), host("node2"), Place::Outside];
    for family in scene.families.iter().copied() {
        let web = balancer(&scene, "web", family);
        serves_everybody(&scene, web, 80);
        serves_everybody(&scene, balancer(&scene, "bare", family), 80);
        let at_node = scene.at_node("node1", family, scene.node_port("web", 80, "TCP"));
        scene.served(Place::Outside, "tcp", at_node, &["a", "b"]);
    }
    // Other ports, also of the nodes.
    let mut ports = json!([port("tcp", 81, "TCP", TCP), port("udp", 81, "UDP", UDP)]);
    let old = scene.node_port("web", 80, "TCP");
    let new = 31_999;
    ports[0]["nodePort"] = json!(new);
    scene.change("web", json!({ "ports": ports }));
    for family in scene.families.iter().copied() {
        let web = balancer(&scene, "web", family);
        serves_everybody(&scene, web, 81);
        for from in everyone {
            scene.gone(from, "tcp", SocketAddr::new(web, 80));
            scene.served(
                from,
                "tcp",
                scene.at_node("node1", family, new),
                &["a", "b"],
            );
            scene.refused(from, "tcp", scene.at_node("node1", family, old));
        }
    }
    // Nobody there, and somebody again.
    scene.change("web", json!({ "selector": { "app": "nobody" } }));
    for family in scene.families.iter().copied() {
        let web = balancer(&scene, "web", family);
        for from in everyone {
            for protocol in BOTH {
                scene.refused(from, protocol, SocketAddr::new(web, 81));
            }
        }
    }
    scene.change("web", json!({ "selector": { "app": "web" } }));
    // Another type: the address is gone, the cluster's stays.
    for family in scene.families.iter().copied() {
        let web = balancer(&scene, "web", family);
        serves_everybody(&scene, web, 81);
    }
    let addresses: Vec<IpAddr> = scene
        .families
        .iter()
        .map(|family| balancer(&scene, "web", *family))
        .collect();
    scene.change("web", json!({ "type": "ClusterIP" }));
    for address in addresses {
        for from in everyone {
            scene.gone(from, "tcp", SocketAddr::new(address, 81));
        }
        let cluster = scene.cluster("web", Family::of(address), 81);
        scene.served(pod("c"), "tcp", cluster, &["a", "b"]);
        // The other one is not concerned.
        serves_everybody(&scene, balancer(&scene, "bare", Family::of(address)), 80);
    }
    scene.finish();
}

#[test]
fn the_address_of_a_proxy_is_left_to_it() {
    let scene = Scene::start(
        Playground::builder().name("svcproxy").nodes(2),
        &[server("a", "node2", "web"), server("c", "node1", "client")],
    );
    let outside = scene.playground.outside();
    let addresses: Vec<IpAddr> = scene
        .families
        .iter()
        .map(|family| outside.addresses(*family)[1])
        .collect();
    let listed: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let listed = listed.join(",");
    let args = [
        "serve",
        "--name",
        "proxy",
        "--address",
        &listed,
        "--tcp",
        "80",
        "--udp",
        "80",
    ];
    let _proxy = outside.spawn(&args).unwrap();
    let service =
        json!({ "type": "LoadBalancer", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", service);
    let report = |mode| {
        scene
            .playground
            .report_ingress(NAMESPACE, "web", &addresses, mode)
            .unwrap();
    };
    let expect = |server: &str| {
        for address in &addresses {
            for protocol in BOTH {
                for from in [pod("c"), host("node1"), host("node2")] {
                    scene.served(from, protocol, SocketAddr::new(*address, 80), &[server]);
                }
            }
        }
    };
    // Nobody has reported yet, and perhaps nobody ever will.
    for family in scene.families.iter().copied() {
        for protocol in BOTH {
            for from in [pod("c"), host("node1")] {
                scene.served(from, protocol, scene.cluster("web", family, 80), &["a"]);
            }
        }
    }
    report("VIP");
    expect("a");
    report("Proxy");
    expect("proxy");
    report("VIP");
    expect("a");
    scene.finish();
}

#[test]
fn external_addresses_serve_everybody() {
    let scene = two_nodes("svcext");
    // One that is nobody's, and one that is a node's.
    let foreign = |family| BALANCED.host(family, 250);
    let own = |family| NODES.host(family, 201);
    let addresses: Vec<IpAddr> = scene
        .families
        .iter()
        .flat_map(|family| [foreign(*family), own(*family)])
        .collect();
    for family in scene.families.iter().copied() {
        scene.playground.add_address("node1", own(family)).unwrap();
    }
    let mut service = json!({ "selector": { "app": "web" }, "ports": usual_ports() });
    service["externalIPs"] = json!(addresses);
    scene.create("web", service);
    let everyone = [pod("c"), host("node1"), host("node2"), Place::Outside];
    for family in scene.families.iter().copied() {
        serves_everybody(&scene, foreign(family), 80);
        let to = SocketAddr::new(own(family), 80);
        for protocol in BOTH {
            for from in everyone {
                scene.served(from, protocol, to, &["a", "b"]);
            }
        }
    }
    scene.change("web", json!({ "externalIPs": Value::Null }));
    for family in scene.families.iter().copied() {
        for protocol in BOTH {
            for from in everyone {
                scene.gone(from, protocol, SocketAddr::new(foreign(family), 80));
                // The node has it still, and nobody listens there.
                scene.refused(from, protocol, SocketAddr::new(own(family), 80));
            }
            scene.served(
                pod("c"),
                protocol,
                scene.cluster("web", family, 80),
                &["a", "b"],
            );
        }
    }
    scene.finish();
}
