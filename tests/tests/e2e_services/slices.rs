//! Endpoints that come in other ways than by a selector, and in many slices.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use weft_tests::playground::{Family, Place, Playground, until};

use crate::scene::{
    BOTH, NAMESPACE, Scene, TCP, UDP, host, pod, port, server, server_of, usual_ports,
};

/// A slice as another's controller writes it.
fn slice(scene: &Scene, name: &str, service: &str, pods: &[&str], ports: &[(&str, u16)]) {
    for family in scene.families.iter().copied() {
        let endpoint = |pod: &&str| json!({ "addresses": [scene.pod(pod, family)], "conditions": { "ready": true } });
        let ports = ports
            .iter()
            .map(|(name, number)| json!({ "name": name, "port": number, "protocol": "TCP" }));
        scene.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{}", family.name().to_lowercase()),
                "namespace": NAMESPACE,
                "labels": {
                    "kubernetes.io/service-name": service,
                    "endpointslice.kubernetes.io/managed-by": "somebody.example",
                },
            },
            "addressType": family.name(),
            "endpoints": pods.iter().map(endpoint).collect::<Vec<Value>>(),
            "ports": ports.collect::<Vec<Value>>(),
        }));
    }
}

fn slices(scene: &Scene) -> Api<EndpointSlice> {
    Api::namespaced(scene.playground.client(), NAMESPACE)
}

#[test]
fn slices_of_others_serve_services_without_a_selector() {
    let two = [("one", 7001, "TCP"), ("two", 7002, "TCP")];
    let scene = Scene::start(
        Playground::builder().name("svcslices").nodes(2),
        &[
            server_of("a", "node1", "any", &two),
            server_of("b", "node2", "any", &two),
            server("c", "node1", "client"),
        ],
    );
    let ports = json!([port("one", 80, "TCP", 80), port("two", 81, "TCP", 81)]);
    for service in ["ports", "pods", "labelled"] {
        scene.create(service, json!({ "ports": ports }));
    }
    // One pod, each port of it in a slice of its own.
    slice(&scene, "ports-1", "ports", &["a"], &[("one", 7001)]);
    slice(&scene, "ports-2", "ports", &["a"], &[("two", 7002)]);
    // Two pods, each for one of the ports.
    slice(&scene, "pods-1", "pods", &["a"], &[("one", 7001)]);
    slice(&scene, "pods-2", "pods", &["b"], &[("two", 7001)]);
    // Two pods for the same port, with different numbers, and nobody for the other.
    slice(&scene, "labelled-1", "labelled", &["a"], &[("one", 7001)]);
    slice(&scene, "labelled-2", "labelled", &["b"], &[("one", 7002)]);
    let everyone = [pod("c"), host("node1"), host("node2")];
    for family in scene.families.iter().copied() {
        let at = |service, number| scene.cluster(service, family, number);
        for from in everyone {
            scene.served(from, "tcp", at("ports", 80), &["a"]);
            scene.served(from, "tcp", at("ports", 81), &["a"]);
            scene.served(from, "tcp", at("pods", 80), &["a"]);
            scene.served(from, "tcp", at("pods", 81), &["b"]);
            scene.served(from, "tcp", at("labelled", 80), &["a", "b"]);
            scene.refused(from, "tcp", at("labelled", 81));
        }
    }
    // The label takes a slice away, and its loss gives it back.
    let label = |name: &str, value: Value| {
        let patch =
            json!({ "metadata": { "labels": { "service.kubernetes.io/headless": value } } });
        let api = slices(&scene);
        for family in ["ipv4", "ipv6"] {
            let change = Patch::Merge(&patch);
            let name = format!("{name}-{family}");
            scene
                .playground
                .block_on(api.patch(&name, &PatchParams::default(), &change))
                .unwrap();
        }
    };
    let expect = |servers: &[&str]| {
        for family in scene.families.iter().copied() {
            let to = scene.cluster("labelled", family, 80);
            for from in everyone {
                if servers.is_empty() {
                    scene.refused(from, "tcp", to);
                } else {
                    scene.served(from, "tcp", to, servers);
                }
            }
        }
    };
    label("labelled-1", json!(""));
    expect(&["b"]);
    label("labelled-2", json!(""));
    expect(&[]);
    label("labelled-1", Value::Null);
    expect(&["a"]);
    // A slice that is gone is gone, and the other is not.
    for family in ["ipv4", "ipv6"] {
        let delete = async {
            let name = format!("pods-1-{family}");
            slices(&scene).delete(&name, &DeleteParams::default()).await
        };
        scene.playground.block_on(delete).unwrap();
    }
    for family in scene.families.iter().copied() {
        for from in everyone {
            scene.refused(from, "tcp", scene.cluster("pods", family, 80));
            scene.served(from, "tcp", scene.cluster("pods", family, 81), &["b"]);
        }
    }
    scene.finish();
}

#[test]
fn endpoints_by_hand_are_mirrored() {
    let scene = Scene::start(
        Playground::builder().name("svcmirror").nodes(2),
        &[
            server_of(
                "a",
                "node2",
                "any",
                &[("one", 7001, "TCP"), ("two", 7002, "TCP")],
            ),
            server("c", "node1", "client"),
        ],
    );
    let ports = json!([port("one", 80, "TCP", 80), port("two", 81, "TCP", 81)]);
    let endpoints = |family: Family, subsets: &[(&str, u16)]| {
        let subset = |(name, number): &(&str, u16)| {
            json!({
                "addresses": [{ "ip": scene.pod("a", family) }],
                "ports": [{ "name": name, "port": number, "protocol": "TCP" }],
            })
        };
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": { "name": family.name().to_lowercase(), "namespace": NAMESPACE },
            "subsets": subsets.iter().map(subset).collect::<Vec<Value>>(),
        }));
    };
    for family in scene.families.iter().copied() {
        let name = family.name().to_lowercase();
        let families = json!([family.name()]);
        scene.create(
            &name,
            json!({ "ports": ports, "ipFamilyPolicy": "SingleStack", "ipFamilies": families }),
        );
        endpoints(family, &[("one", 7001), ("two", 7002)]);
        for from in [pod("c"), host("node1"), host("node2")] {
            for number in [80, 81] {
                let to = scene.cluster(&name, family, number);
                scene.served(from, "tcp", to, &["a"]);
            }
        }
        endpoints(family, &[("two", 7002)]);
        for from in [pod("c"), host("node1"), host("node2")] {
            scene.refused(from, "tcp", scene.cluster(&name, family, 80));
            scene.served(from, "tcp", scene.cluster(&name, family, 81), &["a"]);
        }
    }
    scene.finish();
}

#[test]
fn the_endpoints_of_many_slices_are_one_service() {
    let pods = ["a1", "a2", "a3", "a4", "a5"];
    let mut all: Vec<Value> = pods
        .iter()
        .zip(["node1", "node2"].iter().cycle())
        .map(|(name, node)| server(name, node, "web"))
        .collect();
    all.push(server("c", "node1", "client"));
    let plan = Playground::builder().name("svcmany").nodes(2);
    let scene = Scene::start(plan.slice_size(2), &all);
    scene.create(
        "web",
        json!({ "selector": { "app": "web" }, "ports": usual_ports() }),
    );
    let of_service = ListParams::default().labels("kubernetes.io/service-name=web");
    until("there are three slices of each family", || {
        let list = slices(&scene);
        let found = scene.playground.block_on(list.list(&of_service))?;
        Ok(found.items.len() == 6)
    })
    .unwrap();
    let expect = |servers: &[&str]| {
        for family in scene.families.iter().copied() {
            let web = scene.cluster("web", family, 80);
            for protocol in BOTH {
                for from in [pod("c"), host("node1"), host("node2")] {
                    scene.served(from, protocol, web, servers);
                }
            }
        }
    };
    expect(&pods);
    scene.playground.delete_pod(NAMESPACE, "a2").unwrap();
    expect(&["a1", "a3", "a4", "a5"]);
    // Ports that move to others take their slices along.
    scene.change(
        "web",
        json!({ "ports": [port("tcp", 80, "TCP", TCP), port("udp", 80, "UDP", UDP),
                          port("more", 81, "TCP", TCP)] }),
    );
    for family in scene.families.iter().copied() {
        let more = scene.cluster("web", family, 81);
        scene.served(pod("c"), "tcp", more, &["a1", "a3", "a4", "a5"]);
    }
    expect(&["a1", "a3", "a4", "a5"]);
    scene.finish();
}

#[test]
fn endpoints_outside_the_cluster_see_nodes() {
    let scene = Scene::start(
        Playground::builder().name("svcaway").nodes(2),
        &[server("c", "node1", "client")],
    );
    let outside = scene.playground.outside();
    let addresses: Vec<_> = scene
        .families
        .iter()
        .map(|family| outside.addresses(*family)[1])
        .collect();
    let listed = format!("{},{}", addresses[0], addresses[1]);
    let args = [
        "serve",
        "--name",
        "away",
        "--address",
        &listed,
        "--tcp",
        "7000",
        "--udp",
        "5300",
    ];
    let _away = outside.spawn(&args).unwrap();
    scene.create("web", json!({ "type": "NodePort", "ports": usual_ports() }));
    for (family, address) in scene.families.iter().zip(&addresses) {
        scene.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("web-{}", family.name().to_lowercase()),
                "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": family.name(),
            "endpoints": [{ "addresses": [address] }],
            "ports": [{ "name": "tcp", "port": TCP, "protocol": "TCP" },
                      { "name": "udp", "port": UDP, "protocol": "UDP" }],
        }));
    }
    for family in scene.families.iter().copied() {
        let (node1, node2) = (scene.node("node1", family), scene.node("node2", family));
        let cluster = scene.cluster("web", family, 80);
        for protocol in BOTH {
            let number = scene.node_port("web", 80, &protocol.to_uppercase());
            let at_node2 = scene.at_node("node2", family, number);
            for (from, to, seen) in [
                (pod("c"), cluster, node1),
                (host("node1"), cluster, node1),
                (host("node2"), cluster, node2),
                (pod("c"), at_node2, node2),
                (host("node1"), at_node2, node2),
                (Place::Outside, at_node2, node2),
            ] {
                scene.served_to(from, protocol, to, &["away"], &[seen]);
                // Answers may be larger than what fits between pods.
                for size in ["1430", "2000"] {
                    scene.answers(from, protocol, to, &["--size", size], |answer| {
                        answer.starts_with("away ")
                    });
                }
            }
        }
    }
    scene.finish();
}
