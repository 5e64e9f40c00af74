//! The endpoints of a service port, and which of them get new connections.
//!
//! As kube-proxy's `CategorizeEndpoints` has it. Of all endpoints, those that are ready and that
//! hints do not reserve for others; if there is none, all that still serve while they terminate. Of
//! this node's endpoints, those that are ready, whatever hints say; if there is none, those of this
//! node that still serve while they terminate. Each family by itself.

use std::net::IpAddr;

use weft_abi::service::{BACKEND_CLUSTER, BACKEND_LOCAL};

use super::context::Context;
use crate::{
    model::{EndpointSlice, Protocol, SliceEndpoint},
    name::Name,
};

/// An endpoint of a service port, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// It is on this node.
    pub local: bool,
    /// It takes new connections.
    pub ready: bool,
    /// It would, were it not terminating.
    pub serving: bool,
    /// It is being shut down.
    pub terminating: bool,
    /// What hints say of this node.
    node: Hint,
    /// What they say of its zone.
    zone: Hint,
}

/// Whether an endpoint is meant for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    None,
    /// For others only.
    Others,
    /// For this node, too.
    Us,
}

impl Hint {
    fn of(names: &[Name], own: Option<&str>) -> Self {
        if names.is_empty() {
            Self::None
        } else if own.is_some_and(|own| names.iter().any(|name| **name == *own)) {
            Self::Us
        } else {
            Self::Others
        }
    }
}

impl Endpoint {
    /// A pod of this node that is there as long as it is asked for.
    pub const fn of_host_port(address: IpAddr, port: u16) -> Self {
        Self {
            address,
            port,
            local: true,
            ready: true,
            serving: true,
            terminating: false,
            node: Hint::None,
            zone: Hint::None,
        }
    }

    fn new(endpoint: &SliceEndpoint, port: u16, context: &Context) -> Self {
        let (node, zone) = match &endpoint.hints {
            None => (Hint::None, Hint::None),
            Some(hints) => (
                Hint::of(&hints.nodes, Some(&context.node)),
                Hint::of(&hints.zones, context.zone.as_deref()),
            ),
        };
        Self {
            address: endpoint.address,
            port,
            local: endpoint.node.as_deref() == Some(&context.node),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            node,
            zone,
        }
    }

    /// Whether it keeps the connections that it has.
    pub const fn serves(&self) -> bool {
        self.ready || self.serving
    }

    /// Of two endpoints with one address, the one that lives: the other one's pod is going, and its
    /// address was given again.
    const fn rank(&self) -> (bool, bool, bool) {
        (!self.terminating, self.ready, self.serving)
    }

    const fn is_last_resort(&self) -> bool {
        self.serving && self.terminating
    }
}

/// The endpoints of a service port, by address and port, IPv4 first; each once. Slices say by name
/// and protocol which of the service's ports they have, and each slice with a number of its own.
pub fn collect(
    slices: &[&EndpointSlice],
    name: &str,
    protocol: Protocol,
    context: &Context,
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter();
        for port in ports.filter(|port| port.name == name && port.protocol == protocol) {
            let endpoints = slice.endpoints.iter();
            found.extend(endpoints.map(|endpoint| Endpoint::new(endpoint, port.port, context)));
        }
    }
    // Stable: of equals, that of the first slice.
    found.sort_by(|a, b| {
        let by_target = (a.address, a.port).cmp(&(b.address, b.port));
        by_target.then_with(|| b.rank().cmp(&a.rank()))
    });
    found.dedup_by_key(|endpoint| (endpoint.address, endpoint.port));
    found
}

/// Which of the endpoints of one family get new connections, as `BACKEND_` bits for each of them.
pub fn select(endpoints: &[Endpoint]) -> Vec<u16> {
    let topology = Topology::of(endpoints);
    let cluster = |endpoint: &Endpoint| endpoint.ready && topology.allows(endpoint);
    let local = |endpoint: &Endpoint| endpoint.ready && endpoint.local;
    let any_cluster = endpoints.iter().any(cluster);
    let any_local = endpoints.iter().any(local);
    let takes = |wanted: bool, any: bool, endpoint: &Endpoint| {
        if any {
            wanted
        } else {
            endpoint.is_last_resort()
        }
    };
    let bits = |endpoint: &Endpoint| {
        let mut bits = 0;
        if takes(cluster(endpoint), any_cluster, endpoint) {
            bits |= BACKEND_CLUSTER;
        }
        if endpoint.local && takes(local(endpoint), any_local, endpoint) {
            bits |= BACKEND_LOCAL;
        }
        bits
    };
    endpoints.iter().map(bits).collect()
}

/// Which hints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Everywhere,
}

impl Topology {
    /// Hints count if every ready endpoint has some, and one is for us.
    fn of(endpoints: &[Endpoint]) -> Self {
        let ready = || endpoints.iter().filter(|endpoint| endpoint.ready);
        let counts = |hint: &dyn Fn(&Endpoint) -> Hint| {
            ready().all(|endpoint| hint(endpoint) != Hint::None)
                && ready().any(|endpoint| hint(endpoint) == Hint::Us)
        };
        if counts(&|endpoint| endpoint.node) {
            Self::SameNode
        } else if counts(&|endpoint| endpoint.zone) {
            Self::SameZone
        } else {
            Self::Everywhere
        }
    }

    fn allows(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::SameNode => endpoint.node == Hint::Us,
            Self::SameZone => endpoint.zone == Hint::Us,
            Self::Everywhere => true,
        }
    }
}
