//! Keeps the EndpointSlices of Services that have a selector.
//!
//! [`endpoints`] says what a Service's endpoints are; [`plan`] puts them into slices with as few
//! writes as it takes. Slices go with their Service through their owner reference ([`super::garbage`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, PostParams};

use super::cache::version;
use super::cluster::Cluster;
use super::pass::{Controller, Outcome, ignore_absent};

mod endpoints;
mod plan;

/// Keeps EndpointSlices.
pub struct Slices;

impl Controller for Slices {
    const NAME: &'static str = "endpointslices";

    async fn pass(&self, cluster: &Cluster) -> Result<()> {
        let zones = zones(&cluster.nodes.all());
        let pods = by_namespace(cluster.pods.all());
        let slices = by_namespace(cluster.slices.all());
        let mut outcome = Outcome::default();
        let mut newest = 0;
        for service in cluster.services.all() {
            if !endpoints::are_wanted(&service) {
                continue;
            }
            let namespace = service.namespace().unwrap_or_default();
            let pods = pods.get(&namespace).map_or(&[][..], Vec::as_slice);
            let slices = slices.get(&namespace).map_or(&[][..], Vec::as_slice);
            let groups = endpoints::groups(&service, pods, &zones);
            let changes = plan::plan(&service, groups, slices);
            let version = apply(cluster, &namespace, changes, &mut outcome).await;
            newest = newest.max(version);
        }
        cluster.slices.reach(newest).await;
        outcome.finish()
    }
}

/// Writes the changes and returns the newest version that came of it. New slices come first, so that
/// an endpoint that moves is in two slices for a moment rather than in none.
async fn apply(
    cluster: &Cluster,
    namespace: &str,
    changes: plan::Changes,
    outcome: &mut Outcome,
) -> u64 {
    let api = cluster.api::<EndpointSlice>(namespace);
    let parameters = PostParams::default();
    let mut newest = 0;
    for slice in changes.create {
        let created = api.create(&parameters, &slice).await;
        let what = || format!("creating EndpointSlice {namespace}/{}", slice.name_any());
        newest = newest.max(
            outcome
                .note(created, what)
                .map_or(0, |slice| version(&slice)),
        );
    }
    for slice in changes.update {
        let updated = api.replace(&slice.name_any(), &parameters, &slice).await;
        let what = || format!("updating EndpointSlice {namespace}/{}", slice.name_any());
        newest = newest.max(
            outcome
                .note(updated, what)
                .map_or(0, |slice| version(&slice)),
        );
    }
    for name in changes.delete {
        let deleted = api.delete(&name, &DeleteParams::default()).await;
        let what = || format!("deleting EndpointSlice {namespace}/{name}");
        outcome.note(ignore_absent(deleted), what);
    }
    newest
}

fn zones(nodes: &[Arc<Node>]) -> BTreeMap<String, String> {
    let zone = |node: &Arc<Node>| {
        let zone = node.labels().get("topology.kubernetes.io/zone")?;
        Some((node.name_any(), zone.clone()))
    };
    nodes.iter().filter_map(zone).collect()
}

fn by_namespace<K: kube::Resource>(objects: Vec<Arc<K>>) -> BTreeMap<String, Vec<Arc<K>>> {
    let mut map: BTreeMap<String, Vec<Arc<K>>> = BTreeMap::new();
    for object in objects {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        map.entry(namespace).or_default().push(object);
    }
    map
}
