//! What the API fills in when the user leaves it out, as far as consumers of the objects see it.

use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};

use super::object::{as_map, at, default, default_text, items, items_mut, map_mut, text};

/// Namespaces carry their name as a label, and a finalizer until they are empty.
pub fn namespace(namespace: &mut Value) {
    let name = text(namespace, "/metadata/name").to_owned();
    let metadata = map_mut(namespace, "metadata");
    let labels = as_map(metadata.entry("labels").or_insert(Value::Null));
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    default(
        map_mut(namespace, "spec"),
        "finalizers",
        json!(["kubernetes"]),
    );
    default_text(map_mut(namespace, "status"), "phase", "Active");
}

/// Pods.
pub fn pod(pod: &mut Value) {
    pod_spec(map_mut(pod, "spec"));
    let class = quality_of_service(pod);
    let status = map_mut(pod, "status");
    default_text(status, "phase", "Pending");
    default_text(status, "qosClass", class);
}

/// `qosClass`: guaranteed when every container's limits and requests agree on both resources,
/// best-effort when there are none.
fn quality_of_service(pod: &Value) -> &'static str {
    let containers: Vec<_> = items(pod, "/spec/containers")
        .iter()
        .chain(items(pod, "/spec/initContainers"))
        .collect();
    let resources = |c: &Value, what: &str| at(c, &format!("/resources/{what}")).clone();
    let empty = |v: &Value| v.as_object().is_none_or(Map::is_empty);
    if containers
        .iter()
        .all(|c| empty(&resources(c, "limits")) && empty(&resources(c, "requests")))
    {
        return "BestEffort";
    }
    let guaranteed = containers.iter().all(|c| {
        ["cpu", "memory"].iter().all(|r| {
            let limit = resources(c, "limits")[*r].clone();
            let request = resources(c, "requests")[*r].clone();
            !limit.is_null() && (request.is_null() || request == limit)
        })
    });
    if guaranteed {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    default_text(spec, "restartPolicy", "Always");
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "enableServiceLinks", true);
    default(spec, "securityContext", json!({}));
    let account = spec
        .get("serviceAccountName")
        .and_then(Value::as_str)
        .unwrap_or("default");
    let account = account.to_owned();
    default_text(spec, "serviceAccountName", &account);
    default_text(spec, "serviceAccount", &account);
    let host_network = spec
        .get("hostNetwork")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    for list in ["containers", "initContainers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            pod_container(as_map(container), host_network);
        }
    }
}

fn pod_container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container
        .get("image")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let tag = image
        .rsplit('/')
        .next()
        .and_then(|last| last.split_once(':'))
        .map(|(_, tag)| tag);
    let moving = tag.is_none_or(|tag| tag == "latest") && !image.contains('@');
    default_text(
        container,
        "imagePullPolicy",
        if moving { "Always" } else { "IfNotPresent" },
    );
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in container
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let port = as_map(port);
        default_text(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            default(port, "hostPort", number);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(Value::Object(probe)) = container.get_mut(name) else {
            continue;
        };
        default(probe, "timeoutSeconds", 1);
        default(probe, "periodSeconds", 10);
        default(probe, "successThreshold", 1);
        default(probe, "failureThreshold", 3);
        if let Some(Value::Object(http)) = probe.get_mut("httpGet") {
            default_text(http, "scheme", "HTTP");
            default_text(http, "path", "/");
        }
    }
}

/// Services. Addresses and node ports are allocated afterwards.
pub fn service(service: &mut Value) {
    let spec = map_mut(service, "spec");
    default_text(spec, "type", "ClusterIP");
    default_text(spec, "sessionAffinity", "None");
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if spec["sessionAffinity"] == "ClientIP" {
        let config = as_map(spec.entry("sessionAffinityConfig").or_insert(Value::Null));
        let client = as_map(config.entry("clientIP").or_insert(Value::Null));
        default(client, "timeoutSeconds", 10800);
    } else {
        spec.remove("sessionAffinityConfig");
    }
    if kind != "ExternalName" {
        default_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "NodePort" || kind == "LoadBalancer" {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    for port in items_mut(service, "/spec/ports") {
        let port = as_map(port);
        default_text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        let unset = |v: &Value| *v == json!(0) || *v == json!("");
        if port.get("targetPort").is_some_and(unset) {
            port.remove("targetPort");
        }
        default(port, "targetPort", number);
    }
    default(map_mut(service, "status"), "loadBalancer", json!({}));
    for entry in items_mut(service, "/status/loadBalancer/ingress") {
        let entry = as_map(entry);
        if kind == "LoadBalancer" && entry.get("ip").is_some_and(Value::is_string) {
            default(entry, "ipMode", "VIP");
        }
    }
}

/// Secrets: `stringData` moves into `data`.
pub fn secret(secret: &mut Value) {
    let secret = as_map(secret);
    default_text(secret, "type", "Opaque");
    if let Some(Value::Object(plain)) = secret.remove("stringData") {
        let data = as_map(secret.entry("data").or_insert(Value::Null));
        for (key, value) in plain {
            let bytes = ByteString(value.as_str().unwrap_or_default().as_bytes().to_vec());
            data.insert(key, serde_json::to_value(bytes).unwrap_or_default());
        }
    }
}

/// Endpoint slices.
pub fn endpoint_slice(slice: &mut Value) {
    for port in items_mut(slice, "/ports") {
        let port = as_map(port);
        default(port, "name", "");
        default_text(port, "protocol", "TCP");
    }
    default(as_map(slice), "ports", Value::Array(Vec::new()));
    default(as_map(slice), "endpoints", Value::Array(Vec::new()));
}

/// Network policies: the directions follow from the rules, and protocols are TCP.
pub fn network_policy(policy: &mut Value) {
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in items_mut(policy, &format!("/spec/{rules}")) {
            for port in items_mut(rule, "/ports") {
                default_text(as_map(port), "protocol", "TCP");
            }
            if rule.get(peers).is_some_and(|peers| *peers == json!([])) {
                as_map(rule).remove(peers);
            }
        }
    }
    let egress = !items(policy, "/spec/egress").is_empty();
    let types = if egress {
        json!(["Ingress", "Egress"])
    } else {
        json!(["Ingress"])
    };
    let spec = map_mut(policy, "spec");
    if spec
        .get("policyTypes")
        .is_some_and(|types| *types == json!([]))
    {
        spec.remove("policyTypes");
    }
    default(spec, "podSelector", json!({}));
    default(spec, "policyTypes", types);
}

/// Deployments.
pub fn deployment(deployment: &mut Value) {
    let spec = map_mut(deployment, "spec");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    let strategy = as_map(spec.entry("strategy").or_insert(Value::Null));
    default_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = as_map(strategy.entry("rollingUpdate").or_insert(Value::Null));
        default(rolling, "maxUnavailable", "25%");
        default(rolling, "maxSurge", "25%");
    }
    template(spec);
}

/// Replica sets.
pub fn replica_set(set: &mut Value) {
    let spec = map_mut(set, "spec");
    default(spec, "replicas", 1);
    template(spec);
    default(map_mut(set, "status"), "replicas", 0);
}

/// Daemon sets.
pub fn daemon_set(set: &mut Value) {
    let spec = map_mut(set, "spec");
    default(spec, "revisionHistoryLimit", 10);
    let strategy = as_map(spec.entry("updateStrategy").or_insert(Value::Null));
    default_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = as_map(strategy.entry("rollingUpdate").or_insert(Value::Null));
        default(rolling, "maxUnavailable", 1);
        default(rolling, "maxSurge", 0);
    }
    template(spec);
}

fn template(spec: &mut Map<String, Value>) {
    if let Some(Value::Object(template)) = spec.get_mut("template") {
        pod_spec(as_map(template.entry("spec").or_insert(Value::Null)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_with_egress_rules_has_both_types() {
        let mut policy = json!({ "spec": { "egress": [{ "ports": [{ "port": 53 }] }] } });
        network_policy(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        let mut policy = json!({ "spec": { "podSelector": {} } });
        network_policy(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    }

    #[test]
    fn a_service_port_is_its_own_target() {
        let mut object =
            json!({ "spec": { "ports": [{ "port": 80 }, { "port": 81, "targetPort": "web" }] } });
        service(&mut object);
        assert_eq!(object["spec"]["ports"][0]["targetPort"], 80);
        assert_eq!(object["spec"]["ports"][1]["targetPort"], "web");
        assert_eq!(object["spec"]["type"], "ClusterIP");
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        let table = [
            ("a", "Always"),
            ("r:5000/a", "Always"),
            ("r:5000/a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
        ];
        for (image, expected) in table {
            let mut object = json!({ "spec": { "containers": [{ "name": "a", "image": image }] } });
            pod(&mut object);
            assert_eq!(
                object["spec"]["containers"][0]["imagePullPolicy"], expected,
                "{image}"
            );
        }
    }

    #[test]
    fn string_data_is_encoded() {
        let mut object = json!({ "stringData": { "k": "hello" } });
        secret(&mut object);
        assert_eq!(
            object,
            json!({ "type": "Opaque", "data": { "k": "aGVsbG8=" } })
        );
    }
}
