//! What a playground's Services have been given, and who serves them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::families::{Family, NODES, ROUTER};
use super::wait::{PATIENCE, wait};
use super::{Playground, until};
use crate::api::Registry;
use crate::api::registry::WriteOptions;
use crate::api::resources::{ENDPOINTSLICES, SERVICES};

/// Publishes the API server as the Service `default/kubernetes`, as it does itself in a cluster: at the
/// first address of the first range, with an EndpointSlice of its own.
pub(super) fn publish_api(registry: &Registry, ranges: &[IpNet], port: u16) -> Result<()> {
    let range = ranges.first().context("there are no service ranges")?;
    let family = Family::of(range.addr());
    let address = range.hosts().find(|address| *address != range.network());
    let options = WriteOptions::by("kube-apiserver");
    let service = json!({
        "metadata": {
            "name": "kubernetes",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "clusterIP": address,
            "ports": [{ "name": "https", "port": 443, "targetPort": port }],
        },
    });
    registry.create(&SERVICES, "default", service, &options)?;
    let slice = json!({
        "metadata": {
            "name": "kubernetes",
            "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "addressType": family.name(),
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        "endpoints": [{
            "addresses": [NODES.host(family, ROUTER)],
            "conditions": { "ready": true },
        }],
    });
    registry.create(&ENDPOINTSLICES, "default", slice, &options)?;
    Ok(())
}

impl Playground {
    /// A Service as it is.
    ///
    /// # Errors
    ///
    /// When there is none, or the API server does not say.
    pub fn service(&self, namespace: &str, name: &str) -> Result<Service> {
        let api: Api<Service> = Api::namespaced(self.client(), namespace);
        self.block_on(api.get(name))
            .with_context(|| format!("reading service {namespace}/{name}"))
    }

    /// Changes a Service by a merge patch of the whole object, such as
    /// `json!({ "spec": { "type": "NodePort" } })`, and returns it as it is then.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn patch_service(&self, namespace: &str, name: &str, patch: &Value) -> Result<Service> {
        let api: Api<Service> = Api::namespaced(self.client(), namespace);
        self.block_on(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)))
            .with_context(|| format!("changing service {namespace}/{name}"))
    }

    /// Reports a Service's load balancer as another implementation would: one that has these
    /// addresses, with this `ipMode` (`VIP` or `Proxy`).
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn report_ingress(
        &self,
        namespace: &str,
        name: &str,
        addresses: &[IpAddr],
        mode: &str,
    ) -> Result<()> {
        let entry = |ip: &IpAddr| json!({ "ip": ip, "ipMode": mode });
        let ingress: Vec<Value> = addresses.iter().map(entry).collect();
        let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        let api: Api<Service> = Api::namespaced(self.client(), namespace);
        self.block_on(api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)))
            .map(drop)
            .with_context(|| format!("reporting the load balancer of {namespace}/{name}"))
    }

    /// Changes a Node by a merge patch of the whole object: its labels, its taints.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn patch_node(&self, name: &str, patch: &Value) -> Result<()> {
        let api: Api<Node> = Api::all(self.client());
        self.block_on(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)))
            .map(drop)
            .with_context(|| format!("changing node {name}"))
    }

    /// The Service's cluster address of a family.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn cluster_ip(&self, namespace: &str, name: &str, family: Family) -> Result<IpAddr> {
        let spec = self.service(namespace, name)?.spec.unwrap_or_default();
        let addresses = spec.cluster_ips.unwrap_or_default();
        pick(&addresses, family).with_context(|| format!("service {name} has only {addresses:?}"))
    }

    /// The node port of the Service's port of that number and protocol (`TCP`, `UDP`, `SCTP`).
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn node_port(&self, namespace: &str, name: &str, port: u16, protocol: &str) -> Result<u16> {
        let spec = self.service(namespace, name)?.spec.unwrap_or_default();
        let found = spec.ports.into_iter().flatten().find(|found| {
            found.port == i32::from(port) && found.protocol.as_deref() == Some(protocol)
        });
        found
            .and_then(|port| u16::try_from(port.node_port?).ok())
            .with_context(|| format!("service {name} has no node port for {port}/{protocol}"))
    }

    /// A node's address of a family with a port, such as a node port.
    ///
    /// # Errors
    ///
    /// When there is no such node, or it has no such address.
    pub fn node_socket(&self, node: &str, family: Family, port: u16) -> Result<SocketAddr> {
        let address = self.node(node)?.addresses.of(family);
        let address = address.with_context(|| format!("{node} has no {}", family.name()))?;
        Ok(SocketAddr::new(address, port))
    }

    /// Waits until the Service's load balancer has an address of a family.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn wait_balancer_ip(&self, namespace: &str, name: &str, family: Family) -> Result<IpAddr> {
        let what = format!("the load balancer of {namespace}/{name} has an address");
        wait(&what, PATIENCE, || {
            let status = self.service(namespace, name)?.status.unwrap_or_default();
            let balancer = status.load_balancer.unwrap_or_default();
            let ingress = balancer.ingress.into_iter().flatten();
            let addresses: Vec<String> = ingress.filter_map(|entry| entry.ip).collect();
            pick(&addresses, family).with_context(|| format!("it has {addresses:?}"))
        })
    }

    /// All endpoints of a Service, of one family, in all slices.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    pub fn endpoints(
        &self,
        namespace: &str,
        service: &str,
        family: Family,
    ) -> Result<Vec<Endpoint>> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client(), namespace);
        let of_service = format!("kubernetes.io/service-name={service}");
        let slices = self.block_on(api.list(&ListParams::default().labels(&of_service)))?;
        let of_family = slices
            .items
            .into_iter()
            .filter(|slice| slice.address_type == family.name());
        Ok(of_family.flat_map(|slice| slice.endpoints).collect())
    }

    /// Waits until the ready endpoints of a Service, of one family, are exactly those pods.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn wait_endpoints(
        &self,
        namespace: &str,
        service: &str,
        family: Family,
        pods: &[&str],
    ) -> Result<()> {
        let mut wanted: Vec<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
        wanted.sort();
        let what = format!("{wanted:?} are ready for {namespace}/{service}");
        wait(&what, PATIENCE, || {
            let all = self.endpoints(namespace, service, family)?;
            let is_ready = |endpoint: &Endpoint| {
                let conditions = endpoint.conditions.as_ref();
                conditions.and_then(|conditions| conditions.ready) == Some(true)
            };
            let names = all.into_iter().filter(is_ready);
            let mut names: Vec<String> = names
                .filter_map(|endpoint| endpoint.target_ref?.name)
                .collect();
            names.sort();
            if names != wanted {
                bail!("ready are {names:?}");
            }
            Ok(())
        })
    }

    /// Opens or shuts a pod's readiness gate: sets the condition that its `readinessGates` name. The
    /// kubelet makes the pod ready or unready of it.
    ///
    /// # Errors
    ///
    /// When there is no such pod.
    pub fn set_gate(&self, namespace: &str, pod: &str, gate: &str, open: bool) -> Result<()> {
        let status = if open { "True" } else { "False" };
        let condition = json!({ "type": gate, "status": status });
        let patch = json!({ "status": { "conditions": [condition] } });
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        self.block_on(api.patch_status(pod, &PatchParams::default(), &Patch::Strategic(&patch)))
            .map(drop)
            .with_context(|| format!("setting the gate {gate} of pod {namespace}/{pod}"))
    }

    /// Waits until a pod is ready, or no longer.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn wait_readiness(&self, namespace: &str, pod: &str, ready: bool) -> Result<()> {
        let what = format!("pod {namespace}/{pod} is ready: {ready}");
        until(&what, || {
            let found = self.pod(namespace, pod)?.context("there is no such pod")?;
            let conditions = found.status.and_then(|status| status.conditions);
            let mut conditions = conditions.unwrap_or_default().into_iter();
            let now = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
            Ok(now == ready)
        })
    }

    /// Begins to delete a pod and returns at once: it is terminating then, and serves for as long as
    /// its containers do.
    ///
    /// # Errors
    ///
    /// When there is no such pod.
    pub fn begin_delete_pod(&self, namespace: &str, pod: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        self.block_on(api.delete(pod, &kube::api::DeleteParams::default()))
            .map(drop)
            .with_context(|| format!("deleting pod {namespace}/{pod}"))
    }
}

fn pick(addresses: &[String], family: Family) -> Option<IpAddr> {
    let parsed = addresses.iter().filter_map(|text| text.parse().ok());
    parsed.into_iter().find(|ip| Family::of(*ip) == family)
}
