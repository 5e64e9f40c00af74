//! Responses, and the forms a client can ask objects in.

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::super::registry::List;
use super::super::resources::Resource;
use super::super::status::Status;
use super::super::store::Object;
use super::super::table::{self, Include};

/// A response whose body may be a stream.
pub type Response = http::Response<BoxBody<Bytes, std::io::Error>>;

/// The form of objects in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// The objects.
    Object,
    /// Rows of a table.
    Table,
    /// Their metadata only.
    Metadata,
}

impl Accept {
    /// Takes the first media type of an `Accept` header that is spoken here.
    ///
    /// # Errors
    ///
    /// When none is.
    pub fn parse(header: &str) -> Result<Self, Status> {
        if header.trim().is_empty() {
            return Ok(Accept::Object);
        }
        header
            .split(',')
            .find_map(Accept::parse_one)
            .ok_or_else(Status::not_acceptable)
    }

    fn parse_one(media_type: &str) -> Option<Self> {
        let mut parts = media_type.split(';').map(str::trim);
        if !["application/json", "application/*", "*/*"].contains(&parts.next()?) {
            return None;
        }
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let find = |name: &str| {
            parameters
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, v)| *v)
        };
        match (find("as"), find("v")) {
            (None, _) => Some(Accept::Object),
            (Some("Table"), Some("v1")) => Some(Accept::Table),
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1")) => {
                Some(Accept::Metadata)
            }
            _ => None,
        }
    }

    /// One object in this form.
    #[must_use]
    pub fn one(self, resource: &Resource, object: &Object, include: Include) -> Value {
        match self {
            Accept::Object => (**object).clone(),
            Accept::Metadata => table::metadata_only(object),
            Accept::Table => {
                let mut table = table::table(resource, std::slice::from_ref(object), include);
                table["metadata"] =
                    json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                table
            }
        }
    }

    /// A list in this form.
    #[must_use]
    pub fn list(self, resource: &Resource, list: &List, include: Include) -> Value {
        let mut metadata = json!({ "resourceVersion": list.version.to_string() });
        if let Some(token) = &list.continue_at {
            metadata["continue"] = token.as_str().into();
            metadata["remainingItemCount"] = list.remaining.into();
        }
        match self {
            Accept::Object => {
                // Items of a list do not repeat what they are.
                let items = list.items.iter().map(|object| {
                    let fields = object.as_object().into_iter().flatten();
                    let fields = fields.filter(|(key, _)| *key != "kind" && *key != "apiVersion");
                    fields
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect()
                });
                json!({
                    "kind": format!("{}List", resource.kind),
                    "apiVersion": resource.api_version(),
                    "metadata": metadata,
                    "items": items.map(Value::Object).collect::<Vec<_>>(),
                })
            }
            Accept::Metadata => json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "items": list.items.iter().map(|o| table::metadata_only(o)).collect::<Vec<_>>(),
            }),
            Accept::Table => {
                let mut table = table::table(resource, &list.items, include);
                table["metadata"] = metadata;
                table
            }
        }
    }
}

/// A JSON body.
#[must_use]
pub fn json(code: u16, value: &Value) -> Response {
    with_type(code, "application/json", value.to_string())
}

/// A line of text.
#[must_use]
pub fn plain(text: &'static str) -> Response {
    with_type(200, "text/plain; charset=utf-8", text.to_owned())
}

/// A `Status` of a failure.
#[must_use]
pub fn failure(status: &Status) -> Response {
    let mut response = json(status.code, &status.to_value());
    if let Some(seconds) = status
        .details
        .as_ref()
        .and_then(|d| d["retryAfterSeconds"].as_u64())
    {
        response
            .headers_mut()
            .insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Adds warnings for the user, as `Warning` headers.
pub fn warn(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        let text = format!("299 - {warning:?}");
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

fn with_type(code: u16, media_type: &'static str, body: String) -> Response {
    let body = Full::new(Bytes::from(body))
        .map_err(|never| match never {})
        .boxed();
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_spoken_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        let cases = [
            (String::new(), Some(Accept::Object)),
            ("*/*".to_owned(), Some(Accept::Object)),
            (format!("{table},application/json"), Some(Accept::Table)),
            (
                format!("application/vnd.kubernetes.protobuf,{metadata}"),
                Some(Accept::Metadata),
            ),
            (
                "application/vnd.kubernetes.protobuf,application/json".to_owned(),
                Some(Accept::Object),
            ),
            ("application/vnd.kubernetes.protobuf".to_owned(), None),
        ];
        for (header, expected) in cases {
            assert_eq!(Accept::parse(&header).ok(), expected, "{header}");
        }
    }
}
