//! What the node's network depends on, as the cluster knows it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use weft_core::model::ClusterState;
use weft_core::podnet::PodNetworks;

use super::NodeFacts;

/// Another node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The end of the tunnel to it; `None` if there is no family that both nodes have.
    pub tunnel: Option<IpAddr>,
    /// Its pod networks that may get a route.
    pub pod_cidrs: BTreeSet<IpNet>,
}

impl Peer {
    /// Its address of a network's family.
    pub fn address_for(&self, cidr: &IpNet) -> Option<IpAddr> {
        let same = |address: &&IpAddr| address.is_ipv4() == cidr.network().is_ipv4();
        self.addresses.iter().find(same).copied()
    }
}

/// What the node's network depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// This node.
    pub facts: NodeFacts,
    /// The other nodes, by name. A pod network is that of at most one of them.
    pub peers: BTreeMap<String, Peer>,
}

impl Wanted {
    /// From the state, if it knows this node. `given` overrides the Node object's addresses, one per
    /// family. Pod networks that take something away from this node are left out, as the ipcache
    /// leaves them out, whose compiler warns.
    pub fn of(state: &ClusterState, given: &[IpAddr]) -> Option<Self> {
        let own = state.own_node()?;
        let facts = NodeFacts::of(state, given)?;
        let judge = PodNetworks::new(state);
        let mut taken: BTreeSet<IpNet> = facts.pod_cidrs.iter().copied().collect();
        let mut peers = BTreeMap::new();
        for node in state.nodes.values().filter(|node| node.name != own.name) {
            let good = |cidr: &&IpNet| judge.refusal(node, cidr).is_none();
            let cidrs = node.pod_cidrs.iter().filter(good).copied();
            let peer = Peer {
                tunnel: node.underlay_address(own),
                addresses: node.internal_ips.clone(),
                pod_cidrs: cidrs.filter(|cidr| taken.insert(*cidr)).collect(),
            };
            peers.insert(node.name.clone(), peer);
        }
        Some(Self { facts, peers })
    }

    /// Only this node, when the others are not known.
    pub fn alone(facts: NodeFacts) -> Self {
        Self {
            facts,
            peers: BTreeMap::new(),
        }
    }

    /// Every other node's addresses.
    pub fn peer_addresses(&self) -> BTreeSet<IpAddr> {
        let peers = self.peers.values();
        peers.flat_map(|peer| &peer.addresses).copied().collect()
    }

    /// Whether some tunnel goes over IPv6.
    pub fn has_ipv6_tunnels(&self) -> bool {
        let tunnels = self.peers.values().filter_map(|peer| peer.tunnel);
        self.facts.address.is_ipv6() || { tunnels }.any(|tunnel| tunnel.is_ipv6())
    }
}

#[cfg(test)]
mod tests {
    use weft_core::model::Node;

    use super::*;

    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> (String, Node) {
        let node = Node {
            name: name.to_owned(),
            internal_ips: addresses.iter().map(|a| a.parse().expect("one")).collect(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().expect("one")).collect(),
            labels: Default::default(),
            leaving: false,
        };
        (name.to_owned(), node)
    }

    fn state(nodes: impl IntoIterator<Item = (String, Node)>) -> ClusterState {
        ClusterState {
            node_name: "a".to_owned(),
            nodes: nodes.into_iter().collect(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn tunnels_take_the_family_that_both_nodes_have() {
        let nodes = |own: &[&str]| {
            state([
                node("a", own, &["10.244.0.0/24"]),
                node("b", &["172.30.0.3"], &["10.244.1.0/24", "fd01::/64"]),
                node("c", &["2001:db8::4"], &["10.244.2.0/24"]),
                node("d", &["2001:db8::5", "172.30.0.5"], &["10.244.3.0/24"]),
                node("e", &[], &["10.244.4.0/24"]),
            ])
        };
        let tunnels = |own: &[&str]| {
            let wanted = Wanted::of(&nodes(own), &[]).expect("known");
            let peers = wanted.peers.values();
            let tunnels = peers.map(|peer| peer.tunnel.map(|t| t.to_string()).unwrap_or_default());
            (tunnels.collect::<Vec<_>>(), wanted.has_ipv6_tunnels())
        };
        let list = |texts: [&str; 4]| texts.map(str::to_owned).to_vec();
        assert_eq!(
            tunnels(&["172.30.0.2"]),
            (list(["172.30.0.3", "", "172.30.0.5", ""]), false)
        );
        assert_eq!(
            tunnels(&["2001:db8::2"]),
            (list(["", "2001:db8::4", "2001:db8::5", ""]), true)
        );
        assert_eq!(
            tunnels(&["2001:db8::2", "172.30.0.2"]),
            (list(["172.30.0.3", "2001:db8::4", "172.30.0.5", ""]), true)
        );
        let wanted = Wanted::of(&nodes(&["172.30.0.2"]), &[]).expect("known");
        assert_eq!(wanted.peers["b"].pod_cidrs.len(), 2, "both families' pods");
    }

    #[test]
    fn given_addresses_replace_those_of_their_family() {
        let state = state([node("a", &["172.30.0.2", "2001:db8::2"], &[])]);
        let other: IpAddr = [192, 0, 2, 1].into();
        let facts = Wanted::of(&state, &[other]).expect("known").facts;
        assert_eq!(facts.address, other);
        assert_eq!(
            facts.second.map(|a| a.to_string()).as_deref(),
            Some("2001:db8::2")
        );
        assert_eq!(Wanted::of(&ClusterState::default(), &[]), None);
    }

    #[test]
    fn what_is_not_the_other_nodes_is_left_out() {
        let cases = [
            ("0.0.0.0/0", false),
            ("172.30.0.0/16", false),
            ("172.31.0.0/16", false),
            ("10.244.0.5/32", false),
            ("10.244.0.0/24", false),
            ("127.0.0.0/8", false),
            ("10.244.1.0/24", true),
            ("fd01::/64", true),
        ];
        for (cidr, good) in cases {
            let state = state([
                node("a", &["172.30.0.2"], &["10.244.0.0/24"]),
                node("b", &["172.31.0.3"], &[cidr]),
                node("c", &["172.31.0.4"], &[cidr]),
            ]);
            let wanted = Wanted::of(&state, &[]).expect("known");
            assert_eq!(
                wanted.peers["b"].pod_cidrs.len(),
                usize::from(good),
                "{cidr}"
            );
            assert!(
                wanted.peers["c"].pod_cidrs.is_empty(),
                "{cidr} is another's"
            );
        }
    }
}
