//! Get, list and watch.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::Registry;
use crate::api::object;
use crate::api::resources::Resource;
use crate::api::selector::Selector;
use crate::api::status::Status;
use crate::api::store::{Change, Key, Object};

/// How `resourceVersion` of a list is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    /// At least that version.
    NotOlderThan,
    /// Exactly that version.
    Exact,
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Only this namespace; empty for all.
    pub namespace: String,
    /// Only what is selected.
    pub selector: Selector,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// Where a former list ended.
    pub continue_from: Option<String>,
    /// The version asked for and how; 0 means any.
    pub version: Option<(u64, VersionMatch)>,
}

/// A list of objects.
#[derive(Debug)]
pub struct List {
    /// The objects, in the order of namespace and name.
    pub items: Vec<Object>,
    /// The version at which it is true.
    pub version: u64,
    /// Where to go on, when there are more.
    pub continue_at: Option<String>,
    /// How many more there are.
    pub remaining: usize,
}

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// Only this namespace; empty for all.
    pub namespace: String,
    /// Only what is selected.
    pub selector: Selector,
    /// Changes after this version; `None` begins at the newest version.
    pub version: Option<u64>,
    /// Whether everything there is comes first, as added. Replaces `version`.
    pub initial: bool,
}

/// What happened to an object, as a watch tells it.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened, seen through the selector.
    pub kind: EventKind,
    /// The object.
    pub object: Object,
}

/// See [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The object is now selected.
    Added,
    /// The object was selected and still is.
    Modified,
    /// The object is gone or no longer selected.
    Deleted,
}

impl EventKind {
    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Added => "ADDED",
            EventKind::Modified => "MODIFIED",
            EventKind::Deleted => "DELETED",
        }
    }
}

impl Registry {
    /// The object of that name; `namespace` is empty for a cluster-scoped one.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn get(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Object, Status> {
        let key = Key::new(resource, namespace, name);
        self.store()
            .transaction()
            .get(&key)
            .ok_or_else(|| Status::not_found(resource, name))
    }

    /// All objects of the resource, in a namespace or, when it is empty, everywhere.
    #[must_use]
    pub fn all(&self, resource: &'static Resource, namespace: &str) -> Vec<Object> {
        let transaction = self.store().transaction();
        transaction
            .list(resource, namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Lists objects.
    ///
    /// # Errors
    ///
    /// When the version asked for is not kept or not there yet, or the continuation makes no sense.
    pub fn list(&self, resource: &'static Resource, options: &ListOptions) -> Result<List, Status> {
        let transaction = self.store().transaction();
        let newest = transaction.version();
        let start = options
            .continue_from
            .as_deref()
            .map(parse_continue)
            .transpose()?;
        let (version, after) = match (start, options.version) {
            (Some((version, after)), _) => (version, Some(after)),
            (None, Some((version, _))) if version > newest => {
                return Err(Status::too_large(version, newest));
            }
            (None, Some((version, VersionMatch::Exact))) => (version, None),
            (None, _) => (newest, None),
        };
        let old: BTreeMap<Key, Object>;
        let objects: Box<dyn Iterator<Item = (&Key, &Object)>> =
            if version == newest {
                Box::new(transaction.list(resource, &options.namespace))
            } else {
                old = transaction.list_at(resource, &options.namespace, version).map_err(|error| {
                if after.is_none() {
                    return error;
                }
                Status::expired(
                    "The provided continue parameter is too old to display a consistent list \
                     result. You must start a new list without the continue parameter.",
                )
            })?;
                Box::new(old.iter())
            };
        let mut selected = objects
            .filter(|(key, _)| {
                after
                    .as_ref()
                    .is_none_or(|(namespace, name)| (&key.namespace, &key.name) > (namespace, name))
            })
            .filter(|(_, object)| options.selector.matches(object));
        let limit = if options.limit == 0 {
            usize::MAX
        } else {
            options.limit
        };
        let page: Vec<_> = selected.by_ref().take(limit).collect();
        let remaining = selected.count();
        let continue_at = page
            .last()
            .filter(|_| remaining > 0)
            .map(|(key, _)| format!("{version}:{}/{}", key.namespace, key.name));
        let items = page.into_iter().map(|(_, object)| object.clone()).collect();
        Ok(List {
            items,
            version,
            continue_at,
            remaining,
        })
    }

    /// Begins a watch.
    ///
    /// # Errors
    ///
    /// When the version asked for is no longer kept.
    pub fn watch(
        &self,
        resource: &'static Resource,
        options: WatchOptions,
    ) -> Result<(Vec<Event>, Watch<'_>), Status> {
        let versions = self.store().versions();
        let transaction = self.store().transaction();
        let newest = transaction.version();
        let mut events = Vec::new();
        if options.initial {
            let selected = transaction
                .list(resource, &options.namespace)
                .filter(|(_, object)| options.selector.matches(object));
            events.extend(selected.map(|(_, o)| Event {
                kind: EventKind::Added,
                object: o.clone(),
            }));
        }
        let cursor = if options.initial {
            newest
        } else {
            options.version.unwrap_or(newest)
        };
        if cursor <= newest {
            // Only whether they are still kept.
            let _ = transaction.changes(cursor)?;
        }
        drop(transaction);
        let WatchOptions {
            namespace,
            selector,
            ..
        } = options;
        let watch = Watch {
            registry: self,
            resource,
            namespace,
            selector,
            cursor,
            versions,
        };
        Ok((events, watch))
    }
}

fn parse_continue(token: &str) -> Result<(u64, (String, String)), Status> {
    let parse = || {
        let (version, rest) = token.split_once(':')?;
        let (namespace, name) = rest.split_once('/')?;
        Some((
            version.parse().ok()?,
            (namespace.to_owned(), name.to_owned()),
        ))
    };
    parse().ok_or_else(|| Status::bad_request(format!("continue key is not valid: {token:?}")))
}

/// A running watch. It holds no objects: a slow reader is told that it is too old.
#[derive(Debug)]
pub struct Watch<'a> {
    registry: &'a Registry,
    resource: &'static Resource,
    namespace: String,
    selector: Selector,
    cursor: u64,
    versions: watch::Receiver<u64>,
}

impl Watch<'_> {
    /// The version up to which everything was told.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.cursor
    }

    /// What happened since; waits until the store changed, which may concern other objects only.
    ///
    /// # Errors
    ///
    /// When changes that were not yet told are no longer kept.
    pub async fn next(&mut self) -> Result<Vec<Event>, Status> {
        let cursor = self.cursor;
        // The sender lives in the registry, which outlives this.
        let _ = self.versions.wait_for(|version| *version > cursor).await;
        let transaction = self.registry.store().transaction();
        let (changes, newest) = transaction.changes(self.cursor)?;
        let events = changes.filter_map(|change| self.see(change)).collect();
        drop(transaction);
        self.cursor = newest;
        Ok(events)
    }

    fn see(&self, change: &Change) -> Option<Event> {
        let key = &change.key;
        if key.resource != self.resource
            || !(self.namespace.is_empty() || key.namespace == self.namespace)
        {
            return None;
        }
        let before = change
            .before
            .as_ref()
            .filter(|before| self.selector.matches(before));
        let is_selected = !change.deleted && self.selector.matches(&change.after);
        let event = match (before, is_selected) {
            (None, false) => return None,
            (None, true) => Event {
                kind: EventKind::Added,
                object: change.after.clone(),
            },
            (Some(_), true) => Event {
                kind: EventKind::Modified,
                object: change.after.clone(),
            },
            (Some(_), false) if change.deleted => Event {
                kind: EventKind::Deleted,
                object: change.after.clone(),
            },
            (Some(before), false) => {
                // The last state that was selected, at the version of the change.
                let mut last = (**before).clone();
                let version = change.version.to_string().into();
                object::metadata(&mut last).insert("resourceVersion".to_owned(), version);
                Event {
                    kind: EventKind::Deleted,
                    object: last.into(),
                }
            }
        };
        Some(event)
    }
}
