//! Finding what is wrong with an object, after its defaults are filled in.
//!
//! Covers what manifests get wrong and what consumers rely on; it is not the whole of Kubernetes'
//! validation.

mod network;
mod ranges;
mod service;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

pub use self::network::{endpoint_slice, endpoint_slice_update, network_policy};
pub use self::ranges::{ip_address, ip_address_update, service_cidr, service_cidr_update};
pub use self::service::{service, service_status, service_update};
use super::object::{at, items, text};
use super::status::Cause;

/// What names an object may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// Lower-case labels with dots between, at most 253 characters.
    Subdomain,
    /// One lower-case label, at most 63 characters.
    Label,
    /// A label that begins with a letter.
    ServiceName,
    /// Whatever fits into a path.
    PathSegment,
}

impl NameRule {
    /// Why the name is not allowed.
    #[must_use]
    pub fn refuses(self, name: &str) -> Option<&'static str> {
        let label_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edge = |c: Option<char>| c.is_some_and(|c| c != '-');
        let is_label = |s: &str| {
            s.chars().all(label_char) && edge(s.chars().next()) && edge(s.chars().next_back())
        };
        match self {
            NameRule::Subdomain if name.len() > 253 => Some("must be no more than 253 characters"),
            NameRule::Subdomain if !name.split('.').all(is_label) => Some(
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
                 '-' or '.', and must start and end with an alphanumeric character",
            ),
            NameRule::Label | NameRule::ServiceName if name.len() > 63 => {
                Some("must be no more than 63 characters")
            }
            NameRule::Label if !is_label(name) => Some(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or \
                 '-', and must start and end with an alphanumeric character",
            ),
            NameRule::ServiceName
                if !is_label(name) || name.starts_with(|c: char| c.is_ascii_digit()) =>
            {
                Some(
                    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
                     start with an alphabetic character, and end with an alphanumeric character",
                )
            }
            NameRule::PathSegment if name == "." || name == ".." || name.contains(['/', '%']) => {
                Some("may not be '.' or '..' or contain '/' or '%'")
            }
            _ => None,
        }
    }
}

/// Events of the new API: who reports what was done, and what came of it.
pub fn new_event(event: &Value, causes: &mut Vec<Cause>) {
    for field in [
        "eventTime",
        "reportingController",
        "reportingInstance",
        "action",
        "reason",
    ] {
        if text(event, &format!("/{field}")).is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    one_of(
        &event["type"],
        &["Normal", "Warning"],
        "type".to_owned(),
        causes,
    );
    if text(event, "/note").len() > 1024 {
        let why = "can have at most 1024 characters";
        causes.push(Cause::invalid("note", &event["note"], why));
    }
}

/// Name, labels and annotations of any object.
pub fn metadata(object: &Value, names: NameRule, causes: &mut Vec<Cause>) {
    let name = text(object, "/metadata/name");
    if name.is_empty() {
        causes.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if let Some(why) = names.refuses(name) {
        causes.push(Cause::invalid("metadata.name", &name.into(), why));
    }
    labels(at(object, "/metadata/labels"), "metadata.labels", causes);
    for key in at(object, "/metadata/annotations")
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, _)| k)
    {
        if !is_qualified(&key.to_ascii_lowercase()) {
            causes.push(Cause::invalid(
                "metadata.annotations",
                &key.as_str().into(),
                QUALIFIED,
            ));
        }
    }
}

const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must \
                         start and end with an alphanumeric character, with an optional DNS subdomain \
                         prefix and '/'";

fn labels(labels: &Value, path: &str, causes: &mut Vec<Cause>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if !is_qualified(key) {
            causes.push(Cause::invalid(path, &key.as_str().into(), QUALIFIED));
        }
        let text = value.as_str().unwrap_or_default();
        if !text.is_empty() && !is_word(text) {
            let why = "a valid label must be an empty string or consist of at most 63 alphanumeric \
                       characters, '-', '_' or '.', and must start and end with an alphanumeric \
                       character";
            causes.push(Cause::invalid(path, value, why));
        }
    }
}

fn is_word(text: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && alphanumeric(text.chars().next())
        && alphanumeric(text.chars().next_back())
}

fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        None => is_word(key),
        Some((prefix, name)) => is_word(name) && NameRule::Subdomain.refuses(prefix).is_none(),
    }
}

fn one_of(value: &Value, allowed: &[&str], path: String, causes: &mut Vec<Cause>) {
    match value.as_str() {
        None | Some("") => {}
        Some(text) if allowed.contains(&text) => {}
        Some(_) => causes.push(Cause::unsupported(path, value, allowed)),
    }
}

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

fn number(value: &Value, path: String, causes: &mut Vec<Cause>) {
    if !value.is_null() && value.as_i64().is_none_or(|n| !(1..=65535).contains(&n)) {
        causes.push(Cause::invalid(
            path,
            value,
            "must be between 1 and 65535, inclusive",
        ));
    }
}

/// A port number or the name of a port.
fn number_or_name(value: &Value, path: String, causes: &mut Vec<Cause>) {
    match value.as_str() {
        None => number(value, path, causes),
        Some(name) => port_name(name, path, causes),
    }
}

fn port_name(name: &str, path: String, causes: &mut Vec<Cause>) {
    let fine = name.len() <= 15
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.contains("--")
        && NameRule::Label.refuses(name).is_none();
    if !fine {
        let why = "must be a lower case IANA service name of at most 15 characters with at least one \
                   letter";
        causes.push(Cause::invalid(path, &name.into(), why));
    }
}

/// A `LabelSelector`.
fn selector(selector: &Value, path: &str, causes: &mut Vec<Cause>) {
    labels(
        &selector["matchLabels"],
        &format!("{path}.matchLabels"),
        causes,
    );
    for (n, expression) in items(selector, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{n}]");
        let values = items(expression, "/values").len();
        match text(expression, "/operator") {
            "In" | "NotIn" if values == 0 => causes.push(Cause::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if values > 0 => causes.push(Cause::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => causes.push(Cause::invalid(
                format!("{path}.operator"),
                &expression["operator"],
                "not a valid selector operator",
            )),
        }
        if !is_qualified(text(expression, "/key")) {
            causes.push(Cause::invalid(
                format!("{path}.key"),
                &expression["key"],
                QUALIFIED,
            ));
        }
    }
}

/// Nodes: the pod ranges are ranges.
pub fn node(node: &Value, causes: &mut Vec<Cause>) {
    for (n, range) in items(node, "/spec/podCIDRs").iter().enumerate() {
        if range
            .as_str()
            .and_then(|range| range.parse::<IpNet>().ok())
            .is_none()
        {
            let path = format!("spec.podCIDRs[{n}]");
            causes.push(Cause::invalid(
                path,
                range,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24)",
            ));
        }
    }
    let ranges = items(node, "/spec/podCIDRs");
    let family = |range: &Value| Some(range.as_str()?.parse::<IpNet>().ok()?.addr().is_ipv4());
    if !are_one_each(ranges.iter().filter_map(family)) {
        let why = "may specify no more than one CIDR for each IP family";
        causes.push(Cause::invalid("spec.podCIDRs", &ranges.into(), why));
    }
}

/// Whether there is at most one of each family.
fn are_one_each(families: impl Iterator<Item = bool>) -> bool {
    let mut seen = BTreeSet::new();
    families.into_iter().all(|family| seen.insert(family))
}

/// A status' addresses of a pod or of its node: one of each family, the first also by itself.
fn status_addresses(pod: &Value, one: &str, all: &str, causes: &mut Vec<Cause>) {
    let addresses = items(pod, &format!("/status/{all}"));
    for (n, address) in addresses.iter().enumerate() {
        if text(address, "/ip").parse::<IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            let path = format!("status.{all}[{n}]");
            causes.push(Cause::invalid(path, &address["ip"], why));
        }
    }
    let family = |address: &Value| Some(text(address, "/ip").parse::<IpAddr>().ok()?.is_ipv4());
    if !are_one_each(addresses.iter().filter_map(family)) {
        let why = "may specify no more than one IP for each IP family";
        causes.push(Cause::invalid(
            format!("status.{all}"),
            &addresses.into(),
            why,
        ));
    }
    let first = addresses.first().map(|first| text(first, "/ip"));
    if let Some(first) = first
        && first != text(pod, &format!("/status/{one}"))
    {
        let path = format!("status.{all}[0].ip");
        let why = format!("must be equal to `{one}`");
        causes.push(Cause::invalid(path, &first.into(), &why));
    }
}

/// Nodes: the pod range is given once.
pub fn node_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let before = text(old, "/spec/podCIDR");
    let ranges = |node: &Value| node["spec"]["podCIDRs"].clone();
    let is_other = before != text(new, "/spec/podCIDR") || ranges(old) != ranges(new);
    if !before.is_empty() && is_other {
        causes.push(Cause::forbidden(
            "spec.podCIDR",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
}

/// What a kubelet reports of a pod.
pub fn pod_status(pod: &Value, causes: &mut Vec<Cause>) {
    status_addresses(pod, "podIP", "podIPs", causes);
    status_addresses(pod, "hostIP", "hostIPs", causes);
}

/// Pods.
pub fn pod(pod: &Value, causes: &mut Vec<Cause>) {
    pod_spec(at(pod, "/spec"), "spec", causes);
}

fn pod_spec(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    let containers = items(spec, "/containers");
    if containers.is_empty() {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    one_of(
        &spec["restartPolicy"],
        &["Always", "OnFailure", "Never"],
        format!("{path}.restartPolicy"),
        causes,
    );
    let mut names = BTreeSet::new();
    for (list, containers) in [
        ("initContainers", items(spec, "/initContainers")),
        ("containers", containers),
    ] {
        for (n, container) in containers.iter().enumerate() {
            let path = format!("{path}.{list}[{n}]");
            let name = text(container, "/name");
            if name.is_empty() {
                causes.push(Cause::required(format!("{path}.name"), ""));
            } else if let Some(why) = NameRule::Label.refuses(name) {
                causes.push(Cause::invalid(format!("{path}.name"), &name.into(), why));
            } else if !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), &name.into()));
            }
            if text(container, "/image").is_empty() {
                causes.push(Cause::required(format!("{path}.image"), ""));
            }
            container_ports(container, &path, causes);
        }
    }
}

fn container_ports(container: &Value, path: &str, causes: &mut Vec<Cause>) {
    let mut names = BTreeSet::new();
    for (n, port) in items(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{n}]");
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            causes.push(Cause::required(format!("{path}.containerPort"), ""));
        } else {
            number(
                &port["containerPort"],
                format!("{path}.containerPort"),
                causes,
            );
        }
        number(&port["hostPort"], format!("{path}.hostPort"), causes);
        one_of(
            &port["protocol"],
            PROTOCOLS,
            format!("{path}.protocol"),
            causes,
        );
        let name = text(port, "/name");
        if !name.is_empty() {
            port_name(name, format!("{path}.name"), causes);
            if !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), &name.into()));
            }
        }
    }
}

/// Pods: only images, the deadline, tolerations and a shorter grace period may change.
pub fn pod_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let fixed = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for field in [
            "activeDeadlineSeconds",
            "tolerations",
            "terminationGracePeriodSeconds",
        ] {
            if let Some(spec) = spec.as_object_mut() {
                spec.remove(field);
            }
        }
        for list in ["/containers", "/initContainers"] {
            for container in super::object::items_mut(&mut spec, list) {
                container["image"] = Value::Null;
                container["imagePullPolicy"] = Value::Null;
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, \
             `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` and \
             `spec.terminationGracePeriodSeconds`",
        ));
    }
}

/// Deployments, replica sets and daemon sets.
pub fn workload(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let chosen = &spec["selector"];
    let empty = |v: &Value| v.as_object().is_none_or(serde_json::Map::is_empty);
    if empty(&chosen["matchLabels"]) && items(chosen, "/matchExpressions").is_empty() {
        causes.push(Cause::required("spec.selector", ""));
    } else {
        selector(chosen, "spec.selector", causes);
        let selects = super::selector::Selector::from_label_selector(chosen);
        if !selects.matches(&spec["template"]) {
            let labels = at(spec, "/template/metadata/labels");
            let why = "`selector` does not match template `labels`";
            causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
        }
    }
    if spec["replicas"].as_i64().is_some_and(|n| n < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.replicas", &spec["replicas"], why));
    }
    pod_spec(at(spec, "/template/spec"), "spec.template.spec", causes);
    let restart = at(spec, "/template/spec/restartPolicy");
    if restart.as_str().is_some_and(|policy| policy != "Always") {
        causes.push(Cause::unsupported(
            "spec.template.spec.restartPolicy",
            restart,
            &["Always"],
        ));
    }
}

/// Deployments, replica sets and daemon sets: the selector stays.
pub fn workload_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if at(old, "/spec/selector") != at(new, "/spec/selector") {
        causes.push(Cause::invalid(
            "spec.selector",
            at(new, "/spec/selector"),
            "field is immutable",
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names() {
        let table = [
            (NameRule::Subdomain, "a.b-1", true),
            (NameRule::Subdomain, "a..b", false),
            (NameRule::Subdomain, "A", false),
            (NameRule::Label, "1a", true),
            (NameRule::Label, "a.b", false),
            (NameRule::Label, "a-", false),
            (NameRule::ServiceName, "1a", false),
            (NameRule::PathSegment, "system:node", true),
            (NameRule::PathSegment, "a/b", false),
        ];
        for (rule, name, fine) in table {
            assert_eq!(rule.refuses(name).is_none(), fine, "{rule:?} {name}");
        }
    }

    #[test]
    fn pods_need_containers_with_image_and_unique_names() {
        let mut causes = Vec::new();
        pod(&json!({ "spec": { "containers": [] } }), &mut causes);
        assert_eq!(causes, [Cause::required("spec.containers", "")]);
        causes.clear();
        let twice = json!({ "name": "a", "image": "i" });
        pod(
            &json!({ "spec": { "containers": [twice, twice, { "name": "b" }] } }),
            &mut causes,
        );
        let fields: Vec<_> = causes.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(
            fields,
            ["spec.containers[1].name", "spec.containers[2].image"]
        );
    }

    #[test]
    fn a_deployment_selects_its_own_pods() {
        let mut causes = Vec::new();
        let container = json!({ "name": "a", "image": "i" });
        workload(
            &json!({ "spec": {
                "selector": { "matchLabels": { "app": "a" } },
                "template": { "metadata": { "labels": { "app": "b" } }, "spec": { "containers": [container] } },
            } }),
            &mut causes,
        );
        assert_eq!(causes.len(), 1);
        assert_eq!(causes[0].field, "spec.template.metadata.labels");
    }
}
