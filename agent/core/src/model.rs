//! The typed cluster state: what the compiler reads.
//!
//! Every field is validated: [`crate::convert`] makes these types from API objects, and nothing
//! behind it handles a string that still has to be parsed. Only what some decision needs is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use crate::{
    name::Name,
    selector::{Labels, Selector},
};

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: String,
    /// The name within it.
    pub name: String,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that services and policies name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The name that Kubernetes uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The protocol of a Kubernetes name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.name() == name)
    }

    /// The protocol of an IP protocol number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The label of a node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its InternalIPs, in the order of the API object; the first one of a family is where tunnels
    /// over that family end.
    pub internal_ips: Vec<IpAddr>,
    /// Its pod networks, at most one per family; host bits are zero.
    pub pod_cidrs: Vec<IpNet>,
    /// Its labels.
    pub labels: Labels,
    /// Whether it is being deleted, or about to be by the cluster autoscaler: load balancers should
    /// not choose it any more.
    pub leaving: bool,
}

impl Node {
    /// Whether load balancers may choose it.
    #[must_use]
    pub const fn eligible(&self) -> bool {
        !self.leaving
    }

    /// The zone it is in.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE).map(String::as_str)
    }

    /// The address at which this node gets what `own` sends through the overlay: of the family that
    /// both have an InternalIP of, rather IPv4. Of the own node itself it is where its tunnels end.
    #[must_use]
    pub fn underlay_address(&self, own: &Self) -> Option<IpAddr> {
        let first = |node: &Self, ipv4: bool| {
            let mut addresses = node.internal_ips.iter().copied();
            addresses.find(|address| address.is_ipv4() == ipv4)
        };
        [true, false]
            .into_iter()
            .find_map(|ipv4| first(own, ipv4).and(first(self, ipv4)))
    }
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// The port's name.
    pub name: String,
    /// Its protocol: the same name may mean another port for another protocol.
    pub protocol: Protocol,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID of the API object.
    pub uid: String,
    /// For the mirror of a static pod: the UID that the kubelet gives to CNI plugins, which is not
    /// the mirror's own.
    pub static_uid: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// The node it is bound to.
    pub node: Option<String>,
    /// Its addresses, both families.
    pub ips: Vec<IpAddr>,
    /// Whether it uses its node's network, and so its node's addresses.
    pub host_network: bool,
    /// Whether its phase is Succeeded or Failed: its addresses may belong to another pod by now.
    pub terminal: bool,
    /// Whether its deletion has begun.
    pub terminating: bool,
    /// The numbers of its named ports: containers first, then restartable init containers; the
    /// first of a name counts.
    pub named_ports: BTreeMap<PortName, u16>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels, with `kubernetes.io/metadata.name` always present.
    pub labels: Labels,
}

/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoadBalancing {
    /// At random.
    #[default]
    Random,
    /// By the client's address and port, the same on every node.
    Maglev,
}

impl LoadBalancing {
    /// The algorithm of a name, as flags and annotations have it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "random" => Some(Self::Random),
            "maglev" => Some(Self::Maglev),
            _ => None,
        }
    }
}

/// How a backend on another node answers a client from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoadBalancingReturn {
    /// Through the node that the client talks to, whose address it sees.
    #[default]
    Snat,
    /// By itself, with the service's address.
    Direct,
}

impl LoadBalancingReturn {
    /// The way of a name, as flags and annotations have it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "snat" => Some(Self::Snat),
            "direct" => Some(Self::Direct),
            _ => None,
        }
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty for the only port of a service. Endpoint slices refer to it.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The port that clients use.
    pub port: u16,
    /// The port that every node has for it; 0: none.
    pub node_port: u16,
}

/// A service that Weft balances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// When it was created, in seconds since 1970: of two that want the same, the older one has it.
    pub created: i64,
    /// Its cluster addresses, both families. Empty for what no proxy handles: headless and
    /// `ExternalName` services, and those labelled for another proxy. It has ports of the nodes and
    /// other addresses only of the families of these.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses that a load balancer has for it and that lead here unchanged.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Its `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// The port at which nodes tell how many of its endpoints they have; 0: none.
    pub health_check_node_port: u16,
    /// Who may use its load balancers' addresses; `None`: everybody. What could not be understood is
    /// left out, so that it lets nobody in.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Duration of `sessionAffinity: ClientIP`, in seconds; 0 without.
    pub affinity_seconds: u32,
    /// How a backend is chosen; `None`: as the operator decided for all.
    pub load_balancing: Option<LoadBalancing>,
    /// How backends answer clients from outside; `None`: as the operator decided for all.
    pub load_balancing_return: Option<LoadBalancingReturn>,
}

/// One port of an endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the service port it serves.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The pod's port.
    pub port: u16,
}

/// Whom an endpoint is meant for, rather than others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Clients in these zones.
    pub zones: Vec<Name>,
    /// Clients on these nodes.
    pub nodes: Vec<Name>,
}

/// One endpoint of an endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// It takes new connections.
    pub ready: bool,
    /// It would, were it not terminating.
    pub serving: bool,
    /// It is being shut down.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Name>,
    /// Whom it is meant for; most endpoints have none.
    pub hints: Option<Box<Hints>>,
}

impl SliceEndpoint {
    /// An endpoint that is ready, on no known node.
    #[must_use]
    pub const fn new(address: IpAddr) -> Self {
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hints: None,
        }
    }
}

/// An endpoint slice of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The service, of the same namespace; `None` if no proxy handles it.
    pub service: Option<String>,
    /// Ports that every endpoint has.
    pub ports: Vec<SlicePort>,
    /// Endpoints, all of one family.
    pub endpoints: Vec<SliceEndpoint>,
    /// When what the slice tells last happened, in microseconds since 1970.
    pub triggered: Option<i64>,
}

/// Networks that cluster addresses are taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: String,
    /// The networks; host bits are zero.
    pub cidrs: Vec<IpNet>,
}

/// A network policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The pods of its namespace that it selects.
    pub pods: Selector,
    /// What it lets in; `None`: it does not isolate ingress.
    pub ingress: Option<Vec<PolicyRule>>,
    /// What it lets out; `None`: it does not isolate egress.
    pub egress: Option<Vec<PolicyRule>>,
}

/// One rule of a network policy: allowed is what matches peers and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Sources of an ingress rule, destinations of an egress rule.
    pub peers: Peers,
    /// Destination ports.
    pub ports: Ports,
}

/// The peers of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Every address, of pods or not.
    Any,
    /// What one of these matches. Possibly none, if none could be understood.
    Only(Vec<Peer>),
}

/// One peer of a rule. Complete in itself: two policies with equal peers mean the same addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods by labels.
    Pods {
        /// Where they are.
        namespaces: NamespaceScope,
        /// Which they are.
        pods: Selector,
    },
    /// Addresses.
    Block(IpBlock),
}

/// The namespaces of a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// The policy's own.
    Own(String),
    /// Those with such labels.
    Matching(Selector),
}

/// A network and what is taken out of it. It also matches the addresses of pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The network; host bits are zero.
    pub cidr: IpNet,
    /// Exceptions, sorted; host bits are zero.
    pub except: Vec<IpNet>,
}

impl IpBlock {
    /// Whether the block contains the address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|except| except.contains(&address))
    }
}

/// The ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every port of every protocol, and protocols without ports.
    Any,
    /// What one of these matches. Possibly none, if none could be understood.
    Only(Vec<PortMatch>),
}

/// One port of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMatch {
    /// Protocol.
    pub protocol: Protocol,
    /// Which ports of it.
    pub port: PortSpec,
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSpec {
    /// All of them.
    All,
    /// From the first to the second, both included.
    Range(u16, u16),
    /// The port of that name on the destination pod.
    Named(String),
}

/// A pod's interface on this node, as the CNI state knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Namespace and name of the pod.
    pub pod: ObjectKey,
    /// UID of the pod, if the runtime told it.
    pub uid: Option<String>,
    /// The sandbox that owns the interface.
    pub container_id: String,
    /// The addresses that the CNI plugin assigned.
    pub ips: Vec<IpAddr>,
    /// Interface index of the host side of the veth.
    pub ifindex: u32,
    /// MAC address of the pod's interface.
    pub mac: [u8; 6],
    /// Ports of this node that lead to the pod.
    pub host_ports: Vec<HostPort>,
    /// What the pod may send.
    pub egress_limit: Option<Limit>,
    /// What the pod may receive.
    pub ingress_limit: Option<Limit>,
}

/// A port of this node that leads to a pod (`hostPort`), as the runtime asked for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The address of the node that has the port; `None`: every address, of both families.
    pub host_ip: Option<IpAddr>,
    /// The port on the node.
    pub host_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The pod's port.
    pub container_port: u16,
}

/// A limit of bandwidth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    /// Bytes per second; never 0.
    pub bytes_per_second: u64,
    /// Bytes that may pass at once after a pause.
    pub burst: u64,
}

impl LocalEndpoint {
    /// Whether `pod` is the very pod of this interface, and not another one of the same name.
    #[must_use]
    pub fn belongs_to(&self, pod: &Pod) -> bool {
        self.pod == pod.key
            && self
                .uid
                .as_ref()
                .is_none_or(|uid| *uid == pod.uid || pod.static_uid.as_ref() == Some(uid))
    }
}

/// How packets get to the pods of other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// Through the overlay.
    #[default]
    Vxlan,
    /// By the node's own routes.
    Native,
}

/// The addresses at which this node has the NodePorts; of those of its own that are not loopback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every one.
    #[default]
    All,
    /// The first InternalIP of each family.
    Primary,
    /// Those in these networks; all of a family that none of the networks is of.
    Cidrs(Vec<IpNet>),
}

impl NodePortAddresses {
    /// Whether NodePorts are at this address of `own`, this node.
    #[must_use]
    pub fn contain(&self, address: IpAddr, own: Option<&Node>) -> bool {
        let same_family = |other: IpAddr| other.is_ipv4() == address.is_ipv4();
        if address.is_loopback() {
            return false;
        }
        match self {
            Self::All => true,
            Self::Primary => {
                let mut internal = own.into_iter().flat_map(|own| &own.internal_ips);
                internal.find(|ip| same_family(**ip)) == Some(&address)
            }
            Self::Cidrs(cidrs) => {
                let mut of_family = cidrs.iter().filter(|cidr| same_family(cidr.addr()));
                let mut rest = of_family.clone();
                rest.next().is_none() || of_family.any(|cidr| cidr.contains(&address))
            }
        }
    }
}

/// What the operator decided for this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How packets get to the pods of other nodes.
    pub routing: Routing,
    /// Networks that pods talk to with their own addresses, besides those of pods and nodes.
    pub non_masquerade: Vec<IpNet>,
    /// How backends are chosen, of services that do not say.
    pub load_balancing: LoadBalancing,
    /// How backends answer clients from outside, of services that do not say.
    pub load_balancing_return: LoadBalancingReturn,
    /// How many blocks of Maglev tables there is room for; `None`: as many as by default.
    pub maglev_blocks: Option<usize>,
    /// Where this node has the NodePorts.
    pub nodeport_addresses: NodePortAddresses,
}

/// Everything the compiler reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// The name of this node.
    pub node_name: String,
    /// What the operator decided.
    pub settings: Settings,
    /// Every unicast address of this node's interfaces that is not of one link only, whether the
    /// Node object tells it or not; none of its pods' addresses.
    pub own_addresses: BTreeSet<IpAddr>,
    /// All nodes.
    pub nodes: BTreeMap<String, Node>,
    /// All namespaces.
    pub namespaces: BTreeMap<String, Namespace>,
    /// All pods.
    pub pods: BTreeMap<ObjectKey, Pod>,
    /// All services.
    pub services: BTreeMap<ObjectKey, Service>,
    /// All endpoint slices.
    pub slices: BTreeMap<ObjectKey, EndpointSlice>,
    /// All networks of cluster addresses.
    pub service_cidrs: BTreeMap<String, ServiceCidr>,
    /// All network policies.
    pub policies: BTreeMap<ObjectKey, NetworkPolicy>,
    /// The interfaces of this node's pods, by container id.
    pub endpoints: BTreeMap<String, LocalEndpoint>,
}

impl ClusterState {
    /// The pod object of a local endpoint, if it is known.
    #[must_use]
    pub fn pod_of(&self, endpoint: &LocalEndpoint) -> Option<&Pod> {
        self.pods
            .get(&endpoint.pod)
            .filter(|pod| endpoint.belongs_to(pod))
    }

    /// This node, if it is known.
    #[must_use]
    pub fn own_node(&self) -> Option<&Node> {
        self.nodes.get(&self.node_name)
    }
}

/// Something about an object that an operator should know; the rest of the object holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Kind and name, as in `NetworkPolicy shop/api`.
    pub object: String,
    /// What is wrong with it, and what Weft does about it.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// The IPv4 address of the mapped form `::ffff:a.b.c.d`, other addresses as they are.
#[must_use]
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => v6
            .to_ipv4_mapped()
            .map_or(address, |v4: Ipv4Addr| v4.into()),
    }
}
