//! Objects, versions and history in memory.
//!
//! One lock guards everything; every change increments one global version, which becomes the
//! object's `resourceVersion`. The last changes are kept, so that a watch can resume and a list can be
//! continued at the version where it began; what is older is gone, and asking for it is
//! [`Status::too_old`].
//!
//! Invariant: the history holds exactly the changes `horizon + 1 ..= version`, one per version.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use super::object;
use super::resources::Resource;
use super::status::Status;

/// A stored object. Never changed in place.
pub type Object = Arc<Value>;

/// How many changes are kept.
const HISTORY: usize = 16_384;

/// The name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub resource: &'static Resource,
    /// Its namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// Its name in the namespace.
    pub name: String,
}

impl Key {
    /// The key of a resource, namespace (empty: none) and name.
    #[must_use]
    pub fn new(resource: &'static Resource, namespace: &str, name: &str) -> Self {
        Key {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Change {
    /// The version this change made.
    pub version: u64,
    /// The object concerned.
    pub key: Key,
    /// Before; `None` when the object was created.
    pub before: Option<Object>,
    /// After. When the object was deleted: its last state at the version of the deletion.
    pub after: Object,
    /// Whether the object was deleted.
    pub deleted: bool,
}

/// The objects of a cluster.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    version: u64,
    horizon: u64,
    objects: BTreeMap<Key, Object>,
    history: VecDeque<Change>,
}

impl Default for Store {
    fn default() -> Self {
        let inner = Inner {
            version: 1,
            horizon: 1,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
        };
        Store {
            inner: Mutex::new(inner),
            version: watch::Sender::new(1),
        }
    }
}

impl Store {
    /// Takes the lock. Nobody else reads or writes until the transaction is dropped.
    pub fn transaction(&self) -> Transaction<'_> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Transaction {
            inner,
            version: &self.version,
        }
    }

    /// Tells the newest version, and wakes whoever awaits a newer one.
    #[must_use]
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Forgets the history: whatever asks for an older version than the newest one is too old.
    pub fn compact(&self) {
        let mut transaction = self.transaction();
        transaction.inner.horizon = transaction.inner.version;
        transaction.inner.history.clear();
    }
}

/// Exclusive access to the store.
pub struct Transaction<'a> {
    inner: MutexGuard<'a, Inner>,
    version: &'a watch::Sender<u64>,
}

impl Transaction<'_> {
    /// The newest version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.inner.version
    }

    /// The object of that key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Object> {
        self.inner.objects.get(key).cloned()
    }

    /// All objects of a resource, in the order of namespace and name; only those of `namespace`
    /// unless it is empty.
    pub fn list<'s>(
        &'s self,
        resource: &'static Resource,
        namespace: &'s str,
    ) -> impl Iterator<Item = (&'s Key, &'s Object)> {
        self.inner
            .objects
            .range(Key::new(resource, namespace, "")..)
            .take_while(move |(key, _)| {
                key.resource == resource && (namespace.is_empty() || key.namespace == namespace)
            })
    }

    /// The same as [`Self::list`] at an older version.
    ///
    /// # Errors
    ///
    /// When the version is no longer kept, or not there yet.
    pub fn list_at(
        &self,
        resource: &'static Resource,
        namespace: &str,
        version: u64,
    ) -> Result<BTreeMap<Key, Object>, Status> {
        let mut objects: BTreeMap<Key, Object> = self
            .list(resource, namespace)
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        let (undo, _) = self.changes(version)?;
        for change in undo.rev() {
            let here = change.key.resource == resource
                && (namespace.is_empty() || change.key.namespace == namespace);
            if !here {
                continue;
            }
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }

    /// The changes after `version`, oldest first, and the newest version.
    ///
    /// # Errors
    ///
    /// When changes after `version` are no longer kept, or it is not there yet.
    pub fn changes(
        &self,
        version: u64,
    ) -> Result<(impl DoubleEndedIterator<Item = &Change>, u64), Status> {
        let inner = &self.inner;
        if version < inner.horizon {
            return Err(Status::too_old(version, inner.horizon));
        }
        if version > inner.version {
            return Err(Status::too_large(version, inner.version));
        }
        let known = usize::try_from(version - inner.horizon).unwrap_or(usize::MAX);
        Ok((inner.history.iter().skip(known), inner.version))
    }

    /// Writes the object, with the next version in its metadata.
    pub fn put(&mut self, key: Key, mut object: Value) -> Object {
        let version = self.stamp(&mut object);
        let after: Object = Arc::new(object);
        let before = self.inner.objects.insert(key.clone(), after.clone());
        self.record(Change {
            version,
            key,
            before,
            after: after.clone(),
            deleted: false,
        });
        after
    }

    /// Removes the object; the result is its last state, at the version of the deletion.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        let before = self.inner.objects.remove(key)?;
        let mut last = (*before).clone();
        let version = self.stamp(&mut last);
        let after: Object = Arc::new(last);
        let key = key.clone();
        self.record(Change {
            version,
            key,
            before: Some(before),
            after: after.clone(),
            deleted: true,
        });
        Some(after)
    }

    fn stamp(&mut self, object: &mut Value) -> u64 {
        self.inner.version += 1;
        let version = self.inner.version;
        object::metadata(object).insert("resourceVersion".to_owned(), version.to_string().into());
        version
    }

    fn record(&mut self, change: Change) {
        self.inner.history.push_back(change);
        if self.inner.history.len() > HISTORY {
            self.inner.history.pop_front();
            self.inner.horizon += 1;
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        let version = self.inner.version;
        self.version
            .send_if_modified(|seen| std::mem::replace(seen, version) != version);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::resources::{NODES, PODS};

    fn pod(name: &str, n: u64) -> Value {
        json!({ "metadata": { "name": name, "namespace": "a" }, "n": n })
    }

    #[test]
    fn an_old_version_is_seen_as_it_was() {
        let store = Store::default();
        let mut t = store.transaction();
        t.put(Key::new(&PODS, "a", "x"), pod("x", 1));
        let then = t.version();
        t.put(Key::new(&PODS, "a", "x"), pod("x", 2));
        t.put(Key::new(&PODS, "a", "y"), pod("y", 1));
        t.put(Key::new(&NODES, "", "n"), json!({}));
        t.remove(&Key::new(&PODS, "a", "x"));
        let old = t.list_at(&PODS, "", then).unwrap();
        assert_eq!(old.len(), 1);
        assert_eq!(old.values().next().unwrap()["n"], 1);
        let new: Vec<_> = t
            .list(&PODS, "a")
            .map(|(key, _)| key.name.clone())
            .collect();
        assert_eq!(new, ["y"]);
        assert_eq!(t.list(&PODS, "b").count(), 0);
    }

    #[test]
    fn what_is_compacted_is_gone() {
        let store = Store::default();
        let old = {
            let mut t = store.transaction();
            t.put(Key::new(&PODS, "a", "x"), pod("x", 1));
            let old = t.version();
            t.put(Key::new(&PODS, "a", "x"), pod("x", 2));
            old
        };
        store.compact();
        let t = store.transaction();
        assert_eq!(t.changes(old).err().unwrap().code, 410);
        assert_eq!(t.changes(t.version()).unwrap().0.count(), 0);
        assert_eq!(t.changes(t.version() + 1).err().unwrap().code, 504);
    }

    #[test]
    fn history_is_bounded_and_contiguous() {
        let store = Store::default();
        let mut t = store.transaction();
        for n in 0..HISTORY as u64 + 10 {
            t.put(Key::new(&PODS, "a", "x"), pod("x", n));
        }
        let horizon = t.inner.horizon;
        let (changes, newest) = t.changes(horizon).unwrap();
        let versions: Vec<_> = changes.map(|c| c.version).collect();
        assert_eq!(versions, (horizon + 1..=newest).collect::<Vec<_>>());
        assert!(t.changes(horizon - 1).is_err());
    }
}
