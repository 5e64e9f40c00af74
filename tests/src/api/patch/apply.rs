//! Server-side apply, and the bookkeeping of field managers that it rests on.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fields::{self, FieldSet, Path};
use super::schema::{List, is_atomic_map, list};
use crate::api::object::{self, as_map};
use crate::api::status::Status;

/// How a manager changed an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Any other write.
    Update,
}

/// Who writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer<'a> {
    /// The name of the field manager.
    pub manager: &'a str,
    /// How.
    pub operation: Operation,
    /// The subresource written to; empty for the object itself.
    pub subresource: &'a str,
}

#[derive(Debug)]
struct Entry {
    value: Value,
    fields: FieldSet,
}

impl Entry {
    fn is(&self, writer: &Writer) -> bool {
        let operation = match writer.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        self.value["manager"] == writer.manager
            && self.value["operation"] == operation
            && object::text(&self.value, "/subresource") == writer.subresource
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    object::items(object, "/metadata/managedFields")
        .iter()
        .map(|value| Entry {
            value: value.clone(),
            fields: fields::from_value(&value["fieldsV1"]),
        })
        .collect()
}

fn store(object: &mut Value, writer: &Writer, own: FieldSet, mut entries: Vec<Entry>) {
    let api_version = object["apiVersion"].clone();
    let operation = match writer.operation {
        Operation::Apply => "Apply",
        Operation::Update => "Update",
    };
    let mut value = json!({
        "manager": writer.manager, "operation": operation, "apiVersion": api_version,
        "time": object::now(), "fieldsType": "FieldsV1",
    });
    if !writer.subresource.is_empty() {
        value["subresource"] = writer.subresource.into();
    }
    match entries.iter_mut().find(|entry| entry.is(writer)) {
        Some(entry) if entry.fields == own => {}
        Some(entry) => *entry = Entry { value, fields: own },
        None => entries.push(Entry { value, fields: own }),
    }
    entries.retain(|entry| !entry.fields.is_empty());
    let list: Vec<_> = entries
        .into_iter()
        .map(|mut entry| {
            entry.value["fieldsV1"] = fields::to_value(&entry.fields);
            entry.value
        })
        .collect();
    let metadata = object::metadata(object);
    if list.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), list.into());
    }
}

/// Records in `new` that the writer made it out of `old` by an update: what changed is the writer's
/// now, what is gone is nobody's.
pub fn record_update(old: &Value, new: &mut Value, writer: &Writer) {
    // A writer may set the record itself, and an empty one resets it.
    let mut entries = match object::at(new, "/metadata/managedFields") {
        Value::Array(list) if list.iter().all(|entry| *entry == json!({})) => Vec::new(),
        Value::Array(_) => entries(new),
        _ => entries(old),
    };
    let (before, after) = (fields::leaves(old), fields::leaves(new));
    let is_changed = |path: &Path| after.get(path) != before.get(path);
    let changed: FieldSet = after
        .keys()
        .filter(|path| is_changed(path))
        .cloned()
        .collect();
    for entry in &mut entries {
        let own = entry.is(writer);
        entry
            .fields
            .retain(|path| after.contains_key(path) && (own || !changed.contains(path)));
    }
    let mut own: FieldSet = entries
        .iter()
        .find(|e| e.is(writer))
        .map(|e| e.fields.clone())
        .unwrap_or_default();
    own.extend(changed);
    store(new, writer, own, entries);
}

/// Applies what a manager wants: sets its fields, removes those that it wanted before and no longer
/// does, unless others want them too.
///
/// # Errors
///
/// When a field belongs to another manager and has another value, unless `force` takes it over.
pub fn apply(live: &Value, wanted: &Value, writer: &Writer, force: bool) -> Result<Value, Status> {
    let mut entries = entries(live);
    let values = fields::leaves(wanted);
    let own: FieldSet = values.keys().cloned().collect();
    let current = fields::leaves(live);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !entry.is(writer)) {
        let lost: Vec<Path> = values
            .iter()
            .filter(|(path, value)| {
                entry.fields.contains(*path) && current.get(*path).is_some_and(|now| now != *value)
            })
            .map(|(path, _)| path.clone())
            .collect();
        for path in lost {
            let manager = object::text(&entry.value, "/manager").to_owned();
            conflicts.push((manager, fields::display(&path)));
            entry.fields.remove(&path);
        }
    }
    if !force && !conflicts.is_empty() {
        return Err(Status::apply_conflict(&conflicts));
    }
    let mut result = live.clone();
    merge(&mut result, wanted, &mut Vec::new());
    let before: FieldSet = entries
        .iter()
        .find(|e| e.is(writer))
        .map(|e| e.fields.clone())
        .unwrap_or_default();
    // A list item goes before its fields: without its keys it would not be found.
    for path in before.difference(&own) {
        let others = entries.iter().filter(|entry| !entry.is(writer));
        let is_shared = others
            .into_iter()
            .any(|entry| entry.fields.iter().any(|p| p.starts_with(path)))
            || own.iter().any(|p| p.starts_with(path));
        if !is_shared && !is_key(path) {
            fields::remove(&mut result, path);
        }
    }
    store(&mut result, writer, own, entries);
    Ok(result)
}

/// Whether the path is a field by which its list item is known: it goes with the item or stays.
fn is_key(path: &[String]) -> bool {
    let [.., item, field] = path else {
        return false;
    };
    let keys = item
        .strip_prefix("k:")
        .and_then(|keys| serde_json::from_str::<Value>(keys).ok());
    keys.is_some_and(|keys| keys.get(field.trim_start_matches("f:")).is_some())
}

/// Merges by the lists' own keys.
fn merge<'a>(target: &mut Value, wanted: &'a Value, path: &mut Vec<&'a str>) {
    let Value::Object(wanted) = wanted else {
        *target = wanted.clone();
        return;
    };
    if is_atomic_map(path) {
        *target = Value::Object(wanted.clone());
        return;
    }
    let target = as_map(target);
    for (key, value) in wanted.iter().filter(|(_, value)| !value.is_null()) {
        path.push(key);
        let slot = target.entry(key).or_insert(Value::Null);
        match value {
            Value::Array(items) => merge_list(slot, items, path),
            _ => merge(slot, value, path),
        }
        path.pop();
    }
}

fn merge_list<'a>(slot: &mut Value, wanted: &'a [Value], path: &mut Vec<&'a str>) {
    let how = list(path);
    let Value::Array(items) = slot else {
        // Nothing to merge with, but items may hold nulls to leave out.
        *slot = Value::Array(Vec::new());
        return merge_list(slot, wanted, path);
    };
    match how {
        List::Atomic => *items = wanted.to_vec(),
        List::Set => {
            for item in wanted {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
        }
        List::Map(keys) => {
            let mut index: BTreeMap<String, usize> = BTreeMap::new();
            for (n, item) in items.iter().enumerate() {
                index.entry(fields::item_element(item, keys)).or_insert(n);
            }
            for item in wanted {
                match index.get(&fields::item_element(item, keys)) {
                    Some(n) => merge(&mut items[*n], item, path),
                    None => {
                        let mut added = Value::Null;
                        merge(&mut added, item, path);
                        items.push(added);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer<'a>(manager: &'a str, operation: Operation) -> Writer<'a> {
        Writer {
            manager,
            operation,
            subresource: "",
        }
    }

    fn applied(live: &Value, wanted: &Value, manager: &str) -> Value {
        apply(live, wanted, &writer(manager, Operation::Apply), false).unwrap()
    }

    #[test]
    fn what_a_manager_drops_is_removed_unless_shared() {
        let both = json!({ "metadata": { "labels": { "a": "1", "b": "2" } } });
        let one = json!({ "metadata": { "labels": { "a": "1" } } });
        let live = applied(&json!({ "metadata": {} }), &both, "x");
        let live = applied(
            &live,
            &json!({ "metadata": { "labels": { "b": "2" } } }),
            "y",
        );
        let live = applied(&live, &one, "x");
        assert_eq!(live["metadata"]["labels"], json!({ "a": "1", "b": "2" }));
        let live = applied(&live, &json!({}), "y");
        assert_eq!(live["metadata"]["labels"], json!({ "a": "1" }));
        assert_eq!(object::items(&live, "/metadata/managedFields").len(), 1);
    }

    #[test]
    fn another_managers_field_is_a_conflict_unless_forced() {
        let live = applied(
            &json!({ "metadata": {} }),
            &json!({ "spec": { "replicas": 1 } }),
            "x",
        );
        let wanted = json!({ "spec": { "replicas": 2 } });
        let y = writer("y", Operation::Apply);
        let error = apply(&live, &wanted, &y, false).unwrap_err();
        assert_eq!(error.code, 409);
        assert!(
            error
                .message
                .contains("conflict with \"x\": .spec.replicas"),
            "{error}"
        );
        let live = apply(&live, &wanted, &y, true).unwrap();
        assert_eq!(live["spec"]["replicas"], 2);
        assert_eq!(object::items(&live, "/metadata/managedFields").len(), 1);
    }

    #[test]
    fn the_same_value_is_shared() {
        let wanted = json!({ "spec": { "replicas": 1 } });
        let live = applied(&json!({ "metadata": {} }), &wanted, "x");
        let live = applied(&live, &wanted, "y");
        assert_eq!(object::items(&live, "/metadata/managedFields").len(), 2);
    }

    #[test]
    fn list_items_merge_and_go_by_key() {
        let web = json!({ "port": 80, "name": "web" });
        let tls = json!({ "port": 443, "name": "tls" });
        let live = applied(
            &json!({ "metadata": {} }),
            &json!({ "spec": { "ports": [web, tls] } }),
            "x",
        );
        let live = applied(
            &live,
            &json!({ "spec": { "ports": [{ "port": 80, "name": "http" }] } }),
            "x",
        );
        assert_eq!(
            live["spec"]["ports"],
            json!([{ "port": 80, "name": "http" }])
        );
    }

    #[test]
    fn an_item_that_others_still_want_keeps_its_keys() {
        let port = json!({ "port": 80, "name": "web", "protocol": "TCP" });
        let live = json!({ "metadata": {} });
        let live = applied(&live, &json!({ "spec": { "ports": [port] } }), "x");
        let more = json!({ "spec": { "ports": [{ "port": 80, "appProtocol": "http" }] } });
        let live = applied(&live, &more, "y");
        let live = applied(&live, &json!({}), "x");
        let left = json!([{ "port": 80, "protocol": "TCP", "appProtocol": "http" }]);
        assert_eq!(live["spec"]["ports"], left);
    }

    #[test]
    fn an_update_takes_over_what_it_changes() {
        let live = applied(
            &json!({ "metadata": {} }),
            &json!({ "spec": { "replicas": 1 } }),
            "x",
        );
        let mut new = live.clone();
        new["spec"]["replicas"] = json!(3);
        record_update(&live, &mut new, &writer("scaler", Operation::Update));
        let managers: Vec<_> = object::items(&new, "/metadata/managedFields")
            .iter()
            .map(|e| (object::text(e, "/manager"), object::text(e, "/operation")))
            .collect();
        assert_eq!(managers, [("scaler", "Update")]);
    }
}
