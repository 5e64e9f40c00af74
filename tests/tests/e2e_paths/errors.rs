//! ICMP errors find their way back, through every translation: what is closed says so, routers on the
//! way show themselves, and senders learn what the path takes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weft_tests::playground::{Family, PATIENCE, Routing, wait};

use crate::scene::{
    BULK, CLOSED, HOST_BULK, HOST_CLOSED, HOST_UDP, Place, SERVICE_CLOSED, SERVICE_UDP, Scene, UDP,
    same,
};

/// `weft-testpod`'s exit code for what was refused.
const REFUSED: i32 = 10;

/// The MTU of the outside's link in the end, and that of a node's uplink.
const OUTSIDE_MTU: u32 = 1300;
const UPLINK_MTU: u32 = 1400;

/// Runs the checks.
pub fn check(scene: &Scene, family: Family) {
    closed(scene, family);
    traces(scene, family);
}

/// A connected UDP socket is told that nobody listens.
fn closed(scene: &Scene, family: Family) {
    let outside = scene.outside().address(family);
    let node = |name| scene.node(name, family);
    let mut ways = vec![
        (Place::Pod("a"), SocketAddr::new(outside, CLOSED)),
        (Place::Pod("a"), SocketAddr::new(node("node1"), CLOSED)),
        (Place::Pod("a"), SocketAddr::new(node("node2"), CLOSED)),
        (Place::Outside, SocketAddr::new(node("node1"), HOST_CLOSED)),
        (
            Place::Host("node2"),
            SocketAddr::new(node("node1"), HOST_CLOSED),
        ),
        (
            Place::Host("node1"),
            SocketAddr::new(node("node1"), HOST_CLOSED),
        ),
        (Place::Pod("c"), SocketAddr::new(node("node1"), HOST_CLOSED)),
    ];
    for to in ["b", "c"] {
        let service = SocketAddr::new(scene.service(to, family), SERVICE_CLOSED);
        for from in [Place::Pod("a"), Place::Host("node1")] {
            ways.push((from, SocketAddr::new(scene.pod(to, family), CLOSED)));
            ways.push((from, service));
        }
    }
    for (from, to) in ways {
        scene.expect_code(from, &["connect", "udp", &to.to_string()], REFUSED);
    }
    let pod = SocketAddr::new(scene.pod("c", family), CLOSED).to_string();
    for from in [Place::Pod("a"), Place::Host("node1")] {
        scene.expect_code(from, &["connect", "tcp", &pod], REFUSED);
    }
}

/// Every hop answers, by the address by which this side knows it.
fn traces(scene: &Scene, family: Family) {
    let (node1, node2) = (scene.node("node1", family), scene.node("node2", family));
    let outside = scene.outside().address(family);
    let [fabric, router] = scene.playground.routers_to_outside(family);
    let (far, service) = (scene.pod("c", family), scene.service("c", family));
    for protocol in ["udp", "icmp"] {
        let trace = |from, to, hops: &[IpAddr]| expect_trace(scene, from, protocol, to, None, hops);
        trace(Place::Pod("a"), outside, &[node1, fabric, router, outside]);
        trace(Place::Pod("a"), far, &[node1, node2, far]);
        trace(Place::Pod("a"), node2, &[node1, node2]);
        trace(
            Place::Pod("a"),
            scene.pod("b", family),
            &[node1, scene.pod("b", family)],
        );
        trace(Place::Host("node1"), far, &[node2, far]);
    }
    let hops = [node1, node2, service];
    expect_trace(
        scene,
        Place::Pod("a"),
        "udp",
        service,
        Some(SERVICE_UDP),
        &hops,
    );
    expect_trace(
        scene,
        Place::Pod("a"),
        "udp",
        service,
        Some(SERVICE_CLOSED),
        &hops,
    );
    // Behind a hostPort as well: routers and the node, and only then the pod, which is called by the
    // node's name.
    let [lan, fabric] = scene.playground.routers_from_outside(family);
    for (from, hops) in [
        (Place::Outside, &[lan, fabric, node1, node1][..]),
        (Place::Host("node2"), &[node1, node1]),
        (Place::Pod("c"), &[node2, node1, node1]),
        (Place::Pod("a"), &[node1, node1]),
    ] {
        for port in [HOST_UDP, HOST_CLOSED] {
            expect_trace(scene, from, "udp", node1, Some(port), hops);
        }
    }
}

fn expect_trace(
    scene: &Scene,
    from: Place,
    protocol: &str,
    to: IpAddr,
    port: Option<u16>,
    hops: &[IpAddr],
) {
    let (to, port) = (to.to_string(), port.unwrap_or(33_434).to_string());
    let mut args = vec!["trace", protocol, &to];
    if protocol == "udp" {
        args.extend(["--port", &port]);
    }
    scene.check(&format!("{from}: {}", args.join(" ")), || {
        let output = scene.run(from, &args)?;
        let shown = String::from_utf8_lossy(&output.stdout);
        let last = hops.len() - 1;
        let line = |(index, hop): (usize, &IpAddr)| {
            format!(
                "{} {hop}{}",
                index + 1,
                if index == last { " reached" } else { "" }
            )
        };
        let expected: Vec<_> = hops.iter().enumerate().map(line).collect();
        same(shown.trim(), expected.join("\n").as_str())
    });
}

/// What senders learn when the path takes less than they think.
pub fn check_path_mtu(scene: &Scene, routing: Routing) {
    scene.playground.set_outside_mtu(OUTSIDE_MTU).unwrap();
    for family in scene.families() {
        if scene.nodes_have(*family) {
            narrow_outside(scene, *family);
        }
    }
    for node in ["node1", "node2"] {
        scene.playground.set_uplink_mtu(node, UPLINK_MTU).unwrap();
    }
    for family in scene.families() {
        narrow_uplink(scene, *family, routing);
    }
}

/// The outside takes less: behind masquerade the pod must learn it, and so must the pod behind a
/// hostPort, whose answers are what does not fit.
fn narrow_outside(scene: &Scene, family: Family) {
    let server = scene.serve_outside(family);
    let (outside, node1) = (scene.outside().address(family), scene.node("node1", family));
    let [fabric, _] = scene.playground.routers_to_outside(family);
    let target = SocketAddr::new(outside, UDP).to_string();
    scene.check(&format!("pod a learns the path MTU to {target}"), || {
        let report = scene.report(Place::Pod("a"), &["path-mtu", &target, "--size", "1400"])?;
        for (key, expected) in [
            ("answered", json!(false)),
            ("refused", json!(true)),
            ("mtu", json!(OUTSIDE_MTU)),
            ("told", json!(OUTSIDE_MTU)),
            ("told_by", json!(fabric)),
            ("fitting_answered", json!(true)),
        ] {
            ensure!(report[key] == expected, "{key} is not {expected}: {report}");
        }
        Ok(())
    });
    let target = SocketAddr::new(outside, BULK).to_string();
    bulk(scene, Place::Pod("c"), "up", &target);
    let target = SocketAddr::new(node1, HOST_BULK).to_string();
    bulk(scene, Place::Outside, "down", &target);
    let target = SocketAddr::new(node1, HOST_UDP).to_string();
    scene.check(
        &format!("the pod behind {target} learns the path MTU"),
        || {
            // The question just fits; the answer, which repeats it, does not.
            let report = scene.report(Place::Outside, &["path-mtu", &target, "--size", "1290"])?;
            ensure!(report["answered"] == true, "{report}");
            // So the first one was lost.
            ensure!(report["sent"].as_u64() > Some(1), "{report}");
            Ok(())
        },
    );
    drop(server);
}

/// Bytes arrive: more than what is sent before anything is lost for being too big.
fn bulk(scene: &Scene, from: Place, direction: &str, target: &str) {
    let args = ["bulk", "tcp", direction, target, "--duration", "0.5"];
    scene.check(&format!("{from}: {}", args.join(" ")), || {
        let report = scene.report(from, &args)?;
        ensure!(report["bytes"].as_u64() > Some(1_000_000), "{report}");
        Ok(())
    });
}

/// The nodes' uplinks take less, and pods learn so behind a service. Agents follow their uplinks in
/// their own time.
fn narrow_uplink(scene: &Scene, family: Family, routing: Routing) {
    let overhead = match (routing, scene.playground.node_ip("node1").unwrap()) {
        (Routing::Native, _) => 0,
        (Routing::Vxlan, IpAddr::V4(_)) => 50,
        (Routing::Vxlan, IpAddr::V6(_)) => 70,
    };
    let expected = UPLINK_MTU - overhead;
    let target = SocketAddr::new(scene.service("c", family), SERVICE_UDP).to_string();
    scene.check(
        &format!("pod a learns that the way to {target} narrowed"),
        || {
            wait("the smaller MTU is learnt", PATIENCE, || -> Result<()> {
                let report =
                    scene.report(Place::Pod("a"), &["path-mtu", &target, "--size", "1420"])?;
                ensure!(
                    report["mtu"] == expected,
                    "the MTU is not {expected}: {report}"
                );
                ensure!(report["fitting_answered"] == true, "{report}");
                Ok(())
            })
            .context("the agent must follow the uplinks' MTU")
        },
    );
}
