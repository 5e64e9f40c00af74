//! The OpenAPI v3 documents, as far as clients decide by them.
//!
//! `kubectl` looks here whether the server validates fields itself (the `fieldValidation` parameter of
//! `PATCH`), and which resources exist. The schemas of the types are not served: `kubectl` has those of
//! the built-in types compiled in.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::super::resources::{ALL, Resource};
use super::super::status::Status;

fn place(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// `/openapi/v3`
#[must_use]
pub fn index() -> Value {
    let places: BTreeSet<_> = ALL.iter().map(|r| place(r.group, r.version)).collect();
    let paths = places.into_iter().map(|place| {
        let url = format!("/openapi/v3/{place}");
        (place, json!({ "serverRelativeURL": url }))
    });
    json!({ "paths": Value::Object(paths.collect()) })
}

/// `/openapi/v3/api/v1` and `/openapi/v3/apis/<group>/<version>`
///
/// # Errors
///
/// When there is no such version.
pub fn group_version(group: &str, version: &str) -> Result<Value, Status> {
    let mut paths = Map::new();
    for resource in ALL
        .iter()
        .filter(|r| r.group == group && r.version == version)
    {
        let namespace = if resource.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let base = format!("/{}{namespace}/{}", place(group, version), resource.plural);
        paths.insert(
            format!("{base}/{{name}}"),
            operations(resource, &["get", "put", "patch", "delete"]),
        );
        paths.insert(base, operations(resource, &["get", "post"]));
    }
    if paths.is_empty() {
        return Err(Status::no_such_path());
    }
    Ok(json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.33.0" },
        "paths": paths,
        "components": { "schemas": {} },
    }))
}

fn operations(resource: &Resource, verbs: &[&str]) -> Value {
    let parameter = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } });
    let all = verbs.iter().map(|verb| {
        let mut operation = json!({
            "responses": { "200": { "description": "OK" } },
            "x-kubernetes-group-version-kind": {
                "group": resource.group, "version": resource.version, "kind": resource.kind,
            },
        });
        if ["post", "put", "patch"].contains(verb) {
            let names = ["dryRun", "fieldManager", "fieldValidation"];
            operation["parameters"] = names.map(parameter).to_vec().into();
        }
        ((*verb).to_owned(), operation)
    });
    Value::Object(all.collect())
}
