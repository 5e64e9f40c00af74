//! What becomes of a Service's fields when it is written: the ones that were allocated are taken over
//! where the writer left them out, and those that a new type has no use for are dropped where the
//! writer did not touch them. What remains and does not fit is for validation to refuse.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::object::{items, items_mut, map_mut, text};
use super::{
    is_external, is_unset, needs_addresses, needs_health_check, needs_node_ports, node_ports,
};

/// Prepares a Service, with its defaults, for validation. `old` is the one that it replaces.
pub fn prepare(service: &mut Value, old: Option<&Value>) {
    let Some(old) = old else {
        return;
    };
    take_over(service, old);
    drop_fields(service, old);
    if text(service, "/spec/type") != "LoadBalancer" {
        map_mut(service, "status").insert("loadBalancer".to_owned(), serde_json::json!({}));
    }
}

fn take_over(service: &mut Value, old: &Value) {
    if needs_addresses(old) && needs_addresses(service) {
        let spec = map_mut(service, "spec");
        copy_unset(spec, old, "clusterIP");
        if spec.get("clusterIP") == old["spec"].get("clusterIP") {
            copy_unset(spec, old, "clusterIPs");
        }
        copy_unset(spec, old, "ipFamilies");
        copy_unset(spec, old, "ipFamilyPolicy");
    }
    if needs_node_ports(old) && needs_node_ports(service) {
        let number = |port: &Value| port["nodePort"].as_u64().unwrap_or(0);
        let numbers = |service: &Value| -> BTreeSet<u64> {
            items(service, "/spec/ports").iter().map(number).collect()
        };
        let mut used: BTreeSet<u64> = &numbers(old) & &numbers(service);
        // A port is the same one when its name is.
        let known: BTreeMap<&str, u64> = items(old, "/spec/ports")
            .iter()
            .map(|port| (text(port, "/name"), number(port)))
            .collect();
        for port in items_mut(service, "/spec/ports") {
            if number(port) == 0
                && let Some(before) = known
                    .get(text(port, "/name"))
                    .filter(|before| **before != 0)
                && used.insert(*before)
            {
                port["nodePort"] = (*before).into();
            }
        }
    }
    if needs_health_check(old) && needs_health_check(service) {
        copy_unset(map_mut(service, "spec"), old, "healthCheckNodePort");
    }
}

fn copy_unset(spec: &mut serde_json::Map<String, Value>, old: &Value, name: &str) {
    if is_unset(spec, name)
        && let Some(value) = old["spec"].get(name)
    {
        spec.insert(name.to_owned(), value.clone());
    }
}

fn drop_fields(service: &mut Value, old: &Value) {
    let mut dropped: Vec<&str> = Vec::new();
    if needs_addresses(old) && !needs_addresses(service) {
        dropped.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    }
    if needs_health_check(old) && !needs_health_check(service) {
        dropped.push("healthCheckNodePort");
    }
    let is_balanced = |service: &Value| text(service, "/spec/type") == "LoadBalancer";
    if is_balanced(old) && !is_balanced(service) {
        dropped.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_external(old) && !is_external(service) {
        dropped.push("externalTrafficPolicy");
    }
    let loses_ports = needs_node_ports(old)
        && !needs_node_ports(service)
        && node_ports_of(old) == node_ports_of(service);
    let spec = map_mut(service, "spec");
    for name in dropped {
        if spec.get(name) == old["spec"].get(name) {
            spec.remove(name);
        }
    }
    if loses_ports {
        for port in items_mut(service, "/spec/ports") {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
}

/// The node ports without that of the health check.
fn node_ports_of(service: &Value) -> BTreeSet<u16> {
    let check = service["spec"]["healthCheckNodePort"].as_u64();
    node_ports(service)
        .filter(|port| Some(u64::from(*port)) != check)
        .collect()
}
