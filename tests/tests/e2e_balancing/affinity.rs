//! Session affinity by the client's address: switched on and off under way, at whatever address the
//! client asks, and for as long as the service says after the client's last connection.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weft_tests::playground::{Families, Family, Place, Playground};

use crate::scene::{NAMESPACE, PROTOCOLS, Scene, Way, client, host, pod, server, service};

/// So many connections must go to one server; that they do by chance, with three servers, is less
/// likely than one in a million.
const IN_A_ROW: usize = 15;

#[test]
fn a_client_stays_with_its_server() {
    let plan = Playground::builder()
        .name("affinity")
        .nodes(2)
        .families(Families::Dual)
        .load_balancers();
    let objects = [
        client("a", "node1"),
        server("s1", "node1", "web", "", ""),
        server("s2", "node1", "web", "", ""),
        server("s3", "node2", "web", "", ""),
        service(
            "web",
            "web",
            "type: LoadBalancer\n  sessionAffinity: ClientIP",
        ),
    ];
    let scene = Scene::start(plan, &objects);
    sticks(&scene);
    set_affinity(&scene, "None", None);
    for (from, protocol, to) in ways(&scene).into_iter().flat_map(|(_, ways)| ways) {
        scene.expect(from, protocol, to, &["s1", "s2", "s3"], None);
    }
    set_affinity(&scene, "ClientIP", None);
    sticks(&scene);
    stays_within_a_policy(&scene);
    answered_directly(&scene);
    moves_on(&scene);
    forgets(&scene);
    scene.finish();
}

fn set_affinity(scene: &Scene, affinity: &str, seconds: Option<u32>) {
    let config = seconds.map(|seconds| json!({ "clientIP": { "timeoutSeconds": seconds } }));
    let patch = json!({ "spec": { "sessionAffinity": affinity, "sessionAffinityConfig": config } });
    scene.patch("web", &patch);
}

/// All ways of one client to one port of the service.
fn ways(scene: &Scene) -> Vec<(String, Vec<Way<'static>>)> {
    let mut all = Vec::new();
    for family in Family::BOTH {
        let cluster_ip = scene.at_cluster_ip("web", family);
        let balancer = scene.at_balancer("web", "node1", family);
        for (protocol, name) in PROTOCOLS {
            let node = scene.at_node("web", "node1", family, name);
            for (from, targets) in [
                (pod("a"), vec![cluster_ip, node, balancer]),
                (host("node1"), vec![cluster_ip, node, balancer]),
                (Place::Outside, vec![node, balancer]),
            ] {
                let ways = targets.into_iter().map(|to| (from, protocol, to));
                all.push((
                    format!("{from:?} by {protocol} and {family:?}"),
                    ways.collect(),
                ));
            }
        }
    }
    all
}

/// Each client has one server for each port, at every address of it.
fn sticks(scene: &Scene) {
    for (client, ways) in ways(scene) {
        scene.soon(&format!("{client} stays with one server"), || {
            let mut servers = Vec::new();
            for (from, protocol, to) in &ways {
                servers.extend(scene.count(*from, protocol, *to, IN_A_ROW)?.order);
            }
            ensure!(
                servers.windows(2).all(|pair| pair[0] == pair[1]),
                "{servers:?}"
            );
            Ok(())
        });
    }
}

/// The server that answers one connection.
fn ask(scene: &Scene, (from, protocol, to): Way<'_>) -> Result<String> {
    let mut order = scene.count(from, protocol, to, 1)?.order;
    order.pop().context("nobody answered")
}

/// Clients that may only go to the servers of one node forget those of others.
fn stays_within_a_policy(scene: &Scene) {
    let set = |policy: &str| {
        scene.patch(
            "web",
            &json!({ "spec": { "externalTrafficPolicy": policy } }),
        );
    };
    for (policy, node, reachable) in [
        ("Local", "node1", &["s1", "s2"][..]),
        ("Local", "node2", &["s3"]),
        ("Cluster", "node1", &["s1", "s2", "s3"]),
    ] {
        set(policy);
        for family in Family::BOTH {
            let balancer = scene.at_balancer("web", node, family);
            for (protocol, name) in PROTOCOLS {
                for to in [balancer, scene.at_node("web", node, family, name)] {
                    let what = format!("{protocol} {to} goes to one of {reachable:?}");
                    scene.soon(&what, || {
                        let servers = scene.count(Place::Outside, protocol, to, IN_A_ROW)?;
                        let names = servers.names();
                        ensure!(
                            names.len() == 1 && reachable.contains(&names[0]),
                            "{servers:?}"
                        );
                        Ok(())
                    });
                }
            }
        }
    }
    sticks(scene);
}

/// Where the server's node chooses among its servers once more, it chooses the same.
fn answered_directly(scene: &Scene) {
    let set = |way: Option<&str>| {
        let annotations = json!({ "weft.dev/load-balancing-return": way });
        scene.patch(
            "web",
            &json!({ "metadata": { "annotations": annotations } }),
        );
    };
    set(Some("direct"));
    for family in Family::BOTH {
        let to = scene.at_node("web", "node2", family, "TCP");
        let outside = scene.playground.outside().address(family);
        scene.soon(&format!("servers see {outside} asking {to}"), || {
            let source = outside.to_string();
            let more = ["--source", source.as_str()];
            let counted = scene
                .playground
                .count(Place::Outside, "tcp", to, IN_A_ROW, &more)?;
            ensure!(
                counted.failed.is_empty() && counted.names().len() == 1,
                "{counted:?}"
            );
            ensure!(counted.clients == [outside].into(), "{counted:?}");
            Ok(())
        });
    }
    sticks(scene);
    set(None);
}

/// A server that goes takes nobody with it.
fn moves_on(scene: &Scene) {
    let family = Family::V4;
    let way = (pod("a"), "tcp", scene.at_cluster_ip("web", family));
    let gone = ask(scene, way).unwrap();
    scene.playground.delete_pod(NAMESPACE, &gone).unwrap();
    scene.soon("all clients have another server", || {
        for (_, ways) in ways(scene) {
            for (from, protocol, to) in ways {
                let servers = scene.count(from, protocol, to, IN_A_ROW)?;
                let names = servers.names();
                ensure!(
                    names.len() == 1 && !names.contains(&gone.as_str()),
                    "{servers:?}"
                );
            }
        }
        Ok(())
    });
    // From here on there are two.
}

/// Affinity ends that long after the client's last connection, and not after its first.
fn forgets(scene: &Scene) {
    set_affinity(scene, "ClientIP", Some(3));
    let clients = |family| {
        [
            (pod("a"), "tcp", scene.at_cluster_ip("web", family)),
            (host("node1"), "tcp", scene.at_cluster_ip("web", family)),
            (
                Place::Outside,
                "tcp",
                scene.at_node("web", "node1", family, "TCP"),
            ),
        ]
    };
    thread::scope(|scope| {
        for way in Family::BOTH.into_iter().flat_map(clients) {
            scope.spawn(move || is_remembered(scene, way, Duration::from_secs(3)));
        }
    });
    set_affinity(scene, "ClientIP", Some(1));
    for family in Family::BOTH {
        let ways = clients(family);
        let ask_all = || {
            ways.iter()
                .map(|way| ask(scene, *way))
                .collect::<Result<Vec<_>>>()
        };
        let mut seen: Vec<Vec<String>> = Vec::new();
        scene.soon(
            &format!("clients that were silent are forgotten, {family:?}"),
            || {
                seen.push(ask_all()?);
                let forgotten =
                    |client: &usize| seen.iter().any(|one| one[*client] != seen[0][*client]);
                if (0..ways.len()).all(|client| forgotten(&client)) {
                    return Ok(());
                }
                // What is waited for is that nobody asks for so long.
                thread::sleep(Duration::from_millis(1500));
                anyhow::bail!("{seen:?}")
            },
        );
    }
}

/// Whoever goes on asking stays for longer than the timeout.
fn is_remembered(scene: &Scene, way: Way<'_>, timeout: Duration) {
    let what = format!("{:?} to {} is remembered while it asks", way.0, way.2);
    scene.soon(&what, || {
        let (began, mut last) = (Instant::now(), Instant::now());
        let server = ask(scene, way)?;
        while began.elapsed() < timeout * 2 {
            let now = ask(scene, way)?;
            // On a machine that was busy for so long this says nothing; it is tried again.
            ensure!(last.elapsed() < timeout / 2, "it asked too late");
            ensure!(now == server, "{now} instead of {server}");
            last = Instant::now();
            thread::sleep(timeout / 10);
        }
        Ok(())
    });
}
