//! Pod networks as Node objects claim them: which of them can be one.
//!
//! A Node object is written by whoever runs that node. What it claims must take nothing away from
//! this node: not the underlay, with the way to the other nodes and to the API, nor its own pods,
//! nor addresses that mean something else everywhere. The routes of the node and the ipcache follow
//! the same judgement, so that neither leads where the other does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::{ClusterState, Node};

/// Networks that mean something else than a pod network on every node.
const RESERVED: [(IpNet, &str); 8] = [
    (v4([0, 0, 0, 0], 8), "unspecified"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v6([0; 8], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(
        std::net::Ipv4Addr::new(a, b, c, d),
        length,
    ))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(
        std::net::Ipv6Addr::new(a, b, c, d, e, f, g, h),
        length,
    ))
}

/// Why a network that a Node object claims is nobody's pod network. Its text completes "its podCIDR
/// 10.0.0.0/8 ...".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It is a whole address family.
    Everything,
    /// Addresses of it are loopback, link-local, multicast or unspecified.
    Reserved(&'static str),
    /// It holds an address of a node.
    HoldsNode(IpAddr, String),
    /// It lies within this node's own pod network.
    WithinOwn(IpNet),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("is everything"),
            Self::Reserved(what) => write!(f, "holds {what} addresses"),
            Self::HoldsNode(address, node) => write!(f, "holds address {address} of node {node}"),
            Self::WithinOwn(own) => write!(f, "lies within {own}, which is of this node's pods"),
        }
    }
}

/// Whether an address means something else than a pod on every node.
#[must_use]
pub fn is_reserved(address: IpAddr) -> bool {
    RESERVED
        .iter()
        .any(|(reserved, _)| reserved.contains(&address))
}

/// Judges pod networks.
#[derive(Debug)]
pub struct PodNetworks<'a> {
    own_name: &'a str,
    /// This node's own networks, as far as they are none of the refused.
    own_networks: Vec<IpNet>,
    /// InternalIPs of all nodes.
    internal: BTreeMap<IpAddr, &'a str>,
    /// Whatever else this node's interfaces have.
    own: &'a BTreeSet<IpAddr>,
}

impl<'a> PodNetworks<'a> {
    /// A judge for this cluster, as this node sees it.
    #[must_use]
    pub fn new(state: &'a ClusterState) -> Self {
        let internal = state.nodes.values().rev().flat_map(|node| {
            let addresses = node.internal_ips.iter();
            addresses.map(|address| (*address, node.name.as_str()))
        });
        let mut judge = Self {
            own_name: &state.node_name,
            own_networks: Vec::new(),
            internal: internal.collect(),
            own: &state.own_addresses,
        };
        if let Some(own) = state.own_node() {
            let networks = own.pod_cidrs.iter().copied();
            judge.own_networks = networks
                .filter(|cidr| judge.refusal(own, cidr).is_none())
                .collect();
        }
        judge
    }

    /// Why `cidr` cannot be a pod network of `node`; `None` if it can.
    ///
    /// Of this node's own network less is asked: a bridge of its own that has an address in it,
    /// left over from other software, takes nothing away.
    #[must_use]
    pub fn refusal(&self, node: &Node, cidr: &IpNet) -> Option<Refusal> {
        if cidr.prefix_len() == 0 {
            return Some(Refusal::Everything);
        }
        let overlaps = |other: &IpNet| other.contains(cidr) || cidr.contains(other);
        if let Some((_, what)) = RESERVED.iter().find(|(reserved, _)| overlaps(reserved)) {
            return Some(Refusal::Reserved(what));
        }
        let addresses = cidr.network()..=cidr.broadcast();
        if let Some((address, owner)) = self.internal.range(addresses.clone()).next() {
            return Some(Refusal::HoldsNode(*address, (*owner).to_owned()));
        }
        if node.name == self.own_name {
            return None;
        }
        if let Some(address) = self.own.range(addresses).next() {
            return Some(Refusal::HoldsNode(*address, self.own_name.to_owned()));
        }
        let mut own = self.own_networks.iter();
        own.find(|own| own.contains(cidr))
            .map(|own| Refusal::WithinOwn(*own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str, cidrs: &[&str]) -> Node {
        Node {
            name: name.to_owned(),
            internal_ips: vec![address.parse().expect("an address")],
            pod_cidrs: cidrs
                .iter()
                .map(|cidr| cidr.parse().expect("a network"))
                .collect(),
            labels: Default::default(),
            leaving: false,
        }
    }

    #[test]
    fn networks_that_take_something_away_are_refused() {
        let own = node("a", "172.30.0.2", &["10.244.0.0/24", "fd00:0:0:1::/64"]);
        let other = node("b", "172.31.0.3", &[]);
        let third = node("c", "2001:db8::3", &[]);
        let state = ClusterState {
            node_name: "a".to_owned(),
            own_addresses: ["192.0.2.7", "10.244.0.1"]
                .map(|ip| ip.parse().expect("an address"))
                .into(),
            nodes: [&own, &other, &third]
                .map(|node| (node.name.clone(), node.clone()))
                .into(),
            ..ClusterState::default()
        };
        let judge = PodNetworks::new(&state);
        let cases = [
            ("0.0.0.0/0", "is everything"),
            ("::/0", "is everything"),
            ("0.0.0.0/1", "holds unspecified addresses"),
            ("127.0.0.0/8", "holds loopback addresses"),
            ("127.1.0.0/16", "holds loopback addresses"),
            ("224.0.0.0/4", "holds multicast addresses"),
            ("169.254.1.0/24", "holds link-local addresses"),
            ("fe80::/64", "holds link-local addresses"),
            ("ff00::/8", "holds multicast addresses"),
            ("::/64", "holds unspecified addresses"),
            ("172.30.0.0/16", "holds address 172.30.0.2 of node a"),
            ("172.31.0.0/16", "holds address 172.31.0.3 of node b"),
            ("2001:db8::/32", "holds address 2001:db8::3 of node c"),
            ("192.0.2.0/24", "holds address 192.0.2.7 of node a"),
            (
                "10.244.0.128/25",
                "lies within 10.244.0.0/24, which is of this node's pods",
            ),
            (
                "fd00:0:0:1::/80",
                "lies within fd00:0:0:1::/64, which is of this node's pods",
            ),
        ];
        for (cidr, expected) in cases {
            let cidr = cidr.parse().expect("a network");
            let refusal = judge.refusal(&other, &cidr).map(|why| why.to_string());
            assert_eq!(refusal.as_deref(), Some(expected), "{cidr}");
        }
        for cidr in [
            "10.244.1.0/24",
            "10.245.0.0/16",
            "fd00::/64",
            "240.0.0.0/24",
        ] {
            let cidr = cidr.parse().expect("a network");
            assert_eq!(judge.refusal(&other, &cidr), None, "{cidr}");
        }
        for cidr in &own.pod_cidrs {
            assert_eq!(judge.refusal(&own, cidr), None, "{cidr}");
        }

        // An own network that is no good takes nothing away from others either.
        let mut broken = state.clone();
        let own = node("a", "172.30.0.2", &["0.0.0.0/0"]);
        broken.nodes.insert("a".to_owned(), own);
        let cidr = "10.244.1.0/24".parse().expect("a network");
        assert_eq!(PodNetworks::new(&broken).refusal(&other, &cidr), None);
    }
}
