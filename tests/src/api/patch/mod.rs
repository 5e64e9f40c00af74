//! The four ways to change an object in part: JSON patch, merge patch, strategic merge patch and
//! server-side apply.

pub mod apply;
pub mod fields;
pub mod schema;
pub mod strategic;

use serde_json::Value;

use super::status::Status;

/// A partial change, as the body of a `PATCH` request has it.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902: a list of operations.
    Json(json_patch::Patch),
    /// RFC 7386: what to set; `null` removes.
    Merge(Value),
    /// Merge patch that knows Kubernetes' lists.
    Strategic(Value),
    /// Server-side apply: what the manager wants to be so.
    Apply(Value),
}

impl Patch {
    /// Reads the body of a request by its media type.
    ///
    /// # Errors
    ///
    /// When the media type is unknown or the body is not in it.
    pub fn parse(media_type: &str, body: &[u8]) -> Result<Self, Status> {
        let json = || -> Result<Value, Status> {
            serde_json::from_slice(body)
                .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))
        };
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => {
                let patch = serde_json::from_value(json()?);
                patch.map(Patch::Json).map_err(|error| {
                    Status::bad_request(format!("error decoding JSON patch: {error}"))
                })
            }
            "application/merge-patch+json" => json().map(Patch::Merge),
            "application/strategic-merge-patch+json" => json().map(Patch::Strategic),
            "application/apply-patch+yaml" => serde_norway::from_slice(body)
                .map(Patch::Apply)
                .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}"))),
            other => Err(Status::unsupported_media_type(other)),
        }
    }
}
