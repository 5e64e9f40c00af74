//! Which groups, versions and resources there are.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::resources::{ALL, Resource};
use super::super::status::Status;

/// Groups and their versions, without the core group.
fn group_versions() -> BTreeMap<&'static str, &'static str> {
    ALL.iter()
        .filter(|r| !r.group.is_empty())
        .map(|r| (r.group, r.version))
        .collect()
}

/// `/`
#[must_use]
pub fn paths() -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, version) in group_versions() {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    paths.extend(["/healthz", "/livez", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    json!({ "paths": paths })
}

/// `/version`
#[must_use]
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "33",
        "gitVersion": "v1.33.0",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2025-04-23T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": "linux/amd64",
    })
}

/// `/api`
#[must_use]
pub fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

/// `/apis`
#[must_use]
pub fn groups() -> Value {
    let groups: Vec<_> = group_versions()
        .into_iter()
        .map(|(g, v)| describe(g, v))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/<group>`
///
/// # Errors
///
/// When there is no such group.
pub fn group(name: &str) -> Result<Value, Status> {
    let versions = group_versions();
    let (name, version) = versions
        .get_key_value(name)
        .ok_or_else(Status::no_such_path)?;
    let mut group = describe(name, version);
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Ok(group)
}

fn describe(group: &str, version: &str) -> Value {
    let version = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    json!({ "name": group, "versions": [version], "preferredVersion": version })
}

/// `/api/v1` and `/apis/<group>/<version>`
///
/// # Errors
///
/// When there is no such version.
pub fn resources(group: &str, version: &str) -> Result<Value, Status> {
    let all: Vec<_> = ALL
        .iter()
        .filter(|r| r.group == group && r.version == version)
        .copied()
        .collect();
    let first = all.first().ok_or_else(Status::no_such_path)?;
    let list: Vec<_> = all.iter().flat_map(|resource| entries(resource)).collect();
    Ok(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": first.api_version(),
        "resources": list,
    }))
}

fn entries(resource: &Resource) -> Vec<Value> {
    let mut main = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": [
            "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
        ],
    });
    if !resource.short_names.is_empty() {
        main["shortNames"] = json!(resource.short_names);
    }
    if resource.in_all {
        main["categories"] = json!(["all"]);
    }
    let mut all = vec![main];
    let below = |name: &str, kind: &str, verbs: &[&str]| {
        json!({
            "name": format!("{}/{name}", resource.plural),
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": kind,
            "verbs": verbs,
        })
    };
    if resource.has_status {
        all.push(below("status", resource.kind, &["get", "patch", "update"]));
    }
    if resource.has_scale {
        let mut scale = below("scale", "Scale", &["get", "patch", "update"]);
        scale["group"] = "autoscaling".into();
        scale["version"] = "v1".into();
        all.push(scale);
    }
    match resource.kind {
        "Pod" => all.push(below("binding", "Binding", &["create"])),
        "Namespace" => all.push(below("finalize", "Namespace", &["update"])),
        _ => {}
    }
    all
}
