//! What a runtime tells the plugins about a pod, by capability, as containerd does: the names of its
//! fields are those of its Go structures, in CamelCase with a capital letter, which Go's decoder takes
//! for the specification's names.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

/// Annotations that limit a pod's bandwidth, in bits per second.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// The burst that containerd gives with every limit, in bits.
const BURST: u32 = u32::MAX;

/// The least and the most that a limit may be.
const LIMITS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// All capabilities of a pod.
///
/// # Errors
///
/// When a limit is no quantity or out of range: the pod does not start then.
pub fn of(pod: &Pod) -> Result<Map<String, Value>> {
    let mut capabilities = Map::new();
    let annotations = pod.annotations();
    capabilities.insert(
        "io.kubernetes.cri.pod-annotations".to_owned(),
        json!(annotations),
    );
    let mappings = port_mappings(pod);
    if !mappings.is_empty() {
        capabilities.insert("portMappings".to_owned(), mappings.into());
    }
    let limit = |name: &str| {
        let text = annotations.get(name)?;
        Some(bandwidth(text).with_context(|| format!("the annotation {name}: {text:?}")))
    };
    let (ingress, egress) = (limit(INGRESS).transpose()?, limit(EGRESS).transpose()?);
    if ingress.is_some() || egress.is_some() {
        let burst = |rate: Option<u64>| rate.map_or(0, |_| BURST);
        capabilities.insert(
            "bandwidth".to_owned(),
            json!({
                "IngressRate": ingress.unwrap_or(0), "IngressBurst": burst(ingress),
                "EgressRate": egress.unwrap_or(0), "EgressBurst": burst(egress),
            }),
        );
    }
    Ok(capabilities)
}

fn port_mappings(pod: &Pod) -> Vec<Value> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let on_host = ports.filter_map(|port| {
        let host_port = port.host_port.filter(|port| *port > 0)?;
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        Some(json!({
            "HostPort": host_port,
            "ContainerPort": port.container_port,
            "Protocol": protocol.to_lowercase(),
            "HostIP": port.host_ip.as_deref().unwrap_or_default(),
        }))
    });
    on_host.collect()
}

/// A quantity in whole bits per second, rounded up.
fn bandwidth(text: &str) -> Result<u64> {
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: f64 = number.parse().context("it is not a quantity")?;
    let factor: f64 = match suffix {
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => bail!("{suffix:?} is not a quantity's suffix"),
    };
    // A cast from a float saturates; what that gives is out of range.
    let bits = (number * factor).ceil() as u64;
    if !LIMITS.contains(&bits) {
        bail!("a limit is between 1k and 1P");
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(pod: Value) -> Result<Value> {
        of(&serde_json::from_value(pod).unwrap()).map(Value::Object)
    }

    #[test]
    fn ports_and_limits_are_told_as_containerd_tells_them() {
        let pod = json!({
            "metadata": {"annotations": {
                "kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1.5Mi",
            }},
            "spec": {"containers": [{"name": "a", "ports": [
                {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "127.0.0.1"},
                {"containerPort": 80},
            ]}, {"name": "b", "ports": [{"containerPort": 81, "hostPort": 8081}]}]},
        });
        let told = capabilities(pod.clone()).unwrap();
        assert_eq!(
            told["io.kubernetes.cri.pod-annotations"],
            pod["metadata"]["annotations"]
        );
        assert_eq!(
            told["portMappings"],
            json!([
                {"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": "127.0.0.1"},
                {"HostPort": 8081, "ContainerPort": 81, "Protocol": "tcp", "HostIP": ""},
            ])
        );
        assert_eq!(
            told["bandwidth"],
            json!({"IngressRate": 10_000_000, "IngressBurst": 4_294_967_295_u32,
                   "EgressRate": 1_572_864, "EgressBurst": 4_294_967_295_u32})
        );
    }

    #[test]
    fn what_is_not_said_is_not_told() {
        let told = capabilities(json!({"spec": {"containers": [{"name": "a"}]}})).unwrap();
        assert_eq!(told, json!({"io.kubernetes.cri.pod-annotations": {}}));
    }

    #[test]
    fn a_limit_that_is_none_keeps_the_pod_from_starting() {
        for text in ["", "fast", "10x", "999", "2P", "-1M"] {
            let pod = json!({"metadata": {"annotations": {INGRESS: text}}});
            assert!(capabilities(pod).is_err(), "{text}");
        }
    }
}
