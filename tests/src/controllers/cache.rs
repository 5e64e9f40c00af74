//! The objects of one kind as its watch has shown them.
//!
//! Invariants: a new list replaces the objects at once, when it is complete; versions only grow.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};
use tokio::sync::watch;

/// How long a writer waits to see its own write. Only a write that was undone while the watch had a
/// gap is never seen; the next pass decides on what there is then.
const PATIENCE: Duration = Duration::from_secs(5);

/// The objects of one kind.
#[derive(Debug)]
pub struct Cache<K> {
    state: watch::Sender<State<K>>,
}

type Objects<K> = BTreeMap<(String, String), Arc<K>>;

#[derive(Debug)]
struct State<K> {
    objects: Objects<K>,
    /// The list that is coming in.
    listing: Objects<K>,
    /// The newest version seen.
    seen: u64,
    /// Complete lists so far.
    lists: u64,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        let state = State {
            objects: BTreeMap::new(),
            listing: BTreeMap::new(),
            seen: 0,
            lists: 0,
        };
        Cache {
            state: watch::Sender::new(state),
        }
    }
}

impl<K: Resource> Cache<K> {
    /// Takes in what the watch says. The result tells whether the objects may have changed.
    pub fn update(&self, event: Event<K>) -> bool {
        self.state.send_if_modified(|state| match event {
            Event::Init => {
                state.listing.clear();
                false
            }
            Event::InitApply(object) => {
                state.see(&object);
                state.listing.insert(name(&object), Arc::new(object));
                false
            }
            Event::InitDone => {
                state.objects = mem::take(&mut state.listing);
                state.lists += 1;
                true
            }
            Event::Apply(object) => {
                state.see(&object);
                state.objects.insert(name(&object), Arc::new(object));
                true
            }
            Event::Delete(object) => {
                state.see(&object);
                state.objects.remove(&name(&object));
                true
            }
        })
    }

    /// All objects, by namespace and name.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.state.borrow().objects.values().cloned().collect()
    }

    /// Waits for the first complete list.
    pub async fn listed(&self) {
        // Cannot fail: the sender is in `self`.
        let _ = self
            .state
            .subscribe()
            .wait_for(|state| state.lists > 0)
            .await;
    }

    /// Waits until the cache is at least as new as a write that returned `version`.
    pub async fn reach(&self, version: u64) {
        let mut state = self.state.subscribe();
        let lists = state.borrow().lists;
        let reached = state.wait_for(|state| state.seen >= version || state.lists > lists);
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            tracing::debug!(version, "a write was not seen by the watch");
        }
    }
}

impl<K: Resource> State<K> {
    fn see(&mut self, object: &K) {
        self.seen = self.seen.max(version(object));
    }
}

/// An object's version; 0 when it has none that is a number.
pub fn version(object: &impl Resource) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

fn name(object: &impl Resource) -> (String, String) {
    (
        object.meta().namespace.clone().unwrap_or_default(),
        object.name_any(),
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;

    use super::*;

    fn node(name: &str, version: u64) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node.metadata.resource_version = Some(version.to_string());
        node
    }

    fn names(cache: &Cache<Node>) -> Vec<String> {
        cache.all().iter().map(|node| node.name_any()).collect()
    }

    #[tokio::test]
    async fn a_list_replaces_everything_when_it_is_complete() {
        let cache = Cache::default();
        assert!(cache.update(Event::Apply(node("old", 1))));
        assert!(!cache.update(Event::Init));
        assert!(!cache.update(Event::InitApply(node("new", 7))));
        assert_eq!(names(&cache), ["old"]);
        assert!(cache.update(Event::InitDone));
        assert_eq!(names(&cache), ["new"]);
        cache.listed().await;
        cache.reach(7).await;
        assert!(cache.update(Event::Delete(node("new", 8))));
        assert!(names(&cache).is_empty());
        cache.reach(8).await;
    }
}
