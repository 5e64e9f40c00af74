//! Sets of fields, as `metadata.managedFields` records who owns what.
//!
//! A set is a set of paths. A path element is `f:<name>` for a field, `k:<keys as JSON>` for a list
//! item known by keys, `v:<value as JSON>` for a plain value in a list. An item known by keys is itself
//! a member, besides its fields.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::schema::{List, is_atomic_map, list};

/// The elements from the root to a field.
pub type Path = Vec<String>;

/// A set of fields.
pub type FieldSet = BTreeSet<Path>;

/// Metadata that nobody owns.
const UNOWNED: &[&str] = &[
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generateName",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// The fields that an object sets, with their values; `Null` for list items known by keys.
#[must_use]
pub fn leaves(object: &Value) -> BTreeMap<Path, Value> {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
        if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
            metadata.retain(|key, _| !UNOWNED.contains(&key.as_str()));
            if metadata.is_empty() {
                map.remove("metadata");
            }
        }
    }
    let mut found = BTreeMap::new();
    if object.as_object().is_some_and(|map| !map.is_empty()) {
        walk(&object, &mut Vec::new(), &mut Vec::new(), &mut found);
    }
    found
}

fn walk<'a>(
    value: &'a Value,
    names: &mut Vec<&'a str>,
    path: &mut Path,
    found: &mut BTreeMap<Path, Value>,
) {
    match value {
        Value::Object(map) if !map.is_empty() && !is_atomic_map(names) => {
            for (name, value) in map.iter().filter(|(_, value)| !value.is_null()) {
                names.push(name);
                path.push(format!("f:{name}"));
                walk(value, names, path, found);
                path.pop();
                names.pop();
            }
        }
        Value::Array(items) => match list(names) {
            List::Map(keys) => {
                for item in items {
                    path.push(item_element(item, keys));
                    found.insert(path.clone(), Value::Null);
                    walk(item, names, path, found);
                    path.pop();
                }
            }
            List::Set => {
                for item in items {
                    path.push(format!("v:{item}"));
                    found.insert(path.clone(), item.clone());
                    path.pop();
                }
            }
            List::Atomic => {
                found.insert(path.clone(), value.clone());
            }
        },
        _ => {
            found.insert(path.clone(), value.clone());
        }
    }
}

/// The path element of a list item.
#[must_use]
pub fn item_element(item: &Value, keys: &[&str]) -> String {
    let mut values = Map::new();
    for key in keys {
        let value = match item.get(*key) {
            // The one key that has a default.
            None if *key == "protocol" => json!("TCP"),
            None => continue,
            Some(value) => value.clone(),
        };
        values.insert((*key).to_owned(), value);
    }
    format!("k:{}", Value::Object(values))
}

/// The set as `fieldsV1`.
#[must_use]
pub fn to_value(set: &FieldSet) -> Value {
    let mut root = Map::new();
    for path in set {
        let mut node = &mut root;
        for element in path {
            let slot = node.entry(element).or_insert_with(|| json!({}));
            node = super::super::object::as_map(slot);
        }
        node.insert(".".to_owned(), json!({}));
    }
    // A member without members below it is written as an empty map.
    fn tidy(node: &mut Map<String, Value>) {
        if node.len() == 1 {
            node.remove(".");
        }
        node.values_mut()
            .filter_map(Value::as_object_mut)
            .for_each(tidy);
    }
    root.values_mut()
        .filter_map(Value::as_object_mut)
        .for_each(tidy);
    Value::Object(root)
}

/// The set that `fieldsV1` describes.
#[must_use]
pub fn from_value(value: &Value) -> FieldSet {
    fn collect(node: &Value, path: &mut Path, set: &mut FieldSet) {
        let Some(map) = node.as_object() else { return };
        if map.is_empty() && !path.is_empty() {
            set.insert(path.clone());
        }
        for (element, below) in map {
            if element == "." {
                set.insert(path.clone());
                continue;
            }
            path.push(element.clone());
            collect(below, path, set);
            path.pop();
        }
    }
    let mut set = FieldSet::new();
    collect(value, &mut Vec::new(), &mut set);
    set
}

/// Removes what the path leads to.
pub fn remove(object: &mut Value, path: &[String]) {
    let Some((element, rest)) = path.split_first() else {
        return;
    };
    if let Some(name) = element.strip_prefix("f:") {
        let Some(map) = object.as_object_mut() else {
            return;
        };
        if rest.is_empty() {
            map.remove(name);
        } else if let Some(value) = map.get_mut(name) {
            remove(value, rest);
        }
        return;
    }
    let Some(items) = object.as_array_mut() else {
        return;
    };
    let position = items.iter().position(|item| is_element(item, element));
    let Some(index) = position else { return };
    if rest.is_empty() {
        items.remove(index);
    } else {
        remove(&mut items[index], rest);
    }
}

fn is_element(item: &Value, element: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    if let Some(keys) = element.strip_prefix("k:") {
        let keys = parse(keys);
        let names: Vec<_> = keys
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .collect();
        return item_element(item, &names) == element;
    }
    element
        .strip_prefix("v:")
        .is_some_and(|value| parse(value) == *item)
}

/// A field's path for a message: `.spec.ports[port=80,protocol="TCP"].name`.
#[must_use]
pub fn display(path: &[String]) -> String {
    let mut text = String::new();
    for element in path {
        if let Some(name) = element.strip_prefix("f:") {
            text.push('.');
            text.push_str(name);
        } else if let Some(keys) = element.strip_prefix("k:") {
            let keys: Value = serde_json::from_str(keys).unwrap_or_default();
            let list: Vec<_> = keys
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| format!("{k}={v}"))
                .collect();
            text.push_str(&format!("[{}]", list.join(",")));
        } else {
            text.push_str(&format!("[{}]", element.trim_start_matches("v:")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "x", "labels": { "a": "1" }, "finalizers": ["f"] },
            "spec": { "selector": { "app": "x" }, "ports": [{ "port": 80, "name": "web" }] },
        })
    }

    #[test]
    fn fields_v1_round_trips() {
        let set: FieldSet = leaves(&object()).into_keys().collect();
        let value = to_value(&set);
        assert_eq!(
            value,
            json!({
                "f:metadata": { "f:labels": { "f:a": {} }, "f:finalizers": { "v:\"f\"": {} } },
                "f:spec": {
                    "f:selector": {},
                    "f:ports": { "k:{\"port\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:port": {}, "f:name": {} } },
                },
            })
        );
        assert_eq!(from_value(&value), set);
    }

    #[test]
    fn members_can_be_removed() {
        let mut changed = object();
        for path in leaves(&object()).into_keys() {
            remove(&mut changed, &path);
        }
        assert_eq!(changed["spec"], json!({ "ports": [] }));
        assert_eq!(changed["metadata"]["labels"], json!({}));
        assert_eq!(changed["metadata"]["finalizers"], json!([]));
    }

    #[test]
    fn paths_are_readable() {
        let paths: Vec<_> = leaves(&object())
            .into_keys()
            .map(|path| display(&path))
            .collect();
        assert!(
            paths.contains(&".spec.ports[port=80,protocol=\"TCP\"].name".to_owned()),
            "{paths:?}"
        );
    }
}
