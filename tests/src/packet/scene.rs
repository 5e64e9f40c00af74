//! The scene that packet tests share: a small cluster seen from its node `n1`.
//!
//! Everything has an address of each family, so that one test asserts the same of both; clusters of
//! one family are made with [`cluster_of`].
//!
//! Everything here panics on failure: that fails the test that asked for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_abi::drop::DropReason;
use weft_core::model::Routing;

use super::{Cluster, FAMILIES, Family, Lab, LocalPod, Place, Setup, Somewhere as _, Verdict};

/// A client on the node, labelled `app: web`.
pub const WEB: LocalPod = LocalPod {
    name: "web",
    place: pod_place(1, 10),
    mac: [2, 0, 0, 0, 1, 10],
};
/// A server on the node, labelled `app: db`, with a port named `sql` (5432).
pub const DB: LocalPod = LocalPod {
    name: "db",
    place: pod_place(1, 11),
    mac: [2, 0, 0, 0, 1, 11],
};
/// Another server on the node, labelled `app: db2`.
pub const DB2: LocalPod = LocalPod {
    name: "db2",
    place: pod_place(1, 12),
    mac: [2, 0, 0, 0, 1, 12],
};
/// All pods of the node.
pub const PODS: [LocalPod; 3] = [WEB, DB, DB2];
/// A pod of the other node, labelled `app: far`.
pub const REMOTE: Place = pod_place(2, 10);
/// The node itself.
pub const NODE: Place = node_place(11);
/// The other node.
pub const OTHER_NODE: Place = node_place(12);
/// The router behind the node's uplink.
pub const ROUTER: Place = node_place(1);
/// Another pod of the other node, of which only services know.
pub const REMOTE2: Place = pod_place(2, 11);
/// Somewhere outside of the cluster.
pub const OUTSIDE: Place = outside(7);
/// Somewhere else outside.
pub const ELSEWHERE: Place = outside(8);
/// A service's address.
pub const VIP: Place = service_place(10);
/// Another service's address.
pub const OTHER_VIP: Place = service_place(11);
/// An address of the same network that no service has.
pub const NOBODYS_VIP: Place = service_place(99);
/// The network of [`OUTSIDE`] and [`ELSEWHERE`], by family.
pub const OUTSIDE_NETWORKS: [&str; 2] = ["192.0.2.0/24", "2001:db8:7::/64"];

/// A pod's addresses on node 1 or 2.
#[must_use]
pub const fn pod_place(node: u8, host: u8) -> Place {
    Place {
        v4: Ipv4Addr::new(10, 244, node, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16, 0, 0, 0, host as u16),
    }
}

/// Addresses on the nodes' network.
#[must_use]
pub const fn node_place(host: u8) -> Place {
    Place {
        v4: Ipv4Addr::new(172, 30, 0, host),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, host as u16),
    }
}

/// Addresses outside of the cluster.
#[must_use]
pub const fn outside(host: u8) -> Place {
    Place {
        v4: Ipv4Addr::new(192, 0, 2, host),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, host as u16),
    }
}

/// Addresses of services.
#[must_use]
pub const fn service_place(host: u8) -> Place {
    Place {
        v4: Ipv4Addr::new(10, 96, 0, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, host as u16),
    }
}

/// The families that the cluster has.
const STACK: &[Family] = &FAMILIES;

/// The families, one after the other; a test that fails has told which it was at.
pub fn families() -> impl Iterator<Item = Family> {
    STACK
        .iter()
        .copied()
        .inspect(|family| println!("family: {family:?}"))
}

/// What a pod sees as the source when it reaches itself through a service.
#[must_use]
pub fn hairpin(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(weft_abi::GATEWAY_V4).into(),
        Family::V6 => Ipv6Addr::from(weft_abi::HAIRPIN_V6).into(),
    }
}

/// Addresses of these families, as a YAML list.
fn list(families: &[Family], place: Place) -> String {
    let addresses = families
        .iter()
        .map(|family| format!("\"{}\"", place.at(*family)));
    format!("[{}]", addresses.collect::<Vec<_>>().join(", "))
}

/// Addresses of these families as YAML objects.
fn objects(families: &[Family], before: &str, place: Place) -> String {
    let addresses = families
        .iter()
        .map(|family| format!("{{{before}: \"{}\"}}", place.at(*family)));
    format!("[{}]", addresses.collect::<Vec<_>>().join(", "))
}

fn node(families: &[Family], name: &str, number: u8, place: Place) -> String {
    let cidrs = families.iter().map(|family| {
        let network = pod_place(number, 0).at(*family);
        format!("\"{network}/{}\"", family.pick(24, 64))
    });
    let cidrs = cidrs.collect::<Vec<_>>();
    format!(
        "
apiVersion: v1
kind: Node
metadata: {{name: {name}}}
spec: {{podCIDR: {first}, podCIDRs: [{all}]}}
status: {{addresses: {addresses}}}
",
        first = cidrs[0],
        all = cidrs.join(", "),
        addresses = objects(families, "type: InternalIP, address", place),
    )
}

fn pod_of(families: &[Family], name: &str, node: &str, place: Place, ports: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, uid: uid-{name}, labels: {{app: {name}}}}}
spec: {{nodeName: {node}, containers: [{{name: c, ports: [{ports}]}}]}}
status: {{phase: Running, podIP: \"{ip}\", podIPs: {ips}}}
",
        ip = place.at(families[0]),
        ips = objects(families, "ip", place),
    )
}

/// The manifest of a pod on the node, labelled with its name.
#[must_use]
pub fn pod(name: &str, place: Place) -> String {
    pod_of(STACK, name, "n1", place, "")
}

/// The manifest of a pod on the other node, labelled with its name.
#[must_use]
pub fn other_pod(name: &str, place: Place) -> String {
    pod_of(STACK, name, "n2", place, "")
}

/// The manifest of a service with these backends: TCP 80 to 8080, UDP 53 to 5353, UDP 7946 to itself.
#[must_use]
pub fn service(name: &str, vip: Place, backends: &[Place]) -> String {
    service_of(STACK, name, vip, backends)
}

/// The same, of these families.
#[must_use]
pub fn service_of(families: &[Family], name: &str, vip: Place, backends: &[Place]) -> String {
    let mut manifest = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIP: \"{first}\"
  clusterIPs: {vips}
  ipFamilies: [{names}]
  ports:
  - {{name: tcp, port: 80, targetPort: 8080, protocol: TCP}}
  - {{name: dns, port: 53, targetPort: 5353, protocol: UDP}}
  - {{name: gossip, port: 7946, targetPort: 7946, protocol: UDP}}
",
        first = vip.at(families[0]),
        vips = list(families, vip),
        names = families
            .iter()
            .map(|family| family.pick("IPv4", "IPv6"))
            .collect::<Vec<_>>()
            .join(", "),
    );
    for family in families {
        let endpoints = backends.iter().map(|place| {
            let ip = place.at(*family);
            format!("{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}")
        });
        let endpoints = endpoints.collect::<Vec<_>>().join(", ");
        let kind = family.pick("IPv4", "IPv6");
        let suffix = family.pick(4, 6);
        manifest += &format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-{suffix}
  namespace: default
  labels: {{kubernetes.io/service-name: {name}}}
addressType: {kind}
ports:
- {{name: tcp, port: 8080, protocol: TCP}}
- {{name: dns, port: 5353, protocol: UDP}}
- {{name: gossip, port: 7946, protocol: UDP}}
endpoints: [{endpoints}]
"
        );
    }
    manifest
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
    cluster_of(STACK, manifests)
}

/// The cluster, of these families only.
#[must_use]
pub fn cluster_of(families: &[Family], manifests: &[String]) -> Cluster {
    let mut cluster = Cluster::seen_from("n1");
    let own = [
        node(families, "n1", 1, NODE),
        node(families, "n2", 2, OTHER_NODE),
        "
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
"
        .to_owned(),
        pod_of(families, "web", "n1", WEB.place, ""),
        pod_of(
            families,
            "db",
            "n1",
            DB.place,
            "{name: sql, containerPort: 5432}",
        ),
        pod_of(families, "db2", "n1", DB2.place, ""),
        pod_of(families, "far", "n2", REMOTE, ""),
    ];
    for manifest in own.iter().chain(manifests) {
        cluster.apply(manifest).expect("a manifest of the scene");
    }
    let addresses = families.iter().map(|family| NODE.at(*family));
    cluster.state.own_addresses = addresses.collect();
    cluster
}

/// The node's datapath, and the cluster that it was made for. Nothing leads outside but the host
/// stack.
#[must_use]
pub fn lab(manifests: &[String]) -> (Lab, Cluster) {
    lab_with(&Setup::default(), cluster(manifests))
}

/// The same with an uplink, by which pods reach the outside masqueraded.
#[must_use]
pub fn uplink_lab(manifests: &[String]) -> (Lab, Cluster) {
    lab_with(&Setup::uplink(), cluster(manifests))
}

/// The same with an uplink, by which pods of other nodes are reached as well.
#[must_use]
pub fn native_lab(manifests: &[String]) -> (Lab, Cluster) {
    let mut cluster = cluster(manifests);
    cluster.state.settings.routing = Routing::Native;
    lab_with(&Setup::uplink(), cluster)
}

/// The datapath of a cluster.
#[must_use]
pub fn lab_with(setup: &Setup, mut cluster: Cluster) -> (Lab, Cluster) {
    let lab = Lab::new(&mut cluster, &PODS, setup).expect("the lab, as root");
    (lab, cluster)
}

/// The verdict of a drop.
#[must_use]
pub const fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}
