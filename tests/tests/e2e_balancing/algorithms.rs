//! How a server is chosen, and how it answers: the same client at whatever node, and servers that
//! answer clients outside by themselves.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_tests::netns::Netns;
use weft_tests::playground::{Background, Families, Family, Place, Playground};

use crate::scene::{
    NAMESPACE, PROTOCOLS, Scene, annotated, client, host, only, pod, same, server, service,
};

/// The annotation of how a server is chosen.
const MAGLEV: &str = "{ weft.dev/load-balancing: maglev }";

/// The annotation of how a server answers.
const RETURN: &str = "weft.dev/load-balancing-return";

/// The port for much data, before the others of a service.
const BULK: &str = "  ports:\n    - { name: bulk, port: 7100 }\n";

const SERVERS: [&str; 6] = ["s1", "s2", "s3", "s4", "s5", "s6"];

/// The source ports that are tried, and of how many flows one may move without need.
const PORTS: std::ops::Range<u16> = 20_000..20_400;
const MOVED_PER: usize = 50;

#[test]
fn every_node_chooses_the_same_server_for_a_client() {
    let plan = Playground::builder()
        .name("maglev")
        .nodes(3)
        .families(Families::Dual);
    let mut objects = vec![
        annotated("web", "web", "type: NodePort", MAGLEV),
        service("any", "web", "type: NodePort"),
    ];
    for (name, node) in SERVERS
        .iter()
        .zip(["node1", "node2", "node3"].iter().cycle())
    {
        objects.push(server(name, node, "web", "", ""));
    }
    let scene = Scene::start(plan, &objects);
    for family in Family::BOTH {
        for node in ["node1", "node2", "node3"] {
            let to = scene.at_node("web", node, family, "UDP");
            scene.expect(Place::Outside, "udp", to, &SERVERS, None);
        }
    }
    let through = |node: &str, family| chosen(&scene, "web", node, family);
    let before = Family::BOTH.map(|family| {
        let chosen = through("node1", family);
        let other = through("node2", family);
        scene.check(&format!("two nodes choose the same, {family:?}"), || {
            same(&chosen, &other)
        });
        // Which is no wonder only if it is otherwise without the annotation.
        let any = ["node1", "node2"].map(|node| self::chosen(&scene, "any", node, family));
        scene.check(&format!("two nodes choose at random, {family:?}"), || {
            ensure!(any[0] != any[1], "they chose the same");
            Ok(())
        });
        for name in SERVERS {
            let count = chosen.values().filter(|server| *server == name).count();
            scene.check(&format!("{name} has its share, {family:?}"), || {
                let fair = PORTS.len() / SERVERS.len();
                ensure!(
                    count > fair / 2 && count < fair * 2,
                    "{count} of {}",
                    PORTS.len()
                );
                Ok(())
            });
        }
        chosen
    });

    // One goes. Seen through a node that none of these flows went through before.
    let gone = SERVERS[5];
    scene.playground.delete_pod(NAMESPACE, gone).unwrap();
    let rest = &SERVERS[..5];
    for (family, before) in Family::BOTH.into_iter().zip(before) {
        let to = scene.at_node("web", "node3", family, "UDP");
        scene.expect(Place::Outside, "udp", to, rest, None);
        let after = through("node3", family);
        let moved = before
            .iter()
            .filter(|(port, server)| after.get(port) != Some(server));
        let moved: Vec<_> = moved.collect();
        let needless = moved
            .iter()
            .filter(|(_, server)| server.as_str() != gone)
            .count();
        scene.check(&format!("others stay where they are, {family:?}"), || {
            ensure!(
                needless * MOVED_PER <= before.len(),
                "{needless} of {}",
                before.len()
            );
            ensure!(moved.len() > needless, "{gone} had nothing");
            Ok(())
        });
    }
    scene.finish();
}

/// Whom a client outside gets from a node, by the client's port.
fn chosen(scene: &Scene, service: &str, node: &str, family: Family) -> BTreeMap<u16, String> {
    let to = scene.at_node(service, node, family, "UDP");
    let outside = scene.playground.outside();
    let source = outside.address(family);
    let what = format!("the outside asks {to} from {} ports", PORTS.len());
    let netns = outside.netns();
    let chosen = scene.soon(&what, || servers_of(netns, source, to));
    chosen.unwrap_or_default()
}

/// Who answers a datagram from each of the ports.
fn servers_of(netns: &Netns, source: IpAddr, to: SocketAddr) -> Result<BTreeMap<u16, String>> {
    let ask = |port: u16| {
        let socket = UdpSocket::bind((source, port)).context("binding")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(to)?;
        socket.send(b"hello")?;
        let mut answer = [0; 256];
        let length = socket
            .recv(&mut answer)
            .with_context(|| format!("from port {port}"))?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        let server = answer.split(' ').next().context("an empty answer")?;
        Ok((port, server.to_owned()))
    };
    netns.run(|| PORTS.map(ask).collect())?
}

#[test]
fn servers_answer_clients_outside_directly() {
    let plan = Playground::builder()
        .name("direct")
        .nodes(3)
        .families(Families::Dual)
        .load_balancers()
        .agent_flags(&["--load-balancing=maglev", "--load-balancing-return=direct"]);
    let bulk = r#", --bulk, "7100""#;
    let objects = [
        client("a", "node2"),
        server("s1", "node1", "web", bulk, ""),
        server("s3", "node3", "web", bulk, ""),
        service("web", "web", "type: LoadBalancer").replace("  ports:\n", BULK),
    ];
    let scene = Scene::start(plan, &objects);
    let mut streams = Vec::new();
    for way in [None, Some("snat"), Some("direct")] {
        let annotations = json!({ "metadata": { "annotations": { RETURN: way } } });
        scene.patch("web", &annotations);
        for family in Family::BOTH {
            let is_direct = way != Some("snat");
            through_another_node(&scene, family, is_direct);
            streams.push(stream(&scene, family, way));
            let nodes = ["node1", "node2", "node3"];
            let [first, second, third] = nodes.map(|node| chosen(&scene, "web", node, family));
            scene.check(
                &format!("all nodes choose the same, {family:?}, {way:?}"),
                || {
                    same(&first, &second)?;
                    same(&second, &third)
                },
            );
        }
    }
    // Connections stay with the way that they began with.
    for (what, stream) in streams {
        let output = stream.stop().unwrap();
        scene.check(&what, || {
            ensure!(output.status.success(), "{output:?}");
            Ok(())
        });
    }
    scene.finish();
}

/// A connection from outside through the node without a server, until it is stopped.
fn stream(scene: &Scene, family: Family, way: Option<&str>) -> (String, Background) {
    let to = scene.at_node("web", "node2", family, "TCP").to_string();
    let args = ["stream", "tcp", &to, "--rate", "20", "--duration", "50"];
    let stream = scene.playground.spawn_at(Place::Outside, &args).unwrap();
    (
        format!("a connection to {to}, {way:?}, loses nothing"),
        stream,
    )
}

/// The outside asks a node that has no server.
fn through_another_node(scene: &Scene, family: Family, is_direct: bool) {
    let outside = scene.playground.outside().address(family);
    let source = outside.to_string();
    let seen = only(if is_direct {
        outside
    } else {
        scene.node("node2", family)
    });
    let balancer = scene.at_balancer("web", "node2", family);
    for (protocol, name) in PROTOCOLS {
        for to in [scene.at_node("web", "node2", family, name), balancer] {
            let what = format!("servers see {seen:?} asking {protocol} {to}");
            scene.soon(&what, || {
                let more = ["--source", source.as_str()];
                let counted = scene
                    .playground
                    .count(Place::Outside, protocol, to, 16, &more)?;
                ensure!(counted.failed.is_empty(), "{counted:?}");
                same(&counted.names(), &vec!["s1", "s3"])?;
                same(&counted.clients, &seen)
            });
            // In both directions more than fits into one packet.
            let size = if protocol == "tcp" { "200000" } else { "1200" };
            scene.soon(&format!("{protocol} {to} sends {size} bytes back"), || {
                let more = ["--source", source.as_str(), "--size", size];
                let went = scene
                    .playground
                    .connect(Place::Outside, protocol, to, &more)?;
                went.answer()
            });
            // Inside it makes no difference.
            let own = only(scene.pod("a", family));
            scene.expect(pod("a"), protocol, to, &["s1", "s3"], Some(&own));
            scene.expect(host("node2"), protocol, to, &["s1", "s3"], None);
        }
    }
    scene.check(
        &format!("the way back, {family:?}, direct: {is_direct}"),
        || {
            let target = scene.playground.node_port(NAMESPACE, "web", 7100, "TCP")?;
            let target = SocketAddr::new(scene.node("node2", family), target);
            let target = target.to_string();
            let before = sent(scene)?;
            let args = ["bulk", "tcp", "down", &target, "--duration", "1"];
            let output = scene.playground.run_at(Place::Outside, &args)?;
            let after = sent(scene)?;
            let report: Value =
                serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
            let received = report["bytes"]
                .as_u64()
                .with_context(|| report.to_string())?;
            ensure!(received > 1 << 20, "too little to tell: {report}");
            let through = after - before;
            // What it passes on are the client's acknowledgements, or the answers as well.
            ensure!(
                is_direct == (through < received / 4) && is_direct != (through >= received),
                "the node sent {through} bytes of {received}"
            );
            Ok(())
        },
    );
}

/// How many bytes the node without a server has sent.
fn sent(scene: &Scene) -> Result<u64> {
    let netns = &scene.playground.node("node2")?.netns;
    let read = || fs::read_to_string("/proc/thread-self/net/dev");
    let table: io::Result<String> = netns.run(read)?;
    let table = table?;
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"));
    let sent = line.and_then(|line| line.split_whitespace().nth(8));
    sent.with_context(|| table.clone())?
        .parse()
        .context("a number")
}
