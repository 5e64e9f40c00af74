//! Services, endpoint slices and network policies.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::super::object::{at, items, text};
use super::super::status::Cause;
use super::{NameRule, PROTOCOLS, labels, number, number_or_name, one_of, selector};

/// Services.
pub fn service(service: &Value, causes: &mut Vec<Cause>) {
    let spec = &service["spec"];
    let kind = text(spec, "/type");
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(&spec["type"], &kinds, "spec.type".to_owned(), causes);
    one_of(
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
        "spec.sessionAffinity".to_owned(),
        causes,
    );
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        one_of(
            &spec[field],
            &["Cluster", "Local"],
            format!("spec.{field}"),
            causes,
        );
    }
    let timeout = at(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds");
    if !timeout.is_null() && timeout.as_i64().is_none_or(|t| !(1..=86400).contains(&t)) {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        causes.push(Cause::invalid(
            path,
            timeout,
            "must be greater than 0 and at most 86400",
        ));
    }
    labels(&spec["selector"], "spec.selector", causes);
    let ports = items(spec, "/ports");
    if kind == "ExternalName" {
        if text(spec, "/externalName").is_empty() {
            causes.push(Cause::required("spec.externalName", ""));
        }
        return;
    }
    let headless = text(spec, "/clusterIP") == "None";
    if ports.is_empty() && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    if headless && kind != "ClusterIP" {
        let why = "may not be set to 'None' for LoadBalancer and NodePort services";
        causes.push(Cause::invalid("spec.clusterIPs[0]", &"None".into(), why));
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (n, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{n}]");
        let name = text(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if !name.is_empty() {
            if let Some(why) = NameRule::Label.refuses(name) {
                causes.push(Cause::invalid(format!("{path}.name"), &name.into(), why));
            }
            if !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), &name.into()));
            }
        }
        number(&port["port"], format!("{path}.port"), causes);
        number_or_name(&port["targetPort"], format!("{path}.targetPort"), causes);
        one_of(
            &port["protocol"],
            PROTOCOLS,
            format!("{path}.protocol"),
            causes,
        );
        if !numbers.insert((port["port"].as_i64(), text(port, "/protocol"))) {
            causes.push(Cause::duplicate(path, port));
        }
    }
    for field in ["externalIPs", "clusterIPs"] {
        for (n, address) in items(spec, &format!("/{field}")).iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            if text.parse::<IpAddr>().is_err() && !(field == "clusterIPs" && text == "None") {
                let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                causes.push(Cause::invalid(format!("spec.{field}[{n}]"), address, why));
            }
        }
    }
    for (n, range) in items(spec, "/loadBalancerSourceRanges").iter().enumerate() {
        cidr(range, format!("spec.loadBalancerSourceRanges[{n}]"), causes);
    }
}

fn cidr(value: &Value, path: String, causes: &mut Vec<Cause>) -> Option<IpNet> {
    let range = value
        .as_str()
        .and_then(|text| text.trim().parse::<IpNet>().ok());
    if range.is_none() {
        let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        causes.push(Cause::invalid(path, value, why));
    }
    range
}

/// Endpoint slices.
pub fn endpoint_slice(slice: &Value, causes: &mut Vec<Cause>) {
    let family = text(slice, "/addressType");
    if family.is_empty() {
        causes.push(Cause::required("addressType", ""));
    }
    one_of(
        &slice["addressType"],
        &["FQDN", "IPv4", "IPv6"],
        "addressType".to_owned(),
        causes,
    );
    for (n, endpoint) in items(slice, "/endpoints").iter().enumerate() {
        let path = format!("endpoints[{n}].addresses");
        let addresses = items(endpoint, "/addresses");
        if addresses.is_empty() {
            causes.push(Cause::required(
                path.clone(),
                "must contain at least 1 address",
            ));
        }
        for (m, address) in addresses.iter().enumerate() {
            let parsed = address
                .as_str()
                .and_then(|text| text.parse::<IpAddr>().ok());
            let fits = match family {
                "IPv4" => parsed.is_some_and(|ip| ip.is_ipv4()),
                "IPv6" => parsed.is_some_and(|ip| ip.is_ipv6()),
                _ => true,
            };
            if !fits {
                let why = format!("must be a valid {family} address");
                causes.push(Cause::invalid(format!("{path}[{m}]"), address, &why));
            }
        }
    }
    let mut names = BTreeSet::new();
    for (n, port) in items(slice, "/ports").iter().enumerate() {
        number(&port["port"], format!("ports[{n}].port"), causes);
        one_of(
            &port["protocol"],
            PROTOCOLS,
            format!("ports[{n}].protocol"),
            causes,
        );
        if !names.insert(text(port, "/name")) {
            causes.push(Cause::duplicate(format!("ports[{n}].name"), &port["name"]));
        }
    }
}

/// Endpoint slices: the address type stays.
pub fn endpoint_slice_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["addressType"] != new["addressType"] {
        causes.push(Cause::invalid(
            "addressType",
            &new["addressType"],
            "field is immutable",
        ));
    }
}

/// Network policies.
pub fn network_policy(policy: &Value, causes: &mut Vec<Cause>) {
    let spec = &policy["spec"];
    selector(&spec["podSelector"], "spec.podSelector", causes);
    for (n, direction) in items(spec, "/policyTypes").iter().enumerate() {
        one_of(
            direction,
            &["Egress", "Ingress"],
            format!("spec.policyTypes[{n}]"),
            causes,
        );
    }
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (n, rule) in items(spec, &format!("/{rules}")).iter().enumerate() {
            let path = format!("spec.{rules}[{n}]");
            for (m, port) in items(rule, "/ports").iter().enumerate() {
                policy_port(port, &format!("{path}.ports[{m}]"), causes);
            }
            for (m, peer) in items(rule, &format!("/{peers}")).iter().enumerate() {
                policy_peer(peer, &format!("{path}.{peers}[{m}]"), causes);
            }
        }
    }
}

fn policy_port(port: &Value, path: &str, causes: &mut Vec<Cause>) {
    one_of(
        &port["protocol"],
        PROTOCOLS,
        format!("{path}.protocol"),
        causes,
    );
    number_or_name(&port["port"], format!("{path}.port"), causes);
    let end = &port["endPort"];
    if end.is_null() {
        return;
    }
    let path = format!("{path}.endPort");
    match (&port["port"], end.as_i64()) {
        (Value::Null, _) => causes.push(Cause::required(
            path.replace("endPort", "port"),
            "must be specified when endPort is specified",
        )),
        (Value::String(_), _) => {
            causes.push(Cause::invalid(
                path,
                end,
                "may not be specified when 'port' is non-numeric",
            ));
        }
        (port, Some(last)) if port.as_i64().is_some_and(|first| last < first) => {
            causes.push(Cause::invalid(
                path,
                end,
                "must be greater than or equal to `port`",
            ));
        }
        _ => number(end, path, causes),
    }
}

fn policy_peer(peer: &Value, path: &str, causes: &mut Vec<Cause>) {
    let block = &peer["ipBlock"];
    let selectors = ["podSelector", "namespaceSelector"];
    let selected = selectors.iter().any(|s| !peer[*s].is_null());
    if block.is_null() && !selected {
        causes.push(Cause::required(path, "must specify a peer"));
    }
    if !block.is_null() && selected {
        causes.push(Cause::forbidden(
            path,
            "may not specify both ipBlock and another peer",
        ));
    }
    for name in selectors {
        selector(&peer[name], &format!("{path}.{name}"), causes);
    }
    if block.is_null() {
        return;
    }
    let path = format!("{path}.ipBlock");
    let outer = cidr(&block["cidr"], format!("{path}.cidr"), causes);
    for (n, except) in items(block, "/except").iter().enumerate() {
        let path = format!("{path}.except[{n}]");
        let inner = cidr(except, path.clone(), causes);
        if let (Some(outer), Some(inner)) = (outer, inner)
            && (!outer.contains(&inner) || outer.prefix_len() == inner.prefix_len())
        {
            let why = format!("must be a strict subset of `cidr` {outer}");
            causes.push(Cause::invalid(path, except, &why));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy_fields(rule: &Value) -> Vec<String> {
        let mut causes = Vec::new();
        network_policy(&json!({ "spec": { "ingress": [rule] } }), &mut causes);
        causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn policy_rules() {
        let table = [
            (
                json!({ "from": [{ "podSelector": {} }], "ports": [{ "port": 80, "endPort": 90 }] }),
                vec![],
            ),
            (
                json!({ "ports": [{ "port": 80, "endPort": 79 }] }),
                vec!["spec.ingress[0].ports[0].endPort"],
            ),
            (
                json!({ "ports": [{ "endPort": 79 }] }),
                vec!["spec.ingress[0].ports[0].port"],
            ),
            (
                json!({ "ports": [{ "port": 0 }] }),
                vec!["spec.ingress[0].ports[0].port"],
            ),
            (
                json!({ "ports": [{ "protocol": "ICMP" }] }),
                vec!["spec.ingress[0].ports[0].protocol"],
            ),
            (json!({ "from": [{}] }), vec!["spec.ingress[0].from[0]"]),
            (
                json!({ "from": [{ "ipBlock": { "cidr": "10.0.0.0/33" } }] }),
                vec!["spec.ingress[0].from[0].ipBlock.cidr"],
            ),
            (
                json!({ "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"] } }] }),
                vec!["spec.ingress[0].from[0].ipBlock.except[0]"],
            ),
            (
                json!({ "from": [{ "podSelector": {}, "ipBlock": { "cidr": "10.0.0.0/8" } }] }),
                vec!["spec.ingress[0].from[0]"],
            ),
        ];
        for (rule, expected) in table {
            assert_eq!(policy_fields(&rule), expected, "{rule}");
        }
    }

    #[test]
    fn services_name_their_ports_when_there_are_several() {
        let mut causes = Vec::new();
        let ports = json!([{ "port": 80, "protocol": "TCP" }, { "port": 81, "name": "b", "protocol": "TCP" }]);
        service(
            &json!({ "spec": { "type": "ClusterIP", "ports": ports } }),
            &mut causes,
        );
        assert_eq!(causes, [Cause::required("spec.ports[0].name", "")]);
    }
}
