//! Limits of bandwidth, as pods are annotated with them: what arrives is within a tenth of the limit,
//! by TCP and UDP, on the same node, on another and outside, and the other direction is not touched.
//!
//! The receiver counts, by its own clock, and from the second second on: the bucket's first burst
//! and TCP's start are over by then. A limit is one of frames, so headers count.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use serde_json::Value;
use weft_tests::playground::{Background, Families, Family, PATIENCE, Playground, wait};

/// Bits per second.
const TEN: u64 = 10_000_000;
const HUNDRED: u64 = 100_000_000;

/// The port of `serve --bulk`.
const PORT: u16 = 9000;

/// Seconds of each measurement.
const SECONDS: &str = "4";

/// Annotations: one pod has each limit once, the other one the other way round.
const PODS: [(&str, &str, &str); 6] = [
    (
        "slow",
        "node1",
        "{ kubernetes.io/egress-bandwidth: 10M, kubernetes.io/ingress-bandwidth: 100M }",
    ),
    (
        "fast",
        "node1",
        "{ kubernetes.io/egress-bandwidth: 100M, kubernetes.io/ingress-bandwidth: 10M }",
    ),
    ("near1", "node1", "{}"),
    ("near2", "node1", "{}"),
    ("far1", "node2", "{}"),
    ("far2", "node2", "{}"),
];

fn start(name: &str) -> Playground {
    let plan = Playground::builder().name(name).nodes(2);
    let playground = plan.families(Families::Dual).start().unwrap();
    let mut manifest = "apiVersion: v1\nkind: Namespace\nmetadata: { name: limits }\n".to_owned();
    for (name, node, annotations) in PODS {
        manifest += &format!(
            r#"---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: limits, annotations: {annotations} }}
spec:
  nodeName: {node}
  containers:
    - name: main
      image: weft/testpod
      args: [serve, --bulk, "{PORT}"]
      readinessProbe: {{ tcpSocket: {{ port: {PORT} }} }}
"#
        );
    }
    playground.apply(&manifest).unwrap();
    playground.wait_all_ready("limits").unwrap();
    playground
}

/// A pod's address of a family.
fn address(playground: &Playground, pod: &str, family: Family) -> IpAddr {
    let nodes = playground.nodes().iter();
    let sandbox = nodes
        .filter_map(|node| node.sandboxes.get("limits", pod))
        .next()
        .unwrap();
    let mut all = sandbox.addresses.iter();
    *all.find(|ip| Family::of(**ip) == family).unwrap()
}

fn serve_outside(playground: &Playground) -> Background {
    let outside = playground.outside();
    let addresses: Vec<String> = Family::BOTH
        .map(|family| outside.address(family).to_string())
        .into();
    let (port, addresses) = (PORT.to_string(), addresses.join(","));
    outside
        .spawn(&["serve", "--bulk", &port, "--address", &addresses])
        .unwrap()
}

/// One measurement, in bits per second of frames.
fn measure(playground: &Playground, pod: &str, way: &str, protocol: &str, to: IpAddr) -> u64 {
    let target = SocketAddr::new(to, PORT).to_string();
    // Half as much again as the higher limit: enough to fill it, and not to starve the machine.
    let args = [
        "bulk",
        protocol,
        way,
        &target,
        "--duration",
        SECONDS,
        "--bitrate",
        "150000000",
        "--timeout",
        "30",
    ];
    let output = playground.exec("limits", pod, &args).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{pod} {way} {protocol} {to}: {output:?}"));
    let payload = report["settled"]["bits_per_second"].as_u64().unwrap();
    let ip = if to.is_ipv4() { 20 } else { 40 };
    let (data, headers) = match protocol {
        // With timestamps; at the MTU of the overlay.
        "tcp" => (1450 - ip - 32, 14 + ip + 32),
        _ => (1200, 14 + ip + 8),
    };
    payload * (data + headers) / data
}

/// The limit of a pod's direction; `up` is what it sends.
fn limit(pod: &str, way: &str) -> u64 {
    match (pod, way) {
        ("slow", "up") | ("fast", "down") => TEN,
        _ => HUNDRED,
    }
}

/// How often a measurement may fall short: a sender that the machine kept waiting, or whose TCP lost
/// a whole window, did not use what it might. Too much is too much at once.
const ATTEMPTS: usize = 3;

/// The measurements between a pod and an address that are off by more than a tenth.
fn off_limits(playground: &Playground, pod: &str, to: IpAddr) -> Vec<String> {
    let mut off = Vec::new();
    for way in ["up", "down"] {
        let limit = limit(pod, way);
        let (least, most) = (limit - limit / 10, limit + limit / 10);
        for protocol in ["tcp", "udp"] {
            let mut rates = Vec::new();
            for _ in 0..ATTEMPTS {
                rates.push(measure(playground, pod, way, protocol, to));
                if rates.last() >= Some(&least) {
                    break;
                }
            }
            let text = format!("{pod} {way} {protocol} {to}: {rates:?} of {limit}");
            println!("{text}");
            if !rates
                .last()
                .is_some_and(|rate| (least..=most).contains(rate))
            {
                off.push(text);
            }
        }
    }
    off
}

#[test]
fn what_arrives_is_within_a_tenth_of_the_limit() {
    let mut playground = start("limits");
    let server = serve_outside(&playground);
    let outside =
        BTreeMap::from(Family::BOTH.map(|family| (family, playground.outside().address(family))));
    // The second round is with programs and maps that another agent took over.
    for (family, places) in [
        (Family::V4, &["near", "far", "outside"][..]),
        (Family::V6, &["far"][..]),
    ] {
        let shared = &playground;
        // At once: each has a peer of its own, and the limits are each pod's own.
        let off: Vec<String> = thread::scope(|scope| {
            let pods = [("slow", "1"), ("fast", "2")].map(|(pod, peer)| {
                let outside = &outside;
                scope.spawn(move || {
                    let to = |place: &&str| match *place {
                        "outside" => outside[&family],
                        place => address(shared, &format!("{place}{peer}"), family),
                    };
                    let places = places.iter().map(to);
                    places
                        .flat_map(|to| off_limits(shared, pod, to))
                        .collect::<Vec<_>>()
                })
            });
            let joined = pods.into_iter().map(|pod| pod.join().unwrap());
            joined.flatten().collect()
        });
        assert!(off.is_empty(), "{off:#?}");
        if family == Family::V4 {
            for node in ["node1", "node2"] {
                playground.kill_agent(node).unwrap();
                playground.start_agent(node).unwrap();
                playground.wait_agent_ready(node).unwrap();
            }
        }
    }
    drop(server);

    // Beside them, a pod without limits is not held, also not by those of its peers' pods.
    let far = address(&playground, "far2", Family::V4);
    for way in ["up", "down"] {
        wait(
            &format!("near1 {way} is faster than any limit"),
            PATIENCE,
            || {
                let rate = measure(&playground, "near1", way, "tcp", far);
                anyhow::ensure!(rate > 2 * HUNDRED, "{rate}");
                Ok(())
            },
        )
        .unwrap();
    }
}
