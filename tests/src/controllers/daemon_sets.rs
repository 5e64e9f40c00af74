//! Keeps one pod of a daemon set on every node that it wants.
//!
//! Pods of an older template are replaced at once, all together.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::deployments::template_hash;
use super::replica_sets::set_status;
use super::{Controller, pods, scheduler};
use crate::api::object::{self, text};
use crate::api::resources::{DAEMONSETS, NODES, PODS};
use crate::api::{Change, Key, Object, Registry, Status};

const HASH: &str = "controller-revision-hash";

/// See the module.
pub struct DaemonSets;

impl Controller for DaemonSets {
    fn name(&self) -> &'static str {
        "daemonset-controller"
    }

    fn keys(&mut self, registry: &Registry, change: &Change) -> Vec<Key> {
        match change.key.resource {
            resource if *resource == DAEMONSETS => vec![change.key.clone()],
            resource if *resource == PODS => pods::owners(change, &DAEMONSETS),
            resource if *resource == NODES => registry
                .all(&DAEMONSETS, "")
                .iter()
                .map(|set| Key::new(&DAEMONSETS, object::namespace(set), object::name(set)))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let Ok(set) = registry.get(&DAEMONSETS, &key.namespace, &key.name) else {
            return Ok(());
        };
        if object::is_terminating(&set) {
            return Ok(());
        }
        let template = &set["spec"]["template"];
        let hash = template_hash(template);
        let mut there: BTreeMap<String, Vec<Object>> = BTreeMap::new();
        for pod in pods::controlled(registry, &PODS, &set) {
            there
                .entry(text(&pod, "/spec/nodeName").to_owned())
                .or_default()
                .push(pod);
        }
        let (mut desired, mut current, mut ready, mut updated) = (0, 0, 0, 0);
        for node in registry.all(&NODES, "") {
            let mine = there.remove(object::name(&node)).unwrap_or_default();
            let wanted = scheduler::is_wanted(template, &node) && tolerates(template, &node);
            desired += usize::from(wanted);
            let mut kept = 0;
            for pod in &mine {
                let is_new = object::label(pod, HASH) == Some(hash.as_str());
                if !wanted || !is_new || pods::is_over(pod) || kept > 0 {
                    if !object::is_terminating(pod) {
                        pods::delete(registry, pod)?;
                    }
                    continue;
                }
                kept += 1;
                current += 1;
                updated += 1;
                ready += usize::from(pods::is_ready(pod));
            }
            // One at a time on a node: a new one comes when the old one is gone.
            if wanted && mine.is_empty() {
                self.place(registry, &set, &hash, object::name(&node))?;
            }
        }
        for pod in there
            .values()
            .flatten()
            .filter(|pod| !object::is_terminating(pod))
        {
            pods::delete(registry, pod)?;
        }
        let status = json!({
            "desiredNumberScheduled": desired, "currentNumberScheduled": current,
            "numberReady": ready, "numberAvailable": ready, "updatedNumberScheduled": updated,
            "numberMisscheduled": 0, "observedGeneration": set["metadata"]["generation"],
        });
        set_status(registry, key, &self.options(), status)
    }
}

impl DaemonSets {
    fn place(
        &self,
        registry: &Registry,
        set: &Value,
        hash: &str,
        node: &str,
    ) -> Result<(), Status> {
        let mut labelled = set.clone();
        let template = &mut labelled["spec"]["template"];
        object::metadata(template);
        let labels = object::map_mut(&mut template["metadata"], "labels");
        labels.insert(HASH.to_owned(), hash.into());
        pods::create(registry, &labelled, &self.options(), |spec| {
            spec["nodeName"] = node.into();
        })
    }
}

/// Daemons run on nodes that are not ready, and on those closed for others.
fn tolerates(template: &Value, node: &Value) -> bool {
    let mut node = node.clone();
    if let Some(taints) = node
        .pointer_mut("/spec/taints")
        .and_then(Value::as_array_mut)
    {
        let own = |taint: &Value| text(taint, "/key").starts_with("node.kubernetes.io/");
        taints.retain(|taint| !own(taint));
    }
    scheduler::tolerates(template, &node)
}
