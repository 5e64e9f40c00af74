//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::super::object::{at, items, text};
use super::super::services;
use super::super::status::Cause;
use super::network::{cidr, special};
use super::{NameRule, PROTOCOLS, labels, number, number_or_name, one_of};

/// The port that every kubelet has.
const KUBELET: i64 = 10250;

/// Services.
pub fn service(service: &Value, causes: &mut Vec<Cause>) {
    let spec = &service["spec"];
    let kind = text(spec, "/type");
    for (field, allowed) in [
        (
            "type",
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"][..],
        ),
        ("sessionAffinity", &["ClientIP", "None"]),
        ("internalTrafficPolicy", &["Cluster", "Local"]),
        ("externalTrafficPolicy", &["Cluster", "Local"]),
        (
            "trafficDistribution",
            &["PreferClose", "PreferSameNode", "PreferSameZone"],
        ),
    ] {
        one_of(&spec[field], allowed, format!("spec.{field}"), causes);
    }
    let timeout = at(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds");
    if !timeout.is_null() && timeout.as_i64().is_none_or(|t| !(1..=86400).contains(&t)) {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let why = "must be greater than 0 and at most 86400";
        causes.push(Cause::invalid(path, timeout, why));
    }
    labels(&spec["selector"], "spec.selector", causes);
    only_for_its_type(service, causes);
    let is_headless = text(spec, "/clusterIP") == "None";
    let is_external_name = kind == "ExternalName";
    if is_external_name {
        let name = text(spec, "/externalName").trim_end_matches('.');
        if name.is_empty() {
            causes.push(Cause::required("spec.externalName", ""));
        } else if let Some(why) = NameRule::Subdomain.refuses(name) {
            causes.push(Cause::invalid("spec.externalName", &name.into(), why));
        }
    } else if items(spec, "/ports").is_empty() && !is_headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    if is_headless && (kind == "LoadBalancer" || kind == "NodePort") {
        let why = "may not be set to 'None' for LoadBalancer and NodePort services";
        causes.push(Cause::invalid("spec.clusterIPs[0]", &"None".into(), why));
    }
    ports(spec, kind, causes);
    for field in ["externalIPs", "clusterIPs"] {
        for (n, address) in items(spec, &format!("/{field}")).iter().enumerate() {
            let path = format!("spec.{field}[{n}]");
            let text = address.as_str().unwrap_or_default();
            match text.parse::<IpAddr>() {
                Err(_) if field == "clusterIPs" && text == "None" => {}
                Err(_) => {
                    let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                    causes.push(Cause::invalid(path, address, why));
                }
                Ok(parsed) => {
                    if let Some(why) = special(parsed).filter(|_| field == "externalIPs") {
                        causes.push(Cause::invalid(path, address, why));
                    }
                }
            }
        }
    }
    for (n, range) in items(spec, "/loadBalancerSourceRanges").iter().enumerate() {
        cidr(range, format!("spec.loadBalancerSourceRanges[{n}]"), causes);
    }
}

/// Fields that only some types may have.
fn only_for_its_type(service: &Value, causes: &mut Vec<Cause>) {
    let spec = &service["spec"];
    let kind = text(spec, "/type");
    let is_set = |field: &str| match &spec[field] {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        value => value.as_i64() != Some(0),
    };
    let mut forbid = |field: &str, why: &str| {
        causes.push(Cause::forbidden(format!("spec.{field}"), why));
    };
    if kind != "LoadBalancer" {
        for field in [
            "loadBalancerSourceRanges",
            "allocateLoadBalancerNodePorts",
            "loadBalancerClass",
        ] {
            if is_set(field) {
                forbid(field, "may only be used when `type` is 'LoadBalancer'");
            }
        }
    }
    if kind == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if is_set(field) {
                forbid(field, "may not be set for ExternalName services");
            }
        }
    }
    let policy = text(spec, "/externalTrafficPolicy");
    if !policy.is_empty() && !services::is_external(service) {
        let why = "may only be set for externally-accessible services";
        causes.push(Cause::invalid(
            "spec.externalTrafficPolicy",
            &policy.into(),
            why,
        ));
    }
    let is_checked = kind == "LoadBalancer" && policy == "Local";
    if is_set("healthCheckNodePort") && !is_checked {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is \
                   'Local'";
        let found = &spec["healthCheckNodePort"];
        causes.push(Cause::invalid("spec.healthCheckNodePort", found, why));
    }
}

fn ports(spec: &Value, kind: &str, causes: &mut Vec<Cause>) {
    let ports = items(spec, "/ports");
    let (mut names, mut numbers, mut nodes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (n, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{n}]");
        let name = text(port, "/name");
        let protocol = text(port, "/protocol");
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
        if kind == "LoadBalancer" && port["port"] == KUBELET {
            let why = "may not expose port 10250 externally since it is used by kubelet";
            causes.push(Cause::invalid(format!("{path}.port"), &port["port"], why));
        }
        if !numbers.insert((port["port"].as_i64(), protocol)) {
            causes.push(Cause::duplicate(path.clone(), port));
        }
        let Some(node) = port["nodePort"].as_i64().filter(|node| *node != 0) else {
            continue;
        };
        let path = format!("{path}.nodePort");
        if kind == "ClusterIP" || kind == "ExternalName" {
            let why = format!("may not be used when `type` is '{kind}'");
            causes.push(Cause::forbidden(path, &why));
        } else if !nodes.insert((node, protocol)) {
            causes.push(Cause::duplicate(path, &port["nodePort"]));
        }
    }
}

/// What stays as it is while a Service is of the type that needs it.
pub fn service_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    for field in ["healthCheckNodePort", "loadBalancerClass"] {
        let (before, now) = (&old["spec"][field], &new["spec"][field]);
        let was_balanced = text(old, "/spec/type") == "LoadBalancer";
        if was_balanced && !before.is_null() && !now.is_null() && before != now {
            let path = format!("spec.{field}");
            causes.push(Cause::invalid(path, now, "field is immutable"));
        }
    }
}

/// The status: what a load balancer reports.
pub fn service_status(service: &Value, causes: &mut Vec<Cause>) {
    let ingress = items(service, "/status/loadBalancer/ingress");
    let path = "status.loadBalancer.ingress";
    if !ingress.is_empty() && text(service, "/spec/type") != "LoadBalancer" {
        let why = "may only be used when `spec.type` is \"LoadBalancer\"";
        causes.push(Cause::forbidden(path, why));
    }
    for (n, entry) in ingress.iter().enumerate() {
        let (path, address) = (format!("{path}[{n}]"), text(entry, "/ip"));
        let mode = &entry["ipMode"];
        if !address.is_empty() && address.parse::<IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            causes.push(Cause::invalid(format!("{path}.ip"), &entry["ip"], why));
        }
        if address.is_empty() && !mode.is_null() {
            let why = "may not be used when `ip` is not set";
            causes.push(Cause::forbidden(format!("{path}.ipMode"), why));
        }
        one_of(mode, &["Proxy", "VIP"], format!("{path}.ipMode"), causes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(spec: Value) -> Vec<String> {
        let mut causes = Vec::new();
        let mut whole = json!({});
        whole["spec"] = spec;
        service(&whole, &mut causes);
        causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn services_name_their_ports_when_there_are_several() {
        let ports = json!([{ "port": 80, "protocol": "TCP" }, { "port": 81, "name": "b", "protocol": "TCP" }]);
        assert_eq!(
            fields(json!({ "type": "ClusterIP", "ports": ports })),
            ["spec.ports[0].name"]
        );
    }

    #[test]
    fn fields_belong_to_types() {
        let with = |kind: &str, more: Value| {
            let mut spec = json!({ "type": kind, "ports": [{ "port": 80, "protocol": "TCP" }] });
            json_patch::merge(&mut spec, &more);
            fields(spec)
        };
        let node_port = json!({ "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30000 }] });
        let nothing: [&str; 0] = [];
        assert_eq!(
            with("ClusterIP", node_port.clone()),
            ["spec.ports[0].nodePort"]
        );
        assert_eq!(with("NodePort", node_port), nothing);
        let local = json!({ "externalTrafficPolicy": "Local" });
        assert_eq!(
            with("ClusterIP", local.clone()),
            ["spec.externalTrafficPolicy"]
        );
        assert_eq!(with("LoadBalancer", local), nothing);
        let external = json!({ "externalTrafficPolicy": "Local", "externalIPs": ["203.0.113.1"] });
        assert_eq!(with("ClusterIP", external), nothing);
        let ranges = json!({ "loadBalancerSourceRanges": ["10.0.0.0/8"] });
        assert_eq!(with("NodePort", ranges), ["spec.loadBalancerSourceRanges"]);
        let check = json!({ "healthCheckNodePort": 30000 });
        assert_eq!(with("LoadBalancer", check), ["spec.healthCheckNodePort"]);
        let alias = json!({ "externalName": "example.org", "clusterIP": "10.96.0.9" });
        assert_eq!(with("ExternalName", alias), ["spec.clusterIP"]);
        let loopback = json!({ "externalIPs": ["127.0.0.1"] });
        assert_eq!(with("ClusterIP", loopback), ["spec.externalIPs[0]"]);
        let kubelet = json!({ "ports": [{ "port": 10250, "protocol": "TCP" }] });
        assert_eq!(with("LoadBalancer", kubelet), ["spec.ports[0].port"]);
    }

    #[test]
    fn a_load_balancers_report_is_checked() {
        let fields = |kind: &str, entry: Value| {
            let mut causes = Vec::new();
            let status = json!({ "loadBalancer": { "ingress": [entry] } });
            let service = json!({ "spec": { "type": kind }, "status": status });
            service_status(&service, &mut causes);
            causes
                .into_iter()
                .map(|cause| cause.field)
                .collect::<Vec<_>>()
        };
        let vip = json!({ "ip": "203.0.113.1", "ipMode": "VIP" });
        assert!(fields("LoadBalancer", vip.clone()).is_empty());
        assert_eq!(fields("NodePort", vip), ["status.loadBalancer.ingress"]);
        let nameless = json!({ "hostname": "a", "ipMode": "VIP" });
        assert_eq!(
            fields("LoadBalancer", nameless),
            ["status.loadBalancer.ingress[0].ipMode"]
        );
    }
}
