//! Services with everything that a manifest can ask for.
//!
//! A [`Balanced`] service is found at four kinds of address, in both families, with three ports:
//!
//! ```text
//!               its own    at nodes    at endpoints
//!    tcp   TCP       80       30080            8080
//!    dns   UDP       53       30053            5353
//!    asc  SCTP     9999       30099            9000
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::scene::{NODE, lab_with, service_place};
use super::{
    Cluster, FAMILIES, Family, Lab, LocalPod, Place, Setup, Somewhere as _,
    bytes::{INIT, Packet, Payload, SYN},
    scene,
};

/// The address that its load balancer has for a [`Balanced`] service.
pub const LOAD_BALANCER: Place = public(20);
/// Its `externalIP`.
pub const EXTERNAL_IP: Place = public(30);

/// Name, protocol, port, port at nodes and port at endpoints.
const PORTS: [(&str, &str, u16, u16, u16); 3] = [
    ("tcp", "TCP", 80, 30080, 8080),
    ("dns", "UDP", 53, 30053, 5353),
    ("asc", "SCTP", 9999, 30099, 9000),
];

const fn public(host: u8) -> Place {
    Place {
        v4: Ipv4Addr::new(203, 0, 113, host),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 20, 0, 0, 0, 0, host as u16),
    }
}

/// The manifest of the network that cluster IPs are from.
#[must_use]
pub fn service_cidr() -> String {
    let network = service_place(0);
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {{name: kubernetes}}
spec: {{cidrs: [{}/24, \"{}/112\"]}}
",
        network.v4, network.v6
    )
}

/// The datapath of a node with an uplink, in a cluster whose network of cluster IPs is known.
#[must_use]
pub fn services_lab(manifests: &[String]) -> (Lab, Cluster) {
    lab_with(&Setup::uplink(), services_cluster(manifests))
}

/// That cluster.
#[must_use]
pub fn services_cluster(manifests: &[String]) -> Cluster {
    scene::cluster(&[&[service_cidr()], manifests].concat())
}

/// Where clients find a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// At its cluster IP.
    ClusterIp,
    /// At a port of the node.
    NodePort,
    /// At the address that its load balancer has for it.
    LoadBalancer,
    /// At its `externalIP`.
    ExternalIp,
}

/// All of them.
pub const ADDRESSES: [Address; 4] = [
    Address::ClusterIp,
    Address::NodePort,
    Address::LoadBalancer,
    Address::ExternalIp,
];

/// Those that are meant for clients from outside.
pub const EXPOSED: [Address; 3] = [
    Address::NodePort,
    Address::LoadBalancer,
    Address::ExternalIp,
];

impl Address {
    /// The address itself, of a service with this cluster IP.
    #[must_use]
    pub const fn place(self, vip: Place) -> Place {
        match self {
            Self::ClusterIp => vip,
            Self::NodePort => NODE,
            Self::LoadBalancer => LOAD_BALANCER,
            Self::ExternalIp => EXTERNAL_IP,
        }
    }

    /// What is sent there instead, if it is for one of the service's own ports.
    #[must_use]
    pub fn payload(self, payload: Payload) -> Payload {
        let own = payload.ports().1;
        let port = PORTS.iter().find(|(_, _, port, ..)| *port == own);
        match port {
            Some((_, _, _, node_port, _)) if self == Self::NodePort => {
                payload.with_destination_port(*node_port)
            }
            _ => payload,
        }
    }

    /// What a pod sends to the service there.
    #[must_use]
    pub fn asked_by(self, family: Family, pod: &LocalPod, payload: Payload) -> Packet {
        let place = self.place(scene::VIP);
        family.from(pod, place, self.payload(payload))
    }

    /// What somebody outside sends to the service there.
    #[must_use]
    pub fn asked_outside(self, family: Family, source: Place, payload: Payload) -> Packet {
        let place = self.place(scene::VIP);
        family.packet(source, place, self.payload(payload))
    }
}

/// What opens a flow to each of the service's ports.
#[must_use]
pub fn requests(source_port: u16) -> [Payload; 3] {
    [
        Payload::tcp(source_port, 80, SYN),
        Payload::udp(source_port, 53),
        Payload::sctp(source_port, 9999, INIT),
    ]
}

/// What an endpoint gets of a packet to one of the service's own ports.
///
/// # Panics
///
/// When it is for none of them.
#[must_use]
#[track_caller]
pub fn at_endpoint(payload: Payload) -> Payload {
    let own = payload.ports().1;
    let port = PORTS.iter().find(|(_, _, port, ..)| *port == own);
    let (_, _, _, _, target) = port.expect("a port of the service");
    payload.with_destination_port(*target)
}

/// A service `s` at [`scene::VIP`] and all other addresses, with its endpoints.
#[derive(Clone, Debug, Default)]
pub struct Balanced {
    annotations: Vec<String>,
    spec: Vec<String>,
    ip_mode: Option<&'static str>,
    endpoints: Vec<(Place, String)>,
    ports: Option<[u16; 3]>,
}

impl Balanced {
    /// With these endpoints, all ready.
    #[must_use]
    pub fn with(endpoints: &[Place]) -> Self {
        let ready = |place: &Place| (*place, "ready: true".to_owned());
        Self {
            endpoints: endpoints.iter().map(ready).collect(),
            ..Self::default()
        }
    }

    /// And an endpoint with these conditions.
    #[must_use]
    pub fn and(mut self, place: Place, conditions: &str) -> Self {
        self.endpoints.push((place, conditions.to_owned()));
        self
    }

    /// And an endpoint that is being shut down, and serves meanwhile.
    #[must_use]
    pub fn and_terminating(self, place: Place) -> Self {
        self.and(place, "ready: false, serving: true, terminating: true")
    }

    /// With a line more in its `spec`.
    #[must_use]
    pub fn spec(mut self, line: &str) -> Self {
        self.spec.push(line.to_owned());
        self
    }

    /// With an annotation `weft.dev/...`.
    #[must_use]
    pub fn annotated(mut self, name: &str, value: &str) -> Self {
        self.annotations
            .push(format!("weft.dev/{name}: \"{value}\""));
        self
    }

    /// With an `ipMode` of its load balancer's addresses.
    #[must_use]
    pub const fn ip_mode(mut self, mode: &'static str) -> Self {
        self.ip_mode = Some(mode);
        self
    }

    /// With other ports at its endpoints: TCP, UDP and SCTP.
    #[must_use]
    pub const fn targets(mut self, ports: [u16; 3]) -> Self {
        self.ports = Some(ports);
        self
    }

    /// The manifests.
    #[must_use]
    pub fn manifest(&self) -> String {
        let vip = scene::VIP;
        let ports = PORTS.map(|(name, protocol, port, node_port, _)| {
            format!(
                "{{name: {name}, port: {port}, nodePort: {node_port}, protocol: {protocol}, \
                 targetPort: {name}}}"
            )
        });
        let ingress = FAMILIES.map(|family| {
            let mode = self.ip_mode.map(|mode| format!(", ipMode: {mode}"));
            let mode = mode.unwrap_or_default();
            format!("{{ip: \"{}\"{mode}}}", LOAD_BALANCER.at(family))
        });
        let mut manifest = format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: s, namespace: default, annotations: {{{annotations}}}}}
spec:
  type: LoadBalancer
  clusterIP: \"{first}\"
  clusterIPs: {vips}
  ipFamilies: [IPv4, IPv6]
  externalIPs: {external}
  ports: [{ports}]
  {spec}
status: {{loadBalancer: {{ingress: [{ingress}]}}}}
",
            annotations = self.annotations.join(", "),
            first = vip.v4,
            vips = both(vip),
            external = both(EXTERNAL_IP),
            ports = ports.join(", "),
            spec = self.spec.join("\n  "),
            ingress = ingress.join(", "),
        );
        for family in FAMILIES {
            let endpoints = self.endpoints.iter().map(|(place, conditions)| {
                format!(
                    "{{addresses: [\"{}\"], nodeName: {}, conditions: {{{conditions}}}}}",
                    place.at(family),
                    node_of(*place)
                )
            });
            let endpoints = endpoints.collect::<Vec<_>>().join(", ");
            let targets = self.ports.unwrap_or(PORTS.map(|(.., target)| target));
            let ports = PORTS.iter().zip(targets);
            let ports = ports.map(|((name, protocol, ..), target)| {
                format!("{{name: {name}, port: {target}, protocol: {protocol}}}")
            });
            let ports = ports.collect::<Vec<_>>().join(", ");
            manifest += &format!(
                "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: s-{suffix}
  namespace: default
  labels: {{kubernetes.io/service-name: s}}
addressType: {kind}
ports: [{ports}]
endpoints: [{endpoints}]
",
                suffix = family.pick(4, 6),
                kind = family.pick("IPv4", "IPv6"),
            );
        }
        manifest
    }
}

/// The node that a place of the scene is on.
fn node_of(place: Place) -> &'static str {
    let [.., node, _] = place.v4.octets();
    let is_pod = place.v4.octets()[0] == 10;
    if place == NODE || (is_pod && node == 1) {
        "n1"
    } else {
        "n2"
    }
}

fn both(place: Place) -> String {
    let [v4, v6]: [IpAddr; 2] = place.addresses();
    format!("[\"{v4}\", \"{v6}\"]")
}
