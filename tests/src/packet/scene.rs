//! The scene that packet tests share: a small cluster seen from its node `n1`.
//!
//! Everything here panics on failure: that fails the test that asked for it.

use std::net::Ipv4Addr;

use weft_abi::drop::DropReason;

use super::{
    Cluster, Lab, LocalPod, Verdict,
    bytes::{Packet, Payload},
};

/// A client on the node, labelled `app: web`.
pub const WEB: LocalPod = LocalPod {
    name: "web",
    address: Ipv4Addr::new(10, 244, 1, 10),
    mac: [2, 0, 0, 0, 1, 10],
};
/// A server on the node, labelled `app: db`, with a port named `sql` (5432).
pub const DB: LocalPod = LocalPod {
    name: "db",
    address: Ipv4Addr::new(10, 244, 1, 11),
    mac: [2, 0, 0, 0, 1, 11],
};
/// Another server on the node, labelled `app: db2`.
pub const DB2: LocalPod = LocalPod {
    name: "db2",
    address: Ipv4Addr::new(10, 244, 1, 12),
    mac: [2, 0, 0, 0, 1, 12],
};
/// A pod of the other node, labelled `app: far`.
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 10);
/// The node itself.
pub const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);
/// The other node.
pub const OTHER_NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 12);
/// Somewhere outside of the cluster.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// A service's address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Another service's address.
pub const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);

const OBJECTS: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 172.30.0.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 172.30.0.12}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: default, uid: uid-db, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
status: {phase: Running, podIP: 10.244.1.11, podIPs: [{ip: 10.244.1.11}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: default, uid: uid-far, labels: {app: far}}
spec: {nodeName: n2, containers: [{name: c}]}
status: {phase: Running, podIP: 10.244.2.10, podIPs: [{ip: 10.244.2.10}]}
";

/// The manifest of a pod on the node, labelled with its name.
#[must_use]
pub fn pod(name: &str, address: Ipv4Addr) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, uid: uid-{name}, labels: {{app: {name}}}}}
spec: {{nodeName: n1, containers: [{{name: c}}]}}
status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}
"
    )
}

/// The manifest of a service with these backends: TCP 80 to 8080, UDP 53 to 5353, UDP 7946 to itself.
#[must_use]
pub fn service(name: &str, vip: Ipv4Addr, backends: &[Ipv4Addr]) -> String {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|ip| format!("{{addresses: [{ip}], conditions: {{ready: true}}}}"))
        .collect();
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIP: {vip}
  clusterIPs: [{vip}]
  ipFamilies: [IPv4]
  ports:
  - {{name: tcp, port: 80, targetPort: 8080, protocol: TCP}}
  - {{name: dns, port: 53, targetPort: 5353, protocol: UDP}}
  - {{name: gossip, port: 7946, targetPort: 7946, protocol: UDP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: default
  labels: {{kubernetes.io/service-name: {name}}}
addressType: IPv4
ports:
- {{name: tcp, port: 8080, protocol: TCP}}
- {{name: dns, port: 5353, protocol: UDP}}
- {{name: gossip, port: 7946, protocol: UDP}}
endpoints: [{}]
",
        endpoints.join(", ")
    )
}

/// The manifest of a network policy.
#[must_use]
pub fn policy(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: default}}
spec: {spec}
"
    )
}

/// The cluster, with these objects besides.
#[must_use]
pub fn cluster(manifests: &[String]) -> Cluster {
    let mut cluster = Cluster::seen_from("n1");
    let pods = [WEB, DB2].map(|local| pod(local.name, local.address));
    for manifest in pods.iter().chain([&OBJECTS.to_owned()]).chain(manifests) {
        cluster.apply(manifest).expect("a manifest of the scene");
    }
    cluster
}

/// The node's datapath, and the cluster that it was made for.
#[must_use]
pub fn lab(manifests: &[String]) -> (Lab, Cluster) {
    let mut cluster = cluster(manifests);
    let lab = Lab::new(&mut cluster, &[WEB, DB, DB2]).expect("the lab, as root");
    (lab, cluster)
}

/// A packet as this pod sends it.
#[must_use]
pub fn from(pod: &LocalPod, destination: Ipv4Addr, payload: Payload) -> Packet {
    Packet::new(pod.address, destination, payload).sent_by(pod.mac)
}

/// The verdict of a drop.
#[must_use]
pub const fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}
