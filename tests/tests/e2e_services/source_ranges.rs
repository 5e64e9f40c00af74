//! loadBalancerSourceRanges: who may come by a balancer's address.

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use ipnet::IpNet;
use serde_json::json;
use weft_tests::playground::{Family, Place, Playground, Went};

use crate::scene::{BOTH, NAMESPACE, Scene, host, pod, server, usual_ports};

/// Who asks: one of the outside's addresses, a pod, a process of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Outside(usize),
    Pod,
    Node(&'static str),
}

use Client::{Node, Outside, Pod};

const EVERYONE: [Client; 5] = [Outside(0), Outside(1), Pod, Node("node1"), Node("node2")];

#[test]
fn only_those_in_the_source_ranges_come_by_the_balancers_address() {
    let plan = Playground::builder().name("svcranges").nodes(2);
    let scene = Scene::start(
        plan.load_balancers(),
        &[
            server("a", "node1", "web"),
            server("b", "node2", "web"),
            server("c", "node1", "client"),
        ],
    );
    let service =
        json!({ "type": "LoadBalancer", "selector": { "app": "web" }, "ports": usual_ports() });
    scene.create("web", service);
    let outside = scene.playground.outside();
    let balancers: Vec<IpAddr> = scene
        .families
        .iter()
        .map(|family| {
            let address = scene.playground.wait_balancer_ip(NAMESPACE, "web", *family);
            let address = address.unwrap();
            let node = scene.node("node2", *family);
            scene.playground.show_outside(address, node).unwrap();
            address
        })
        .collect();
    // Both families' ranges for some clients.
    let ranges = |clients: &[Client]| -> Vec<String> {
        let mut ranges = Vec::new();
        for client in clients {
            for family in scene.families.iter().copied() {
                let address = match client {
                    Outside(index) => outside.addresses(family)[*index],
                    Pod => scene.pod("c", family),
                    Node(name) => scene.node(name, family),
                };
                ranges.push(IpNet::from(address).to_string());
            }
        }
        ranges
    };
    let source = |client, family| match client {
        Outside(index) => vec![
            "--source".to_owned(),
            outside.addresses(family)[index].to_string(),
        ],
        _ => Vec::new(),
    };
    let ask = |client, protocol: &str, to: SocketAddr, timeout: &str| {
        let from = match client {
            Outside(_) => Place::Outside,
            Pod => pod("c"),
            Node(name) => host(name),
        };
        let source = source(client, Family::of(to.ip()));
        let mut more = vec!["--timeout", timeout];
        more.extend(source.iter().map(String::as_str));
        scene.playground.connect(from, protocol, to, &more)
    };
    // Over one protocol each: the next family, or client, is asked over the other one.
    let expect_of = |vip: IpAddr, allowed: &[Client]| {
        let protocols = BOTH.iter().cycle().skip(usize::from(vip.is_ipv6()));
        for (client, protocol) in EVERYONE.into_iter().zip(protocols) {
            let what = format!("{client:?} to {protocol} {vip}, where {allowed:?} may");
            scene.comes(&what, || {
                let to = SocketAddr::new(vip, 80);
                if allowed.contains(&client) {
                    return ask(client, protocol, to, "2")?.answer().map(drop);
                }
                // Dropped, and not refused; a process hears of it at once.
                let went = ask(client, protocol, to, "0.5")?;
                let silent = [Went::TimedOut, Went::Unreachable].contains(&went);
                ensure!(silent, "{went:?}");
                Ok(())
            });
        }
    };
    let expect = |ranges: &[String], allowed: &[Client]| {
        scene.change("web", json!({ "loadBalancerSourceRanges": ranges }));
        for vip in &balancers {
            expect_of(*vip, allowed);
        }
    };
    // Node ports and cluster addresses are never concerned.
    let expect_others = || {
        for family in scene.families.iter().copied() {
            for (client, protocol) in EVERYONE.into_iter().zip(BOTH.iter().cycle()) {
                let number = scene.node_port("web", 80, &protocol.to_uppercase());
                let mut others = vec![scene.at_node("node1", family, number)];
                if !matches!(client, Outside(_)) {
                    others.push(scene.cluster("web", family, 80));
                }
                for to in others {
                    scene.check(&format!("{client:?} to {protocol} {to}"), || {
                        ask(client, protocol, to, "2")?.answer().map(drop)
                    });
                }
            }
        }
    };
    let texts =
        |ranges: &[&str]| -> Vec<String> { ranges.iter().map(|text| (*text).to_owned()).collect() };
    let first = [Outside(0)];
    expect(&ranges(&first), &first);
    let inside = [Outside(1), Pod, Node("node1")];
    expect(&ranges(&inside), &inside);
    // Nobody has this address.
    expect(&texts(&["255.0.0.0/32", "2001:db8:ffff::/128"]), &[]);
    expect_others();
    // Everybody, in halves.
    expect(
        &texts(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]),
        &EVERYONE,
    );
    expect(&ranges(&first), &first);
    // One family's ranges say nothing of the other.
    scene.change(
        "web",
        json!({ "loadBalancerSourceRanges": [" 255.0.0.0/32 "] }),
    );
    expect_of(balancers[0], &[]);
    expect_of(balancers[1], &EVERYONE);
    // A prefix of no bits is no filter.
    expect(
        &texts(&["255.0.0.0/32", "0.0.0.0/0", "::/0", "2001:db8:ffff::/128"]),
        &EVERYONE,
    );
    expect(&ranges(&first), &first);
    expect(&[], &EVERYONE);
    scene.finish();
}
