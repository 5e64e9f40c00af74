//! Bringing objects into the shape of their types: wrong types are errors, unknown fields are found.
//!
//! A value is read into the generated Go-like type and written again. What is lost on the way is
//! unknown to the type; what is gained are empty required fields, as Go has them, for validation to
//! complain about.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::resources::Resource;
use super::status::Status;

/// Reads a value as the type and writes it again. The error names the field.
pub type Decode = fn(Value) -> Result<Value, String>;

/// What to do about unknown fields: the query parameter `fieldValidation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Drop them.
    Ignore,
    /// Drop them and tell.
    #[default]
    Warn,
    /// Refuse the object.
    Strict,
}

/// A [`Decode`] that takes any shape.
pub fn as_it_is(value: Value) -> Result<Value, String> {
    Ok(value)
}

/// A [`Decode`] through a type.
pub fn typed<T: DeserializeOwned + Serialize>(mut value: Value) -> Result<Value, String> {
    quantities(&mut value);
    let typed: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        format!("{path}: {}", error.into_inner())
    })?;
    serde_json::to_value(typed).map_err(|error| error.to_string())
}

/// Decodes an object of the resource. The second result are the unknown fields.
///
/// # Errors
///
/// When its shape is not the type's, or strictness is asked for and fields are unknown.
pub fn decode(
    resource: &Resource,
    mut object: Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let (kind, version) = (resource.kind, resource.api_version());
    let Some(map) = object.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "the body is not a {kind} object"
        )));
    };
    for (field, expected) in [("kind", kind), ("apiVersion", version.as_str())] {
        match map.get(field).unwrap_or(&Value::Null) {
            Value::String(text) if text == expected => {}
            Value::Null => {
                map.insert(field.to_owned(), expected.into());
            }
            Value::String(text) if text.is_empty() => {
                map.insert(field.to_owned(), expected.into());
            }
            other => {
                let message = format!(
                    "the {field} in the data ({other}) does not match the expected {field} ({expected:?})"
                );
                return Err(Status::bad_request(message));
            }
        }
    }
    let cannot = |why: String| {
        Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: {why}",
            resource.version
        ))
    };
    let decoded = (resource.decode)(object.clone()).map_err(cannot)?;
    let mut unknown = Vec::new();
    if validation != FieldValidation::Ignore {
        lost(&object, &decoded, &mut String::new(), &mut unknown);
    }
    if validation == FieldValidation::Strict && !unknown.is_empty() {
        let list: Vec<_> = unknown
            .iter()
            .map(|field| format!("unknown field {field:?}"))
            .collect();
        let why = format!("strict decoding error: {}", list.join(", "));
        return Err(cannot(why));
    }
    Ok((decoded, unknown))
}

/// The paths of `before` that are not in `after`.
fn lost(before: &Value, after: &Value, path: &mut String, unknown: &mut Vec<String>) {
    let length = path.len();
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                let dot = if length == 0 { "" } else { "." };
                path.push_str(dot);
                path.push_str(key);
                match after.get(key) {
                    Some(after) => lost(value, after, path, unknown),
                    None if value.is_null() => {}
                    None => unknown.push(path.clone()),
                }
                path.truncate(length);
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                path.push_str(&format!("[{index}]"));
                lost(before, after, path, unknown);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Quantities may be written as numbers; the type knows strings only.
fn quantities(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), &mut *value) {
                    ("limits" | "requests" | "capacity" | "allocatable", Value::Object(map)) => {
                        for quantity in map.values_mut() {
                            if quantity.is_number() {
                                *quantity = quantity.to_string().into();
                            }
                        }
                    }
                    ("sizeLimit", Value::Number(n)) => *value = n.to_string().into(),
                    _ => quantities(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::resources::{PODS, SERVICES};

    #[test]
    fn a_wrong_type_names_the_field() {
        let service = json!({ "spec": { "ports": [{ "port": "http" }] } });
        let error = decode(&SERVICES, service, FieldValidation::Strict).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.contains("spec.ports[0].port"), "{error}");
    }

    #[test]
    fn unknown_fields_are_found() {
        let pod = json!({
            "metadata": { "creationTimestamp": null },
            "spec": {
                "containers": [{ "name": "a", "imagee": "x", "resources": { "limits": { "cpu": 1 } } }],
                "nodename": "n1",
            },
        });
        let (decoded, unknown) = decode(&PODS, pod.clone(), FieldValidation::Warn).unwrap();
        assert_eq!(unknown, ["spec.containers[0].imagee", "spec.nodename"]);
        assert_eq!(
            decoded["spec"]["containers"][0]["resources"]["limits"]["cpu"],
            "1"
        );
        let error = decode(&PODS, pod, FieldValidation::Strict).unwrap_err();
        assert!(
            error.message.contains("unknown field \"spec.nodename\""),
            "{error}"
        );
    }

    #[test]
    fn another_kind_is_refused() {
        let error = decode(&PODS, json!({ "kind": "Node" }), FieldValidation::Ignore).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(decode(&PODS, json!([]), FieldValidation::Ignore).is_err());
    }
}
