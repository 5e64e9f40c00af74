//! Events have two APIs for the same objects: `v1`, which people read, and `events.k8s.io/v1`, which
//! recorders write. Each is stored in both forms here.
//!
//! Invariant: an event is in both or in neither, with the same metadata but for the version.

use serde_json::{Map, Value, json};

use super::object::{self, at, text};
use super::resources::{EVENTS, NEW_EVENTS, Resource};
use super::store::{Key, Transaction};

/// Fields that differ in name only: in `v1`, and in `events.k8s.io/v1`.
const NAMES: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
];

/// Lets the other form follow what has become of an event; `None` when it is gone.
pub fn follow(transaction: &mut Transaction, key: &Key, event: Option<&Value>) {
    let Some(other) = other(key.resource) else {
        return;
    };
    let key = Key::new(other, &key.namespace, &key.name);
    match event {
        Some(event) => drop(transaction.put(key, converted(event, other))),
        None => drop(transaction.remove(&key)),
    }
}

fn other(resource: &Resource) -> Option<&'static Resource> {
    if *resource == EVENTS {
        Some(&NEW_EVENTS)
    } else if *resource == NEW_EVENTS {
        Some(&EVENTS)
    } else {
        None
    }
}

fn converted(event: &Value, to: &'static Resource) -> Value {
    let is_new = *to == NEW_EVENTS;
    let mut converted = Map::new();
    for (field, value) in event.as_object().into_iter().flatten() {
        let renamed = NAMES.iter().find_map(|(old, new)| {
            let (from, to) = if is_new { (old, new) } else { (new, old) };
            (field == from).then_some(*to)
        });
        let name = match field.as_str() {
            "count" if is_new => "deprecatedCount",
            "deprecatedCount" => "count",
            name => renamed.unwrap_or(name),
        };
        converted.insert(name.to_owned(), value.clone());
    }
    converted.insert("apiVersion".to_owned(), to.api_version().into());
    converted.insert("kind".to_owned(), to.kind.into());
    let mut converted = Value::Object(converted);
    if !is_new && text(&converted, "/involvedObject/namespace").is_empty() {
        let object = object::map_mut(&mut converted, "involvedObject");
        let namespace = at(event, "/metadata/namespace").clone();
        object.insert("namespace".to_owned(), namespace);
    }
    if !is_new {
        object::default(
            object::map_mut(&mut converted, "source"),
            "component",
            json!(""),
        );
    }
    converted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_keeps_what_it_says() {
        let new = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": { "name": "a", "namespace": "n" },
            "regarding": { "kind": "Service", "name": "s", "namespace": "n" },
            "note": "no port", "reason": "FailedToStart", "type": "Warning",
            "reportingController": "weft", "action": "Start",
        });
        let old = converted(&new, &EVENTS);
        assert_eq!(old["apiVersion"], "v1");
        assert_eq!(old["message"], "no port");
        assert_eq!(old["involvedObject"]["name"], "s");
        assert_eq!(old["reportingComponent"], "weft");
        let back = converted(&old, &NEW_EVENTS);
        for (field, value) in new.as_object().unwrap() {
            assert_eq!(back[field], *value, "{field}");
        }
    }
}
