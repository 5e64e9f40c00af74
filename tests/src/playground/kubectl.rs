//! What `kubectl` does for a person, for tests: apply manifests, get, patch, delete.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::discovery::{Discovery, Scope};
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize as _;
use serde_json::Value;

/// Who the API server is told to be the author of applied fields.
const MANAGER: &str = "playground";

/// Applies every document of a YAML text, in order, as `kubectl apply --server-side` does.
///
/// # Errors
///
/// At the first document that is no object of a known kind or that the API server refuses.
pub async fn apply(client: &Client, yaml: &str) -> Result<Vec<DynamicObject>> {
    let kinds = Kinds::discover(client).await?;
    let mut applied = Vec::new();
    for object in documents(yaml)? {
        let what = describe(&object);
        let api = kinds.api(client, &object).with_context(|| what.clone())?;
        let parameters = PatchParams::apply(MANAGER).force();
        let done = api
            .patch(&object.name_any(), &parameters, &Patch::Apply(&object))
            .await;
        applied.push(done.with_context(|| format!("applying {what}"))?);
    }
    Ok(applied)
}

/// Deletes every object of a YAML text; what does not exist is fine.
///
/// # Errors
///
/// At the first document that is no object of a known kind or that the API server refuses to delete.
pub async fn delete(client: &Client, yaml: &str) -> Result<()> {
    let kinds = Kinds::discover(client).await?;
    for object in documents(yaml)? {
        let what = describe(&object);
        let api = kinds.api(client, &object).with_context(|| what.clone())?;
        match api
            .delete(&object.name_any(), &DeleteParams::default())
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => {
                done.with_context(|| format!("deleting {what}"))?;
            }
        }
    }
    Ok(())
}

/// The objects of a YAML text with any number of documents.
fn documents(yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for (index, document) in serde_norway::Deserializer::from_str(yaml).enumerate() {
        let place = || format!("document {} of the manifest", index + 1);
        let value = Value::deserialize(document).with_context(place)?;
        if value.is_null() {
            continue;
        }
        let object: DynamicObject = serde_json::from_value(value).with_context(place)?;
        if object.metadata.name.is_none() {
            bail!("{}: the object has no name", place());
        }
        objects.push(object);
    }
    Ok(objects)
}

fn describe(object: &DynamicObject) -> String {
    let kind = object
        .types
        .as_ref()
        .map_or("object", |types| types.kind.as_str());
    match object.namespace() {
        Some(namespace) => format!("{kind} {namespace}/{}", object.name_any()),
        None => format!("{kind} {}", object.name_any()),
    }
}

/// The kinds that the API server knows, by apiVersion and kind.
struct Kinds(BTreeMap<(String, String), (ApiResource, Scope)>);

impl Kinds {
    async fn discover(client: &Client) -> Result<Self> {
        let discovery = Discovery::new(client.clone())
            .run()
            .await
            .context("asking the API server for its kinds")?;
        let mut kinds = BTreeMap::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                let key = (resource.api_version.clone(), resource.kind.clone());
                kinds.insert(key, (resource, capabilities.scope));
            }
        }
        Ok(Kinds(kinds))
    }

    fn api(&self, client: &Client, object: &DynamicObject) -> Result<Api<DynamicObject>> {
        let types = object
            .types
            .as_ref()
            .context("the object has no apiVersion and kind")?;
        let key = (types.api_version.clone(), types.kind.clone());
        let (resource, scope) = self.0.get(&key).with_context(|| {
            format!(
                "the API server knows no {} in {}",
                types.kind, types.api_version
            )
        })?;
        Ok(match scope {
            Scope::Cluster => Api::all_with(client.clone(), resource),
            Scope::Namespaced => {
                let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
                Api::namespaced_with(client.clone(), &namespace, resource)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_and_empty_ones_skipped() {
        let yaml = "---\n# nothing\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n\
                    ---\napiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: a}\n";
        let objects = documents(yaml).unwrap();
        let described: Vec<_> = objects.iter().map(describe).collect();
        assert_eq!(described, ["Namespace a", "Pod a/b"]);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for yaml in [
            "[",
            "- a",
            "a: b",
            "apiVersion: v1\nkind: Pod\nmetadata: {}",
        ] {
            assert!(documents(yaml).is_err(), "{yaml}");
        }
    }
}
