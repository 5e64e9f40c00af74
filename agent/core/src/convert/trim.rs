//! What the agent keeps of an object while it watches: what conversion reads, and the metadata that
//! a watch needs. On a large cluster the rest is most of the memory.

use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::pod::STATIC_UID;

/// Objects of which only a part is read.
pub trait Trim {
    /// Drops the rest. Converting gives the same before and after.
    fn trim(&mut self);
}

fn trim_metadata(meta: &mut ObjectMeta, annotations: &[&str]) {
    let kept = meta.annotations.take().map(|mut map| {
        map.retain(|name, _| annotations.contains(&name.as_str()));
        map
    });
    *meta = ObjectMeta {
        annotations: kept.filter(|map| !map.is_empty()),
        creation_timestamp: meta.creation_timestamp.take(),
        deletion_timestamp: meta.deletion_timestamp.take(),
        generation: meta.generation,
        labels: meta.labels.take(),
        name: meta.name.take(),
        namespace: meta.namespace.take(),
        resource_version: meta.resource_version.take(),
        uid: meta.uid.take(),
        ..ObjectMeta::default()
    };
}

impl Trim for v1::Node {
    fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[]);
        self.spec = self.spec.take().map(|spec| v1::NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            ..v1::NodeSpec::default()
        });
        self.status = self.status.take().map(|status| v1::NodeStatus {
            addresses: status.addresses,
            ..v1::NodeStatus::default()
        });
    }
}

impl Trim for v1::Namespace {
    fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[]);
        self.spec = None;
        self.status = None;
    }
}

impl Trim for v1::Pod {
    fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[STATIC_UID]);
        self.spec = self.spec.take().map(|spec| v1::PodSpec {
            containers: spec
                .containers
                .into_iter()
                .filter_map(trim_container)
                .collect(),
            init_containers: spec
                .init_containers
                .map(|containers| containers.into_iter().filter_map(trim_container).collect()),
            host_network: spec.host_network,
            node_name: spec.node_name,
            ..v1::PodSpec::default()
        });
        self.status = self.status.take().map(|status| v1::PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..v1::PodStatus::default()
        });
    }
}

/// The container's ports; `None` without any, for nothing else of it is read.
fn trim_container(container: v1::Container) -> Option<v1::Container> {
    container.ports.as_ref().filter(|ports| !ports.is_empty())?;
    Some(v1::Container {
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..v1::Container::default()
    })
}

impl Trim for v1::Service {
    fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[]);
        self.status = None;
    }
}

impl Trim for discovery::EndpointSlice {
    fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[]);
        for endpoint in &mut self.endpoints {
            endpoint.deprecated_topology = None;
            endpoint.hostname = None;
            endpoint.target_ref = None;
        }
    }
}

impl Trim for networking::NetworkPolicy {
    fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[]);
    }
}
