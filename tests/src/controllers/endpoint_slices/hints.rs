//! Whom endpoints are meant for: `trafficDistribution`, and the older annotation `topology-mode: Auto`.
//!
//! Auto gives every zone its share of the endpoints. The real controller weighs zones by the processors
//! of their nodes; here all zones count the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::ZONE;
use crate::api::Object;
use crate::api::object::{self, at, text};
use crate::controllers::pods;

/// The share of its endpoints by which a zone may be overloaded, in percent.
const OVERLOAD: usize = 20;

/// Whether the Service's hints depend on which zones there are.
pub fn follow_zones(service: &Value) -> bool {
    let annotation = |name: &str| {
        let annotations = at(service, "/metadata/annotations");
        annotations.get(name).and_then(Value::as_str)
    };
    let mode = annotation("service.kubernetes.io/topology-mode");
    let mode = mode.or_else(|| annotation("service.kubernetes.io/topology-aware-hints"));
    matches!(mode, Some("Auto" | "auto"))
}

/// Gives the endpoints of one family their hints.
pub fn give<'a>(
    service: &Value,
    nodes: impl Iterator<Item = &'a Object>,
    mut endpoints: Vec<&mut Value>,
) {
    endpoints.retain(|endpoint| endpoint["conditions"]["ready"] == true);
    if follow_zones(service) {
        let shares = zones(nodes).and_then(|zones| share(&zones, &endpoints));
        for (endpoint, zone) in endpoints.into_iter().zip(shares.into_iter().flatten()) {
            endpoint["hints"] = json!({ "forZones": [{ "name": zone }] });
        }
        return;
    }
    let distribution = text(service, "/spec/trafficDistribution");
    for endpoint in endpoints {
        let named = |field: &str| {
            let name = endpoint[field].as_str()?;
            Some(json!([{ "name": name }]))
        };
        let mut hints = serde_json::Map::new();
        if !distribution.is_empty()
            && let Some(zone) = named("zone")
        {
            hints.insert("forZones".to_owned(), zone);
        }
        if distribution == "PreferSameNode"
            && let Some(node) = named("nodeName")
        {
            hints.insert("forNodes".to_owned(), node);
        }
        if !hints.is_empty() {
            endpoint["hints"] = hints.into();
        }
    }
}

/// The zones of the ready nodes; `None` when one has none, or there is only one zone.
fn zones<'a>(nodes: impl Iterator<Item = &'a Object>) -> Option<BTreeSet<String>> {
    let ready = nodes.filter(|node| pods::has_condition(node, "Ready"));
    let zones: Option<BTreeSet<String>> = ready
        .map(|node| object::label(node, ZONE).map(str::to_owned))
        .collect();
    zones.filter(|zones| zones.len() > 1)
}

/// The zone of each endpoint: its own as far as there are not too many, then those that lack some.
/// `None` when the endpoints have no zone or are too few to share.
fn share(zones: &BTreeSet<String>, endpoints: &[&mut Value]) -> Option<Vec<String>> {
    let least = (100 * endpoints.len()).div_ceil((100 + OVERLOAD) * zones.len());
    if endpoints.is_empty() || least * zones.len() > endpoints.len() {
        return None;
    }
    let own: Option<Vec<&str>> = endpoints.iter().map(|e| e["zone"].as_str()).collect();
    let mut given: Vec<String> = own?.into_iter().map(str::to_owned).collect();
    let mut counts: BTreeMap<&str, usize> = zones.iter().map(|zone| (zone.as_str(), 0)).collect();
    for zone in &given {
        // A zone without a ready node gives all it has.
        if let Some(count) = counts.get_mut(zone.as_str()) {
            *count += 1;
        }
    }
    let mut counts: BTreeMap<String, usize> = counts
        .into_iter()
        .map(|(zone, count)| (zone.to_owned(), count))
        .collect();
    for zone in &mut given {
        let spare = counts.get(zone).is_none_or(|count| *count > least);
        let lacking = counts.iter().find(|(_, count)| **count < least);
        let lacking = lacking.map(|(zone, _)| zone.clone());
        if let Some(other) = lacking.filter(|_| spare) {
            if let Some(count) = counts.get_mut(zone) {
                *count -= 1;
            }
            *counts.entry(other.clone()).or_default() += 1;
            *zone = other;
        }
    }
    Some(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(service: &Value, zones: &[&str], endpoints: &[&str]) -> Vec<Value> {
        let node = |zone: &&str| -> Object {
            let status = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
            json!({ "metadata": { "labels": { ZONE: zone } }, "status": status }).into()
        };
        let nodes: Vec<Object> = zones.iter().map(node).collect();
        let endpoint =
            |zone: &&str| json!({ "zone": zone, "nodeName": "n", "conditions": { "ready": true } });
        let mut all: Vec<Value> = endpoints.iter().map(endpoint).collect();
        give(service, nodes.iter(), all.iter_mut().collect());
        all.into_iter()
            .map(|mut endpoint| endpoint["hints"].take())
            .collect()
    }

    #[test]
    fn a_distribution_hints_at_what_is_near() {
        let zone = json!({ "forZones": [{ "name": "a" }] });
        for (distribution, expected) in [
            (json!("PreferClose"), zone.clone()),
            (json!("PreferSameZone"), zone),
            (
                json!("PreferSameNode"),
                json!({ "forZones": [{ "name": "a" }], "forNodes": [{ "name": "n" }] }),
            ),
            (json!(null), json!(null)),
        ] {
            let service = json!({ "spec": { "trafficDistribution": distribution } });
            assert_eq!(hints(&service, &[], &["a"]), [expected]);
        }
    }

    #[test]
    fn zones_get_equal_shares_or_none() {
        let annotations = json!({ "service.kubernetes.io/topology-mode": "Auto" });
        let service = json!({ "metadata": { "annotations": annotations } });
        let shares = |zones: &[&str], endpoints: &[&str]| -> Vec<String> {
            let hints = hints(&service, zones, endpoints);
            let named = hints.iter().map(|hint| text(hint, "/forZones/0/name"));
            named.map(str::to_owned).collect()
        };
        assert_eq!(shares(&["a", "b", "c"], &["a", "b", "c"]), ["a", "b", "c"]);
        assert_eq!(shares(&["a", "b"], &["a", "a"]), ["b", "a"]);
        assert_eq!(shares(&["a", "b"], &["a"]), [""], "too few");
        assert_eq!(shares(&["a"], &["a"]), [""], "one zone only");
        assert_eq!(shares(&["a", "b", "c"], &["a", "b", "c", "a"]), [""; 4]);
    }
}
