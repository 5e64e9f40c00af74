//! Keeps as many pods as a replica set wants.

use serde_json::{Value, json};

use super::{Controller, pods};
use crate::api::object;
use crate::api::registry::Part;
use crate::api::resources::{PODS, REPLICASETS};
use crate::api::{Change, Key, Registry, Status};

/// See the module.
pub struct ReplicaSets;

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn keys(&mut self, _: &Registry, change: &Change) -> Vec<Key> {
        match change.key.resource {
            resource if *resource == REPLICASETS => vec![change.key.clone()],
            resource if *resource == PODS => pods::owners(change, &REPLICASETS),
            _ => Vec::new(),
        }
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let Ok(set) = registry.get(&REPLICASETS, &key.namespace, &key.name) else {
            return Ok(());
        };
        if object::is_terminating(&set) {
            return Ok(());
        }
        let mut active = pods::controlled(registry, &PODS, &set);
        active.retain(|pod| pods::is_active(pod));
        let wanted = set["spec"]["replicas"].as_u64().unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        for _ in active.len()..wanted {
            pods::create(registry, &set, &self.options(), |_| ())?;
        }
        if active.len() > wanted {
            // Those that are missed least go first: without node, not ready, youngest.
            active.sort_by_key(|pod| {
                let is_bound = !object::text(pod, "/spec/nodeName").is_empty();
                let created = object::text(pod, "/metadata/creationTimestamp").to_owned();
                (is_bound, pods::is_ready(pod), std::cmp::Reverse(created))
            });
            for pod in active.drain(..active.len() - wanted) {
                pods::delete(registry, &pod)?;
            }
        }
        let ready = active.iter().filter(|pod| pods::is_ready(pod)).count();
        let status = json!({
            "replicas": active.len(),
            "fullyLabeledReplicas": active.len(),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "observedGeneration": set["metadata"]["generation"],
        });
        set_status(registry, key, &self.options(), status)
    }
}

/// Writes a status, leaving out zeros as Go does.
pub fn set_status(
    registry: &Registry,
    key: &Key,
    options: &crate::api::registry::WriteOptions,
    mut status: Value,
) -> Result<(), Status> {
    if let Some(map) = status.as_object_mut() {
        map.retain(|name, value| *value != json!(0) || name == "replicas");
    }
    let written = registry.modify(key, Part::Status, options, |live| {
        let mut new = live.clone();
        new["status"] = status;
        Ok(new)
    });
    match written {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}
