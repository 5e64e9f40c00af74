//! Nodes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1;

use super::{Context, ConvertError, Converted, net};
use crate::model::Node;

/// Taint of a node that the cluster autoscaler is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts a node.
///
/// # Errors
/// The node has no name.
pub fn node(object: &v1::Node) -> Result<Converted<Node>, ConvertError> {
    let (mut context, name) = Context::cluster_wide("Node", &object.metadata)?;
    let internal_ips = internal_ips(&mut context, object);
    let pod_cidrs = pod_cidrs(&mut context, object);
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let spec = object.spec.iter();
    let mut taints = spec.flat_map(|spec| spec.taints.iter().flatten());
    let leaving = object.metadata.deletion_timestamp.is_some()
        || taints.any(|taint| taint.key == TO_BE_DELETED);
    Ok(context.done(Node {
        name,
        internal_ips,
        pod_cidrs,
        labels,
        leaving,
    }))
}

fn internal_ips(context: &mut Context, object: &v1::Node) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let addresses = object
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    for address in addresses.filter(|address| address.type_ == "InternalIP") {
        match net::parse_address(&address.address) {
            Some(address) if found.contains(&address) => {}
            Some(address) => found.push(address),
            None => context.warn(format!(
                "InternalIP {:?} is not an address; it is ignored",
                address.address
            )),
        }
    }
    found
}

fn pod_cidrs(context: &mut Context, object: &v1::Node) -> Vec<IpNet> {
    let Some(spec) = &object.spec else {
        return Vec::new();
    };
    let listed = spec.pod_cidrs.iter().flatten();
    // Older objects have the single field only.
    let single = spec
        .pod_cidr
        .iter()
        .filter(|_| spec.pod_cidrs.iter().flatten().count() == 0);
    let mut found: Vec<IpNet> = Vec::new();
    for text in listed.chain(single).filter(|text| !text.is_empty()) {
        let Some(network) = net::parse_network(text) else {
            context.warn(format!("podCIDR {text:?} is not a network; it is ignored"));
            continue;
        };
        if found.iter().any(|other| same_family(other, &network)) {
            context.warn(format!(
                "podCIDR {text:?} is a second one of its family; it is ignored"
            ));
            continue;
        }
        found.push(network);
    }
    found
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    matches!(
        (a, b),
        (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_))
    )
}
