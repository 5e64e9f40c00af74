//! Services that are not for the nodes to serve, or only for a time.

use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_tests::playground::{Place, Playground};

use crate::scene::{BOTH, NAMESPACE, Scene, host, pod, server, usual_ports};

const EVERYONE: [Place<'_>; 3] = [pod("c"), host("node1"), host("node2")];

fn two_nodes(name: &str) -> Scene {
    Scene::start(
        Playground::builder().name(name).nodes(2),
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("c", "node1", "client"),
        ],
    )
}

/// All addresses of a service with port 80: of the cluster, and of the nodes if it has node ports.
struct Addresses {
    cluster: Vec<SocketAddr>,
    nodes: Vec<(&'static str, SocketAddr)>,
}

impl Addresses {
    fn of(scene: &Scene, service: &str, with_node_ports: bool) -> Self {
        let cluster = scene
            .families
            .iter()
            .map(|family| scene.cluster(service, *family, 80));
        let mut nodes = Vec::new();
        for protocol in BOTH.iter().filter(|_| with_node_ports) {
            let number = scene.node_port(service, 80, &protocol.to_uppercase());
            for family in scene.families.iter().copied() {
                for node in ["node1", "node2"] {
                    nodes.push((*protocol, scene.at_node(node, family, number)));
                }
            }
        }
        Addresses {
            cluster: cluster.collect(),
            nodes,
        }
    }

    fn are_served(&self, scene: &Scene) {
        for from in EVERYONE {
            for to in &self.cluster {
                for protocol in BOTH {
                    scene.served(from, protocol, *to, &["a", "b"]);
                }
            }
            for (protocol, to) in &self.nodes {
                scene.served(from, protocol, *to, &["a", "b"]);
            }
        }
        for (protocol, to) in &self.nodes {
            scene.served(Place::Outside, protocol, *to, &["a", "b"]);
        }
    }

    fn are_nobodys(&self, scene: &Scene) {
        for from in EVERYONE {
            for to in &self.cluster {
                for protocol in BOTH {
                    scene.gone(from, protocol, *to);
                }
            }
            for (protocol, to) in &self.nodes {
                scene.refused(from, protocol, *to);
            }
        }
        for (protocol, to) in &self.nodes {
            scene.refused(Place::Outside, protocol, *to);
        }
    }
}

#[test]
fn names_of_others_become_services_and_services_names_of_others() {
    let scene = two_nodes("svcnames");
    let alias = json!({ "type": "ExternalName", "externalName": "example.org" });
    for (name, kind) in [("cluster", "ClusterIP"), ("nodes", "NodePort")] {
        scene.create(name, alias.clone());
        let service = json!({
            "type": kind, "externalName": Value::Null, "ipFamilyPolicy": "PreferDualStack",
            "selector": { "app": "web" }, "ports": usual_ports(),
        });
        scene.change(name, service);
        let addresses = Addresses::of(&scene, name, kind == "NodePort");
        addresses.are_served(&scene);
        scene.change(name, alias.clone());
        addresses.are_nobodys(&scene);
    }
    scene.finish();
}

#[test]
fn services_of_other_proxies_are_left_to_them() {
    let scene = two_nodes("svcother");
    let service =
        json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("own", service.clone());
    let labels = json!({ "service.kubernetes.io/service-proxy-name": "somebody" });
    scene.create_labelled("other", &labels, service);
    let own = Addresses::of(&scene, "own", true);
    let other = Addresses::of(&scene, "other", true);
    own.are_served(&scene);
    other.are_nobodys(&scene);
    let label = |service: &str, value: Value| {
        let labels = json!({ "service.kubernetes.io/service-proxy-name": value });
        let patch = json!({ "metadata": { "labels": labels } });
        scene
            .playground
            .patch_service(NAMESPACE, service, &patch)
            .unwrap();
    };
    label("other", Value::Null);
    other.are_served(&scene);
    own.are_served(&scene);
    label("own", json!("somebody"));
    own.are_nobodys(&scene);
    other.are_served(&scene);
    scene.finish();
}

#[test]
fn headless_services_leave_their_pods_as_they_are() {
    let scene = two_nodes("svcheadless");
    scene.create(
        "headless",
        json!({ "clusterIP": "None", "selector": { "app": "web" }, "ports": usual_ports() }),
    );
    // One that is served shows that the agents know of what came before it.
    scene.create(
        "web",
        json!({ "selector": { "app": "web" }, "ports": usual_ports() }),
    );
    Addresses::of(&scene, "web", false).are_served(&scene);
    for family in scene.families.iter().copied() {
        let pod_itself = |number| SocketAddr::new(scene.pod("b", family), number);
        for from in EVERYONE {
            for (protocol, number) in [("tcp", crate::scene::TCP), ("udp", crate::scene::UDP)] {
                scene.served(from, protocol, pod_itself(number), &["b"]);
                scene.refused(from, protocol, pod_itself(80));
            }
        }
    }
    scene.finish();
}
