//! Pods, and the namespaces they are in.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1;

use super::{Context, ConvertError, Converted, net};
use crate::model::{Namespace, Pod, PortName};

/// Annotation of a static pod's mirror: the UID that the kubelet knows the pod by.
const STATIC_UID: &str = "kubernetes.io/config.hash";
/// The label by which namespaces are selected by name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Converts a namespace.
///
/// # Errors
/// The namespace has no name.
pub fn namespace(object: &v1::Namespace) -> Result<Converted<Namespace>, ConvertError> {
    let (context, name) = Context::cluster_wide("Namespace", &object.metadata)?;
    let mut labels = object.metadata.labels.clone().unwrap_or_default();
    labels.insert(NAMESPACE_NAME.to_owned(), name.clone());
    Ok(context.done(Namespace { name, labels }))
}

/// Converts a pod.
///
/// # Errors
/// The pod has no name or no namespace.
pub fn pod(object: &v1::Pod) -> Result<Converted<Pod>, ConvertError> {
    let (mut context, key) = Context::namespaced("Pod", &object.metadata)?;
    let meta = &object.metadata;
    let spec = object.spec.as_ref();
    let phase = object
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let pod = Pod {
        uid: meta.uid.clone().unwrap_or_default(),
        static_uid: meta
            .annotations
            .as_ref()
            .and_then(|map| map.get(STATIC_UID))
            .cloned(),
        labels: meta.labels.clone().unwrap_or_default(),
        node: spec
            .and_then(|spec| spec.node_name.clone())
            .filter(|name| !name.is_empty()),
        ips: ips(&mut context, object),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        terminal: matches!(phase, Some("Succeeded" | "Failed")),
        terminating: meta.deletion_timestamp.is_some(),
        named_ports: spec
            .map(|spec| named_ports(&mut context, spec))
            .unwrap_or_default(),
        key,
    };
    Ok(context.done(pod))
}

fn ips(context: &mut Context, object: &v1::Pod) -> Vec<IpAddr> {
    let Some(status) = &object.status else {
        return Vec::new();
    };
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut found = Vec::new();
    for text in status
        .pod_ip
        .iter()
        .chain(listed)
        .filter(|text| !text.is_empty())
    {
        match net::parse_address(text) {
            Some(address) if found.contains(&address) => {}
            Some(address) => found.push(address),
            None => context.warn(format!("pod IP {text:?} is not an address; it is ignored")),
        }
    }
    found
}

fn named_ports(context: &mut Context, spec: &v1::PodSpec) -> BTreeMap<PortName, u16> {
    let restartable = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports = BTreeMap::new();
    for container in spec.containers.iter().chain(restartable) {
        for port in container.ports.iter().flatten() {
            let Some(name) = port.name.as_ref().filter(|name| !name.is_empty()) else {
                continue;
            };
            let what = format!("port {name:?} of container {:?}", container.name);
            let protocol = context.protocol(port.protocol.as_deref(), &what);
            let number = context.port_number(port.container_port, &what);
            if let (Some(protocol), Some(number)) = (protocol, number) {
                ports
                    .entry(PortName {
                        name: name.clone(),
                        protocol,
                    })
                    .or_insert(number);
            }
        }
    }
    ports
}
