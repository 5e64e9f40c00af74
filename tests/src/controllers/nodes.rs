//! Gives each node the range that its pods' addresses come from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::cache::version;
use super::cluster::Cluster;
use super::pass::{Controller, Outcome};

/// Allocates pod ranges out of the cluster's.
pub struct Nodes {
    range: IpNet,
}

impl Nodes {
    /// Ranges come out of `range`.
    pub fn new(range: IpNet) -> Self {
        Nodes { range }
    }
}

impl Controller for Nodes {
    const NAME: &'static str = "nodes";

    async fn pass(&self, cluster: &Cluster) -> Result<()> {
        let nodes = cluster.nodes.all();
        let mut used: BTreeSet<IpNet> = nodes.iter().flat_map(|node| ranges(node)).collect();
        let mut outcome = Outcome::default();
        let mut newest = 0;
        for node in nodes.iter().filter(|node| ranges(node).is_empty()) {
            let name = node.name_any();
            let what = || format!("giving node {name} its pod range");
            let free = free_range(self.range, &used)
                .ok_or_else(|| anyhow::anyhow!("every part of {} is in use", self.range));
            let Some(range) = outcome.note(free, what) else {
                continue;
            };
            used.insert(range);
            let patch = json!({
                "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
                "spec": { "podCIDR": range, "podCIDRs": [range] },
            });
            let api = cluster.global_api::<Node>();
            let patched = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            if let Some(node) = outcome.note(patched, what) {
                newest = newest.max(version(&node));
            }
        }
        cluster.nodes.reach(newest).await;
        outcome.finish()
    }
}

fn ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|range| range.parse().ok()).collect()
}

/// The lowest part of `range`, a node's worth of it, that overlaps none of `used`.
fn free_range(range: IpNet, used: &BTreeSet<IpNet>) -> Option<IpNet> {
    let per_node = match range.addr() {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    };
    let mut parts = range.subnets(range.prefix_len().max(per_node)).ok()?;
    parts.find(|part| {
        !used
            .iter()
            .any(|used| used.contains(part) || part.contains(used))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(range: &str, used: &[&str]) -> Option<String> {
        let used = used.iter().map(|range| range.parse().unwrap()).collect();
        free_range(range.parse().unwrap(), &used).map(|range| range.to_string())
    }

    #[test]
    fn ranges_are_the_lowest_free_ones() {
        let table: [(&str, &[&str], Option<&str>); 7] = [
            ("10.244.0.0/16", &[], Some("10.244.0.0/24")),
            (
                "10.244.0.0/16",
                &["10.244.0.0/24", "10.244.2.0/24"],
                Some("10.244.1.0/24"),
            ),
            ("10.244.0.0/16", &["10.244.0.0/23"], Some("10.244.2.0/24")),
            ("10.244.0.0/16", &["10.244.0.128/25"], Some("10.244.1.0/24")),
            ("10.244.0.0/23", &["10.244.0.0/24", "10.244.1.0/24"], None),
            ("10.244.0.0/26", &[], Some("10.244.0.0/26")),
            ("fd00:1::/48", &["fd00:1::/64"], Some("fd00:1:0:1::/64")),
        ];
        for (range, used, expected) in table {
            assert_eq!(
                free(range, used).as_deref(),
                expected,
                "{range} without {used:?}"
            );
        }
    }

    #[test]
    fn a_nodes_ranges_are_read_from_both_fields() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {}, "spec": { "podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "junk"] },
        }))
        .unwrap();
        assert_eq!(ranges(&node).len(), 2);
        assert!(ranges(&Node::default()).is_empty());
    }
}
