//! Endpoints that are near: by zone and by node, while there are any, for clients inside and outside.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::playground::{Families, Family, Place, Playground};

use crate::scene::{NAMESPACE, Scene, client, host, pod, same, server, service};

const GATE: &str = "test/open";
const ALL: &[&str] = &["s1", "s2", "s4"];
const ZONE: &str = "topology.kubernetes.io/zone";

/// Who serves the clients of node1 to node6. These are in the zones a, b, c, a, b, c; the servers `s1`,
/// `s2` and `s4` are on the nodes of their number, in the zones a, b and a.
type Served = [&'static [&'static str]; 6];

const ANYWHERE: Served = [ALL; 6];
const BY_ZONE: Served = [&["s1", "s4"], &["s2"], ALL, &["s1", "s4"], &["s2"], ALL];
const BY_NODE: Served = [&["s1"], &["s2"], ALL, &["s4"], &["s2"], ALL];

#[test]
fn what_is_near_serves_while_it_is_there() {
    let plan = Playground::builder()
        .name("topology")
        .nodes(6)
        .zones(&["a", "b", "c"])
        .families(Families::Dual);
    let mut objects = vec![service("web", "web", "type: NodePort")];
    for (client_name, node) in [("c1", "node1"), ("c3", "node3"), ("c5", "node5")] {
        objects.push(client(client_name, node));
    }
    let scene = Scene::start(plan, &objects);
    let gate = format!("readinessGates: [{{ conditionType: {GATE} }}]");
    for (name, node) in [("s1", "node1"), ("s2", "node2"), ("s4", "node4")] {
        let yaml = server(name, node, "web", "", &gate);
        scene.playground.apply(&yaml).unwrap();
        set(&scene, name, true);
    }
    check(&scene, &ANYWHERE);
    for distribution in ["PreferSameZone", "PreferClose"] {
        distribute(&scene, Some(distribution));
        check(&scene, &BY_ZONE);
        distribute(&scene, None);
        spot_check(&scene, 1, ALL);
    }
    distribute(&scene, Some("PreferSameNode"));
    check(&scene, &BY_NODE);

    // First the zone takes over, then the cluster, and the other way round.
    set(&scene, "s1", false);
    spot_check(&scene, 1, &["s4"]);
    spot_check(&scene, 4, &["s4"]);
    set(&scene, "s4", false);
    spot_check(&scene, 1, &["s2"]);
    spot_check(&scene, 4, &["s2"]);
    set(&scene, "s4", true);
    spot_check(&scene, 1, &["s4"]);
    set(&scene, "s1", true);
    check(&scene, &BY_NODE);

    // A node that moves to another zone, and one that is in none.
    distribute(&scene, Some("PreferSameZone"));
    check(&scene, &BY_ZONE);
    for (zone, served) in [
        (json!("b"), BY_ZONE[1]),
        (json!(null), ALL),
        (json!("a"), BY_ZONE[0]),
    ] {
        let patch = json!({ "metadata": { "labels": { ZONE: zone } } });
        scene.playground.patch_node("node3", &patch).unwrap();
        spot_check(&scene, 3, served);
    }
    let patch = json!({ "metadata": { "labels": { ZONE: "c" } } });
    scene.playground.patch_node("node3", &patch).unwrap();
    distribute(&scene, None);
    shared_among_zones(&scene);
    scene.finish();
}

/// The older way: every zone has its share, here one of the three servers.
fn shared_among_zones(scene: &Scene) {
    let auto = json!({ "metadata": { "annotations": {
        "service.kubernetes.io/topology-mode": "Auto",
    } } });
    scene.patch("web", &auto);
    for family in Family::BOTH {
        let cluster_ip = scene.at_cluster_ip("web", family);
        scene.soon(&format!("each zone has its own server, {family:?}"), || {
            let mut of_zones = [const { None }; 3];
            for (index, zone) in (0..3).chain(0..3).enumerate() {
                let node = format!("node{}", index + 1);
                let counted = scene.count(host(&node), "tcp", cluster_ip, 6)?;
                let names = counted.names();
                ensure!(names.len() == 1, "{node}: {counted:?}");
                let name = names[0].to_owned();
                let known = of_zones[zone].get_or_insert_with(|| name.clone());
                ensure!(*known == name, "{node}: {name}, and {of_zones:?}");
            }
            let all: BTreeSet<&str> = of_zones.iter().flatten().map(String::as_str).collect();
            same(&all, &ALL.iter().copied().collect())
        });
    }
}

fn distribute(scene: &Scene, distribution: Option<&str>) {
    scene.patch(
        "web",
        &json!({ "spec": { "trafficDistribution": distribution } }),
    );
}

fn set(scene: &Scene, name: &str, open: bool) {
    let done = || -> Result<()> {
        scene.playground.set_gate(NAMESPACE, name, GATE, open)?;
        scene.playground.wait_readiness(NAMESPACE, name, open)
    };
    done().unwrap();
}

/// Clients on all nodes, by their processes.
fn check(scene: &Scene, served: &Served) {
    for (number, servers) in (1..).zip(served) {
        spot_check(scene, number, servers);
    }
}

/// Clients of one node: its processes, a pod where there is one, and the outside through it.
fn spot_check(scene: &Scene, number: u8, servers: &[&str]) {
    let node = format!("node{number}");
    let pod_name = format!("c{number}");
    for family in Family::BOTH {
        let cluster_ip = scene.at_cluster_ip("web", family);
        scene.expect(host(&node), "tcp", cluster_ip, servers, None);
        if matches!(number, 1 | 3 | 5) {
            scene.expect(pod(&pod_name), "tcp", cluster_ip, servers, None);
            let through = scene.at_node("web", &node, family, "TCP");
            scene.expect(Place::Outside, "tcp", through, servers, None);
        }
    }
}
