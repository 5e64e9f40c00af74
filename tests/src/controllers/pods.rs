//! What several controllers do with pods: find, judge, make and delete those of an owner.

use serde_json::{Value, json};

use crate::api::object::{self, items, text};
use crate::api::registry::{DeleteOptions, WriteOptions};
use crate::api::resources::{PODS, Resource};
use crate::api::{Change, Key, Object, Registry, Status};

/// The reference to the controller of an object.
pub fn controller_of(object: &Value) -> Option<&Value> {
    items(object, "/metadata/ownerReferences")
        .iter()
        .find(|owner| owner["controller"] == true)
}

/// A reference by which `owner` controls an object.
pub fn reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": object::name(owner),
        "uid": object::uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The objects in the owner's namespace that it controls.
pub fn controlled(registry: &Registry, resource: &'static Resource, owner: &Value) -> Vec<Object> {
    let mut all = registry.all(resource, object::namespace(owner));
    all.retain(|object| {
        controller_of(object).is_some_and(|c| text(c, "/uid") == object::uid(owner))
    });
    all
}

/// The keys of the controllers, of the given kind, that an object has or had.
pub fn owners(change: &Change, kind: &'static Resource) -> Vec<Key> {
    let states = [change.before.as_ref(), Some(&change.after)];
    let owners = states
        .into_iter()
        .flatten()
        .filter_map(|object| controller_of(object));
    owners
        .filter(|owner| owner["kind"] == kind.kind)
        .map(|owner| Key::new(kind, &change.key.namespace, text(owner, "/name")))
        .collect()
}

/// Whether the pod counts for its owner: it is neither over nor going.
pub fn is_active(pod: &Value) -> bool {
    !is_over(pod) && !object::is_terminating(pod)
}

/// Whether the pod has run to its end.
pub fn is_over(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"))
}

/// Whether the pod is ready.
pub fn is_ready(pod: &Value) -> bool {
    has_condition(pod, "Ready")
}

/// Whether the condition of an object is true.
pub fn has_condition(object: &Value, kind: &str) -> bool {
    items(object, "/status/conditions")
        .iter()
        .any(|c| c["type"] == kind && c["status"] == "True")
}

/// Creates a pod from the template of its owner; `place` completes its specification.
///
/// # Errors
///
/// When the API refuses it.
pub fn create(
    registry: &Registry,
    owner: &Value,
    options: &WriteOptions,
    place: impl FnOnce(&mut Value),
) -> Result<(), Status> {
    let template = &owner["spec"]["template"];
    let mut pod = json!({
        "metadata": {
            "generateName": format!("{}-", object::name(owner)),
            "labels": template["metadata"]["labels"],
            "annotations": template["metadata"]["annotations"],
            "ownerReferences": [reference(owner)],
        },
        "spec": template["spec"],
    });
    place(&mut pod["spec"]);
    registry
        .create(&PODS, object::namespace(owner), pod, options)
        .map(drop)
}

/// Deletes a pod, with the time it wants; that it is gone already is fine.
///
/// # Errors
///
/// When the API refuses it.
pub fn delete(registry: &Registry, pod: &Value) -> Result<(), Status> {
    let options = DeleteOptions {
        uid: Some(object::uid(pod).to_owned()),
        ..DeleteOptions::default()
    };
    let key = Key::new(&PODS, object::namespace(pod), object::name(pod));
    match registry.delete(&key, &options) {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}
