//! Delete, and what ends besides: namespaces and pods' grace periods.

use serde_json::{Value, json};

use super::Registry;
use super::read::ListOptions;
use super::write::{Part, WriteOptions, Written, is_finalized};
use crate::api::events;
use crate::api::object::{self, text};
use crate::api::resources::{NAMESPACES, PODS, Resource, SERVICES};
use crate::api::services;
use crate::api::status::Status;
use crate::api::store::{Key, Object, Transaction};

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds a pod has to end; the pod's own wish when not given. 0 removes it at once.
    pub grace: Option<i64>,
    /// Only the object of this uid.
    pub uid: Option<String>,
    /// Only the object at this version.
    pub version: Option<String>,
    /// Change nothing.
    pub dry_run: bool,
}

/// The result of a deletion.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// The object as it was last, or as it is now that it is terminating.
    pub object: Object,
    /// Whether it is gone, rather than terminating.
    pub gone: bool,
}

impl Registry {
    /// Deletes an object, or lets it begin to end: pods end when their kubelet says so, objects with
    /// finalizers when those are removed, namespaces when they are empty.
    ///
    /// # Errors
    ///
    /// When it does not exist or is not the one that is meant.
    pub fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Deleted, Status> {
        let (resource, name) = (key.resource, key.name.as_str());
        let mut transaction = self.store().transaction();
        let live = transaction
            .get(key)
            .ok_or_else(|| Status::not_found(resource, name))?;
        let expectations = [
            ("UID", &options.uid, "/metadata/uid"),
            (
                "ResourceVersion",
                &options.version,
                "/metadata/resourceVersion",
            ),
        ];
        for (what, expected, pointer) in expectations {
            let found = text(&live, pointer);
            if let Some(expected) = expected.as_deref().filter(|expected| *expected != found) {
                let why = format!(
                    "Precondition failed: {what} in precondition: {expected}, {what} in object meta: \
                     {found}"
                );
                return Err(Status::conflict(resource, name, &why));
            }
        }
        if *resource == NAMESPACES && ["default", "kube-system", "kube-public"].contains(&name) {
            return Err(Status::forbidden(
                resource,
                name,
                "this namespace may not be deleted",
            ));
        }
        let grace = grace_period(resource, &live, options.grace);
        let mut ending = (*live).clone();
        let was_ending = object::is_terminating(&live);
        let before = live["metadata"]["deletionGracePeriodSeconds"].as_i64();
        let metadata = object::metadata(&mut ending);
        if !was_ending || before.is_some_and(|before| grace < before) {
            metadata.insert("deletionTimestamp".to_owned(), object::after(grace).into());
            metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        }
        if *resource == NAMESPACES {
            metadata.remove("deletionGracePeriodSeconds");
            object::map_mut(&mut ending, "status").insert("phase".to_owned(), "Terminating".into());
        }
        let gone = is_finalized(resource, &ending);
        if options.dry_run {
            return Ok(Deleted {
                object: ending.into(),
                gone,
            });
        }
        let object = if gone {
            self.forget(&mut transaction, key)?
        } else if ending == *live {
            live
        } else {
            if resource.has_generation {
                let next = live["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                object::metadata(&mut ending).insert("generation".to_owned(), next.into());
            }
            transaction.put(key.clone(), ending)
        };
        Ok(Deleted { object, gone })
    }

    /// Deletes everything that is listed.
    ///
    /// # Errors
    ///
    /// As [`Registry::list`].
    pub fn delete_collection(
        &self,
        resource: &'static Resource,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Vec<Object>, Status> {
        let mut deleted = Vec::new();
        for object in self.list(resource, list)?.items {
            let key = Key::new(resource, object::namespace(&object), object::name(&object));
            match self.delete(&key, options) {
                Ok(done) => deleted.push(done.object),
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }

    /// Gives a pod its node.
    ///
    /// # Errors
    ///
    /// When it has another one already, or does not exist.
    pub fn bind(
        &self,
        namespace: &str,
        pod: &str,
        node: &str,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        self.modify(
            &Key::new(&PODS, namespace, pod),
            Part::System,
            options,
            |live| {
                if object::is_terminating(live) {
                    return Err(Status::conflict(
                        &PODS,
                        pod,
                        "pod is being deleted, cannot be assigned to a host",
                    ));
                }
                let mut bound = live.clone();
                bound["spec"]["nodeName"] = node.into();
                let condition = json!({
                    "type": "PodScheduled", "status": "True", "lastProbeTime": null,
                    "lastTransitionTime": object::now(),
                });
                let patch = json!({ "status": { "conditions": [condition] } });
                crate::api::patch::strategic::merge(&mut bound, &patch);
                Ok(bound)
            },
        )
    }

    /// Sets the finalizers in a namespace's specification; without any, a terminating one is gone.
    ///
    /// # Errors
    ///
    /// When the namespace does not exist.
    pub fn finalize_namespace(
        &self,
        name: &str,
        finalizers: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        self.modify(
            &Key::new(&NAMESPACES, "", name),
            Part::System,
            options,
            |live| {
                let mut new = live.clone();
                new["spec"] = json!({ "finalizers": finalizers });
                Ok(new)
            },
        )
    }

    /// Removes the object and what was allocated for it.
    pub(super) fn forget(
        &self,
        transaction: &mut Transaction,
        key: &Key,
    ) -> Result<Object, Status> {
        let object = transaction
            .remove(key)
            .ok_or_else(|| Status::not_found(key.resource, &key.name))?;
        events::follow(transaction, key, None);
        if *key.resource == SERVICES {
            self.services().release(&object);
            services::follow(transaction, Some(&object), None);
        }
        Ok(object)
    }
}

/// Only pods that run on a node have a grace period.
fn grace_period(resource: &Resource, live: &Value, asked: Option<i64>) -> i64 {
    let is_over = ["Succeeded", "Failed"].contains(&text(live, "/status/phase"));
    if *resource != PODS || is_over || text(live, "/spec/nodeName").is_empty() {
        return 0;
    }
    let own = || live["spec"]["terminationGracePeriodSeconds"].as_i64();
    asked.or_else(own).unwrap_or(30).max(0)
}
