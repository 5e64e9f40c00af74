//! Endpoint slices and network policies.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::super::object::{items, text};
use super::super::status::Cause;
use super::{PROTOCOLS, number, number_or_name, one_of, selector};

pub(super) fn cidr(value: &Value, path: String, causes: &mut Vec<Cause>) -> Option<IpNet> {
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
    let endpoints = items(slice, "/endpoints");
    if endpoints.len() > 1000 {
        let count = endpoints.len();
        let why = "must have at most 1000 items";
        causes.push(Cause::invalid("endpoints", &count.into(), why));
    }
    for (n, endpoint) in endpoints.iter().enumerate() {
        for (kind, what) in [("forZones", "zones"), ("forNodes", "nodes")] {
            let hints = items(endpoint, &format!("/hints/{kind}"));
            let path = format!("endpoints[{n}].hints.{kind}");
            if hints.len() > 8 {
                let why = format!("must have at most 8 {what}");
                causes.push(Cause::invalid(path.clone(), &hints.len().into(), &why));
            }
            let mut seen = BTreeSet::new();
            for (m, hint) in hints.iter().enumerate() {
                if !seen.insert(text(hint, "/name")) {
                    let path = format!("{path}[{m}].name");
                    causes.push(Cause::duplicate(path, &hint["name"]));
                }
            }
        }
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
            } else if let Some(why) = parsed.and_then(special) {
                causes.push(Cause::invalid(format!("{path}[{m}]"), address, why));
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

/// Why the address is nobody's in particular: endpoints and external addresses cannot be such.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_link_multicast = match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    };
    if address.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if address.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if is_link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if is_link_multicast {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    } else {
        None
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
}
