//! Ends namespaces: what is in a terminating one is deleted, and when nothing is left, so is it.

use serde_json::json;

use super::Controller;
use crate::api::object::{self, text};
use crate::api::registry::{DeleteOptions, ListOptions};
use crate::api::resources::{ALL, NAMESPACES};
use crate::api::{Change, Key, Registry, Status};

/// Seconds before the content goes, so that whoever deletes a namespace and what is in it by name, as
/// `kubectl delete -f` does, still finds it.
const GRACE: i64 = 1;

/// See the module.
pub struct Namespaces;

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn keys(&mut self, _: &Registry, change: &Change) -> Vec<Key> {
        if *change.key.resource == NAMESPACES {
            return vec![change.key.clone()];
        }
        let is_relevant = change.deleted && !change.key.namespace.is_empty();
        is_relevant
            .then(|| Key::new(&NAMESPACES, "", &change.key.namespace))
            .into_iter()
            .collect()
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let Ok(namespace) = registry.get(&NAMESPACES, "", &key.name) else {
            return Ok(());
        };
        if !object::is_terminating(&namespace) {
            return Ok(());
        }
        if object::age(text(&namespace, "/metadata/deletionTimestamp"))
            .is_none_or(|age| age < GRACE)
        {
            let why = "requests may still be on their way";
            return Err(Status::conflict(&NAMESPACES, &key.name, why));
        }
        let list = ListOptions {
            namespace: key.name.clone(),
            ..ListOptions::default()
        };
        let mut is_empty = true;
        for resource in ALL.iter().filter(|resource| resource.namespaced) {
            registry.delete_collection(resource, &list, &DeleteOptions::default())?;
            is_empty &= registry.all(resource, &key.name).is_empty();
        }
        if is_empty {
            registry.finalize_namespace(&key.name, &json!([]), &self.options())?;
        }
        Ok(())
    }
}
