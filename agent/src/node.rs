//! The node's own part of the network: overlay device, routes to the other nodes, kernel settings.
//!
//! What must be known of this node (its underlay address and its pod networks) is kept on disk, so
//! that an agent that starts while the API is away can serve pods all the same.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use weft_core::model::{ClusterState, Node};

use crate::endpoints::Endpoints;
use crate::netlink::routes::{self, Route, Via};
use crate::netlink::{Netlink, overlay, sysctl, uplink, veth};
use crate::persist;

/// MTU of an uplink that cannot be found: Ethernet's.
const UPLINK_MTU: u32 = 1500;

/// What the node must know of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its underlay address: where tunnels end, and the source of what it sends to pods.
    pub address: IpAddr,
    /// Its pod networks.
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeFacts {
    /// What the state says of this node, if it says enough. `address` overrides the Node object's.
    pub fn of(state: &ClusterState, address: Option<IpAddr>) -> Option<Self> {
        let node = state.own_node()?;
        let address = address.or_else(|| node.tunnel_address())?;
        Some(Self {
            address,
            pod_cidrs: node.pod_cidrs.clone(),
        })
    }

    /// A Node object that says this much.
    pub fn as_node(&self, name: &str) -> Node {
        Node {
            name: name.to_owned(),
            internal_ips: vec![self.address],
            pod_cidrs: self.pod_cidrs.clone(),
            labels: Default::default(),
        }
    }

    /// What an earlier agent knew.
    pub fn load(path: &Path) -> Option<Self> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(file = %path.display(), %error, "cannot read what was known of the node");
                return None;
            }
        };
        serde_json::from_slice(&content)
            .inspect_err(|error| {
                warn!(
                    file = %path.display(), %error,
                    "what was known of the node is unreadable"
                );
            })
            .ok()
    }

    /// Whether a route to another node's pod network takes nothing away from this node: neither the
    /// underlay, with the way to that node and to the API, nor its own pods, nor what is no pod's.
    fn can_lead_away(&self, cidr: &IpNet, tunnel: IpAddr) -> bool {
        let first = cidr.network();
        let underlay = cidr.contains(&self.address) || cidr.contains(&tunnel);
        let own = self.pod_cidrs.iter().any(|own| own.contains(cidr));
        !underlay && !own && !first.is_loopback() && !first.is_multicast()
    }

    fn store(&self, path: &Path) -> Result<()> {
        let content = serde_json::to_vec_pretty(self)?;
        persist::write(path, &content, 0o600)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The node's network as it was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNetwork {
    /// What it was made for.
    pub facts: NodeFacts,
    /// Index of the overlay device.
    pub overlay: u32,
    /// MTU of the overlay and of pods, in bytes.
    pub mtu: u32,
}

/// What the node's network depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    facts: NodeFacts,
    remote: BTreeSet<IpNet>,
    /// Pod networks that get no route, and whose they are.
    refused: BTreeSet<(IpNet, String)>,
}

impl Wanted {
    /// From the state, if it knows this node.
    pub fn of(state: &ClusterState, address: Option<IpAddr>) -> Option<Self> {
        let facts = NodeFacts::of(state, address)?;
        let (mut remote, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for node in state.nodes.values() {
            let Some(tunnel) = node.tunnel_address() else {
                continue;
            };
            if node.name == state.node_name {
                continue;
            }
            for cidr in &node.pod_cidrs {
                if facts.can_lead_away(cidr, tunnel) {
                    remote.insert(*cidr);
                } else {
                    refused.insert((*cidr, node.name.clone()));
                }
            }
        }
        Some(Self {
            facts,
            remote,
            refused,
        })
    }
}

/// Sets the node's network up, and again whenever what it depends on changes.
#[derive(Debug)]
pub struct NodeSetup {
    netlink: Netlink,
    path: PathBuf,
    mtu: Option<u32>,
    done: Option<(Wanted, NodeNetwork)>,
}

impl NodeSetup {
    /// `path`: the file that keeps the facts. `mtu`: instead of the uplink's less the overhead.
    ///
    /// # Errors
    ///
    /// When there is no netlink socket to be had.
    pub fn new(path: PathBuf, mtu: Option<u32>) -> Result<Self> {
        Ok(Self {
            netlink: Netlink::host()?,
            path,
            mtu,
            done: None,
        })
    }

    /// What an earlier agent knew of the node.
    pub fn remembered(&self) -> Option<NodeFacts> {
        NodeFacts::load(&self.path)
    }

    /// Makes the network for facts from an earlier time: the device only, the routes stay as they
    /// are until the nodes are known.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn restore(&mut self, facts: NodeFacts) -> Result<NodeNetwork> {
        sysctl::enable_forwarding();
        self.device(facts).await
    }

    /// Makes the network as the state wants it; returns it if it was changed or repaired.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the next call tries again.
    pub async fn apply(
        &mut self,
        wanted: Wanted,
        endpoints: &Endpoints,
    ) -> Result<Option<NodeNetwork>> {
        if self.done.as_ref().is_some_and(|(done, _)| *done == wanted) {
            return Ok(None);
        }
        for (cidr, node) in &wanted.refused {
            if !self
                .done
                .as_ref()
                .is_some_and(|(done, _)| done.refused.contains(&(*cidr, node.clone())))
            {
                warn!(
                    node, %cidr,
                    "a Node's pod network holds node addresses, pods of this node or no pods at \
                     all; it gets no route. Correct its spec.podCIDRs"
                );
            }
        }
        let known_address = self.done.take().map(|(done, _)| done.facts.address);
        wanted.facts.store(&self.path)?;
        sysctl::enable_forwarding();
        let network = self.device(wanted.facts.clone()).await?;
        let address = network.facts.address;

        let through_overlay = |to: &IpNet| Route {
            to: *to,
            via: Via::Interface {
                index: network.overlay,
                source: address,
            },
        };
        let same_family = |cidr: &&IpNet| cidr.network().is_ipv4() == address.is_ipv4();
        let routes: BTreeSet<Route> = wanted
            .remote
            .iter()
            .filter(same_family)
            .map(through_overlay)
            .chain(wanted.facts.pod_cidrs.iter().map(|to| Route {
                to: *to,
                via: Via::Unreachable,
            }))
            .collect();
        let outcome = routes::reconcile(&self.netlink, network.overlay, &routes).await?;
        if outcome.failed > 0 {
            anyhow::bail!(
                "{} of {} routes could not be set",
                outcome.failed,
                routes.len()
            );
        }
        if known_address != Some(address) {
            self.readdress(endpoints, address).await;
        }
        info!(
            %address, mtu = network.mtu, routes = routes.len(), added = outcome.added,
            removed = outcome.removed, "the node's network is set up"
        );
        self.done = Some((wanted, network.clone()));
        Ok(Some(network))
    }

    async fn device(&self, facts: NodeFacts) -> Result<NodeNetwork> {
        let mtu = match self.mtu {
            Some(mtu) => mtu,
            None => match uplink::with_address(&self.netlink, facts.address).await? {
                Some(link) => link.mtu.saturating_sub(overlay::OVERHEAD),
                None => {
                    warn!(address = %facts.address, mtu = UPLINK_MTU, "no interface has the \
                        node's address; its MTU is assumed. Give --mtu or --node-address if \
                        that is wrong");
                    UPLINK_MTU - overlay::OVERHEAD
                }
            },
        };
        let link = overlay::ensure(&self.netlink, mtu).await?;
        Ok(NodeNetwork {
            facts,
            overlay: link.index,
            mtu,
        })
    }

    /// Makes the node's side of every pod again, with its present address as their source.
    async fn readdress(&self, endpoints: &Endpoints, address: IpAddr) {
        for record in endpoints.all() {
            let result = async {
                let link = self.netlink.link(&record.interface).await?;
                veth::activate_host(&self.netlink, &link, record.mac, &record.addresses, address)
                    .await
            }
            .await;
            if let Err(error) = result
                && endpoints.get(&record.interface).is_some()
            {
                warn!(interface = record.interface, pod = record.pod, %error, "cannot renew the \
                    way to a pod");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str, cidr: &str) -> (String, Node) {
        let node = Node {
            name: name.to_owned(),
            internal_ips: vec![address.parse().expect("an address")],
            pod_cidrs: vec![cidr.parse().expect("a network")],
            labels: Default::default(),
        };
        (name.to_owned(), node)
    }

    #[test]
    fn routes_go_to_the_other_nodes() {
        let state = ClusterState {
            node_name: "a".to_owned(),
            nodes: [
                node("a", "172.30.0.2", "10.244.0.0/24"),
                node("b", "172.30.0.3", "10.244.1.0/24"),
            ]
            .into(),
            ..ClusterState::default()
        };
        let wanted = Wanted::of(&state, None).expect("known");
        assert_eq!(wanted.facts.address.to_string(), "172.30.0.2");
        assert_eq!(
            wanted.remote,
            ["10.244.1.0/24".parse().expect("a network")].into()
        );
        let other: IpAddr = [192, 0, 2, 1].into();
        assert_eq!(
            Wanted::of(&state, Some(other))
                .expect("known")
                .facts
                .address,
            other
        );
        assert_eq!(Wanted::of(&ClusterState::default(), None), None);
    }

    #[test]
    fn no_route_leads_away_what_is_not_the_other_nodes() {
        let mut state = ClusterState {
            node_name: "a".to_owned(),
            nodes: [node("a", "172.30.0.2", "10.244.0.0/24")].into(),
            ..ClusterState::default()
        };
        let cases = [
            ("0.0.0.0/0", false),
            ("172.30.0.0/16", false),
            ("172.31.0.0/16", false),
            ("10.244.0.0/24", false),
            ("10.244.0.5/32", false),
            ("127.0.0.0/8", false),
            ("224.0.0.0/4", false),
            ("10.244.0.0/16", true),
            ("10.244.1.0/24", true),
        ];
        for (cidr, good) in cases {
            state.nodes.extend([node("b", "172.31.0.3", cidr)]);
            let wanted = Wanted::of(&state, None).expect("known");
            assert_eq!(
                (wanted.remote.len(), wanted.refused.len()),
                if good { (1, 0) } else { (0, 1) },
                "{cidr}"
            );
        }
    }

    #[test]
    fn facts_survive_a_restart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("node.json");
        assert_eq!(NodeFacts::load(&path), None);
        let facts = NodeFacts {
            address: [172, 30, 0, 2].into(),
            pod_cidrs: vec!["10.244.0.0/24".parse().expect("a network")],
        };
        facts.store(&path).expect("writes");
        assert_eq!(NodeFacts::load(&path), Some(facts.clone()));
        let mut state = ClusterState {
            node_name: "a".to_owned(),
            ..ClusterState::default()
        };
        state.nodes.insert("a".to_owned(), facts.as_node("a"));
        assert_eq!(NodeFacts::of(&state, None), Some(facts));
        std::fs::write(&path, "{").expect("writes");
        assert_eq!(NodeFacts::load(&path), None);
    }
}
