//! Create, update and patch.

use serde_json::{Value, json};

use super::Registry;
use crate::api::decode::{FieldValidation, decode};
use crate::api::events;
use crate::api::object::{self, at, text};
use crate::api::patch::apply::{self, Operation, Writer};
use crate::api::patch::{Patch, strategic};
use crate::api::resources::{NAMESPACES, NODES, PODS, Resource, SERVICES};
use crate::api::services::{self, Ground};
use crate::api::status::{Cause, Status};
use crate::api::store::{Key, Object, Transaction};
use crate::api::validate;

/// How to write.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Do everything except keeping the result.
    pub dry_run: bool,
    /// Who writes, for `managedFields`.
    pub manager: String,
    /// What to do about unknown fields.
    pub validation: FieldValidation,
    /// For apply: take fields over from other managers.
    pub force: bool,
}

impl WriteOptions {
    /// The defaults, as this manager.
    #[must_use]
    pub fn by(manager: &str) -> Self {
        WriteOptions {
            manager: manager.to_owned(),
            validation: FieldValidation::Ignore,
            ..WriteOptions::default()
        }
    }
}

/// The result of a write.
#[derive(Debug, Clone)]
pub struct Written {
    /// The object as it is now, or would be after a dry run.
    pub object: Object,
    /// Whether it is new.
    pub created: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The part of an object that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything except the status.
    Main,
    /// The status, and nothing of the specification.
    Status,
    /// What only the system writes: the node of a pod, the finalizers of a namespace.
    System,
}

impl Part {
    fn subresource(self) -> &'static str {
        if self == Part::Status { "status" } else { "" }
    }
}

impl Registry {
    /// Creates an object.
    ///
    /// # Errors
    ///
    /// When it is malformed or not valid, its namespace is missing, or its name is taken.
    pub fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let (object, unknown) = decode(resource, object, options.validation)?;
        let writer = Writer {
            manager: &options.manager,
            operation: Operation::Update,
            subresource: "",
        };
        let mut transaction = self.store().transaction();
        self.insert(
            &mut transaction,
            resource,
            namespace,
            object,
            &writer,
            options,
            &unknown,
        )
    }

    /// Replaces an object, or its status.
    ///
    /// # Errors
    ///
    /// When it does not exist, is malformed or not valid, or was changed since the caller read it.
    pub fn update(
        &self,
        key: &Key,
        part: Part,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        self.modify(key, part, options, move |_| Ok(object))
    }

    /// Changes an object in one transaction.
    ///
    /// # Errors
    ///
    /// As [`Self::update`], and whatever `change` returns.
    pub fn modify(
        &self,
        key: &Key,
        part: Part,
        options: &WriteOptions,
        change: impl FnOnce(&Value) -> Result<Value, Status>,
    ) -> Result<Written, Status> {
        let mut transaction = self.store().transaction();
        let live = transaction
            .get(key)
            .ok_or_else(|| Status::not_found(key.resource, &key.name))?;
        let new = change(&live)?;
        let writer = Writer {
            manager: &options.manager,
            operation: Operation::Update,
            subresource: part.subresource(),
        };
        self.replace(&mut transaction, key, &live, new, part, &writer, options)
    }

    /// Changes an object in part.
    ///
    /// # Errors
    ///
    /// As [`Self::update`], when the patch does not fit, and for an apply also when fields belong to
    /// other managers.
    pub fn patch(
        &self,
        key: &Key,
        part: Part,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        match patch {
            Patch::Apply(wanted) => self.apply(key, part, wanted, options),
            Patch::Json(operations) => self.modify(key, part, options, |live| {
                let mut new = live.clone();
                json_patch::patch(&mut new, operations).map_err(|error| {
                    let cause = Cause::invalid("patch", &Value::Null, &error.to_string());
                    Status::invalid(key.resource, &key.name, &[cause])
                })?;
                Ok(new)
            }),
            Patch::Merge(patch) => self.modify(key, part, options, |live| {
                let mut new = live.clone();
                json_patch::merge(&mut new, patch);
                Ok(new)
            }),
            Patch::Strategic(patch) => self.modify(key, part, options, |live| {
                let mut new = live.clone();
                strategic::merge(&mut new, patch);
                Ok(new)
            }),
        }
    }

    fn apply(
        &self,
        key: &Key,
        part: Part,
        wanted: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let (resource, name) = (key.resource, key.name.as_str());
        if options.manager.is_empty() {
            return Err(Status::bad_request(
                "PatchOptions.fieldManager: Required value: is required for apply patch",
            ));
        }
        if !at(wanted, "/metadata/managedFields").is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        // What the types do not know is reported for what the user wrote, not for the merged result.
        let (_, unknown) = decode(resource, wanted.clone(), options.validation)?;
        let mut wanted = wanted.clone();
        restrict(resource, part, &mut wanted);
        let writer = Writer {
            manager: &options.manager,
            operation: Operation::Apply,
            subresource: part.subresource(),
        };
        let mut transaction = self.store().transaction();
        let mut written = match transaction.get(key) {
            Some(live) => {
                let new = apply::apply(&live, &wanted, &writer, options.force)?;
                self.replace(&mut transaction, key, &live, new, part, &writer, options)?
            }
            None if part != Part::Main => return Err(Status::not_found(resource, name)),
            None => {
                let empty = json!({ "apiVersion": resource.api_version(), "kind": resource.kind });
                let mut new = apply::apply(&empty, &wanted, &writer, false)?;
                object::default_text(object::metadata(&mut new), "name", name);
                if object::name(&new) != name {
                    return Err(name_mismatch(object::name(&new), name));
                }
                let (new, _) = decode(resource, new, FieldValidation::Ignore)?;
                let namespace = &key.namespace;
                self.insert(
                    &mut transaction,
                    resource,
                    namespace,
                    new,
                    &writer,
                    options,
                    &[],
                )?
            }
        };
        written.warnings = warnings(&unknown);
        Ok(written)
    }

    /// The second half of creating: everything after decoding.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two callers differ in just these"
    )]
    fn insert(
        &self,
        transaction: &mut Transaction,
        resource: &'static Resource,
        namespace: &str,
        mut object: Value,
        writer: &Writer,
        options: &WriteOptions,
        unknown: &[String],
    ) -> Result<Written, Status> {
        if !text(&object, "/metadata/resourceVersion").is_empty() {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(Status::bad_request(message));
        }
        let given = object::namespace(&object);
        if resource.namespaced && !given.is_empty() && given != namespace {
            return Err(namespace_mismatch());
        }
        let metadata = object::metadata(&mut object);
        for field in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
        ] {
            metadata.remove(field);
        }
        let prefix = metadata
            .get("generateName")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let is_unnamed = metadata
            .get("name")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty);
        if is_unnamed && !prefix.is_empty() {
            let suffix = uuid::Uuid::new_v4().simple().to_string();
            let generated = format!("{prefix}{}", &suffix[..5]);
            metadata.insert("name".to_owned(), generated.into());
        }
        if resource.namespaced {
            metadata.insert("namespace".to_owned(), namespace.into());
        } else {
            metadata.remove("namespace");
        }
        metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".to_owned(), object::now().into());
        if resource.has_generation {
            metadata.insert("generation".to_owned(), 1.into());
        } else {
            metadata.remove("generation");
        }
        // The kubelet reports a node's status when it registers; all others begin without one.
        if resource.has_status && *resource != NODES {
            object::as_map(&mut object).remove("status");
        }
        (resource.defaults)(&mut object);
        let name = object::name(&object).to_owned();
        let key = Key::new(
            resource,
            if resource.namespaced { namespace } else { "" },
            &name,
        );
        if *resource == SERVICES {
            services::prepare(&mut object, None);
        }
        check(resource, &object, None, Part::Main)?;
        if resource.namespaced {
            match transaction.get(&Key::new(&NAMESPACES, "", namespace)) {
                None => return Err(Status::not_found(&NAMESPACES, namespace)),
                Some(found) if object::is_terminating(&found) => {
                    let why = format!(
                        "unable to create new content in namespace {namespace} because it is being \
                         terminated"
                    );
                    return Err(Status::forbidden(resource, &name, &why));
                }
                Some(_) => {}
            }
        }
        if transaction.get(&key).is_some() {
            return Err(Status::already_exists(resource, &name));
        }
        if writer.operation == Operation::Update {
            apply::record_update(&json!({}), &mut object, writer);
        }
        if *resource == SERVICES {
            self.allocate(transaction, &mut object, None, options.dry_run)?;
        }
        let object = if options.dry_run {
            object.into()
        } else {
            let object = transaction.put(key.clone(), object);
            events::follow(transaction, &key, Some(&object));
            object
        };
        Ok(Written {
            object,
            created: true,
            warnings: warnings(unknown),
        })
    }

    /// The second half of every update.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two callers differ in just these"
    )]
    fn replace(
        &self,
        transaction: &mut Transaction,
        key: &Key,
        live: &Object,
        new: Value,
        part: Part,
        writer: &Writer,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let resource = key.resource;
        let (mut new, unknown) = decode(resource, new, options.validation)?;
        if object::name(&new) != key.name {
            return Err(name_mismatch(object::name(&new), &key.name));
        }
        let namespace = object::namespace(&new);
        if !namespace.is_empty() && namespace != key.namespace {
            return Err(namespace_mismatch());
        }
        let (version, uid) = (text(&new, "/metadata/resourceVersion"), object::uid(&new));
        if !version.is_empty() && version != text(live, "/metadata/resourceVersion") {
            return Err(Status::modified(resource, &key.name));
        }
        if !uid.is_empty() && uid != object::uid(live) {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object::uid(live)
            );
            return Err(Status::conflict(resource, &key.name, &why));
        }
        keep(live, &mut new, resource, part);
        (resource.defaults)(&mut new);
        if *resource == SERVICES && part == Part::Main {
            services::prepare(&mut new, Some(live));
        }
        check(resource, &new, Some(live), part)?;
        let gone = object::is_terminating(&new) && is_finalized(resource, &new);
        if *resource == SERVICES && part == Part::Main {
            self.allocate(transaction, &mut new, Some(live), options.dry_run)?;
        }
        if writer.operation == Operation::Update {
            apply::record_update(live, &mut new, writer);
        }
        if resource.has_generation && part != Part::Status && spec_of(&new) != spec_of(live) {
            let generation = live["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object::metadata(&mut new).insert("generation".to_owned(), generation.into());
        }
        let warnings = warnings(&unknown);
        let version = live["metadata"]["resourceVersion"].clone();
        object::metadata(&mut new).insert("resourceVersion".to_owned(), version);
        if new == **live && !gone {
            return Ok(Written {
                object: live.clone(),
                created: false,
                warnings,
            });
        }
        let object = if options.dry_run {
            new.into()
        } else if gone {
            transaction.put(key.clone(), new);
            self.forget(transaction, key)?
        } else {
            let object = transaction.put(key.clone(), new);
            events::follow(transaction, key, Some(&object));
            object
        };
        Ok(Written {
            object,
            created: false,
            warnings,
        })
    }
}

impl Registry {
    /// Gives a Service its addresses and node ports, and writes the IPAddresses that follow.
    fn allocate(
        &self,
        transaction: &mut Transaction,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<(), Status> {
        let mut all = self.services();
        let ground = Ground {
            ranges: services::ranges(transaction),
            is_taken: &|address| transaction.get(&services::address_key(address)).is_some(),
        };
        all.allocate(service, old, &ground)
            .map_err(|causes| Status::invalid(&SERVICES, object::name(service), &causes))?;
        if dry_run {
            all.release(service);
            if let Some(old) = old {
                all.hold(old);
            }
        } else {
            services::follow(transaction, old, Some(service));
        }
        Ok(())
    }
}

/// Everything besides metadata, status and type: what a generation counts.
fn spec_of(object: &Value) -> Vec<(&String, &Value)> {
    let all = object.as_object().into_iter().flatten();
    all.filter(|(key, _)| *key != "metadata" && *key != "status")
        .collect()
}

/// Takes over into `new` what the writer may not change.
fn keep(live: &Value, new: &mut Value, resource: &Resource, part: Part) {
    let metadata = object::metadata(new);
    for field in [
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generateName",
    ] {
        match live["metadata"].get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    if !resource.has_status {
        return;
    }
    let all: Vec<String> = new
        .as_object()
        .into_iter()
        .chain(live.as_object())
        .flat_map(|map| map.keys().cloned())
        .collect();
    for field in all {
        let is_kept = match part {
            Part::Main => field == "status",
            Part::Status => field != "status" && field != "metadata",
            Part::System => false,
        };
        if is_kept {
            match live.get(&field) {
                Some(value) => new[&field] = value.clone(),
                None => drop(object::as_map(new).remove(&field)),
            }
        }
    }
    // A namespace ends through the `finalize` subresource only.
    if *resource == NAMESPACES && part == Part::Main {
        new["spec"] = live["spec"].clone();
    }
}

/// Leaves of an applied object what the part is about.
fn restrict(resource: &Resource, part: Part, wanted: &mut Value) {
    let map = object::as_map(wanted);
    match part {
        Part::Main if resource.has_status => drop(map.remove("status")),
        Part::Status => map
            .retain(|key, _| ["apiVersion", "kind", "metadata", "status"].contains(&key.as_str())),
        Part::Main | Part::System => {}
    }
}

/// Whether nothing holds a terminating object back.
pub(super) fn is_finalized(resource: &Resource, object: &Value) -> bool {
    object::items(object, "/metadata/finalizers").is_empty()
        && (*resource != NAMESPACES || object::items(object, "/spec/finalizers").is_empty())
        && at(object, "/metadata/deletionGracePeriodSeconds")
            .as_i64()
            .unwrap_or(0)
            == 0
}

fn check(resource: &Resource, new: &Value, old: Option<&Value>, part: Part) -> Result<(), Status> {
    let mut causes = Vec::new();
    validate::metadata(new, resource.names, &mut causes);
    if part == Part::Main {
        (resource.validate)(new, &mut causes);
        if let Some(old) = old {
            (resource.immutable)(old, new, &mut causes);
        }
    }
    if part == Part::Status && *resource == PODS {
        validate::pod_status(new, &mut causes);
    }
    if part == Part::Status && *resource == SERVICES {
        validate::service_status(new, &mut causes);
    }
    if let Some(old) = old
        && *resource == PODS
        && part == Part::System
        && !text(old, "/spec/nodeName").is_empty()
        && text(old, "/spec/nodeName") != text(new, "/spec/nodeName")
    {
        let why = format!(
            "pod is already assigned to node {:?}",
            text(old, "/spec/nodeName")
        );
        return Err(Status::conflict(resource, object::name(old), &why));
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(resource, object::name(new), &causes))
    }
}

fn warnings(unknown: &[String]) -> Vec<String> {
    unknown
        .iter()
        .map(|field| format!("unknown field {field:?}"))
        .collect()
}

fn name_mismatch(found: &str, expected: &str) -> Status {
    Status::bad_request(format!(
        "the name of the object ({found}) does not match the name on the URL ({expected})"
    ))
}

fn namespace_mismatch() -> Status {
    Status::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    )
}
