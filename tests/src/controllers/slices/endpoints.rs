//! What the endpoints of a Service are: pure functions of the Service and its namespace's pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

/// Endpoints that can share a slice: of one address family and with the same ports.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    /// The ports, in the Service's order.
    pub ports: Vec<EndpointPort>,
    /// The endpoints, by pod name.
    pub endpoints: Vec<Endpoint>,
}

/// Whether this controller is responsible for the Service: it has a selector and takes traffic.
pub fn are_wanted(service: &Service) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    let selects = spec
        .selector
        .as_ref()
        .is_some_and(|selector| !selector.is_empty());
    let is_external = spec.type_.as_deref() == Some("ExternalName");
    selects && !is_external && service.metadata.deletion_timestamp.is_none()
}

/// The Service's endpoints. A family without any has one empty group, so that there is a slice that
/// says so. `pods` are those of the Service's namespace, by name; `zones` those of the nodes.
pub fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    zones: &BTreeMap<String, String>,
) -> Vec<Group> {
    let selected: Vec<&Pod> = pods
        .iter()
        .map(Arc::as_ref)
        .filter(|pod| is_selected(service, pod) && !is_over(pod))
        .collect();
    let mut groups: Vec<Group> = Vec::new();
    for family in families(service) {
        let first = groups.len();
        for pod in &selected {
            let Some(address) = address(pod, &family) else {
                continue;
            };
            let ports = ports(service, pod);
            let endpoint = endpoint(service, pod, address, zones);
            match groups[first..]
                .iter_mut()
                .find(|group| group.ports == ports)
            {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    address_type: family.clone(),
                    ports,
                    endpoints: vec![endpoint],
                }),
            }
        }
        if groups.len() == first {
            groups.push(Group {
                address_type: family,
                ports: Vec::new(),
                endpoints: Vec::new(),
            });
        }
    }
    groups
}

fn families(service: &Service) -> Vec<String> {
    let families = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ip_families.clone());
    let families = families.filter(|families| !families.is_empty());
    families.unwrap_or_else(|| vec!["IPv4".to_owned()])
}

fn is_selected(service: &Service, pod: &Pod) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        let labels = pod.labels();
        selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    })
}

/// A pod that ended keeps its address in its status, but the address may be another's by now.
fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn address(pod: &Pod, family: &str) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    all.chain(&status.pod_ip)
        .filter_map(|ip| ip.parse::<IpAddr>().ok())
        .find(|ip| ip.is_ipv4() == (family == "IPv4"))
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: IpAddr,
    zones: &BTreeMap<String, String>,
) -> Endpoint {
    let spec = service.spec.as_ref();
    let always = spec
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or(false);
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let pod_spec = pod.spec.as_ref();
    let node_name = pod_spec.and_then(|spec| spec.node_name.clone());
    let hostname = pod_spec
        .filter(|spec| spec.subdomain == service.metadata.name)
        .and_then(|spec| spec.hostname.clone());
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(always || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        zone: node_name.as_ref().and_then(|node| zones.get(node)).cloned(),
        node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    conditions
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The Service's ports on this pod; those that name a port the pod has not are left out.
fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten());
    let resolved = |port: &ServicePort| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            protocol: Some(protocol(port.protocol.as_deref()).to_owned()),
            port: Some(target(port, pod)?),
            app_protocol: port.app_protocol.clone(),
        })
    };
    ports.filter_map(resolved).collect()
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    // Init containers that go on running have ports like any other container.
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    let wanted = protocol(port.protocol.as_deref());
    ports
        .find(|port| {
            port.name.as_ref() == Some(name) && protocol(port.protocol.as_deref()) == wanted
        })
        .map(|port| port.container_port)
}

fn protocol(given: Option<&str>) -> &str {
    given.unwrap_or("TCP")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(more: &Value) -> Service {
        let mut service = json!({
            "metadata": { "name": "web", "namespace": "n", "uid": "s" },
            "spec": {
                "selector": { "app": "web" },
                "ports": [{ "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP" }],
            },
        });
        json_merge(&mut service, more);
        serde_json::from_value(service).unwrap()
    }

    fn pod(name: &str, ip: &str, more: &Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "n", "uid": name, "labels": { "app": "web" } },
            "spec": {
                "nodeName": "node1",
                "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }],
            },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        json_merge(&mut pod, more);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn json_merge(into: &mut Value, from: &Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    json_merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from.clone(),
        }
    }

    fn of(service: &Service, pods: &[Arc<Pod>]) -> Vec<Group> {
        let zones = BTreeMap::from([("node1".to_owned(), "east".to_owned())]);
        groups(service, pods, &zones)
    }

    #[test]
    fn an_endpoint_says_where_it_is_and_whose() {
        let groups = of(&service(&json!({})), &[pod("a", "10.0.0.1", &json!({}))]);
        let expected = json!({
            "addresses": ["10.0.0.1"],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": "node1",
            "zone": "east",
            "targetRef": { "kind": "Pod", "name": "a", "namespace": "n", "uid": "a" },
        });
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].address_type, "IPv4");
        assert_eq!(json!(groups[0].endpoints), json!([expected]));
        let port = json!({ "name": "http", "port": 8080, "protocol": "TCP" });
        assert_eq!(json!(groups[0].ports), json!([port]));
    }

    #[test]
    fn named_ports_that_differ_make_groups() {
        let other = json!({ "spec": { "containers": [
            { "name": "c", "ports": [{ "name": "http", "containerPort": 9090 }] },
        ] } });
        let wrong_protocol = json!({ "spec": { "containers": [
            { "name": "c", "ports": [{ "name": "http", "containerPort": 1, "protocol": "UDP" }] },
        ] } });
        let pods = [
            pod("a", "10.0.0.1", &json!({})),
            pod("b", "10.0.0.2", &other),
            pod("c", "10.0.0.3", &json!({})),
            pod("d", "10.0.0.4", &wrong_protocol),
        ];
        let groups = of(&service(&json!({})), &pods);
        let found: Vec<_> = groups
            .iter()
            .map(|group| {
                (
                    group.ports.first().and_then(|port| port.port),
                    group.endpoints.len(),
                )
            })
            .collect();
        assert_eq!(found, [(Some(8080), 2), (Some(9090), 1), (None, 1)]);
    }

    #[test]
    fn conditions_follow_readiness_and_deletion() {
        let unready =
            json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
        let ending = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
        let mut both = unready.clone();
        json_merge(&mut both, &ending);
        let publish = json!({ "spec": { "publishNotReadyAddresses": true } });
        // The pod, the Service, and ready, serving, terminating.
        let table = [
            (&json!({}), &json!({}), (true, true, false)),
            (&unready, &json!({}), (false, false, false)),
            (&ending, &json!({}), (false, true, true)),
            (&both, &json!({}), (false, false, true)),
            (&unready, &publish, (true, false, false)),
            (&both, &publish, (true, false, true)),
        ];
        for (more, settings, (ready, serving, terminating)) in table {
            let groups = of(&service(settings), &[pod("a", "10.0.0.1", more)]);
            let expected = EndpointConditions {
                ready: Some(ready),
                serving: Some(serving),
                terminating: Some(terminating),
            };
            assert_eq!(
                groups[0].endpoints[0].conditions,
                Some(expected),
                "{more} {settings}"
            );
        }
    }

    #[test]
    fn pods_that_ended_or_have_no_address_are_left_out() {
        let nowhere = json!({ "status": { "podIP": null, "podIPs": null } });
        let pods = [
            pod(
                "a",
                "10.0.0.1",
                &json!({ "status": { "phase": "Succeeded" } }),
            ),
            pod("b", "10.0.0.2", &json!({ "status": { "phase": "Failed" } })),
            pod("c", "", &nowhere),
            pod(
                "d",
                "10.0.0.4",
                &json!({ "metadata": { "labels": { "app": "x" } } }),
            ),
        ];
        let groups = of(&service(&json!({})), &pods);
        assert_eq!(groups.len(), 1);
        assert!(groups[0].endpoints.is_empty() && groups[0].ports.is_empty());
    }

    #[test]
    fn each_family_has_its_groups() {
        let ips = json!({ "status": { "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] } });
        let dual = service(&json!({ "spec": { "ipFamilies": ["IPv6", "IPv4"] } }));
        let groups = of(
            &dual,
            &[pod("a", "10.0.0.1", &ips), pod("b", "10.0.0.2", &json!({}))],
        );
        let found: Vec<_> = groups
            .iter()
            .map(|group| (group.address_type.as_str(), group.endpoints.len()))
            .collect();
        assert_eq!(found, [("IPv6", 1), ("IPv4", 2)]);
    }

    #[test]
    fn services_without_selector_are_somebody_elses() {
        assert!(are_wanted(&service(&json!({}))));
        assert!(are_wanted(&service(
            &json!({ "spec": { "clusterIP": "None" } })
        )));
        assert!(!are_wanted(&service(
            &json!({ "spec": { "type": "ExternalName" } })
        )));
        assert!(!are_wanted(&service(
            &json!({ "spec": { "selector": null } })
        )));
    }
}
