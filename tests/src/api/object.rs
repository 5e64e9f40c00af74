//! Reading and writing Kubernetes objects as JSON values: small helpers that never panic on a shape
//! they did not expect.

use serde_json::{Map, Value};

/// The object at a JSON pointer, or `Null`.
#[must_use]
pub fn at<'a>(object: &'a Value, pointer: &str) -> &'a Value {
    object.pointer(pointer).unwrap_or(&Value::Null)
}

/// The string at a JSON pointer; empty when it is absent or no string, as in Go.
#[must_use]
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    at(object, pointer).as_str().unwrap_or_default()
}

/// The items at a JSON pointer; none when it is absent or no list.
#[must_use]
pub fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    at(object, pointer).as_array().map_or(&[], Vec::as_slice)
}

/// `metadata.name`.
#[must_use]
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// `metadata.namespace`; empty for a cluster-scoped object.
#[must_use]
pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `metadata.uid`.
#[must_use]
pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// The label's value.
#[must_use]
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    at(object, "/metadata/labels").get(key)?.as_str()
}

/// Whether the object is being deleted.
#[must_use]
pub fn is_terminating(object: &Value) -> bool {
    !at(object, "/metadata/deletionTimestamp").is_null()
}

/// The map below `key`, made when it is missing or no map.
pub fn map_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    let slot = as_map(object).entry(key).or_insert(Value::Null);
    as_map(slot)
}

/// The value as a map, replaced by an empty one when it is none.
pub fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was just made a map"),
    }
}

/// `metadata`, made when it is missing.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(object, "metadata")
}

/// The list at a JSON pointer, to change its items.
pub fn items_mut<'a>(object: &'a mut Value, pointer: &str) -> &'a mut [Value] {
    match object.pointer_mut(pointer) {
        Some(Value::Array(items)) => items,
        _ => &mut [],
    }
}

/// Sets `key` when it is absent or null.
pub fn default(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
}

/// Sets `key` when it is absent, null, or an empty string, the way Go sees an unset string.
pub fn default_text(map: &mut Map<String, Value>, key: &str, value: &str) {
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() || slot.as_str() == Some("") {
        *slot = value.into();
    }
}

/// The current time as Kubernetes writes it: RFC 3339 in UTC, whole seconds.
#[must_use]
pub fn now() -> String {
    after(0)
}

/// The time `seconds` from now, in the same format.
#[must_use]
pub fn after(seconds: i64) -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    let then = now.as_second().saturating_add(seconds);
    let rounded = k8s_openapi::jiff::Timestamp::from_second(then).unwrap_or(now);
    rounded.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Seconds since `timestamp`, when it is one.
#[must_use]
pub fn age(timestamp: &str) -> Option<i64> {
    let then: k8s_openapi::jiff::Timestamp = timestamp.parse().ok()?;
    Some(k8s_openapi::jiff::Timestamp::now().as_second() - then.as_second())
}
