//! Gives every node its range of pod addresses.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::json;

use super::Controller;
use crate::api::object::{items, text};
use crate::api::registry::Part;
use crate::api::resources::NODES;
use crate::api::{Cause, Change, Key, Registry, Status};

/// A cluster's range of one family, and how large the nodes' parts of it are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRange {
    /// The whole.
    pub cluster: IpNet,
    /// The prefix length of a node's part.
    pub node_prefix: u8,
}

/// One range per family; the first is the preferred one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRanges(pub Vec<PodRange>);

impl PodRanges {
    /// One family: a /24 of an IPv4 range, or a /64 of an IPv6 range, per node; less when the range is
    /// smaller than that.
    #[must_use]
    pub fn single(cluster: IpNet) -> Self {
        let usual = if cluster.addr().is_ipv4() { 24 } else { 64 };
        PodRanges(vec![PodRange {
            cluster,
            node_prefix: usual.max(cluster.prefix_len()),
        }])
    }
}

impl Default for PodRanges {
    /// A /24 of `10.244.0.0/16` per node.
    fn default() -> Self {
        PodRanges(
            "10.244.0.0/16"
                .parse()
                .map(PodRanges::single)
                .map_or_else(|_| Vec::new(), |r| r.0),
        )
    }
}

/// See the module.
pub struct NodeCidrs {
    ranges: PodRanges,
}

impl NodeCidrs {
    pub fn new(ranges: PodRanges) -> Self {
        NodeCidrs { ranges }
    }
}

impl Controller for NodeCidrs {
    fn name(&self) -> &'static str {
        "node-ipam-controller"
    }

    fn keys(&mut self, registry: &Registry, change: &Change) -> Vec<Key> {
        if *change.key.resource != NODES {
            return Vec::new();
        }
        if !change.deleted {
            return vec![change.key.clone()];
        }
        // Its range is free now; others may wait for one.
        let nodes = registry.all(&NODES, "");
        nodes
            .iter()
            .map(|node| Key::new(&NODES, "", text(node, "/metadata/name")))
            .collect()
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let nodes = registry.all(&NODES, "");
        let Some(node) = nodes
            .iter()
            .find(|node| text(node, "/metadata/name") == key.name)
        else {
            return Ok(());
        };
        if !text(node, "/spec/podCIDR").is_empty() {
            return Ok(());
        }
        let used: BTreeSet<IpNet> = nodes
            .iter()
            .flat_map(|node| items(node, "/spec/podCIDRs"))
            .filter_map(|range| range.as_str()?.parse().ok())
            .collect();
        let mut given = Vec::new();
        for range in &self.ranges.0 {
            let mut parts = range
                .cluster
                .subnets(range.node_prefix)
                .into_iter()
                .flatten();
            let free =
                parts.find(|part| used.iter().all(|u| !u.contains(part) && !part.contains(u)));
            let Some(free) = free else {
                let why = format!("no range is left for it in {}", range.cluster);
                tracing::warn!(node = key.name, range = %range.cluster, "no pod range is left");
                let cause = Cause::forbidden("spec.podCIDR", &why);
                return Err(Status::invalid(&NODES, &key.name, &[cause]));
            };
            given.push(free.to_string());
        }
        let Some(first) = given.first().cloned() else {
            return Ok(());
        };
        registry.modify(key, Part::Main, &self.options(), |live| {
            let mut node = live.clone();
            let spec = crate::api::object::map_mut(&mut node, "spec");
            spec.insert("podCIDR".to_owned(), first.into());
            spec.insert("podCIDRs".to_owned(), json!(given));
            Ok(node)
        })?;
        Ok(())
    }
}
