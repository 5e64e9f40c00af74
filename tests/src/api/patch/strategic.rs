//! Strategic merge patch: a merge patch with directives, and lists that merge by key.

use serde_json::{Map, Value};

use super::schema::{Strategy, strategy};
use crate::api::object::as_map;

/// Merges `patch` into `object`.
pub fn merge(object: &mut Value, patch: &Value) {
    merge_value(object, patch, &mut Vec::new());
}

fn merge_value<'a>(object: &mut Value, patch: &'a Value, path: &mut Vec<&'a str>) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    let directive = patch.get("$patch").and_then(Value::as_str);
    if directive == Some("replace") {
        *object = Value::Object(plain(patch));
        return;
    }
    let target = as_map(object);
    if directive == Some("delete") {
        target.clear();
        return;
    }
    if let Some(Value::Array(keep)) = patch.get("$retainKeys") {
        target.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, list) in patch {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/")
            && let (Some(Value::Array(items)), Value::Array(gone)) = (target.get_mut(field), list)
        {
            items.retain(|item| !gone.contains(item));
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        path.push(key);
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Array(list) => {
                let slot = target.entry(key).or_insert(Value::Array(Vec::new()));
                merge_list(slot, list, path);
            }
            _ => merge_value(target.entry(key).or_insert(Value::Null), value, path),
        }
        path.pop();
    }
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix("$setElementOrder/")
            && let (Some(Value::Array(items)), Value::Array(order)) = (target.get_mut(field), order)
        {
            path.push(field);
            sort(items, order, strategy(path));
            path.pop();
        }
    }
}

fn merge_list<'a>(slot: &mut Value, patch: &'a [Value], path: &mut Vec<&'a str>) {
    let is_replace = |item: &Value| item.get("$patch").is_some_and(|d| d == "replace");
    let clean = || {
        let items = patch.iter().filter(|item| !is_replace(item)).cloned();
        Value::Array(items.collect())
    };
    let how = strategy(path);
    let Value::Array(items) = slot else {
        *slot = Value::Array(Vec::new());
        return merge_list(slot, patch, path);
    };
    if how == Strategy::Replace || patch.iter().any(is_replace) {
        *slot = clean();
        return;
    }
    for item in patch {
        let Strategy::Merge(key) = how else {
            if !items.contains(item) {
                items.push(item.clone());
            }
            continue;
        };
        let same = |other: &Value| other.get(key) == item.get(key);
        if item.get("$patch").is_some_and(|d| d == "delete") {
            items.retain(|other| !same(other));
            continue;
        }
        match items.iter().position(same) {
            Some(index) => merge_value(&mut items[index], item, path),
            None => {
                let mut added = Value::Null;
                merge_value(&mut added, item, path);
                items.push(added);
            }
        }
    }
}

/// Brings the items into the order of the list; those not in it stay behind in their order.
fn sort(items: &mut [Value], order: &[Value], how: Strategy) {
    let rank = |item: &Value| match how {
        Strategy::Merge(key) => order.iter().position(|o| o.get(key) == item.get(key)),
        _ => order.iter().position(|o| o == item),
    };
    items.sort_by_key(|item| rank(item).unwrap_or(usize::MAX));
}

fn plain(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(before: Value, patch: &Value, after: &Value) {
        let mut object = before;
        merge(&mut object, patch);
        assert_eq!(object, *after);
    }

    #[test]
    fn containers_merge_by_name() {
        check(
            json!({ "spec": { "containers": [{ "name": "a", "image": "1", "args": ["x", "y"] }, { "name": "b" }] } }),
            &json!({ "spec": { "containers": [{ "name": "a", "image": "2", "args": ["z"] }, { "name": "c" }] } }),
            &json!({ "spec": { "containers": [
                { "name": "a", "image": "2", "args": ["z"] }, { "name": "b" }, { "name": "c" },
            ] } }),
        );
    }

    #[test]
    fn directives() {
        check(
            json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }] } }),
            &json!({ "spec": { "containers": [{ "name": "a", "$patch": "delete" }] } }),
            &json!({ "spec": { "containers": [{ "name": "b" }] } }),
        );
        check(
            json!({ "spec": { "strategy": { "type": "RollingUpdate", "rollingUpdate": {} } } }),
            &json!({ "spec": { "strategy": { "$retainKeys": ["type"], "type": "Recreate" } } }),
            &json!({ "spec": { "strategy": { "type": "Recreate" } } }),
        );
        check(
            json!({ "metadata": { "finalizers": ["a", "b"] } }),
            &json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"] } }),
            &json!({ "metadata": { "finalizers": ["b", "c"] } }),
        );
        check(
            json!({ "spec": { "ports": [{ "port": 1 }, { "port": 2 }] } }),
            &json!({ "spec": { "$setElementOrder/ports": [{ "port": 3 }, { "port": 2 }, { "port": 1 }],
                               "ports": [{ "port": 3 }] } }),
            &json!({ "spec": { "ports": [{ "port": 3 }, { "port": 2 }, { "port": 1 }] } }),
        );
        check(
            json!({ "metadata": { "labels": { "a": "1", "b": "2" } } }),
            &json!({ "metadata": { "labels": { "$patch": "replace", "c": "3" } } }),
            &json!({ "metadata": { "labels": { "c": "3" } } }),
        );
    }

    #[test]
    fn null_removes_and_unknown_lists_are_replaced() {
        check(
            json!({ "metadata": { "labels": { "a": "1" } }, "spec": { "policyTypes": ["Ingress"] } }),
            &json!({ "metadata": { "labels": { "a": null } }, "spec": { "policyTypes": ["Egress"] } }),
            &json!({ "metadata": { "labels": {} }, "spec": { "policyTypes": ["Egress"] } }),
        );
    }

    #[test]
    fn conditions_merge_by_type() {
        check(
            json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }, { "type": "X" }] } }),
            &json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } }),
            &json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }, { "type": "X" }] } }),
        );
    }
}
