//! The ipcache: for every address its identity and the way there, as one longest-prefix table.
//!
//! Boundaries are the prefixes at which something changes: pod networks, networks of services, node
//! addresses, networks that pods talk to without masquerade, the blocks of policies and their
//! exceptions, and pods. Between two boundaries nothing changes, so one walk over the sorted
//! boundaries, each inheriting from the one around it, gives every address exactly what applies to it.
//! A boundary that changes nothing gets no entry: so a pod that no policy here cares about is covered
//! by its node's pod network.
//!
//! A way that does not exist fails closed. A pod network, or a pod, of a node that the overlay cannot
//! reach is [`KIND_LOCAL_POD`], which says "no address of it is a pod, unless it has an endpoint here":
//! what is sent there is dropped and counted as such, and what claims to come from there is spoofed.
//! If it were unknown instead, its packets would be masqueraded and leave unencapsulated; if it were
//! remote without a tunnel, whoever is on the underlay could take on the identities of its pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use ipnet::IpNet;
use weft_abi::{
    addr::Addr6,
    ipcache::{
        IPCACHE_NO_MASQUERADE, IPCACHE_NODEPORT, IpcacheEntry, KIND_HOST, KIND_LOCAL_POD,
        KIND_REMOTE_NODE, KIND_REMOTE_POD, KIND_SERVICE, KIND_WORLD,
    },
};

use super::identities::{AtomIndex, Atoms, Element, Identities, IdentityIndex, Matcher, PodClass};
use crate::{
    contents::LpmKey,
    family::{Address, leading_mask, underlay},
    model::{ClusterState, Node, ObjectKey, Routing, Warning},
    podnet::{self, PodNetworks},
};

/// An ipcache entry whose identity has no number yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft {
    identity: IdentityIndex,
    route: Route,
    flags: u8,
}

/// How an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    kind: u8,
    tunnel: Addr6,
}

const HOST: Route = Route {
    kind: KIND_HOST,
    tunnel: Addr6::new([0; 16]),
};

const WORLD: Route = Route {
    kind: KIND_WORLD,
    tunnel: Addr6::new([0; 16]),
};

/// Of a network of services: what is no service's there leads nowhere.
const SERVICE: Route = Route {
    kind: KIND_SERVICE,
    ..WORLD
};

/// Of a pod network that nothing leads to: see the module's documentation.
const NOWHERE: Route = Route {
    kind: KIND_LOCAL_POD,
    ..WORLD
};

impl Route {
    /// The way to what another node has; `None` if the overlay does not lead to that node.
    fn to(state: &ClusterState, node: &Node, kind: u8) -> Option<Self> {
        let tunnel = match state.settings.routing {
            Routing::Native => WORLD.tunnel,
            Routing::Vxlan => underlay(node.underlay_address(state.own_node()?)?),
        };
        Some(Self { kind, tunnel })
    }
}

impl Draft {
    /// The entry, with the numbers of the identities.
    pub fn entry(&self, numbers: &[u32]) -> IpcacheEntry {
        IpcacheEntry {
            identity: numbers.get(self.identity).copied().unwrap_or_default(),
            kind: self.route.kind,
            flags: self.flags,
            reserved: [0; 2],
            tunnel: self.route.tunnel,
        }
    }
}

/// The ipcache of one family.
pub struct Table<A: Address> {
    /// Its entries.
    pub entries: BTreeMap<LpmKey<A>, Draft>,
    /// The identities of local endpoints.
    pub endpoints: BTreeMap<A, IdentityIndex>,
}

/// A prefix: address in the leading bits, and length. Sorts outer prefixes before inner ones.
type Prefix = (u128, u32);

/// What changes at a prefix.
#[derive(Default)]
struct Boundary {
    blocks: Vec<AtomIndex>,
    exceptions: Vec<AtomIndex>,
    route: Option<Route>,
    /// Whether a network that is not masqueraded begins here.
    plain: bool,
    /// Whether this node has its NodePorts here.
    has_nodeports: bool,
    pod: Option<Arc<PodClass>>,
    is_endpoint: bool,
}

/// What holds for the addresses of a prefix, unless an inner prefix says otherwise.
struct Region {
    prefix: Prefix,
    /// The blocks around it, and those of which an exception is.
    blocks: Rc<BTreeSet<AtomIndex>>,
    exceptions: Rc<BTreeSet<AtomIndex>>,
    /// The former without the latter.
    matching: Rc<Vec<AtomIndex>>,
    /// Whether it is in a network that is not masqueraded.
    plain: bool,
    value: Draft,
}

/// Builds the table of family `A`.
pub fn build<'a, A: Address>(
    state: &'a ClusterState,
    atoms: &Atoms,
    matcher: &mut Matcher<'a>,
    identities: &mut Identities,
    warnings: &mut Vec<Warning>,
) -> Table<A> {
    let mut boundaries = BTreeMap::<Prefix, Boundary>::new();
    let networks = add_nodes::<A>(state, &mut boundaries, warnings);
    add_services::<A>(state, &networks, &mut boundaries, warnings);
    let plain = &state.settings.non_masquerade;
    for prefix in plain.iter().filter_map(prefix_of::<A>) {
        boundaries.entry(prefix).or_default().plain = true;
    }
    for (index, block) in atoms.blocks() {
        if let Some(prefix) = prefix_of::<A>(&block.cidr) {
            boundaries.entry(prefix).or_default().blocks.push(index);
            for exception in block.except.iter().filter_map(prefix_of::<A>) {
                boundaries
                    .entry(exception)
                    .or_default()
                    .exceptions
                    .push(index);
            }
        }
    }
    add_pods::<A>(state, matcher, &networks, &mut boundaries, warnings);
    walk(&boundaries, atoms, identities)
}

fn walk<A: Address>(
    boundaries: &BTreeMap<Prefix, Boundary>,
    atoms: &Atoms,
    identities: &mut Identities,
) -> Table<A> {
    let mut table = Table {
        entries: BTreeMap::new(),
        endpoints: BTreeMap::new(),
    };
    let root = Region {
        prefix: (0, 0),
        blocks: Rc::default(),
        exceptions: Rc::default(),
        matching: Rc::default(),
        plain: false,
        value: Draft {
            identity: 0,
            route: WORLD,
            flags: 0,
        },
    };
    let mut around: Vec<Region> = Vec::new();
    for (prefix, boundary) in boundaries {
        while around
            .last()
            .is_some_and(|region| !contains(region.prefix, *prefix))
        {
            around.pop();
        }
        let outer = around.last().unwrap_or(&root);
        let region = outer.inner(*prefix, boundary, atoms, identities);
        let address = A::from_leading_bits(prefix.0);
        if region.value != outer.value {
            table
                .entries
                .insert(LpmKey::address(address, prefix.1), region.value);
        }
        if boundary.is_endpoint {
            table.endpoints.insert(address, region.value.identity);
        }
        around.push(region);
    }
    table
}

impl Region {
    fn inner(
        &self,
        prefix: Prefix,
        boundary: &Boundary,
        atoms: &Atoms,
        identities: &mut Identities,
    ) -> Self {
        let extended = |set: &Rc<BTreeSet<AtomIndex>>, more: &[AtomIndex]| {
            if more.is_empty() {
                return Rc::clone(set);
            }
            Rc::new(set.iter().chain(more).copied().collect())
        };
        let blocks = extended(&self.blocks, &boundary.blocks);
        let exceptions = extended(&self.exceptions, &boundary.exceptions);
        let changed = !boundary.blocks.is_empty() || !boundary.exceptions.is_empty();
        let matching = if changed {
            Rc::new(blocks.difference(&exceptions).copied().collect())
        } else {
            Rc::clone(&self.matching)
        };
        let route = boundary.route.unwrap_or(self.value.route);
        let identity = match &boundary.pod {
            None if !changed => self.value.identity,
            pod => identities.intern(elements(&matching, pod.as_deref(), atoms)),
        };
        let plain = self.plain || boundary.plain;
        // Of what is inside, nothing is masqueraded anyway.
        let flags = match route.kind {
            KIND_WORLD if plain => IPCACHE_NO_MASQUERADE,
            KIND_HOST if boundary.has_nodeports => IPCACHE_NODEPORT,
            _ => 0,
        };
        let value = Draft {
            identity,
            route,
            flags,
        };
        Self {
            prefix,
            blocks,
            exceptions,
            matching,
            plain,
            value,
        }
    }
}

/// The elements of an address in `blocks`, of a pod or not; sorted.
fn elements(blocks: &[AtomIndex], pod: Option<&PodClass>, atoms: &Atoms) -> Vec<Element> {
    let plain = blocks
        .iter()
        .filter(|block| !atoms.is_named(**block))
        .map(|block| (*block, 0));
    let mut elements: Vec<_> = plain.collect();
    if let Some(pod) = pod {
        elements.extend(&pod.elements);
        elements.extend(
            pod.in_blocks
                .iter()
                .filter(|(block, _)| blocks.contains(block)),
        );
        elements.sort_unstable();
    }
    elements
}

fn contains(outer: Prefix, inner: Prefix) -> bool {
    outer.1 <= inner.1 && inner.0 & leading_mask(outer.1) == outer.0
}

fn prefix_of<A: Address>(network: &IpNet) -> Option<Prefix> {
    let address = A::from_ip(network.network())?;
    Some((address.to_leading_bits(), u32::from(network.prefix_len())))
}

/// The pod networks of the cluster, to find whose an address is.
struct Networks<'a> {
    owners: BTreeMap<Prefix, &'a str>,
    /// The lengths that occur, longest first.
    lengths: Vec<u32>,
    /// Addresses of nodes.
    nodes: BTreeSet<u128>,
}

impl<'a> Networks<'a> {
    /// Whose network a network is, or lies within.
    fn owner_of(&self, (address, length): Prefix) -> Option<&'a str> {
        let mut outer = self.lengths.iter().filter(|outer| **outer <= length);
        outer
            .find_map(|outer| self.owners.get(&(address & leading_mask(*outer), *outer)))
            .copied()
    }

    fn owner(&self, address: u128) -> Option<&'a str> {
        self.lengths
            .iter()
            .find_map(|length| self.owners.get(&(address & leading_mask(*length), *length)))
            .copied()
    }
}

fn add_nodes<'a, A: Address>(
    state: &'a ClusterState,
    boundaries: &mut BTreeMap<Prefix, Boundary>,
    warnings: &mut Vec<Warning>,
) -> Networks<'a> {
    let mut owners = BTreeMap::<Prefix, &str>::new();
    let mut nodes = BTreeMap::<u128, &str>::new();
    let judge = PodNetworks::new(state);
    add_own_addresses::<A>(state, &mut nodes, boundaries);
    // The own node first: what others claim of it does not count.
    let own = state.own_node().into_iter();
    let others = state
        .nodes
        .values()
        .filter(|node| node.name != state.node_name);
    for node in own.chain(others) {
        let is_own = node.name == state.node_name;
        let mut warn = |message: String| {
            warnings.push(Warning {
                object: format!("Node {}", node.name),
                message,
            });
        };
        let cidrs = node
            .pod_cidrs
            .iter()
            .filter_map(|cidr| Some((cidr, prefix_of::<A>(cidr)?)));
        for (cidr, prefix) in cidrs {
            if let Some(owner) = owners.get(&prefix) {
                warn(format!(
                    "its podCIDR {cidr} is that of node {owner} too; it is ignored until each node \
                     has its own"
                ));
                continue;
            }
            if let Some(refusal) = judge.refusal(node, cidr) {
                warn(format!(
                    "its podCIDR {cidr} {refusal}; it is ignored. Correct the Node's spec.podCIDRs"
                ));
                continue;
            }
            let route = if is_own {
                Route {
                    kind: KIND_LOCAL_POD,
                    ..WORLD
                }
            } else {
                Route::to(state, node, KIND_REMOTE_POD).unwrap_or_else(|| {
                    warn(format!(
                        "it has no InternalIP of a family that this node has one of, too; its pods \
                         ({cidr}) are out of reach until it has one"
                    ));
                    NOWHERE
                })
            };
            owners.insert(prefix, &node.name);
            boundaries.entry(prefix).or_default().route = Some(route);
        }
        for address in node.internal_ips.iter().filter_map(|ip| A::from_ip(*ip)) {
            let bits = address.to_leading_bits();
            match nodes.get(&bits) {
                // Also one that this node was seen to have.
                Some(owner) if *owner == node.name => continue,
                Some(owner) => {
                    let ip = address.to_ip();
                    warn(format!(
                        "its InternalIP {ip} is that of node {owner} too; it is ignored"
                    ));
                    continue;
                }
                None => {}
            }
            nodes.insert(bits, &node.name);
            if is_own {
                add_own_address::<A>(state, bits, boundaries);
                continue;
            }
            // Without the overlay it is an address like any other outside.
            let route = Route::to(state, node, KIND_REMOTE_NODE).unwrap_or(WORLD);
            boundaries.entry((bits, A::BITS)).or_default().route = Some(route);
        }
    }
    let lengths: BTreeSet<_> = owners.keys().map(|(_, length)| *length).collect();
    Networks {
        owners,
        lengths: lengths.into_iter().rev().collect(),
        nodes: nodes.into_keys().collect(),
    }
}

/// What this node's interfaces have is this node's, whatever Node objects say. But an address that a
/// pod of it has is the pod's.
fn add_own_addresses<'a, A: Address>(
    state: &'a ClusterState,
    nodes: &mut BTreeMap<u128, &'a str>,
    boundaries: &mut BTreeMap<Prefix, Boundary>,
) {
    let pods: BTreeSet<_> = state
        .endpoints
        .values()
        .flat_map(|endpoint| &endpoint.ips)
        .collect();
    for ip in state.own_addresses.iter().filter(|ip| !pods.contains(ip)) {
        if let Some(address) = A::from_ip(*ip) {
            let bits = address.to_leading_bits();
            nodes.insert(bits, &state.node_name);
            add_own_address::<A>(state, bits, boundaries);
        }
    }
}

fn add_own_address<A: Address>(
    state: &ClusterState,
    bits: u128,
    boundaries: &mut BTreeMap<Prefix, Boundary>,
) {
    let ip = A::from_leading_bits(bits).to_ip();
    let boundary = boundaries.entry((bits, A::BITS)).or_default();
    boundary.route = Some(HOST);
    let addresses = &state.settings.nodeport_addresses;
    boundary.has_nodeports = addresses.contain(ip, state.own_node());
}

/// Adds the networks of services, where they are not those of pods or nodes.
fn add_services<A: Address>(
    state: &ClusterState,
    networks: &Networks<'_>,
    boundaries: &mut BTreeMap<Prefix, Boundary>,
    warnings: &mut Vec<Warning>,
) {
    for service_cidr in state.service_cidrs.values() {
        let cidrs = service_cidr.cidrs.iter();
        for (cidr, prefix) in cidrs.filter_map(|cidr| Some((cidr, prefix_of::<A>(cidr)?))) {
            let why = if prefix.1 == 0 {
                "is everything".to_owned()
            } else if let Some(owner) = networks.owner_of(prefix) {
                format!("lies within the pod network of node {owner}")
            } else {
                let boundary = boundaries.entry(prefix).or_default();
                boundary.route = boundary.route.or(Some(SERVICE));
                continue;
            };
            warnings.push(Warning {
                object: format!("ServiceCIDR {}", service_cidr.name),
                message: format!(
                    "{cidr} {why}; what is sent to addresses of it that no service has is not \
                     dropped"
                ),
            });
        }
    }
}

/// A pod that says an address is its own.
struct Claim {
    address: u128,
    terminating: bool,
    class: Arc<PodClass>,
    route: Option<Route>,
}

/// Adds the addresses of pods: of this node as the CNI state knows them, of other nodes as their
/// pod objects say, as far as those can be believed.
fn add_pods<'a, A: Address>(
    state: &'a ClusterState,
    matcher: &mut Matcher<'a>,
    networks: &Networks<'_>,
    boundaries: &mut BTreeMap<Prefix, Boundary>,
    warnings: &mut Vec<Warning>,
) {
    let mut local = BTreeSet::new();
    for endpoint in state.endpoints.values() {
        let pod = state.pod_of(endpoint).filter(|pod| !pod.terminal);
        let class = pod.map(|pod| matcher.class_of(pod));
        for address in endpoint.ips.iter().filter_map(|ip| A::from_ip(*ip)) {
            let bits = address.to_leading_bits();
            local.insert(bits);
            let boundary = boundaries.entry((bits, A::BITS)).or_default();
            boundary.pod.clone_from(&class);
            boundary.is_endpoint = true;
        }
    }

    let mut claims = Vec::new();
    for pod in state.pods.values() {
        let is_local = pod.node.as_deref() == Some(&state.node_name);
        if pod.host_network || pod.terminal || is_local {
            continue;
        }
        for ip in &pod.ips {
            let Some(address) = A::from_ip(*ip).map(Address::to_leading_bits) else {
                continue;
            };
            let owner = networks.owner(address);
            let elsewhere = owner.filter(|owner| pod.node.as_deref() != Some(owner));
            let held = networks.nodes.contains(&address) || local.contains(&address);
            if held || elsewhere.is_some() || podnet::is_reserved(*ip) {
                warnings.push(disbelieved(&pod.key, *ip, elsewhere));
                continue;
            }
            let route = match owner {
                Some(_) => None,
                None => Some(route_outside(state, pod.node.as_deref())),
            };
            if route == Some(NOWHERE) {
                warnings.push(out_of_reach(pod.node.as_deref()));
            }
            claims.push(Claim {
                address,
                terminating: pod.terminating,
                class: matcher.class_of(pod),
                route,
            });
        }
    }
    // A pod that is not terminating goes before one that is: its address may be reused.
    claims.sort_by_key(|claim| (claim.address, claim.terminating));
    for claims in claims.chunk_by(|a, b| a.address == b.address) {
        let Some(first) = claims.first() else {
            continue;
        };
        let rivals = claims
            .iter()
            .skip(1)
            .filter(|rival| rival.terminating == first.terminating);
        let mut class = Arc::clone(&first.class);
        for rival in rivals {
            // Which of them has the address cannot be known: only what holds for all of them does.
            class = Arc::new(class.intersection(&rival.class));
        }
        if !class.is_nothing() || first.route.is_some() {
            let boundary = boundaries.entry((first.address, A::BITS)).or_default();
            boundary.pod = Some(class);
            boundary.route = boundary.route.or(first.route);
        }
    }
}

fn disbelieved(pod: &ObjectKey, address: IpAddr, owner: Option<&str>) -> Warning {
    let owner = owner.map_or_else(
        || "a node, to a pod of this node or to no pod at all".to_owned(),
        |owner| format!("the pod network of node {owner}"),
    );
    Warning {
        object: format!("Pod {pod}"),
        message: format!(
            "its address {address} belongs to {owner}; the pod's labels do not count for it"
        ),
    }
}

fn out_of_reach(node: Option<&str>) -> Warning {
    Warning {
        object: format!("Node {}", node.unwrap_or("without a name")),
        message: "the overlay does not lead to it, because the API has no such Node, or it has no \
                  InternalIP of a family that this node has one of, too; its pods with addresses \
                  outside of podCIDRs are out of reach"
            .to_owned(),
    }
}

/// The way to a pod whose address is in no node's pod network.
fn route_outside(state: &ClusterState, node: Option<&str>) -> Route {
    let known = node.and_then(|node| state.nodes.get(node));
    match (known, state.settings.routing) {
        (Some(node), _) => Route::to(state, node, KIND_REMOTE_POD).unwrap_or(NOWHERE),
        // The routes do not depend on whose it is.
        (None, Routing::Native) => Route {
            kind: KIND_REMOTE_POD,
            ..WORLD
        },
        (None, Routing::Vxlan) => NOWHERE,
    }
}
