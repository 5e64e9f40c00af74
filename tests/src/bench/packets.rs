//! Single packets through the loaded programs, by `BPF_PROG_TEST_RUN`: nanoseconds and map lookups.
//!
//! Nothing but the program runs, so the figures move little from run to run and machine to machine.
//! Two ways of timing:
//!
//! - one by one: a system call per packet, each packet fresh, code and data as cold as a busy node
//!   has them. The kernel's clock is read around every run; the row of a program that does nothing
//!   says what that costs.
//! - back to back: the kernel repeats the run over one packet. Programs change their packet, so this
//!   needs packets that the program turns into ones of the same flow: the pod's MAC address is the
//!   one that the program writes as the source.

use std::net::Ipv4Addr;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::Serialize;
use weft_abi::{GATEWAY_MAC, MARK_ENCAPSULATED, OVERLAY_PEER_MAC};

use super::statistics::Summary;
use crate::packet::bytes::{ACK, Packet, Payload, SYN};
use crate::packet::scene::pod_place;
use crate::packet::{Cluster, Context, Lab, LocalPod, Setup, Verdict};

/// The agent's own node in the manifests.
const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);
/// A pod on another node.
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 7);
/// A service with one backend, [`SERVER`].
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);
/// The port of everything that is served.
const PORT: u16 = 80;
/// The port of clients whose flow is established.
const CLIENT_PORT: u16 = 40_000;

/// A client; its MAC address is what delivery to a pod writes.
const CLIENT: LocalPod = LocalPod {
    name: "client",
    place: pod_place(1, 2),
    mac: GATEWAY_MAC,
};
/// A client; its MAC address is what sending by the overlay writes.
const FAR_CLIENT: LocalPod = LocalPod {
    name: "far-client",
    place: pod_place(1, 3),
    mac: OVERLAY_PEER_MAC,
};
/// A server without policies.
const SERVER: LocalPod = LocalPod {
    name: "server",
    place: pod_place(1, 4),
    mac: [2, 0, 0, 0, 0, 4],
};
/// A server that lets in [`CLIENT`] and nobody else.
const GUARDED: LocalPod = LocalPod {
    name: "guarded",
    place: pod_place(1, 5),
    mac: [2, 0, 0, 0, 0, 5],
};
/// All pods of the node.
const PODS: [LocalPod; 4] = [CLIENT, FAR_CLIENT, SERVER, GUARDED];

/// Packets timed one by one.
const SINGLES: u16 = 8_000;
/// Dropped packets timed one by one: so many events surely fit into the ring, whose reader is not
/// here.
const DROPPED: u16 = 2_000;
/// Packets whose mean counts as one measurement: the clock is too coarse for one packet.
const BATCH: u16 = 100;
/// Packets timed back to back, in bursts that the time to live allows.
const REPEATS: u32 = 1_000_000;
/// Runs per burst: each decrements the time to live, and the program must never see it over.
const BURST: u32 = 250;
/// Packets over which lookups are averaged.
const COUNTED: u16 = 2_000;

/// What a packet of a kind costs.
#[derive(Clone, Debug, Serialize)]
pub struct PacketCost {
    /// The kind of packet.
    pub packet: &'static str,
    /// The program.
    pub program: &'static str,
    /// Nanoseconds, packets one by one.
    pub single: Summary,
    /// Nanoseconds, one packet back to back; where that is possible.
    pub repeated: Option<Summary>,
}

/// Map lookups per packet of an established flow.
#[derive(Clone, Debug, Serialize)]
pub struct LookupCount {
    /// The kind of packet.
    pub packet: &'static str,
    /// The program.
    pub program: &'static str,
    /// In the flow table.
    pub flows: f64,
    /// In the endpoints.
    pub endpoints: f64,
    /// In the ipcache.
    pub ipcache: f64,
    /// In the policy entries.
    pub policy: f64,
    /// In frontends, slots and backends.
    pub services: f64,
}

impl LookupCount {
    /// Whether the promise holds: one lookup in the flow table, none elsewhere. A flow through a
    /// service looks at its second entry every 1,024 ticks, which the average may show.
    pub fn keeps_the_promise(&self) -> bool {
        let elsewhere = self.endpoints + self.ipcache + self.policy + self.services;
        (1.0..1.01).contains(&self.flows) && elsewhere == 0.0
    }
}

/// Both results.
#[derive(Clone, Debug, Serialize)]
pub struct Packets {
    /// Time per packet.
    pub costs: Vec<PacketCost>,
    /// Lookups per packet.
    pub lookups: Vec<LookupCount>,
}

/// Measures everything, in a namespace that ends with the thread.
///
/// # Errors
///
/// When the kernel refuses a program, or a packet goes another way than its kind should.
pub fn measure() -> Result<Packets> {
    let measured = thread::scope(|scope| scope.spawn(measure_here).join());
    measured
        .map_err(|_| anyhow!("the packet lab panicked"))?
        .context("running packets through the programs")
}

fn measure_here() -> Result<Packets> {
    Ok(Packets {
        costs: costs()?,
        lookups: lookups()?,
    })
}

/// A kind of packet: what opens its flow, and the packet itself.
struct Kind {
    name: &'static str,
    program: &'static str,
    context: Context,
    opening: Vec<(&'static str, Context, Packet)>,
    packet: Packet,
    /// Whether back-to-back runs stay packets of the flow.
    repeatable: bool,
}

/// Established flows.
fn established(lab: &Lab) -> Vec<Kind> {
    let at = |pod: &LocalPod| Context {
        ifindex: lab.interface(pod),
        ..Context::default()
    };
    let from = |pod: &LocalPod, to: Ipv4Addr, flags| {
        let payload = Payload::tcp(CLIENT_PORT, PORT, flags);
        Packet {
            ttl: 255,
            ..Packet::new(pod.place.v4, to, payload).sent_by(pod.mac)
        }
    };
    let reply_to = |client: Ipv4Addr, flags| {
        let payload = Payload::tcp(PORT, CLIENT_PORT, flags);
        Packet {
            ttl: 255,
            ..Packet::new(SERVER.place.v4, client, payload).sent_by(SERVER.mac)
        }
    };
    let open = |pod: &LocalPod, to, reply: bool| {
        let mut opening = vec![("from_container", at(pod), from(pod, to, SYN))];
        if reply {
            opening.push((
                "from_container",
                at(&SERVER),
                reply_to(pod.place.v4, SYN | ACK),
            ));
        }
        opening.push(("from_container", at(pod), from(pod, to, ACK)));
        opening
    };
    let host = |flags| {
        let payload = Payload::tcp(CLIENT_PORT, PORT, flags);
        Packet::new(NODE, SERVER.place.v4, payload)
    };
    vec![
        Kind {
            name: "established, to a pod of the same node",
            program: "from_container",
            context: at(&CLIENT),
            opening: open(&CLIENT, SERVER.place.v4, true),
            packet: from(&CLIENT, SERVER.place.v4, ACK),
            repeatable: true,
        },
        Kind {
            name: "established, to a pod of the same node with a policy",
            program: "from_container",
            context: at(&CLIENT),
            opening: open(&CLIENT, GUARDED.place.v4, false),
            packet: from(&CLIENT, GUARDED.place.v4, ACK),
            repeatable: true,
        },
        Kind {
            name: "established, to a pod of another node",
            program: "from_container",
            context: at(&FAR_CLIENT),
            opening: open(&FAR_CLIENT, REMOTE, false),
            packet: from(&FAR_CLIENT, REMOTE, ACK),
            repeatable: true,
        },
        Kind {
            name: "established, to a service",
            program: "from_container",
            context: at(&FAR_CLIENT),
            opening: open(&FAR_CLIENT, SERVICE, true),
            packet: from(&FAR_CLIENT, SERVICE, ACK),
            repeatable: false,
        },
        Kind {
            name: "established, a service backend's reply",
            program: "from_container",
            context: at(&SERVER),
            opening: open(&FAR_CLIENT, SERVICE, true),
            packet: reply_to(FAR_CLIENT.place.v4, ACK),
            repeatable: false,
        },
        Kind {
            name: "established, from a process of the node",
            program: "to_container",
            context: at(&SERVER),
            opening: vec![
                ("to_container", at(&SERVER), host(SYN)),
                ("to_container", at(&SERVER), host(ACK)),
            ],
            packet: host(ACK),
            repeatable: true,
        },
    ]
}

fn costs() -> Result<Vec<PacketCost>> {
    let mut lab = Lab::new(&mut cluster()?, &PODS, &Setup::for_timing())?;
    let mut costs = vec![idle(&mut lab)?];
    for kind in established(&lab) {
        kind.open(&mut lab)?;
        let bytes = kind.packet.to_bytes();
        let single = singles(&mut lab, kind.program, kind.context, SINGLES, |_| {
            bytes.clone()
        })?;
        let repeated = if kind.repeatable {
            let bursts = (0..REPEATS / BURST)
                .map(|_| lab.time(kind.program, kind.context, &bytes, BURST))
                .collect::<Result<Vec<_>>>()?;
            Summary::of(bursts)
        } else {
            None
        };
        costs.push(PacketCost {
            packet: kind.name,
            program: kind.program,
            single,
            repeated,
        });
    }
    costs.extend(first_packets(&mut lab)?);
    Ok(costs)
}

/// A run that returns at once: what the clock and the call cost.
fn idle(lab: &mut Lab) -> Result<PacketCost> {
    let context = Context {
        mark: MARK_ENCAPSULATED,
        ..Context::default()
    };
    let bytes = Packet::new(CLIENT.place.v4, REMOTE, Payload::udp(1, 2)).to_bytes();
    let single = singles(lab, "to_overlay", context, SINGLES, |_| bytes.clone())?;
    Ok(PacketCost {
        packet: "encapsulated already: nothing to do",
        program: "to_overlay",
        single,
        repeated: None,
    })
}

/// Packets of flows that are not known yet.
fn first_packets(lab: &mut Lab) -> Result<Vec<PacketCost>> {
    let mut costs = Vec::new();
    for (name, pod, to, count, passes) in [
        (
            "new flow, to a pod of the same node",
            CLIENT,
            SERVER.place.v4,
            SINGLES,
            true,
        ),
        (
            "new flow, let in by a policy",
            CLIENT,
            GUARDED.place.v4,
            SINGLES,
            true,
        ),
        (
            "new flow, to a pod of another node",
            FAR_CLIENT,
            REMOTE,
            SINGLES,
            true,
        ),
        ("new flow, to a service", FAR_CLIENT, SERVICE, SINGLES, true),
        (
            "denied by a policy",
            FAR_CLIENT,
            GUARDED.place.v4,
            DROPPED,
            false,
        ),
    ] {
        let context = Context {
            ifindex: lab.interface(&pod),
            ..Context::default()
        };
        let packet = |port| {
            let payload = Payload::tcp(port, PORT, SYN);
            Packet::new(pod.place.v4, to, payload)
                .sent_by(pod.mac)
                .to_bytes()
        };
        let verdict = lab.run("from_container", context, &packet(1))?;
        ensure!(
            matches!(verdict, Verdict::Drop(_)) != passes,
            "{name}: {verdict:?}"
        );
        let single = singles(lab, "from_container", context, count, |n| packet(1_024 + n))?;
        costs.push(PacketCost {
            packet: name,
            program: "from_container",
            single,
            repeated: None,
        });
    }
    Ok(costs)
}

/// Times fresh packets one by one; `packet` makes the n-th.
fn singles(
    lab: &mut Lab,
    program: &'static str,
    context: Context,
    count: u16,
    packet: impl Fn(u16) -> Vec<u8>,
) -> Result<Summary> {
    let batches = (0..count / BATCH).map(|batch| {
        let mut sum = 0.0;
        for n in batch * BATCH..(batch + 1) * BATCH {
            sum += lab.time(program, context, &packet(n), 1)?;
        }
        Ok(sum / f64::from(BATCH))
    });
    Summary::of(batches.collect::<Result<Vec<_>>>()?).context("no packet was timed")
}

fn lookups() -> Result<Vec<LookupCount>> {
    let mut lab = Lab::new(&mut cluster()?, &PODS, &Setup::default())?;
    let mut counts = Vec::new();
    for kind in established(&lab) {
        kind.open(&mut lab)?;
        let bytes = kind.packet.to_bytes();
        let before = lab.lookups()?;
        for _ in 0..COUNTED {
            lab.time(kind.program, kind.context, &bytes, 1)?;
        }
        let after = lab.lookups()?;
        let per_packet = |table: usize| {
            let (before, after) = (before.get(table), after.get(table));
            match (before, after) {
                (Some(before), Some(after)) => (after - before) as f64 / f64::from(COUNTED),
                _ => f64::NAN,
            }
        };
        counts.push(LookupCount {
            packet: kind.name,
            program: kind.program,
            flows: per_packet(0),
            endpoints: per_packet(1),
            ipcache: per_packet(2),
            policy: per_packet(3),
            services: per_packet(4),
        });
    }
    Ok(counts)
}

impl Kind {
    /// Opens the flow, and proves that its packets pass.
    fn open(&self, lab: &mut Lab) -> Result<()> {
        lab.forget_flows()?;
        let last = (self.program, self.context, self.packet.clone());
        for (program, context, packet) in self.opening.iter().chain([&last]) {
            let verdict = lab.run(program, *context, &packet.to_bytes())?;
            ensure!(
                !matches!(verdict, Verdict::Drop(_)),
                "{}: {program} answered {verdict:?} to {packet:?}",
                self.name
            );
        }
        Ok(())
    }
}

/// Two nodes, a service, a policy.
fn cluster() -> Result<Cluster> {
    let mut cluster = Cluster::seen_from("node1");
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Node
metadata: {{ name: node1 }}
spec: {{ podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24] }}
status: {{ addresses: [{{ type: InternalIP, address: {NODE} }}] }}
---
apiVersion: v1
kind: Node
metadata: {{ name: node2 }}
spec: {{ podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24] }}
status: {{ addresses: [{{ type: InternalIP, address: 172.30.0.12 }}] }}
---
apiVersion: v1
kind: Namespace
metadata: {{ name: default }}
---
apiVersion: v1
kind: Service
metadata: {{ name: service, namespace: default }}
spec:
  clusterIP: {SERVICE}
  clusterIPs: [{SERVICE}]
  ports: [{{ name: http, port: {PORT}, protocol: TCP }}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: service-1
  namespace: default
  labels: {{ kubernetes.io/service-name: service }}
addressType: IPv4
ports: [{{ name: http, port: {PORT}, protocol: TCP }}]
endpoints:
  - addresses: ["{server}"]
    conditions: {{ ready: true }}
    nodeName: node1
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{ name: guard, namespace: default }}
spec:
  podSelector: {{ matchLabels: {{ app: guarded }} }}
  policyTypes: [Ingress]
  ingress:
    - from: [{{ podSelector: {{ matchLabels: {{ app: client }} }} }}]
      ports: [{{ port: {PORT}, protocol: TCP }}]
"#,
        server = SERVER.place.v4,
    ))?;
    for pod in PODS {
        cluster.apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: default, labels: {{ app: {name} }} }}
spec: {{ nodeName: node1, containers: [{{ name: main, image: none }}] }}
status: {{ phase: Running, podIP: {address}, podIPs: [{{ ip: {address} }}] }}
"#,
            name = pod.name,
            address = pod.place.v4,
        ))?;
    }
    Ok(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_of_an_established_flow_costs_one_lookup() {
        let counts = thread::spawn(lookups).join().unwrap().unwrap();
        assert_eq!(counts.len(), 6);
        for count in counts {
            assert!(count.keeps_the_promise(), "{count:?}");
        }
    }

    #[test]
    fn the_promise_is_one_lookup_and_nothing_else() {
        let count = LookupCount {
            packet: "",
            program: "",
            flows: 1.0,
            endpoints: 0.0,
            ipcache: 0.0,
            policy: 0.0,
            services: 0.0,
        };
        assert!(count.keeps_the_promise());
        let broken = [
            LookupCount {
                flows: 2.0,
                ..count.clone()
            },
            LookupCount {
                flows: 0.0,
                ..count.clone()
            },
            LookupCount {
                policy: 0.5,
                ..count
            },
        ];
        for count in broken {
            assert!(!count.keeps_the_promise(), "{count:?}");
        }
    }
}
