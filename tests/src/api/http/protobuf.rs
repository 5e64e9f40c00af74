//! Bodies in Kubernetes' protobuf encoding, for the objects that `kubectl create <kind>` sends.
//!
//! Recent `kubectl` encodes what it makes out of flags this way (manifests are sent as JSON). Answers
//! are JSON in any case, which such clients accept. Only the fields that those commands set are known;
//! an object with any other one is refused rather than taken without it.

use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};

use super::super::status::Status;

/// The media type of such bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// How deep messages may nest.
const DEEPEST: usize = 16;

type Schema = &'static [Field];

struct Field(u64, &'static str, Kind);

enum Kind {
    Text,
    Texts,
    /// Zero means that it is not set.
    Number,
    /// Zero is a value.
    Optional,
    Flag,
    Message(Schema),
    Messages(Schema),
    TextMap,
    BytesMap,
    NumberOrText,
    /// What the server sets itself.
    Ignored,
}

const METADATA: Schema = &[
    Field(1, "name", Kind::Text),
    Field(2, "generateName", Kind::Text),
    Field(3, "namespace", Kind::Text),
    Field(4, "selfLink", Kind::Ignored),
    Field(5, "uid", Kind::Ignored),
    Field(6, "resourceVersion", Kind::Text),
    Field(7, "generation", Kind::Ignored),
    Field(8, "creationTimestamp", Kind::Ignored),
    Field(11, "labels", Kind::TextMap),
    Field(12, "annotations", Kind::TextMap),
    Field(14, "finalizers", Kind::Texts),
    Field(17, "managedFields", Kind::Ignored),
];

const NAMESPACE: Schema = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(
        2,
        "spec",
        Kind::Message(&[Field(1, "finalizers", Kind::Texts)]),
    ),
    Field(3, "status", Kind::Ignored),
];

const CONFIG_MAP: Schema = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "data", Kind::TextMap),
    Field(3, "binaryData", Kind::BytesMap),
    Field(4, "immutable", Kind::Flag),
];

const SECRET: Schema = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "data", Kind::BytesMap),
    Field(3, "type", Kind::Text),
    Field(4, "stringData", Kind::TextMap),
    Field(5, "immutable", Kind::Flag),
];

const SERVICE_ACCOUNT: Schema = &[Field(1, "metadata", Kind::Message(METADATA))];

const SERVICE_PORT: Schema = &[
    Field(1, "name", Kind::Text),
    Field(2, "protocol", Kind::Text),
    Field(3, "port", Kind::Number),
    Field(4, "targetPort", Kind::NumberOrText),
    Field(5, "nodePort", Kind::Number),
    Field(6, "appProtocol", Kind::Text),
];

const SERVICE_SPEC: Schema = &[
    Field(1, "ports", Kind::Messages(SERVICE_PORT)),
    Field(2, "selector", Kind::TextMap),
    Field(3, "clusterIP", Kind::Text),
    Field(4, "type", Kind::Text),
    Field(5, "externalIPs", Kind::Texts),
    Field(7, "sessionAffinity", Kind::Text),
    Field(10, "externalName", Kind::Text),
    Field(11, "externalTrafficPolicy", Kind::Text),
];

const SERVICE: Schema = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "spec", Kind::Message(SERVICE_SPEC)),
    Field(3, "status", Kind::Ignored),
];

const CONTAINER_PORT: Schema = &[
    Field(1, "name", Kind::Text),
    Field(2, "hostPort", Kind::Number),
    Field(3, "containerPort", Kind::Number),
    Field(4, "protocol", Kind::Text),
    Field(5, "hostIP", Kind::Text),
];

const CONTAINER: Schema = &[
    Field(1, "name", Kind::Text),
    Field(2, "image", Kind::Text),
    Field(3, "command", Kind::Texts),
    Field(4, "args", Kind::Texts),
    Field(5, "workingDir", Kind::Text),
    Field(6, "ports", Kind::Messages(CONTAINER_PORT)),
    Field(8, "resources", Kind::Message(&[])),
];

const POD_SPEC: Schema = &[
    Field(2, "containers", Kind::Messages(CONTAINER)),
    Field(3, "restartPolicy", Kind::Text),
];

const POD_TEMPLATE: Schema = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "spec", Kind::Message(POD_SPEC)),
];

const DEPLOYMENT_SPEC: Schema = &[
    Field(1, "replicas", Kind::Optional),
    Field(
        2,
        "selector",
        Kind::Message(&[Field(1, "matchLabels", Kind::TextMap)]),
    ),
    Field(3, "template", Kind::Message(POD_TEMPLATE)),
    Field(
        4,
        "strategy",
        Kind::Message(&[Field(1, "type", Kind::Text)]),
    ),
];

const DEPLOYMENT: Schema = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "spec", Kind::Message(DEPLOYMENT_SPEC)),
    Field(3, "status", Kind::Ignored),
];

fn schema(kind: &str) -> Option<Schema> {
    Some(match kind {
        "Namespace" => NAMESPACE,
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "Service" => SERVICE,
        "Deployment" => DEPLOYMENT,
        _ => return None,
    })
}

/// Reads a body.
///
/// # Errors
///
/// When it is malformed, or of a kind or with a field that is not known here.
pub fn decode(body: &[u8]) -> Result<Value, Status> {
    read(body).map_err(|why| {
        let message = format!("cannot read the protobuf body of the request: {why}");
        Status {
            message,
            ..Status::unsupported_media_type(MEDIA_TYPE)
        }
    })
}

fn read(body: &[u8]) -> Result<Value, String> {
    let envelope = body.strip_prefix(MAGIC).ok_or("it does not begin as one")?;
    let (mut kind, mut version, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(envelope) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let schema = schema(&kind).ok_or_else(|| format!("{kind} objects are taken as JSON only"))?;
    let mut object = message(raw, schema, &kind, 0)?;
    object.insert("kind".to_owned(), kind.into());
    object.insert("apiVersion".to_owned(), version.into());
    Ok(Value::Object(object))
}

fn message(
    bytes: &[u8],
    schema: Schema,
    path: &str,
    depth: usize,
) -> Result<Map<String, Value>, String> {
    if depth > DEEPEST {
        return Err("it nests too deep".to_owned());
    }
    let mut object = Map::new();
    for field in Fields(bytes) {
        let (number, value) = field?;
        let Some(Field(_, name, kind)) = schema.iter().find(|field| field.0 == number) else {
            if value.is_zero() {
                continue;
            }
            return Err(format!("field {number} of {path} is taken as JSON only"));
        };
        let path = format!("{path}.{name}");
        let wrong = || format!("{path} has the wrong type");
        let value = match (kind, value) {
            (Kind::Ignored, _) => continue,
            (Kind::Text | Kind::Number, value) if value.is_zero() => continue,
            (Kind::Text | Kind::Texts, Wire::Bytes(text)) => string(text)?.into(),
            (Kind::Number | Kind::Optional, Wire::Number(n)) => n.cast_signed().into(),
            (Kind::Flag, Wire::Number(n)) => (n != 0).into(),
            (Kind::Message(schema) | Kind::Messages(schema), Wire::Bytes(bytes)) => {
                message(bytes, schema, &path, depth + 1)?.into()
            }
            (Kind::TextMap | Kind::BytesMap, Wire::Bytes(bytes)) => {
                let (key, value) = entry(bytes)?;
                let value = match kind {
                    Kind::TextMap => string(value)?.into(),
                    _ => json!(ByteString(value.to_vec())),
                };
                let map = object.entry(*name).or_insert_with(|| json!({}));
                map[key] = value;
                continue;
            }
            (Kind::NumberOrText, Wire::Bytes(bytes)) => number_or_text(bytes)?,
            _ => return Err(wrong()),
        };
        match kind {
            Kind::Texts | Kind::Messages(_) => {
                let list = object.entry(*name).or_insert_with(|| json!([]));
                list.as_array_mut().ok_or_else(wrong)?.push(value);
            }
            _ => {
                object.insert((*name).to_owned(), value);
            }
        }
    }
    Ok(object)
}

fn entry(bytes: &[u8]) -> Result<(String, &[u8]), String> {
    let (mut key, mut value) = (String::new(), &[][..]);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Bytes(text)) => key = string(text)?,
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((key, value))
}

fn number_or_text(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(n)) => is_text = n == 1,
            (2, Wire::Number(n)) => number = n.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = string(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn string(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a text is not UTF-8".to_owned())
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Wire<'_> {
    fn is_zero(&self) -> bool {
        matches!(self, Wire::Number(0) | Wire::Bytes([]))
    }
}

/// The fields of a message in their encoding. Ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self
            .field()
            .ok_or_else(|| "it is cut off or malformed".to_owned());
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(u32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap();
        [&[number << 3 | 2, length], bytes].concat()
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_config_map() {
        let label = [field(1, b"l"), field(2, b"1")].concat();
        let metadata = [field(1, b"a"), field(2, b""), field(11, &label)].concat();
        let data = [field(1, b"k"), field(2, b"v")].concat();
        let raw = [field(1, &metadata), field(2, &data)].concat();
        assert_eq!(
            decode(&body("ConfigMap", &raw)).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": "a", "labels": { "l": "1" } }, "data": { "k": "v" },
            })
        );
    }

    #[test]
    fn what_is_not_known_is_refused_and_never_panics() {
        let whole = body("ConfigMap", &field(1, &field(1, b"a")));
        assert!(decode(&whole).is_ok());
        for length in 0..whole.len() {
            // Cut anywhere it is malformed, or an object without its last part.
            let _ = decode(&whole[..length]);
        }
        assert_eq!(decode(&body("Pod", &[])).unwrap_err().code, 415);
        assert_eq!(
            decode(&body("ConfigMap", &field(9, b"x")))
                .unwrap_err()
                .code,
            415
        );
        assert_eq!(
            decode(&body("ConfigMap", &[0xff; 12])).unwrap_err().code,
            415
        );
        assert_eq!(decode(b"{}").unwrap_err().code, 415);
    }
}
