//! Endpoints that are not ready: terminating ones serve while nothing better is there, unready ones
//! when the service says so, and no change of readiness loses a request.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};
use weft_tests::playground::{Families, Family, Place, Playground};

use crate::prober::Prober;
use crate::scene::{
    NAMESPACE, PROTOCOLS, Scene, client, health_check_port, host, http, pod, server, service,
};

/// More than any test takes.
const LINGER: &str = r#", --linger, "60""#;

#[test]
fn terminating_endpoints_serve_while_there_are_no_others() {
    let plan = Playground::builder()
        .name("ending")
        .nodes(3)
        .families(Families::Dual);
    let objects = [
        client("a", "node1"),
        client("c", "node3"),
        server("e1", "node1", "web", LINGER, ""),
        server("e2", "node2", "web", LINGER, ""),
        service("anywhere", "web", "type: NodePort"),
        service(
            "near",
            "web",
            "type: NodePort\n  internalTrafficPolicy: Local",
        ),
        service(
            "through-own",
            "web",
            "type: LoadBalancer\n  externalTrafficPolicy: Local",
        ),
    ];
    let scene = Scene::start(plan, &objects);
    let port = health_check_port(&scene, "through-own").unwrap();
    let healthy = |expected: [u16; 3]| {
        for (node, expected) in ["node1", "node2", "node3"].into_iter().zip(expected) {
            let to = SocketAddr::new(scene.node(node, Family::V4), port);
            scene.soon(&format!("{to} answers {expected}"), || {
                let (status, answer) = http(&scene, Place::Outside, to, "/")?;
                ensure!(status == expected, "{answer}");
                Ok(())
            });
        }
    };
    let delete = |name: &str| scene.playground.begin_delete_pod(NAMESPACE, name).unwrap();

    expect_everywhere(&scene, &["e1", "e2"]);
    expect_own(&scene);
    healthy([200, 200, 503]);

    // One ends: where endpoints are chosen in the cluster there is a better one, and where they are
    // chosen on the node there is none.
    delete("e1");
    healthy([503, 200, 503]);
    expect_everywhere(&scene, &["e2"]);
    expect_own(&scene);

    // All end: they are all that there is.
    delete("e2");
    healthy([503, 503, 503]);
    expect_everywhere(&scene, &["e1", "e2"]);
    expect_own(&scene);
    scene.finish();
}

/// Who answers where endpoints of the whole cluster are chosen from.
fn expect_everywhere(scene: &Scene, servers: &[&str]) {
    for family in Family::BOTH {
        for (protocol, name) in PROTOCOLS {
            let cluster_ip = scene.at_cluster_ip("anywhere", family);
            for from in [pod("a"), host("node1"), pod("c"), host("node3")] {
                scene.expect(from, protocol, cluster_ip, servers, None);
            }
            for node in ["node1", "node3"] {
                let to = scene.at_node("anywhere", node, family, name);
                scene.expect(Place::Outside, protocol, to, servers, None);
            }
            // Who asks its own node might have come by any other.
            let to = scene.at_node("through-own", "node1", family, name);
            for from in [pod("a"), host("node1")] {
                scene.expect(from, protocol, to, servers, None);
            }
        }
    }
}

/// Each node has its own endpoint, the third none.
fn expect_own(scene: &Scene) {
    for family in Family::BOTH {
        for (protocol, name) in PROTOCOLS {
            let inside = scene.at_cluster_ip("near", family);
            for (from, server) in [
                (pod("a"), "e1"),
                (host("node1"), "e1"),
                (host("node2"), "e2"),
            ] {
                scene.expect(from, protocol, inside, &[server], None);
            }
            let through = |node| scene.at_node("through-own", node, family, name);
            for (node, server) in [("node1", "e1"), ("node2", "e2")] {
                scene.expect(Place::Outside, protocol, through(node), &[server], None);
                scene.expect(pod("c"), protocol, through(node), &[server], None);
            }
            scene.expect_silence(&[
                (pod("c"), protocol, inside),
                (host("node3"), protocol, inside),
                (Place::Outside, protocol, through("node3")),
                (pod("a"), protocol, through("node3")),
            ]);
        }
    }
}

#[test]
fn unready_endpoints_serve_if_they_are_published() {
    let plan = Playground::builder()
        .name("unready")
        .nodes(2)
        .families(Families::Dual);
    let unready = format!(r#", --http, "8080", --unready{LINGER}"#);
    let gate = "readinessGates: [{ conditionType: test/never }]";
    let objects = [
        client("a", "node1"),
        client("b", "node2"),
        service(
            "web",
            "web",
            "type: NodePort\n  publishNotReadyAddresses: true",
        ),
    ];
    let scene = Scene::start(plan, &objects);
    let never_ready = server("u", "node1", "web", &unready, gate);
    scene.playground.apply(&never_ready).unwrap();
    let publish = |published: bool| {
        let patch = json!({ "spec": { "publishNotReadyAddresses": published } });
        scene.patch("web", &patch);
        for family in Family::BOTH {
            for (protocol, name) in PROTOCOLS {
                let cluster_ip = scene.at_cluster_ip("web", family);
                let inside = [pod("a"), host("node1"), pod("b"), host("node2")];
                let mut ways = inside.map(|from| (from, cluster_ip)).to_vec();
                for node in ["node1", "node2"] {
                    let to = scene.at_node("web", node, family, name);
                    ways.extend([Place::Outside, pod("b")].map(|from| (from, to)));
                }
                for (from, to) in ways {
                    if published {
                        scene.expect(from, protocol, to, &["u"], None);
                    } else {
                        scene.expect_refusal(from, protocol, to);
                    }
                }
            }
        }
    };
    publish(true);
    publish(false);
    publish(true);
    // Not ready and about to end: only who asks for it gets it.
    scene.playground.begin_delete_pod(NAMESPACE, "u").unwrap();
    publish(true);
    publish(false);
    scene.finish();
}

const GATE: &str = "test/open";

#[test]
fn readiness_changes_without_a_lost_request() {
    let plan = Playground::builder()
        .name("flips")
        .nodes(2)
        .families(Families::Dual)
        .load_balancers();
    let gate = format!("readinessGates: [{{ conditionType: {GATE} }}]");
    let objects = [
        client("a", "node2"),
        service("web", "web", "type: LoadBalancer"),
    ];
    let scene = Scene::start(plan, &objects);
    let servers = [
        server("blue", "node1", "web", "", &gate),
        server("green", "node2", "web", "", &gate),
    ];
    scene.playground.apply(&servers.concat()).unwrap();
    let set = |name: &str, open: bool| {
        // The pod must be there first.
        scene.soon("the gate is set", || {
            scene.playground.set_gate(NAMESPACE, name, GATE, open)
        });
        let ready = scene.playground.wait_readiness(NAMESPACE, name, open);
        ready.unwrap();
    };
    set("blue", true);
    let ways = |family| {
        [
            (pod("a"), scene.at_cluster_ip("web", family)),
            (host("node2"), scene.at_cluster_ip("web", family)),
            (Place::Outside, scene.at_node("web", "node2", family, "TCP")),
            (Place::Outside, scene.at_balancer("web", "node1", family)),
        ]
    };
    let all: Vec<_> = Family::BOTH.into_iter().flat_map(ways).collect();
    for (from, to) in &all {
        scene.expect(*from, "tcp", *to, &["blue"], None);
    }

    // Connections that are there stay where they are, whatever becomes of readiness and policy.
    let streams: Vec<_> = all
        .iter()
        .map(|(from, to)| {
            let target = to.to_string();
            let args = ["stream", "tcp", &target, "--rate", "20", "--duration", "50"];
            (*from, *to, scene.playground.spawn_at(*from, &args).unwrap())
        })
        .collect();
    let outside = scene.playground.outside();
    let netns = outside.netns();
    let targets = Family::BOTH.map(|family| scene.at_node("web", "node2", family, "TCP"));
    let probers = targets.map(|target| (target, Prober::start(netns, 50, move || Some(target))));

    for _ in 0..2 {
        set("green", true);
        set("blue", false);
        for (from, to) in &all {
            scene.expect(*from, "tcp", *to, &["green"], None);
        }
        set("blue", true);
        set("green", false);
        for (from, to) in &all {
            scene.expect(*from, "tcp", *to, &["blue"], None);
        }
    }
    for (target, prober) in probers {
        let tally = prober.stop();
        scene.check(&format!("every request to {target} is answered"), || {
            ensure!(tally.failed.is_empty(), "{tally:?}");
            let all = BTreeSet::from(["blue".to_owned(), "green".to_owned()]);
            ensure!(tally.servers == all, "{tally:?}");
            Ok(())
        });
    }

    // The second node has no endpoint of its own now: new connections from outside end there.
    let patch = |policy: &str| {
        scene.patch(
            "web",
            &json!({ "spec": { "externalTrafficPolicy": policy } }),
        );
    };
    patch("Local");
    scene.expect_silence(&[(Place::Outside, "tcp", targets[0])]);
    patch("Cluster");
    scene.expect(Place::Outside, "tcp", targets[0], &["blue"], None);
    for (from, to, stream) in streams {
        let output = stream.stop().unwrap();
        let what = format!("the connection of {from:?} to {to} loses nothing");
        scene.check(&what, || {
            let report: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(output.status.success(), "{report}");
            ensure!(report["servers"] == json!(["blue"]), "{report}");
            Ok(())
        });
    }
    scene.finish();
}
