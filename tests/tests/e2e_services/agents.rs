//! Services while agents are away, or the API server is.

use serde_json::{Value, json};
use weft_tests::playground::{Background, Family, Place, Playground};

use crate::scene::{BOTH, NAMESPACE, Scene, host, pod, server, usual_ports};

/// Long enough for everything that happens meanwhile; it is ended as soon as that is over.
const LONG: [&str; 2] = ["--duration", "50"];

/// Streams from everywhere through the service `web`, which only `b` serves.
fn streams(scene: &Scene) -> Vec<(String, Background)> {
    let mut all = Vec::new();
    let number = |protocol: &str| scene.node_port("web", 80, &protocol.to_uppercase());
    for family in scene.families.iter().copied() {
        for protocol in BOTH {
            let cluster = scene.cluster("web", family, 80);
            let at_node = scene.at_node("node1", family, number(protocol));
            for (from, to) in [
                (pod("c"), cluster),
                (host("node1"), cluster),
                (Place::Outside, at_node),
            ] {
                let target = to.to_string();
                let args = [&["stream", protocol, &target, "--rate", "50"], &LONG[..]].concat();
                let what = format!("{from:?} to {protocol} {to}");
                all.push((what, scene.playground.spawn_at(from, &args).unwrap()));
            }
        }
    }
    all
}

/// Ends the streams; nothing of them may be lost.
fn finish(scene: &Scene, streams: Vec<(String, Background)>) {
    for (what, stream) in streams {
        scene.check(&what, || {
            let output = stream.stop()?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            anyhow::ensure!(output.status.success(), "{report}");
            anyhow::ensure!(report["servers"] == json!(["b"]), "{report}");
            Ok(())
        });
    }
}

/// Checks who serves `web`, from everywhere, by its cluster address and its node port.
fn expect(scene: &Scene, service: &str, servers: &[&str]) {
    for family in scene.families.iter().copied() {
        let cluster = scene.cluster(service, family, 80);
        for protocol in BOTH {
            let number = scene.node_port(service, 80, &protocol.to_uppercase());
            for from in [pod("c"), host("node1")] {
                scene.served(from, protocol, cluster, servers);
            }
            let at_node = |node| scene.at_node(node, family, number);
            scene.served(Place::Outside, protocol, at_node("node1"), servers);
        }
    }
}

fn scene(name: &str) -> Scene {
    let scene = Scene::start(
        Playground::builder().name(name).nodes(2),
        &[server("b", "node2", "web"), server("c", "node1", "client")],
    );
    scene.create("web", node_port_service());
    scene
}

fn node_port_service() -> Value {
    json!({ "type": "NodePort", "selector": { "app": "web" }, "ports": usual_ports() })
}

#[test]
fn services_are_served_while_the_agent_is_away_and_brought_up_to_date_after() {
    let mut scene = scene("svcagent");
    scene.create("old", node_port_service());
    expect(&scene, "web", &["b"]);
    expect(&scene, "old", &["b"]);
    let old: Vec<_> = [Family::V4, Family::V6]
        .map(|family| scene.cluster("old", family, 80))
        .into();
    let streams = streams(&scene);
    scene.playground.kill_agent("node1").unwrap();
    expect(&scene, "web", &["b"]);
    // What it does not hear of.
    scene.remove("old");
    scene.create("new", node_port_service());
    scene.add(&[server("d", "node2", "web")]);
    scene.playground.start_agent("node1").unwrap();
    scene.playground.wait_agent_ready("node1").unwrap();
    expect(&scene, "web", &["b", "d"]);
    expect(&scene, "new", &["b", "d"]);
    for address in old {
        scene.gone(pod("c"), "tcp", address);
        scene.gone(host("node1"), "tcp", address);
    }
    finish(&scene, streams);
    scene.finish();
}

#[test]
fn services_are_served_while_the_api_server_is_away_and_brought_up_to_date_after() {
    let mut scene = scene("svcapi");
    expect(&scene, "web", &["b"]);
    let streams = streams(&scene);
    let addresses: Vec<_> = scene
        .families
        .iter()
        .map(|family| scene.cluster("web", *family, 80))
        .collect();
    scene.playground.stop_api();
    for address in addresses {
        for protocol in BOTH {
            for from in [pod("c"), host("node1")] {
                scene.served(from, protocol, address, &["b"]);
            }
        }
    }
    scene.playground.restart_api().unwrap();
    scene.create("new", node_port_service());
    scene.add(&[server("d", "node2", "web")]);
    expect(&scene, "new", &["b", "d"]);
    expect(&scene, "web", &["b", "d"]);
    scene.playground.delete_pod(NAMESPACE, "d").unwrap();
    expect(&scene, "web", &["b"]);
    finish(&scene, streams);
    scene.finish();
}
