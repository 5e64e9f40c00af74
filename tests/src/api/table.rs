//! The rows and columns of `kubectl get`: the server prints, the client only lays out.

use serde_json::{Value, json};

use super::object::{self, at, items, text};
use super::resources::Resource;
use super::store::Object;

/// One column between name and age.
pub struct Column {
    name: &'static str,
    kind: &'static str,
    is_wide: bool,
    cell: fn(&Value) -> Value,
}

/// How much of each object goes into its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
    /// Nothing.
    None,
}

/// The `Table` of these objects, without list metadata.
#[must_use]
pub fn table(resource: &Resource, objects: &[Object], include: Include) -> Value {
    let rows: Vec<_> = objects
        .iter()
        .map(|object| row(resource, object, include))
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": definitions(resource),
        "rows": rows,
    })
}

/// The metadata of an object, as an object of its own.
#[must_use]
pub fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}

fn definitions(resource: &Resource) -> Value {
    let define = |name: &str, kind: &str, format: &str, is_wide: bool| {
        json!({
            "name": name, "type": kind, "format": format, "description": "",
            "priority": u8::from(is_wide),
        })
    };
    let mut all = vec![define("Name", "string", "name", false)];
    // The age is the last of the columns that are always shown.
    let (usual, wide): (Vec<_>, Vec<_>) = resource.columns.iter().partition(|c| !c.is_wide);
    all.extend(usual.iter().map(|c| define(c.name, c.kind, "", false)));
    all.push(define("Age", "string", "", false));
    all.extend(wide.iter().map(|c| define(c.name, c.kind, "", true)));
    all.into()
}

fn row(resource: &Resource, object: &Object, include: Include) -> Value {
    let mut cells = vec![Value::from(object::name(object))];
    let (usual, wide): (Vec<_>, Vec<_>) = resource.columns.iter().partition(|c| !c.is_wide);
    cells.extend(usual.iter().map(|column| (column.cell)(object)));
    cells.push(since(text(object, "/metadata/creationTimestamp")));
    cells.extend(wide.iter().map(|column| (column.cell)(object)));
    let mut row = json!({ "cells": cells });
    match include {
        Include::Metadata => row["object"] = metadata_only(object),
        Include::Object => row["object"] = (**object).clone(),
        Include::None => {}
    }
    row
}

fn since(timestamp: &str) -> Value {
    object::age(timestamp).map_or_else(|| "<unknown>".into(), |age| human(age).into())
}

/// A duration in at most two units, shorter the longer it is.
fn human(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..0 => "<invalid>".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 == 0 => format!("{minutes}m"),
        120..600 => format!("{minutes}m{}s", seconds % 60),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 if minutes % 60 == 0 => format!("{hours}h"),
        10_800..28_800 => format!("{hours}h{}m", minutes % 60),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 if hours % 24 == 0 => format!("{days}d"),
        172_800..691_200 => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

const fn column(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column {
        name,
        kind: "string",
        is_wide: false,
        cell,
    }
}

const fn number(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column {
        name,
        kind: "integer",
        is_wide: false,
        cell,
    }
}

const fn wide(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column {
        name,
        kind: "string",
        is_wide: true,
        cell,
    }
}

fn or_none(list: &[String]) -> Value {
    if list.is_empty() {
        "<none>".into()
    } else {
        list.join(",").into()
    }
}

fn text_or(object: &Value, pointer: &str, otherwise: &str) -> Value {
    match text(object, pointer) {
        "" => otherwise.into(),
        text => text.into(),
    }
}

fn count(object: &Value, pointer: &str) -> Value {
    at(object, pointer).as_i64().unwrap_or(0).into()
}

fn keys(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

/// Labels as a selector: `a=b,c=d`.
fn pairs(map: &Value) -> Value {
    let list: Vec<_> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or_none(&list)
}

fn label_selector(selector: &Value) -> Value {
    let mut list: Vec<String> = Vec::new();
    if let Some(map) = selector["matchLabels"].as_object() {
        list.extend(
            map.iter()
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())),
        );
    }
    for expression in items(selector, "/matchExpressions") {
        let key = text(expression, "/key");
        let values: Vec<_> = items(expression, "/values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        list.push(match text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    or_none(&list)
}

fn texts<'a>(list: &'a [Value], pointer: &'a str) -> Vec<String> {
    list.iter()
        .map(|item| text(item, pointer).to_owned())
        .collect()
}

/// Namespaces.
pub const NAMESPACE: &[Column] = &[column("Status", |ns| text_or(ns, "/status/phase", ""))];

/// Nodes.
pub const NODE: &[Column] = &[
    column("Status", |node| {
        let ready = items(node, "/status/conditions")
            .iter()
            .find(|c| c["type"] == "Ready");
        let mut status = match ready.map(|c| text(c, "/status")) {
            Some("True") => "Ready".to_owned(),
            Some(_) => "NotReady".to_owned(),
            None => "Unknown".to_owned(),
        };
        if node["spec"]["unschedulable"] == true {
            status.push_str(",SchedulingDisabled");
        }
        status.into()
    }),
    column("Roles", |node| {
        let labels = at(node, "/metadata/labels").as_object();
        let roles: Vec<_> = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
            .map(str::to_owned)
            .collect();
        or_none(&roles)
    }),
    column("Version", |node| {
        text_or(node, "/status/nodeInfo/kubeletVersion", "")
    }),
    wide("Internal-IP", |node| node_address(node, "InternalIP")),
    wide("External-IP", |node| node_address(node, "ExternalIP")),
    wide("OS-Image", |node| {
        text_or(node, "/status/nodeInfo/osImage", "<unknown>")
    }),
    wide("Kernel-Version", |node| {
        text_or(node, "/status/nodeInfo/kernelVersion", "<unknown>")
    }),
    wide("Container-Runtime", |node| {
        text_or(
            node,
            "/status/nodeInfo/containerRuntimeVersion",
            "<unknown>",
        )
    }),
];

fn node_address(node: &Value, kind: &str) -> Value {
    let found = items(node, "/status/addresses")
        .iter()
        .find(|a| a["type"] == kind);
    found.map_or_else(|| "<none>".into(), |address| address["address"].clone())
}

/// Pods.
pub const POD: &[Column] = &[
    column("Ready", |pod| {
        let ready = items(pod, "/status/containerStatuses")
            .iter()
            .filter(|s| s["ready"] == true)
            .count();
        format!("{ready}/{}", items(pod, "/spec/containers").len()).into()
    }),
    column("Status", pod_status),
    column("Restarts", |pod| {
        let all = items(pod, "/status/containerStatuses").iter();
        all.map(|s| s["restartCount"].as_i64().unwrap_or(0))
            .sum::<i64>()
            .to_string()
            .into()
    }),
    wide("IP", |pod| text_or(pod, "/status/podIP", "<none>")),
    wide("Node", |pod| text_or(pod, "/spec/nodeName", "<none>")),
    wide("Nominated Node", |pod| {
        text_or(pod, "/status/nominatedNodeName", "<none>")
    }),
    wide("Readiness Gates", |_| "<none>".into()),
];

fn pod_status(pod: &Value) -> Value {
    if object::is_terminating(pod) {
        return "Terminating".into();
    }
    for status in items(pod, "/status/containerStatuses") {
        for pointer in ["/state/waiting/reason", "/state/terminated/reason"] {
            let reason = text(status, pointer);
            if !reason.is_empty() {
                return reason.into();
            }
        }
    }
    let reason = text(pod, "/status/reason");
    if reason.is_empty() {
        text_or(pod, "/status/phase", "Unknown")
    } else {
        reason.into()
    }
}

/// Services.
pub const SERVICE: &[Column] = &[
    column("Type", |service| text_or(service, "/spec/type", "")),
    column("Cluster-IP", |service| {
        text_or(service, "/spec/clusterIP", "<none>")
    }),
    column("External-IP", |service| {
        let mut all = texts(items(service, "/status/loadBalancer/ingress"), "/ip");
        all.extend(
            items(service, "/spec/externalIPs")
                .iter()
                .filter_map(|ip| ip.as_str().map(str::to_owned)),
        );
        match text(service, "/spec/type") {
            "ExternalName" => text_or(service, "/spec/externalName", "<none>"),
            "LoadBalancer" if all.is_empty() => "<pending>".into(),
            _ => or_none(&all),
        }
    }),
    column("Port(s)", |service| {
        let list: Vec<_> = items(service, "/spec/ports")
            .iter()
            .map(|port| match port["nodePort"].as_i64() {
                Some(node) => format!("{}:{node}/{}", port["port"], text(port, "/protocol")),
                None => format!("{}/{}", port["port"], text(port, "/protocol")),
            })
            .collect();
        or_none(&list)
    }),
    wide("Selector", |service| pairs(at(service, "/spec/selector"))),
];

/// Endpoints.
pub const ENDPOINTS: &[Column] = &[column("Endpoints", |endpoints| {
    let mut list = Vec::new();
    for subset in items(endpoints, "/subsets") {
        for address in items(subset, "/addresses") {
            for port in items(subset, "/ports") {
                list.push(format!("{}:{}", text(address, "/ip"), port["port"]));
            }
        }
    }
    shortened(list)
})];

/// Three, and how many there are besides.
fn shortened(mut list: Vec<String>) -> Value {
    let more = list.len().saturating_sub(3);
    list.truncate(3);
    if list.is_empty() {
        "<none>".into()
    } else if more > 0 {
        format!("{} + {more} more...", list.join(",")).into()
    } else {
        list.join(",").into()
    }
}

/// Config maps.
pub const CONFIGMAP: &[Column] = &[number("Data", |map| {
    (keys(&map["data"]) + keys(&map["binaryData"])).into()
})];

/// Secrets.
pub const SECRET: &[Column] = &[
    column("Type", |secret| text_or(secret, "/type", "")),
    number("Data", |secret| keys(&secret["data"]).into()),
];

/// Service accounts.
pub const SERVICEACCOUNT: &[Column] = &[number("Secrets", |account| {
    items(account, "/secrets").len().into()
})];

/// Events.
pub const EVENT: &[Column] = &[
    column("Last Seen", |event| match text(event, "/lastTimestamp") {
        "" => since(text(event, "/eventTime")),
        last => since(last),
    }),
    column("Type", |event| text_or(event, "/type", "")),
    column("Reason", |event| text_or(event, "/reason", "")),
    column("Object", |event| {
        let kind = text(event, "/involvedObject/kind").to_lowercase();
        format!("{kind}/{}", text(event, "/involvedObject/name")).into()
    }),
    column("Message", |event| text_or(event, "/message", "")),
];

/// Events in their new form.
pub const NEW_EVENT: &[Column] = &[
    column("Last Seen", |event| since(text(event, "/eventTime"))),
    column("Type", |event| text_or(event, "/type", "")),
    column("Reason", |event| text_or(event, "/reason", "")),
    column("Object", |event| {
        let kind = text(event, "/regarding/kind").to_lowercase();
        format!("{kind}/{}", text(event, "/regarding/name")).into()
    }),
    column("Message", |event| text_or(event, "/note", "")),
];

/// Endpoint slices.
pub const ENDPOINTSLICE: &[Column] = &[
    column("AddressType", |slice| text_or(slice, "/addressType", "")),
    column("Ports", |slice| {
        let ports = items(slice, "/ports")
            .iter()
            .map(|port| match port["port"].as_i64() {
                Some(number) => number.to_string(),
                None => "*".to_owned(),
            });
        let ports: Vec<_> = ports.collect();
        if ports.is_empty() {
            "<unset>".into()
        } else {
            shortened(ports)
        }
    }),
    column("Endpoints", |slice| {
        let all = items(slice, "/endpoints")
            .iter()
            .flat_map(|e| items(e, "/addresses"));
        let all: Vec<_> = all.filter_map(|a| a.as_str().map(str::to_owned)).collect();
        if all.is_empty() {
            "<unset>".into()
        } else {
            shortened(all)
        }
    }),
];

/// Network policies.
pub const NETWORKPOLICY: &[Column] = &[column("Pod-Selector", |policy| {
    label_selector(at(policy, "/spec/podSelector"))
})];

/// Ranges of cluster addresses.
pub const SERVICECIDR: &[Column] = &[column("CIDRs", |range| {
    let all = items(range, "/spec/cidrs").iter();
    or_none(
        &all.filter_map(|c| c.as_str().map(str::to_owned))
            .collect::<Vec<_>>(),
    )
})];

/// Addresses in use.
pub const IPADDRESS: &[Column] = &[column("ParentRef", |address| {
    let parent = &address["spec"]["parentRef"];
    let (resource, namespace) = (text(parent, "/resource"), text(parent, "/namespace"));
    format!("{resource}/{namespace}/{}", text(parent, "/name")).into()
})];

/// Deployments.
pub const DEPLOYMENT: &[Column] = &[
    column("Ready", |deployment| {
        let ready = count(deployment, "/status/readyReplicas");
        format!("{ready}/{}", count(deployment, "/spec/replicas")).into()
    }),
    number("Up-to-date", |deployment| {
        count(deployment, "/status/updatedReplicas")
    }),
    number("Available", |deployment| {
        count(deployment, "/status/availableReplicas")
    }),
    wide("Containers", |object| {
        or_none(&texts(template_containers(object), "/name"))
    }),
    wide("Images", |object| {
        or_none(&texts(template_containers(object), "/image"))
    }),
    wide("Selector", |object| {
        label_selector(at(object, "/spec/selector"))
    }),
];

/// Replica sets.
pub const REPLICASET: &[Column] = &[
    number("Desired", |set| count(set, "/spec/replicas")),
    number("Current", |set| count(set, "/status/replicas")),
    number("Ready", |set| count(set, "/status/readyReplicas")),
    wide("Containers", |object| {
        or_none(&texts(template_containers(object), "/name"))
    }),
    wide("Images", |object| {
        or_none(&texts(template_containers(object), "/image"))
    }),
    wide("Selector", |object| {
        label_selector(at(object, "/spec/selector"))
    }),
];

/// Daemon sets.
pub const DAEMONSET: &[Column] = &[
    number("Desired", |set| {
        count(set, "/status/desiredNumberScheduled")
    }),
    number("Current", |set| {
        count(set, "/status/currentNumberScheduled")
    }),
    number("Ready", |set| count(set, "/status/numberReady")),
    number("Up-to-date", |set| {
        count(set, "/status/updatedNumberScheduled")
    }),
    number("Available", |set| count(set, "/status/numberAvailable")),
    column("Node Selector", |set| {
        pairs(at(set, "/spec/template/spec/nodeSelector"))
    }),
    wide("Containers", |object| {
        or_none(&texts(template_containers(object), "/name"))
    }),
    wide("Images", |object| {
        or_none(&texts(template_containers(object), "/image"))
    }),
    wide("Selector", |object| {
        label_selector(at(object, "/spec/selector"))
    }),
];

fn template_containers(object: &Value) -> &[Value] {
    items(object, "/spec/template/spec/containers")
}

/// Role bindings.
pub const ROLEBINDING: &[Column] = &[column("Role", |binding| {
    format!(
        "{}/{}",
        text(binding, "/roleRef/kind"),
        text(binding, "/roleRef/name")
    )
    .into()
})];

/// Leases.
pub const LEASE: &[Column] = &[column("Holder", |lease| {
    text_or(lease, "/spec/holderIdentity", "")
})];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resources::{ALL, SERVICES};

    #[test]
    fn durations_are_short() {
        let table = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3600, "60m"),
            (10_800, "3h"),
            (90_000, "25h"),
            (172_800, "2d"),
            (691_200, "8d"),
        ];
        for (seconds, expected) in table {
            assert_eq!(human(seconds), expected);
        }
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        for resource in ALL {
            // An object without anything must still be printable.
            let table = table(resource, &[Object::new(json!({}))], Include::None);
            let columns = items(&table, "/columnDefinitions").len();
            assert_eq!(
                items(&table, "/rows/0/cells").len(),
                columns,
                "{resource:?}"
            );
        }
    }

    #[test]
    fn service_ports_show_their_node_ports() {
        let service = json!({ "spec": { "ports": [
            { "port": 80, "protocol": "TCP", "nodePort": 30080 }, { "port": 53, "protocol": "UDP" },
        ] } });
        let table = table(&SERVICES, &[service.into()], Include::None);
        assert_eq!(at(&table, "/rows/0/cells/4"), "80:30080/TCP,53/UDP");
    }
}
