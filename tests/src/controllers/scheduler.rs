//! Gives pods a node: the one with the fewest pods among those that fit.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Controller, pods};
use crate::api::object::{self, at, items, text};
use crate::api::patch::strategic;
use crate::api::registry::Part;
use crate::api::resources::{NODES, PODS};
use crate::api::{Change, Key, Registry, Selector, Status};

/// See the module.
pub struct Scheduler;

impl Controller for Scheduler {
    fn name(&self) -> &'static str {
        "kube-scheduler"
    }

    fn keys(&mut self, registry: &Registry, change: &Change) -> Vec<Key> {
        if *change.key.resource == PODS && !change.deleted && is_waiting(&change.after) {
            return vec![change.key.clone()];
        }
        if *change.key.resource != NODES || change.deleted {
            return Vec::new();
        }
        let waiting = registry
            .all(&PODS, "")
            .into_iter()
            .filter(|pod| is_waiting(pod));
        waiting
            .map(|pod| Key::new(&PODS, object::namespace(&pod), object::name(&pod)))
            .collect()
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let Ok(pod) = registry.get(&PODS, &key.namespace, &key.name) else {
            return Ok(());
        };
        if !is_waiting(&pod) {
            return Ok(());
        }
        let mut load: BTreeMap<String, usize> = BTreeMap::new();
        for other in registry
            .all(&PODS, "")
            .iter()
            .filter(|other| pods::is_active(other))
        {
            *load
                .entry(text(other, "/spec/nodeName").to_owned())
                .or_default() += 1;
        }
        let nodes = registry.all(&NODES, "");
        let fitting = nodes
            .iter()
            .filter(|node| fits(&pod, node))
            .map(|node| object::name(node));
        match fitting.min_by_key(|name| load.get(*name).copied().unwrap_or(0)) {
            Some(node) => {
                registry.bind(&key.namespace, &key.name, node, &self.options())?;
            }
            None => self.tell(registry, key, nodes.len())?,
        }
        Ok(())
    }
}

impl Scheduler {
    fn tell(&self, registry: &Registry, key: &Key, nodes: usize) -> Result<(), Status> {
        let message = format!("0/{nodes} nodes are available");
        registry.modify(key, Part::Status, &self.options(), |live| {
            let known = items(live, "/status/conditions")
                .iter()
                .any(|c| c["type"] == "PodScheduled" && c["message"] == message.as_str());
            let mut pod = live.clone();
            if !known {
                let condition = json!({
                    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": message, "lastTransitionTime": object::now(),
                });
                strategic::merge(
                    &mut pod,
                    &json!({ "status": { "conditions": [condition] } }),
                );
            }
            Ok(pod)
        })?;
        Ok(())
    }
}

fn is_waiting(pod: &Value) -> bool {
    text(pod, "/spec/nodeName").is_empty()
        && pods::is_active(pod)
        && text(pod, "/spec/schedulerName") == "default-scheduler"
}

fn fits(pod: &Value, node: &Value) -> bool {
    pods::has_condition(node, "Ready")
        && node["spec"]["unschedulable"] != true
        && tolerates(pod, node)
        && is_wanted(pod, node)
}

/// Whether node selector and required node affinity let the pod run on the node.
pub fn is_wanted(pod: &Value, node: &Value) -> bool {
    let mut node = node.clone();
    let metadata = object::metadata(&mut node);
    let name = metadata.get("name").cloned().unwrap_or_default();
    let labels = object::map_mut(&mut node["metadata"], "labels");
    object::default_text(
        labels,
        "kubernetes.io/hostname",
        name.as_str().unwrap_or_default(),
    );
    if !Selector::from_map(at(pod, "/spec/nodeSelector")).matches(&node) {
        return false;
    }
    let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    let terms = items(at(pod, required), "/nodeSelectorTerms");
    terms.is_empty()
        || terms.iter().any(|term| {
            let labels = Selector::from_label_selector(term).matches(&node);
            let names = items(term, "/matchFields").iter().all(|field| {
                let listed = items(field, "/values").contains(&name);
                (text(field, "/operator") == "In") == listed
            });
            labels && names
        })
}

/// Whether the pod tolerates the node's taints.
pub fn tolerates(pod: &Value, node: &Value) -> bool {
    items(node, "/spec/taints")
        .iter()
        .filter(|taint| taint["effect"] != "PreferNoSchedule")
        .all(|taint| {
            items(pod, "/spec/tolerations").iter().any(|toleration| {
                let (key, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
                let same_value = text(toleration, "/operator") == "Exists"
                    || text(toleration, "/value") == text(taint, "/value");
                (key.is_empty() || key == text(taint, "/key"))
                    && (effect.is_empty() || effect == text(taint, "/effect"))
                    && same_value
            })
        })
}
