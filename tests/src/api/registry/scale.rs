//! The `scale` subresource: the number of replicas, as `kubectl scale` and autoscalers see it.

use serde_json::{Value, json};

use super::Registry;
use super::write::{Part, WriteOptions};
use crate::api::object::{at, text};
use crate::api::patch::{Patch, strategic};
use crate::api::status::{Cause, Status};
use crate::api::store::Key;

/// The `Scale` object of a workload.
#[must_use]
pub fn scale_of(workload: &Value) -> Value {
    let selector: Vec<_> = at(workload, "/spec/selector/matchLabels")
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let metadata = [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ]
    .into_iter()
    .map(|field| (field.to_owned(), workload["metadata"][field].clone()));
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": Value::Object(metadata.collect()),
        "spec": { "replicas": workload["spec"]["replicas"].as_i64().unwrap_or(0) },
        "status": {
            "replicas": workload["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector.join(","),
        },
    })
}

impl Registry {
    /// The `Scale` object of a workload.
    ///
    /// # Errors
    ///
    /// When the workload does not exist.
    pub fn scale(&self, key: &Key) -> Result<Value, Status> {
        self.get(key.resource, &key.namespace, &key.name)
            .map(|workload| scale_of(&workload))
    }

    /// Changes the number of replicas by changing the `Scale` object.
    ///
    /// # Errors
    ///
    /// When the workload does not exist, or changed since the caller read it.
    pub fn set_scale(
        &self,
        key: &Key,
        change: impl FnOnce(Value) -> Result<Value, Status>,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let written = self.modify(key, Part::Main, options, |live| {
            let wanted = change(scale_of(live))?;
            let replicas = wanted["spec"]
                .get("replicas")
                .map_or(Some(0), Value::as_i64);
            let Some(replicas) = replicas.filter(|n| *n >= 0) else {
                let cause = Cause::invalid(
                    "spec.replicas",
                    &wanted["spec"]["replicas"],
                    "must be a number greater than or equal to 0",
                );
                return Err(Status::invalid(key.resource, &key.name, &[cause]));
            };
            let mut new = live.clone();
            new["spec"]["replicas"] = replicas.into();
            new["metadata"]["resourceVersion"] = text(&wanted, "/metadata/resourceVersion").into();
            Ok(new)
        })?;
        Ok(scale_of(&written.object))
    }

    /// Changes the number of replicas by a patch of the `Scale` object.
    ///
    /// # Errors
    ///
    /// As [`Self::set_scale`], and when the patch does not fit.
    pub fn patch_scale(
        &self,
        key: &Key,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let change = |mut scale: Value| {
            match patch {
                Patch::Json(operations) => json_patch::patch(&mut scale, operations)
                    .map_err(|error| Status::bad_request(error.to_string()))?,
                Patch::Merge(patch) => json_patch::merge(&mut scale, patch),
                Patch::Strategic(patch) | Patch::Apply(patch) => {
                    strategic::merge(&mut scale, patch);
                }
            }
            Ok(scale)
        };
        self.set_scale(key, change, options)
    }
}
