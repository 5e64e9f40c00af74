//! Errors as Kubernetes reports them: `Status` objects with a reason, a message and causes.

use std::fmt;

use serde_json::{Value, json};

use super::resources::Resource;

/// A refused request: everything that goes into the `Status` object and the HTTP status line.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// The machine readable reason, as in `metav1.StatusReason`.
    pub reason: &'static str,
    /// What went wrong, for a person.
    pub message: String,
    /// `details`: the object concerned and the causes.
    pub details: Option<Value>,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Status {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.details = Some(json!({
            "name": name, "group": resource.group, "kind": resource.plural,
        }));
        self
    }

    /// 400: the request itself makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::new(400, "BadRequest", message)
    }

    /// 403: the request is understood and refused.
    #[must_use]
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", resource.qualified());
        Status::new(403, "Forbidden", message).about(resource, name)
    }

    /// 404: no object of that name.
    #[must_use]
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Status::new(404, "NotFound", message).about(resource, name)
    }

    /// 404: no such path.
    #[must_use]
    pub fn no_such_path() -> Self {
        Status::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    /// 405: the path exists, the verb does not.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Status::new(405, "MethodNotAllowed", message)
    }

    /// 406: none of the media types that the client accepts is spoken here.
    #[must_use]
    pub fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json, \
                       application/json;as=Table;g=meta.k8s.io;v=v1";
        Status::new(406, "NotAcceptable", message)
    }

    /// 409: an object of that name is there already.
    #[must_use]
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Status::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// 409: the object changed meanwhile, or is not the one that was meant.
    #[must_use]
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            resource.qualified()
        );
        Status::new(409, "Conflict", message).about(resource, name)
    }

    /// 409: the object was written since the caller read it.
    #[must_use]
    pub fn modified(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        Status::conflict(resource, name, why)
    }

    /// 409 of a server-side apply: fields that belong to other managers.
    #[must_use]
    pub fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let list: Vec<_> = conflicts
            .iter()
            .map(|(manager, field)| format!("conflict with \"{manager}\": {field}"))
            .collect();
        let message = format!(
            "Apply failed with {} conflict{}: {}",
            list.len(),
            if list.len() == 1 { "" } else { "s" },
            list.join(", ")
        );
        let causes: Vec<_> = conflicts
            .iter()
            .map(|(manager, field)| {
                json!({
                    "reason": "FieldManagerConflict",
                    "message": format!("conflict with \"{manager}\""),
                    "field": field,
                })
            })
            .collect();
        let mut status = Status::new(409, "Conflict", message);
        status.details = Some(json!({ "causes": causes }));
        status
    }

    /// 410: the version asked for is no longer kept.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Status::new(410, "Expired", message)
    }

    /// 410 of a watch or list at `version`, when history begins after `horizon`.
    #[must_use]
    pub fn too_old(version: u64, horizon: u64) -> Self {
        Status::expired(format!("too old resource version: {version} ({horizon})"))
    }

    /// 415: a body in a media type that is not understood.
    #[must_use]
    pub fn unsupported_media_type(found: &str) -> Self {
        let message = format!("the body of the request was in an unknown format: {found:?}");
        Status::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object is not valid.
    #[must_use]
    pub fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let mut list: Vec<_> = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        let all = if list.len() == 1 {
            list.remove(0)
        } else {
            format!("[{}]", list.join(", "))
        };
        let kind = if resource.group.is_empty() {
            resource.kind.to_owned()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        let mut status = Status::new(
            422,
            "Invalid",
            format!("{kind} \"{name}\" is invalid: {all}"),
        );
        let causes: Vec<_> = causes
            .iter()
            .map(|c| json!({ "reason": c.reason, "message": c.message, "field": c.field }))
            .collect();
        status.details = Some(json!({
            "name": name, "group": resource.group, "kind": resource.kind, "causes": causes,
        }));
        status
    }

    /// 500: the fault is here.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Status::new(500, "InternalError", message)
    }

    /// 504: a version from the future was asked for.
    #[must_use]
    pub fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut status = Status::new(504, "Timeout", format!("Timeout: {message}"));
        status.details = Some(json!({
            "retryAfterSeconds": 1,
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
        }));
        status
    }

    /// The `Status` object.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            value["details"] = details.clone();
        }
        value
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.message, self.code, self.reason)
    }
}

impl std::error::Error for Status {}

/// One thing that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, ...
    pub reason: &'static str,
    /// The path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong, including the value.
    pub message: String,
}

impl Cause {
    /// The field must be given.
    #[must_use]
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        Cause {
            reason: "FieldValueRequired",
            field: field.into(),
            message,
        }
    }

    /// The field's value is malformed or out of range.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        Cause {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {value}: {why}"),
        }
    }

    /// The field's value is none of the allowed ones.
    #[must_use]
    pub fn unsupported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let allowed: Vec<_> = allowed.iter().map(|a| format!("{a:?}")).collect();
        Cause {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                allowed.join(", ")
            ),
        }
    }

    /// The field must not be given, or not be changed.
    #[must_use]
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Cause {
            reason: "FieldValueForbidden",
            field: field.into(),
            message: format!("Forbidden: {why}"),
        }
    }

    /// The value occurs twice where it must be unique.
    #[must_use]
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Cause {
            reason: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {value}"),
        }
    }
}
