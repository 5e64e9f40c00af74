//! Label and field selectors, as strings of a query and as `LabelSelector` objects.

use serde_json::Value;

use super::object;
use super::resources::Resource;
use super::status::Status;

/// Which objects a list or watch is about. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    pointer: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads the `labelSelector` and `fieldSelector` of a query.
    ///
    /// # Errors
    ///
    /// When one cannot be read, or the resource has no such field to select by.
    pub fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = split(labels, true)
            .map(parse_requirement)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                Status::bad_request(format!("unable to parse requirement: {labels:?}"))
            })?;
        let fields = split(fields, false)
            .map(|term| parse_field(resource, term))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Selector { labels, fields })
    }

    /// The labels of a `LabelSelector` object. An empty object selects everything.
    #[must_use]
    pub fn from_label_selector(selector: &Value) -> Self {
        let mut labels: Vec<_> = Selector::from_map(&selector["matchLabels"]).labels;
        for expression in object::items(selector, "/matchExpressions") {
            let values = || {
                object::items(expression, "/values")
                    .iter()
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect()
            };
            let test = match object::text(expression, "/operator") {
                "In" => Test::In(values()),
                "NotIn" => Test::NotIn(values()),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::Absent,
                _ => Test::In(Vec::new()),
            };
            labels.push(Requirement {
                key: object::text(expression, "/key").to_owned(),
                test,
            });
        }
        Selector {
            labels,
            fields: Vec::new(),
        }
    }

    /// A map of labels that must all be there, such as a Service's selector.
    #[must_use]
    pub fn from_map(map: &Value) -> Self {
        let labels = map
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                test: Test::In(value.as_str().into_iter().map(str::to_owned).collect()),
            });
        Selector {
            labels: labels.collect(),
            fields: Vec::new(),
        }
    }

    /// Whether the object is selected.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.labels
            .iter()
            .all(|requirement| requirement.matches(object))
            && self.fields.iter().all(|field| field.matches(object))
    }
}

impl Requirement {
    fn matches(&self, object: &Value) -> bool {
        let value = object::label(object, &self.key);
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
        }
    }
}

impl Field {
    fn matches(&self, object: &Value) -> bool {
        let value = match object::at(object, &self.pointer) {
            Value::String(text) => text.clone(),
            Value::Null if self.pointer == "/spec/unschedulable" => "false".to_owned(),
            Value::Null if self.pointer == "/spec/hostNetwork" => "false".to_owned(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        (value == self.value) == self.equal
    }
}

/// Splits at commas: those outside parentheses (labels), or those not escaped (fields).
fn split(text: &str, parentheses: bool) -> impl Iterator<Item = &str> {
    let (mut depth, mut escaped) = (0usize, false);
    text.split(move |c: char| {
        let here = c == ',' && depth == 0 && !escaped;
        escaped = !parentheses && c == '\\' && !escaped;
        match c {
            '(' if parentheses => depth += 1,
            ')' if parentheses => depth = depth.saturating_sub(1),
            _ => {}
        }
        here
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
}

fn parse_requirement(term: &str) -> Option<Requirement> {
    let (key, test) = if let Some(key) = term.strip_prefix('!') {
        (key, Test::Absent)
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Test::NotIn(vec![word(value)?]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Test::In(vec![word(value)?]))
    } else if let Some((head, list)) = term.split_once('(') {
        let values = list
            .trim_end()
            .strip_suffix(')')?
            .split(',')
            .map(word)
            .collect::<Option<Vec<_>>>()?;
        let mut head = head.split_whitespace();
        let (key, operator) = (head.next()?, head.next()?);
        match (operator, head.next()) {
            ("in", None) => (key, Test::In(values)),
            ("notin", None) => (key, Test::NotIn(values)),
            _ => return None,
        }
    } else {
        (term, Test::Exists)
    };
    let key = word(key).filter(|key| !key.is_empty())?;
    Some(Requirement { key, test })
}

/// One key or value; `None` when characters are in it that neither may have.
fn word(text: &str) -> Option<String> {
    let text = text.trim();
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    text.chars().all(fine).then(|| text.to_owned())
}

fn parse_field(resource: &Resource, term: &str) -> Result<Field, Status> {
    let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
        (field, value, false)
    } else if let Some((field, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (field, value, true)
    } else {
        let message = format!("invalid field selector: {term:?}; can't understand it");
        return Err(Status::bad_request(message));
    };
    let known = ["metadata.name", "metadata.namespace"];
    if !known.contains(&field) && !resource.fields.contains(&field) {
        let message = format!("field label not supported: {field}");
        return Err(Status::bad_request(message));
    }
    let mut plain = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    Ok(Field {
        pointer: format!("/{}", field.replace('.', "/")),
        value: plain,
        equal,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::resources::{PODS, SERVICES};

    fn pod() -> Value {
        json!({
            "metadata": { "name": "x", "namespace": "a", "labels": { "app": "db", "tier": "1" } },
            "spec": { "nodeName": "n1" },
            "status": { "phase": "Running" },
        })
    }

    #[test]
    fn label_selectors() {
        let table = [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app=db", true),
            ("app==db,tier=1", true),
            ("app=db,tier=2", false),
            ("app!=db", false),
            ("other!=db", true),
            ("app in (web, db)", true),
            ("app notin (web,db),tier", false),
            ("other notin (web)", true),
            ("other in (web)", false),
        ];
        for (text, expected) in table {
            let selector = Selector::parse(&PODS, text, "").unwrap();
            assert_eq!(selector.matches(&pod()), expected, "{text}");
        }
        for bad in ["app in web", "a=b c", "in (a)", "=x", "app in (a"] {
            assert_eq!(
                Selector::parse(&PODS, bad, "").unwrap_err().code,
                400,
                "{bad}"
            );
        }
    }

    #[test]
    fn field_selectors() {
        let table = [
            ("spec.nodeName=n1", true),
            ("spec.nodeName!=n1", false),
            ("metadata.name=x,metadata.namespace=a", true),
            ("status.phase!=Failed,status.phase!=Succeeded", true),
            ("spec.hostNetwork=false", true),
            ("status.podIP=", true),
        ];
        for (text, expected) in table {
            let selector = Selector::parse(&PODS, "", text).unwrap();
            assert_eq!(selector.matches(&pod()), expected, "{text}");
        }
        assert_eq!(
            Selector::parse(&PODS, "", "spec.image=x").unwrap_err().code,
            400
        );
        assert!(Selector::parse(&SERVICES, "", "spec.clusterIP!=None").is_ok());
    }

    #[test]
    fn label_selector_objects() {
        let selector = json!({
            "matchLabels": { "app": "db" },
            "matchExpressions": [
                { "key": "tier", "operator": "In", "values": ["1", "2"] },
                { "key": "gone", "operator": "DoesNotExist" },
                { "key": "tier", "operator": "Exists" },
                { "key": "app", "operator": "NotIn", "values": ["web"] },
            ],
        });
        assert!(Selector::from_label_selector(&selector).matches(&pod()));
        assert!(Selector::from_label_selector(&json!({})).matches(&pod()));
        assert!(!Selector::from_map(&json!({ "app": "web" })).matches(&pod()));
    }
}
