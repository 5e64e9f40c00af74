//! How lists and maps of the built-in types merge.
//!
//! Two tables, because Kubernetes has two: strategic merge patch names one key per list, server-side
//! apply may use several. Fields are named by their path without list indices; what is not in a table
//! is replaced as a whole.

/// How server-side apply sees a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// One value; whoever sets it owns all of it.
    Atomic,
    /// Items are known by the values of these fields.
    Map(&'static [&'static str]),
    /// Items are plain values, each owned on its own.
    Set,
}

/// How server-side apply sees the list at this path.
#[must_use]
pub fn list(path: &[&str]) -> List {
    let (field, parent) = ends(path);
    match (parent, field) {
        ("containers" | "initContainers" | "ephemeralContainers", "ports") => {
            List::Map(&["containerPort", "protocol"])
        }
        ("spec", "ports") => List::Map(&["port", "protocol"]),
        ("spec", "containers" | "initContainers" | "ephemeralContainers" | "volumes")
        | ("containers" | "initContainers" | "ephemeralContainers", "env")
        | (_, "imagePullSecrets")
        | ("", "secrets") => List::Map(&["name"]),
        (_, "volumeMounts") => List::Map(&["mountPath"]),
        (_, "volumeDevices") => List::Map(&["devicePath"]),
        ("spec", "hostAliases") | ("status", "podIPs" | "hostIPs") => List::Map(&["ip"]),
        ("spec", "topologySpreadConstraints") => List::Map(&["topologyKey", "whenUnsatisfiable"]),
        ("status", "conditions" | "addresses") => List::Map(&["type"]),
        ("metadata", "ownerReferences") => List::Map(&["uid"]),
        ("metadata", "finalizers") | ("spec", "podCIDRs" | "finalizers") => List::Set,
        _ => List::Atomic,
    }
}

/// Whether server-side apply sees the map at this path as one value.
#[must_use]
pub fn is_atomic_map(path: &[&str]) -> bool {
    let (field, _) = ends(path);
    matches!(
        field,
        "selector"
            | "podSelector"
            | "namespaceSelector"
            | "labelSelector"
            | "nodeSelector"
            | "fieldRef"
            | "resourceFieldRef"
            | "configMapKeyRef"
            | "secretKeyRef"
            | "targetRef"
            | "roleRef"
            | "involvedObject"
    )
}

/// How a strategic merge patch merges a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The patch's list replaces the old one.
    Replace,
    /// Items with the same value of this field are merged, others added.
    Merge(&'static str),
    /// Plain values are added.
    Add,
}

/// How a strategic merge patch merges the list at this path.
#[must_use]
pub fn strategy(path: &[&str]) -> Strategy {
    let (field, parent) = ends(path);
    match (parent, field) {
        ("spec", "taints") => Strategy::Merge("key"),
        ("spec", "topologySpreadConstraints") => Strategy::Merge("topologyKey"),
        _ => match list(path) {
            List::Map(keys) => Strategy::Merge(keys[0]),
            List::Set => Strategy::Add,
            List::Atomic => Strategy::Replace,
        },
    }
}

fn ends<'a>(path: &[&'a str]) -> (&'a str, &'a str) {
    let mut backwards = path.iter().rev();
    let mut next = || backwards.next().copied().unwrap_or_default();
    (next(), next())
}
