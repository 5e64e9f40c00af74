//! The cluster of a packet test, from manifests.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::{core::v1, discovery::v1::EndpointSlice, networking::v1::NetworkPolicy};
use serde::Deserialize as _;
use weft_core::{
    convert,
    model::{ClusterState, LocalEndpoint, ObjectKey},
};

use super::{Family, Place};

/// A pod that runs on the node under test.
#[derive(Clone, Copy, Debug)]
pub struct LocalPod {
    /// Its name, in namespace `default`.
    pub name: &'static str,
    /// Its addresses.
    pub place: Place,
    /// The MAC address of its interface.
    pub mac: [u8; 6],
}

/// Kubernetes objects, as the compiler gets them.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The typed state.
    pub state: ClusterState,
}

impl Cluster {
    /// An empty cluster, seen from this node.
    #[must_use]
    pub fn seen_from(node: &str) -> Self {
        let mut cluster = Self::default();
        node.clone_into(&mut cluster.state.node_name);
        cluster
    }

    /// Adds, or replaces, the objects of a manifest.
    ///
    /// # Errors
    ///
    /// When an object is not what Kubernetes would take, or of a kind that Weft does not watch.
    pub fn apply(&mut self, manifest: &str) -> Result<()> {
        for document in serde_norway::Deserializer::from_str(manifest) {
            let object = serde_json::Value::deserialize(document)?;
            if object.is_null() {
                continue;
            }
            let kind = object["kind"]
                .as_str()
                .context("an object without kind")?
                .to_owned();
            match kind.as_str() {
                "Node" => {
                    let node = convert::node(&serde_json::from_value(object)?)?.object;
                    self.state.nodes.insert(node.name.clone(), node);
                }
                "Namespace" => {
                    let namespace = convert::namespace(&serde_json::from_value(object)?)?.object;
                    self.state
                        .namespaces
                        .insert(namespace.name.clone(), namespace);
                }
                "Pod" => {
                    let pod: v1::Pod = serde_json::from_value(object)?;
                    let pod = convert::pod(&pod)?.object;
                    self.state.pods.insert(pod.key.clone(), pod);
                }
                "Service" => {
                    let service = convert::service(&serde_json::from_value(object)?)?.object;
                    self.state.services.insert(service.key.clone(), service);
                }
                "EndpointSlice" => {
                    let slice: EndpointSlice = serde_json::from_value(object)?;
                    let slice = convert::endpoint_slice(&slice)?.object;
                    self.state.slices.insert(slice.key.clone(), slice);
                }
                "ServiceCIDR" => {
                    let network = convert::service_cidr(&serde_json::from_value(object)?)?.object;
                    self.state
                        .service_cidrs
                        .insert(network.name.clone(), network);
                }
                "NetworkPolicy" => {
                    let policy: NetworkPolicy = serde_json::from_value(object)?;
                    let policy = convert::network_policy(&policy)?.object;
                    self.state.policies.insert(policy.key.clone(), policy);
                }
                kind => bail!("packet tests have no use for a {kind}"),
            }
        }
        Ok(())
    }

    /// Gives a pod of this node its interface, and of its addresses those of the cluster's families.
    pub fn plug(&mut self, pod: &LocalPod, ifindex: u32) {
        let families = self.families();
        let ips = pod.place.addresses().into_iter();
        let ips = ips.filter(|ip| families.contains(&Family::of(*ip)));
        let endpoint = LocalEndpoint {
            pod: ObjectKey::new("default", pod.name),
            uid: None,
            container_id: pod.name.to_owned(),
            ips: ips.collect(),
            ifindex,
            mac: pod.mac,
            host_ports: Vec::new(),
            egress_limit: None,
            ingress_limit: None,
        };
        self.state.endpoints.insert(pod.name.to_owned(), endpoint);
    }

    /// The interface of a pod of this node, to give it ports of the node or limits.
    ///
    /// # Panics
    ///
    /// When it is not plugged.
    #[track_caller]
    pub fn endpoint(&mut self, pod: &LocalPod) -> &mut LocalEndpoint {
        let endpoint = self.state.endpoints.get_mut(pod.name);
        endpoint.expect("a pod that is plugged")
    }

    /// The families of this node's pod networks.
    fn families(&self) -> Vec<Family> {
        let cidrs = self.state.own_node().into_iter();
        let cidrs = cidrs.flat_map(|node| &node.pod_cidrs);
        cidrs.map(|cidr| Family::of(cidr.addr())).collect()
    }
}
