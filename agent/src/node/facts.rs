//! What the node must know of itself, kept on disk, so that an agent that starts while the API is
//! away can serve pods all the same.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::warn;
use weft_core::model::{ClusterState, Node};

use crate::persist;

/// What the node must know of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its first underlay address, IPv4 if it has one: where tunnels end, and the source of what it
    /// sends to pods of that family.
    pub address: IpAddr,
    /// Its underlay address of the other family, if it has one.
    #[serde(default)]
    pub second: Option<IpAddr>,
    /// Its pod networks.
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeFacts {
    /// What the state says of this node, if it says enough. `given` overrides the Node object's
    /// addresses, one per family.
    pub fn of(state: &ClusterState, given: &[IpAddr]) -> Option<Self> {
        let node = state.own_node()?;
        let of_family = |is_family: fn(&IpAddr) -> bool| {
            let all = given.iter().chain(&node.internal_ips);
            { all }.find(|address| is_family(address)).copied()
        };
        let (v4, v6) = (of_family(IpAddr::is_ipv4), of_family(IpAddr::is_ipv6));
        Some(Self {
            address: v4.or(v6)?,
            second: v4.and(v6),
            pod_cidrs: node.pod_cidrs.clone(),
        })
    }

    /// Its underlay addresses, at most one per family.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [self.address].into_iter().chain(self.second).collect()
    }

    /// The node's address of the family of `to`, if it has one: the source of what it sends there.
    pub fn source_for(&self, to: IpAddr) -> Option<IpAddr> {
        let same = |address: &IpAddr| address.is_ipv4() == to.is_ipv4();
        self.addresses().into_iter().find(same)
    }

    /// Whether it has pods of IPv6.
    pub fn has_ipv6_pods(&self) -> bool {
        self.pod_cidrs.iter().any(|cidr| cidr.network().is_ipv6())
    }

    /// A Node object that says this much.
    pub fn as_node(&self, name: &str) -> Node {
        Node {
            name: name.to_owned(),
            internal_ips: self.addresses(),
            pod_cidrs: self.pod_cidrs.clone(),
            labels: Default::default(),
            // Load balancers should not choose a node that the API does not know.
            leaving: true,
        }
    }
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The facts.
    #[serde(flatten)]
    pub facts: NodeFacts,
    /// The MTU that pods were last given, in bytes: those that still have it follow a change.
    #[serde(default)]
    pub mtu: Option<u32>,
}

impl Remembered {
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

    /// Keeps it, unless it is there already.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn store(&self, path: &Path) -> Result<()> {
        let content = serde_json::to_vec_pretty(self)?;
        if std::fs::read(path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        persist::write(path, &content, 0o600)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_survive_a_restart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("node.json");
        assert_eq!(Remembered::load(&path), None);
        let facts = NodeFacts {
            address: [172, 30, 0, 2].into(),
            second: Some("2001:db8::2".parse().expect("an address")),
            pod_cidrs: vec!["10.244.0.0/24".parse().expect("a network")],
        };
        let remembered = Remembered {
            facts: facts.clone(),
            mtu: Some(1450),
        };
        remembered.store(&path).expect("writes");
        assert_eq!(Remembered::load(&path), Some(remembered));
        let mut state = ClusterState {
            node_name: "a".to_owned(),
            ..ClusterState::default()
        };
        state.nodes.insert("a".to_owned(), facts.as_node("a"));
        assert_eq!(NodeFacts::of(&state, &[]), Some(facts));
        std::fs::write(&path, "{").expect("writes");
        assert_eq!(Remembered::load(&path), None);
        // As the first release wrote it.
        let old = r#"{"address": "172.30.0.2", "pod_cidrs": []}"#;
        std::fs::write(&path, old).expect("writes");
        let read = Remembered::load(&path).expect("readable");
        assert_eq!((read.mtu, read.facts.second), (None, None));
    }
}
