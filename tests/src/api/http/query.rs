//! The parameters of a request.

use super::super::decode::FieldValidation;
use super::super::registry::{ListOptions, VersionMatch, WatchOptions, WriteOptions};
use super::super::resources::Resource;
use super::super::selector::Selector;
use super::super::status::Status;
use super::super::table::Include;

/// A parsed query string.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string.
    #[must_use]
    pub fn parse(query: &str) -> Self {
        Query(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// A parameter; empty when it is absent.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// Whether a parameter is true, as Go reads it.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "1" | "t" | "T" | "true" | "TRUE" | "True")
    }

    /// A number.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Status> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "invalid value for {name}: {text:?} is not a number"
                ))
            }),
        }
    }

    fn selector(&self, resource: &Resource, name: &str) -> Result<Selector, Status> {
        let mut fields = self.text("fieldSelector").to_owned();
        if !name.is_empty() {
            let separator = if fields.is_empty() { "" } else { "," };
            fields.push_str(&format!("{separator}metadata.name={name}"));
        }
        Selector::parse(resource, self.text("labelSelector"), &fields)
    }

    /// What to list.
    ///
    /// # Errors
    ///
    /// When a parameter is malformed or contradicts another one.
    pub fn list(&self, resource: &Resource, namespace: &str) -> Result<ListOptions, Status> {
        let invalid = |why: &str| Status::bad_request(format!("invalid list options: {why}"));
        let version = self.number::<u64>("resourceVersion")?;
        let limit = self.number::<usize>("limit")?.unwrap_or(0);
        let continue_from = Some(self.text("continue").to_owned()).filter(|c| !c.is_empty());
        let how = match (self.text("resourceVersionMatch"), version) {
            ("", Some(version)) if limit > 0 && version > 0 => VersionMatch::Exact,
            ("" | "NotOlderThan", Some(_)) | ("", None) => VersionMatch::NotOlderThan,
            ("Exact", Some(0)) => {
                return Err(invalid(
                    "resourceVersionMatch: \"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            ("Exact", Some(_)) => VersionMatch::Exact,
            (_, None) => {
                return Err(invalid(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            _ => {
                return Err(invalid(
                    "resourceVersionMatch: must be \"Exact\" or \"NotOlderThan\"",
                ));
            }
        };
        if continue_from.is_some() && version.is_some_and(|version| version > 0) {
            let why = "specifying resource version is not allowed when using continue";
            return Err(invalid(why));
        }
        Ok(ListOptions {
            namespace: namespace.to_owned(),
            selector: self.selector(resource, "")?,
            limit,
            continue_from,
            version: version.map(|version| (version, how)),
        })
    }

    /// What to watch; `name` is not empty when one object is watched by its path.
    ///
    /// # Errors
    ///
    /// When a parameter is malformed or contradicts another one.
    pub fn watch(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<WatchOptions, Status> {
        let version = self.number::<u64>("resourceVersion")?;
        let has_match = !self.text("resourceVersionMatch").is_empty();
        let (initial, version) = match self.text("sendInitialEvents") {
            "" if has_match => {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(Status::bad_request(why));
            }
            // Without a version, or with any version, a watch begins with everything there is.
            "" => (version.unwrap_or(0) == 0, version),
            _ if self.text("resourceVersionMatch") != "NotOlderThan" => {
                let why = "sendInitialEvents requires resourceVersionMatch=NotOlderThan";
                return Err(Status::bad_request(why));
            }
            _ => (
                self.flag("sendInitialEvents"),
                version.filter(|version| *version > 0),
            ),
        };
        let selector = self.selector(resource, name)?;
        Ok(WatchOptions {
            namespace: namespace.to_owned(),
            selector,
            version,
            initial,
        })
    }

    /// How to write; `agent` is the `User-Agent`, whose name is the field manager unless one is given.
    ///
    /// # Errors
    ///
    /// When a parameter has an unknown value.
    pub fn write(&self, agent: &str) -> Result<WriteOptions, Status> {
        let validation = match self.text("fieldValidation") {
            "Ignore" => FieldValidation::Ignore,
            "" | "Warn" => FieldValidation::Warn,
            "Strict" => FieldValidation::Strict,
            other => {
                let message = format!("fieldValidation: unsupported value {other:?}");
                return Err(Status::bad_request(message));
            }
        };
        let manager = match self.text("fieldManager") {
            "" => agent
                .split(['/', ' '])
                .next()
                .unwrap_or_default()
                .to_owned(),
            manager => manager.to_owned(),
        };
        Ok(WriteOptions {
            dry_run: self.dry_run(),
            manager,
            validation,
            force: self.flag("force"),
        })
    }

    /// Whether nothing is to be kept.
    #[must_use]
    pub fn dry_run(&self) -> bool {
        self.text("dryRun") == "All"
    }

    /// What goes into the rows of a table.
    #[must_use]
    pub fn include(&self) -> Include {
        match self.text("includeObject") {
            "Object" => Include::Object,
            "None" => Include::None,
            _ => Include::Metadata,
        }
    }
}
