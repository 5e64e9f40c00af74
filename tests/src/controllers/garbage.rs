//! Deletes objects whose owners are all gone.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Controller;
use crate::api::object::{self, items, text};
use crate::api::registry::DeleteOptions;
use crate::api::resources::Resource;
use crate::api::{Change, Key, Registry, Status};

/// See the module. Remembers who refers to whom, by the owner's uid.
#[derive(Default)]
pub struct Garbage {
    dependents: BTreeMap<String, BTreeSet<Key>>,
}

fn owner_uids(object: &Value) -> impl Iterator<Item = &str> {
    items(object, "/metadata/ownerReferences")
        .iter()
        .map(|owner| text(owner, "/uid"))
}

impl Controller for Garbage {
    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn keys(&mut self, _: &Registry, change: &Change) -> Vec<Key> {
        if let Some(before) = &change.before {
            for uid in owner_uids(before) {
                if let Some(dependents) = self.dependents.get_mut(uid) {
                    dependents.remove(&change.key);
                    if dependents.is_empty() {
                        self.dependents.remove(uid);
                    }
                }
            }
        }
        if change.deleted {
            let gone = self.dependents.get(object::uid(&change.after));
            return gone.into_iter().flatten().cloned().collect();
        }
        let mut has_owner = false;
        for uid in owner_uids(&change.after) {
            self.dependents
                .entry(uid.to_owned())
                .or_default()
                .insert(change.key.clone());
            has_owner = true;
        }
        // Its owner may have gone before it came.
        let is_new = change.before.is_none() && has_owner;
        is_new.then(|| change.key.clone()).into_iter().collect()
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let Ok(object) = registry.get(key.resource, &key.namespace, &key.name) else {
            return Ok(());
        };
        let owners = items(&object, "/metadata/ownerReferences");
        if owners.is_empty() || owners.iter().any(|owner| exists(registry, key, owner)) {
            return Ok(());
        }
        let options = DeleteOptions {
            uid: Some(object::uid(&object).to_owned()),
            ..DeleteOptions::default()
        };
        match registry.delete(key, &options) {
            Err(error) if error.code != 404 && error.code != 409 => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether the owner is there. One of a kind that is not served is taken to be.
fn exists(registry: &Registry, dependent: &Key, owner: &Value) -> bool {
    let kind = Resource::of_kind(text(owner, "/apiVersion"), text(owner, "/kind"));
    let Some(resource) = kind else { return true };
    let namespace = if resource.namespaced {
        dependent.namespace.as_str()
    } else {
        ""
    };
    let found = registry.get(resource, namespace, text(owner, "/name"));
    found.is_ok_and(|found| object::uid(&found) == text(owner, "/uid"))
}
