//! Requests about objects: verbs and subresources.

use http::Method;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::super::object;
use super::super::patch::Patch;
use super::super::registry::{DeleteOptions, Part, Written};
use super::super::resources::{NAMESPACES, PODS};
use super::super::status::Status;
use super::super::store::Key;
use super::Context;
use super::protobuf;
use super::query::Query;
use super::respond::{self, Accept, Response};
use super::route::Target;
use super::stream;

/// One request about objects.
pub struct Call<'a> {
    /// The server.
    pub context: &'a Context,
    /// What it is about.
    pub target: Target,
    /// Its parameters.
    pub query: Query,
    /// In which form the client wants objects.
    pub accept: Accept,
    /// The client's name.
    pub agent: String,
    /// The media type of the body.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
}

impl Call<'_> {
    /// Does what the method says.
    ///
    /// # Errors
    ///
    /// Whatever the registry refuses, malformed bodies, and methods that the target has not.
    pub fn answer(&self, method: &Method) -> Result<Response, Status> {
        let is_collection = self.target.name.is_empty();
        match (method.as_str(), self.target.subresource.as_str()) {
            ("GET", "") if self.query.flag("watch") => self.watch(),
            ("GET", "") if is_collection => self.list(),
            ("GET", "") => self.get(),
            ("POST", "") if is_collection => self.create(),
            ("PUT", "") if !is_collection => self.update(Part::Main),
            ("PATCH", "") if !is_collection => self.patch(Part::Main),
            ("DELETE", "") if is_collection => self.delete_collection(),
            ("DELETE", "") => self.delete(),
            (_, "") => Err(Status::method_not_allowed()),
            (method, "status") if self.target.resource.has_status => match method {
                "GET" => self.get(),
                "PUT" => self.update(Part::Status),
                "PATCH" => self.patch(Part::Status),
                _ => Err(Status::method_not_allowed()),
            },
            (method, "scale") if self.target.resource.has_scale => self.scale(method),
            ("POST", "binding") if *self.target.resource == PODS => self.bind(),
            ("PUT", "finalize") if *self.target.resource == NAMESPACES => self.finalize(),
            _ => Err(Status::no_such_path()),
        }
    }

    fn key(&self) -> Key {
        let Target {
            resource,
            namespace,
            name,
            ..
        } = &self.target;
        Key::new(resource, namespace, name)
    }

    fn value(&self) -> Result<Value, Status> {
        let media_type = self
            .content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let parsed = match media_type {
            "" | "application/json" => {
                serde_json::from_slice(&self.body).map_err(|error| error.to_string())
            }
            "application/yaml" => {
                serde_norway::from_slice(&self.body).map_err(|error| error.to_string())
            }
            protobuf::MEDIA_TYPE => return protobuf::decode(&self.body),
            other => return Err(Status::unsupported_media_type(other)),
        };
        parsed.map_err(|error| {
            let kind = self.target.resource.kind;
            Status::bad_request(format!(
                "the body of the request is not a {kind} object: {error}"
            ))
        })
    }

    fn written(&self, written: &Written) -> Response {
        let object = self
            .accept
            .one(self.target.resource, &written.object, self.query.include());
        let mut response = respond::json(if written.created { 201 } else { 200 }, &object);
        respond::warn(&mut response, &written.warnings);
        response
    }

    fn get(&self) -> Result<Response, Status> {
        let Target {
            resource,
            namespace,
            name,
            ..
        } = &self.target;
        let object = self.context.registry.get(resource, namespace, name)?;
        Ok(respond::json(
            200,
            &self.accept.one(resource, &object, self.query.include()),
        ))
    }

    fn list(&self) -> Result<Response, Status> {
        let Target {
            resource,
            namespace,
            ..
        } = &self.target;
        let options = self.query.list(resource, namespace)?;
        let list = self.context.registry.list(resource, &options)?;
        Ok(respond::json(
            200,
            &self.accept.list(resource, &list, self.query.include()),
        ))
    }

    fn watch(&self) -> Result<Response, Status> {
        let Target {
            resource,
            namespace,
            name,
            ..
        } = &self.target;
        let options = self.query.watch(resource, namespace, name)?;
        let form = stream::Form {
            resource,
            accept: self.accept,
            include: self.query.include(),
            bookmarks: self.query.flag("allowWatchBookmarks"),
            tell_initial_end: self.query.flag("sendInitialEvents"),
        };
        let timeout = self.query.number("timeoutSeconds")?;
        Ok(stream::start(self.context.clone(), options, form, timeout))
    }

    fn create(&self) -> Result<Response, Status> {
        let Target {
            resource,
            namespace,
            ..
        } = &self.target;
        if resource.namespaced && namespace.is_empty() {
            return Err(Status::method_not_allowed());
        }
        let options = self.query.write(&self.agent)?;
        let object = self.value()?;
        let written = self
            .context
            .registry
            .create(resource, namespace, object, &options)?;
        Ok(self.written(&written))
    }

    fn update(&self, part: Part) -> Result<Response, Status> {
        let options = self.query.write(&self.agent)?;
        let written = self
            .context
            .registry
            .update(&self.key(), part, self.value()?, &options)?;
        Ok(self.written(&written))
    }

    fn patch(&self, part: Part) -> Result<Response, Status> {
        let options = self.query.write(&self.agent)?;
        let patch = Patch::parse(&self.content_type, &self.body)?;
        if matches!(patch, Patch::Apply(_)) && self.query.text("fieldManager").is_empty() {
            let message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is \
                           required for apply patch";
            return Err(Status::bad_request(message));
        }
        let written = self
            .context
            .registry
            .patch(&self.key(), part, &patch, &options)?;
        Ok(self.written(&written))
    }

    fn delete_options(&self) -> Result<DeleteOptions, Status> {
        let body = if self.body.is_empty() {
            json!({})
        } else {
            self.value()?
        };
        let text =
            |pointer| Some(object::text(&body, pointer).to_owned()).filter(|t| !t.is_empty());
        let is_dry = object::items(&body, "/dryRun")
            .iter()
            .any(|run| run == "All");
        let grace = match self.query.number("gracePeriodSeconds")? {
            Some(grace) => Some(grace),
            None => body["gracePeriodSeconds"].as_i64(),
        };
        Ok(DeleteOptions {
            grace,
            uid: text("/preconditions/uid"),
            version: text("/preconditions/resourceVersion"),
            dry_run: is_dry || self.query.dry_run(),
        })
    }

    fn delete(&self) -> Result<Response, Status> {
        let Target { resource, name, .. } = &self.target;
        let deleted = self
            .context
            .registry
            .delete(&self.key(), &self.delete_options()?)?;
        if !deleted.gone || **resource == PODS {
            let object = self
                .accept
                .one(resource, &deleted.object, self.query.include());
            return Ok(respond::json(200, &object));
        }
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {
                "name": name, "group": resource.group, "kind": resource.plural,
                "uid": object::uid(&deleted.object),
            },
        });
        Ok(respond::json(200, &status))
    }

    fn delete_collection(&self) -> Result<Response, Status> {
        let Target {
            resource,
            namespace,
            ..
        } = &self.target;
        let list = self.query.list(resource, namespace)?;
        let options = self.delete_options()?;
        let items = self
            .context
            .registry
            .delete_collection(resource, &list, &options)?;
        let version = *self.context.registry.store().versions().borrow();
        let list = super::super::registry::List {
            items,
            version,
            continue_at: None,
            remaining: 0,
        };
        Ok(respond::json(
            200,
            &self.accept.list(resource, &list, self.query.include()),
        ))
    }

    fn scale(&self, method: &str) -> Result<Response, Status> {
        let registry = &self.context.registry;
        let options = || self.query.write(&self.agent);
        let scale = match method {
            "GET" => registry.scale(&self.key())?,
            "PUT" => {
                let scale = self.value()?;
                registry.set_scale(&self.key(), |_| Ok(scale), &options()?)?
            }
            "PATCH" => {
                let patch = Patch::parse(&self.content_type, &self.body)?;
                registry.patch_scale(&self.key(), &patch, &options()?)?
            }
            _ => return Err(Status::method_not_allowed()),
        };
        Ok(respond::json(200, &scale))
    }

    fn bind(&self) -> Result<Response, Status> {
        let binding = self.value()?;
        let node = object::text(&binding, "/target/name");
        if node.is_empty() {
            return Err(Status::bad_request("target.name: Required value"));
        }
        let Target {
            namespace, name, ..
        } = &self.target;
        let options = self.query.write(&self.agent)?;
        self.context
            .registry
            .bind(namespace, name, node, &options)?;
        let status =
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
        Ok(respond::json(201, &status))
    }

    fn finalize(&self) -> Result<Response, Status> {
        let namespace = self.value()?;
        let finalizers = object::at(&namespace, "/spec/finalizers");
        let options = self.query.write(&self.agent)?;
        let name = &self.target.name;
        let written = self
            .context
            .registry
            .finalize_namespace(name, finalizers, &options)?;
        Ok(self.written(&written))
    }
}
