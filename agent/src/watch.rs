//! Watching the Kubernetes API: one task per kind, all into one typed [`ClusterState`].
//!
//! ```text
//!   list+watch (kube) --> converted by weft-core as it arrives --> ClusterState --> changed()
//!                                                                  `-----------> Dirty: what changed
//! ```
//!
//! Only what the compiler reads is kept; an update that changes none of it (a heartbeat, a counter)
//! wakes nobody.
//!
//! Invariants:
//! - Nothing is compiled before every kind was listed once ([`Cluster::synced`]).
//! - When the API vanishes, the last state stays, for ever. A new list replaces a kind at once,
//!   when it is complete, so deletes that were missed are found and no half list is ever seen.
//! - An object that cannot be decoded keeps its last good version, so that no policy is lost to a
//!   typing mistake; it is reported, and the others of its kind go on.
//! - A kind that older API servers do not have holds nothing up: where there is none, it has no objects.

mod dirty;
mod guard;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use weft_core::convert::{self, ConvertError, Converted};
use weft_core::model::{ClusterState, ObjectKey, Warning};

pub use self::dirty::Dirty;
use self::dirty::{Mark, Marker};
use self::guard::Guard;
use crate::backoff::Backoff;
use crate::errors::chain;

/// Services that another proxy handles are not even fetched.
const SERVICES: &str = "!service.kubernetes.io/service-proxy-name";

/// The kinds that are watched, by the name that status shows.
pub const KINDS: [&str; 7] = [
    "nodes",
    "namespaces",
    "pods",
    "services",
    "endpointslices",
    "networkpolicies",
    "servicecidrs",
];

/// The longest pause between attempts to watch a kind.
const PAUSE: Duration = Duration::from_secs(5);
/// The same for a kind that the API may not have.
const OPTIONAL_PAUSE: Duration = Duration::from_secs(30);

/// How one watch is doing.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WatchStatus {
    /// Listed completely at least once since the agent started.
    pub synced: bool,
    /// The last thing that the watch said was no error.
    pub connected: bool,
    /// Objects in the store.
    pub objects: usize,
    /// Objects that came, changed or went so far.
    pub changes: u64,
    /// Complete lists so far: the first one, and one after each gap.
    pub lists: u64,
    /// Errors so far.
    pub errors: u64,
    /// The last error, kept when the watch recovers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the watch last failed.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "unix_seconds"
    )]
    pub last_error_at: Option<SystemTime>,
}

/// Times go to the operator as seconds since 1970.
pub(crate) fn unix_seconds<S: serde::Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map(|since| since.as_secs()).serialize(serializer)
}

/// The cluster as the watches know it.
#[derive(Debug)]
pub struct Cluster {
    inner: Mutex<Inner>,
    changed: Notify,
    reconnect: Notify,
    synced: watch::Sender<bool>,
}

#[derive(Debug)]
struct Inner {
    state: ClusterState,
    dirty: Dirty,
    watches: BTreeMap<&'static str, WatchStatus>,
    /// Warnings by kind and object, as long as the object is there.
    warnings: BTreeMap<(&'static str, String), Vec<Warning>>,
}

impl Cluster {
    /// Nothing known yet.
    pub fn new(node_name: &str) -> Arc<Self> {
        let state = ClusterState {
            node_name: node_name.to_owned(),
            ..ClusterState::default()
        };
        let watches = KINDS
            .iter()
            .map(|kind| (*kind, WatchStatus::default()))
            .collect();
        Arc::new(Self {
            inner: Mutex::new(Inner {
                state,
                dirty: Dirty::default(),
                watches,
                warnings: BTreeMap::new(),
            }),
            changed: Notify::new(),
            reconnect: Notify::new(),
            synced: watch::Sender::new(false),
        })
    }

    /// Starts the watches, whose requests last this many seconds each. They end with the set.
    pub fn start(self: &Arc<Self>, client: &Client, timeout: u32, tasks: &mut JoinSet<()>) {
        let plain = || watcher::Config::default().timeout(timeout);
        tasks.spawn(run(
            self.clone(),
            Api::<Guard<Node>>::all(client.clone()),
            plain(),
            NODES,
        ));
        tasks.spawn(run(
            self.clone(),
            Api::all(client.clone()),
            plain(),
            NAMESPACES,
        ));
        tasks.spawn(run(self.clone(), Api::all(client.clone()), plain(), PODS));
        tasks.spawn(run(
            self.clone(),
            Api::all(client.clone()),
            plain().labels(SERVICES),
            SERVICE_KIND,
        ));
        tasks.spawn(run(self.clone(), Api::all(client.clone()), plain(), SLICES));
        tasks.spawn(run(
            self.clone(),
            Api::all(client.clone()),
            plain(),
            POLICIES,
        ));
        tasks.spawn(run(
            self.clone(),
            Api::all(client.clone()),
            plain(),
            SERVICE_CIDRS,
        ));
    }

    /// Has the watches begin anew with connections of their own: those that there are lead nowhere.
    /// What is known stays until the new lists replace it.
    pub fn reconnect(&self) {
        self.reconnect.notify_one();
    }

    /// Resolves after the next [`Self::reconnect`], or at once if there was one since the last call.
    pub async fn must_reconnect(&self) {
        self.reconnect.notified().await;
    }

    /// Resolves after the next change, or at once if there was one since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes who waits for [`Self::changed`].
    pub fn notify(&self) {
        self.changed.notify_one();
    }

    /// Whether every kind was listed once.
    pub fn synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until every kind was listed once.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender is in `self`, so the channel cannot be closed.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Calls `read` with the state. It must be short: the watches wait.
    pub fn with<T>(&self, read: impl FnOnce(&ClusterState) -> T) -> T {
        read(&self.lock().state)
    }

    /// Calls `write` with the state, to set what does not come from the API.
    pub fn update<T>(&self, write: impl FnOnce(&mut ClusterState) -> T) -> T {
        write(&mut self.lock().state)
    }

    /// What the API's objects changed since the last call. Who could not do what that asks for must
    /// keep it.
    pub fn take_dirty(&self) -> Dirty {
        std::mem::take(&mut self.lock().dirty)
    }

    /// How each watch is doing.
    pub fn watches(&self) -> BTreeMap<&'static str, WatchStatus> {
        self.lock().watches.clone()
    }

    /// Objects of this kind that came, changed or went so far.
    pub fn changes(&self, kind: &str) -> u64 {
        self.lock()
            .watches
            .get(kind)
            .map_or(0, |watch| watch.changes)
    }

    /// Whether the watch of pods has a connection.
    pub fn pods_connected(&self) -> bool {
        self.lock()
            .watches
            .get("pods")
            .is_some_and(|pods| pods.connected)
    }

    /// What is wrong with objects, at the moment.
    pub fn warnings(&self) -> Vec<Warning> {
        self.lock().warnings.values().flatten().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A poisoned lock means that a reader panicked; the state is whole, each change is one
        // insert or removal.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How objects are told apart.
trait Id: Ord + Clone + ToString + Send + 'static {
    fn of(meta: &ObjectMeta) -> Self;
}

impl Id for String {
    fn of(meta: &ObjectMeta) -> Self {
        meta.name.clone().unwrap_or_default()
    }
}

impl Id for ObjectKey {
    fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

/// A watched kind: how its objects become typed, and where they go.
struct Kind<K, I, M> {
    name: &'static str,
    convert: fn(&K) -> Result<Converted<M>, ConvertError>,
    table: fn(&mut ClusterState) -> &mut BTreeMap<I, M>,
    /// How services hear of a change.
    mark: Mark<I>,
    /// Whether the API may not have it.
    optional: bool,
}

impl<K, I, M> Clone for Kind<K, I, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, I, M> Copy for Kind<K, I, M> {}

const NODES: Kind<Node, String, weft_core::model::Node> = Kind {
    name: KINDS[0],
    convert: convert::node,
    table: |state| &mut state.nodes,
    mark: |_, _| {},
    optional: false,
};
const NAMESPACES: Kind<Namespace, String, weft_core::model::Namespace> = Kind {
    name: KINDS[1],
    convert: convert::namespace,
    table: |state| &mut state.namespaces,
    mark: |_, _| {},
    optional: false,
};
const PODS: Kind<Pod, ObjectKey, weft_core::model::Pod> = Kind {
    name: KINDS[2],
    convert: convert::pod,
    table: |state| &mut state.pods,
    mark: |_, _| {},
    optional: false,
};
const SERVICE_KIND: Kind<Service, ObjectKey, weft_core::model::Service> = Kind {
    name: KINDS[3],
    convert: convert::service,
    table: |state| &mut state.services,
    mark: |dirty, key| dirty.service(key.clone()),
    optional: false,
};
const SLICES: Kind<EndpointSlice, ObjectKey, weft_core::model::EndpointSlice> = Kind {
    name: KINDS[4],
    convert: convert::endpoint_slice,
    table: |state| &mut state.slices,
    mark: |dirty, key| dirty.slice(key.clone()),
    optional: false,
};
const POLICIES: Kind<NetworkPolicy, ObjectKey, weft_core::model::NetworkPolicy> = Kind {
    name: KINDS[5],
    convert: convert::network_policy,
    table: |state| &mut state.policies,
    mark: |_, _| {},
    optional: false,
};

const SERVICE_CIDRS: Kind<ServiceCIDR, String, weft_core::model::ServiceCidr> = Kind {
    name: KINDS[6],
    convert: convert::service_cidr,
    table: |state| &mut state.service_cidrs,
    mark: |_, _| {},
    // Since 1.33.
    optional: true,
};

/// A list that is being received.
struct Listing<I, M> {
    objects: BTreeMap<I, M>,
    /// Every object's name, also of those that could not be used.
    names: BTreeSet<String>,
}

impl<I, M> Default for Listing<I, M> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            names: BTreeSet::new(),
        }
    }
}

async fn run<K, I, M>(
    cluster: Arc<Cluster>,
    api: Api<Guard<K>>,
    config: watcher::Config,
    kind: Kind<K, I, M>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    I: Id,
    M: PartialEq + Clone + Send + 'static,
{
    // Fast enough to recover within seconds, slow enough not to press an API server that starts.
    let longest = if kind.optional { OPTIONAL_PAUSE } else { PAUSE };
    let backoff = Backoff::new(Duration::from_millis(200), longest);
    // The announcement of a list is no success: a backoff that took it for one would never grow.
    let events = watcher::watcher(api, config)
        .try_filter(|event| std::future::ready(!matches!(event, Event::Init)))
        .backoff(backoff);
    follow(&cluster, kind, events).await;
}

/// Applies a watch's events for ever.
async fn follow<K, I, M>(
    cluster: &Cluster,
    kind: Kind<K, I, M>,
    events: impl Stream<Item = watcher::Result<Event<Guard<K>>>>,
) where
    K: Resource<DynamicType = ()>,
    I: Id,
    M: PartialEq + Clone,
{
    let mut events = std::pin::pin!(events);
    let mut listing = Listing::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => cluster.apply(kind, event, &mut listing),
            Err(error) => {
                // A list that broke off is made anew from its beginning.
                listing = Listing::default();
                if kind.optional && is_refusal(&error) {
                    cluster.absent(kind.name, &error);
                } else {
                    cluster.watch_failed(kind.name, &error);
                }
            }
        }
    }
    warn!(
        kind = kind.name,
        "the watch ended; it will not be restarted"
    );
}

impl Cluster {
    fn apply<K, I, M>(
        &self,
        kind: Kind<K, I, M>,
        event: Event<Guard<K>>,
        listing: &mut Listing<I, M>,
    ) where
        K: Resource<DynamicType = ()>,
        I: Id,
        M: PartialEq + Clone,
    {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let mut first = false;
        let changes = match event {
            Event::Apply(object) => {
                let (id, model) = inner.read(kind, &object);
                inner.set(kind, id, model)
            }
            Event::Delete(object) => {
                let id = I::of(object.meta());
                inner.warnings.remove(&(kind.name, id.to_string()));
                inner.set(kind, id, None)
            }
            Event::Init => return,
            Event::InitApply(object) => {
                let (id, model) = inner.read(kind, &object);
                listing.names.insert(id.to_string());
                if let Some(model) = model {
                    listing.objects.insert(id, model);
                }
                0
            }
            Event::InitDone => {
                let Listing { objects, names } = std::mem::take(listing);
                inner
                    .warnings
                    .retain(|(of, id), _| *of != kind.name || names.contains(id));
                let table = (kind.table)(&mut inner.state);
                let mut marker = Marker::new(&mut inner.dirty, kind.name, kind.mark);
                marker.compare_all(table, &objects);
                let changes = marker.changes;
                *table = objects;
                let status = inner.watches.entry(kind.name).or_default();
                status.lists += 1;
                first = !status.synced;
                status.synced = true;
                changes
            }
        };
        let objects = (kind.table)(&mut inner.state).len();
        let status = inner.watches.entry(kind.name).or_default();
        if !status.connected && status.errors > 0 {
            info!(kind = kind.name, "the watch works again");
        }
        status.connected = true;
        status.objects = objects;
        status.changes += changes;
        self.tell(guard, changes > 0 || first);
    }

    /// Lets go of the lock, and tells of what changed under it.
    fn tell(&self, inner: MutexGuard<'_, Inner>, changed: bool) {
        let all = inner.watches.values().all(|watch| watch.synced);
        drop(inner);
        if all {
            self.synced
                .send_if_modified(|synced| !std::mem::replace(synced, true));
        }
        if changed {
            self.changed.notify_one();
        }
    }

    /// The API does not have an optional kind, or keeps it from the agent. If it did once, some API
    /// server still does: that is a failure like others, and what is known stays.
    fn absent(&self, kind: &'static str, error: &watcher::Error) {
        let mut inner = self.lock();
        let status = inner.watches.entry(kind).or_default();
        if status.lists > 0 {
            drop(inner);
            return self.watch_failed(kind, error);
        }
        let first = !std::mem::replace(&mut status.synced, true);
        if first {
            info!(kind, error = %chain(error), "the API has no such objects for the agent; going on \
                without");
        }
        // Nothing is wrong with the connection.
        status.connected = true;
        self.tell(inner, first);
    }

    fn watch_failed(&self, kind: &'static str, error: &watcher::Error) {
        let mut inner = self.lock();
        let status = inner.watches.entry(kind).or_default();
        let text = chain(error);
        // An API server that is away would otherwise fill the log.
        if status.connected || status.errors == 0 {
            warn!(kind, error = %text, "the watch failed; the last state stays, retrying");
        } else {
            debug!(kind, error = %text, "the watch failed again");
        }
        status.connected = false;
        status.errors += 1;
        status.last_error = Some(text);
        status.last_error_at = Some(SystemTime::now());
    }
}

/// Whether the API does not have what was asked for, or does not let the agent have it.
fn is_refusal(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => {
            matches!(status.code, 403 | 404)
        }
        _ => false,
    }
}

impl Inner {
    /// Puts an object in its place, or takes it away; how many changed.
    fn set<K, I: Ord, M: PartialEq>(
        &mut self,
        kind: Kind<K, I, M>,
        id: I,
        model: Option<M>,
    ) -> u64 {
        let table = (kind.table)(&mut self.state);
        let mut marker = Marker::new(&mut self.dirty, kind.name, kind.mark);
        marker.compare(&id, table.get(&id), model.as_ref());
        let changes = marker.changes;
        match model {
            Some(model) if changes > 0 => {
                table.insert(id, model);
            }
            Some(_) => {}
            None => {
                table.remove(&id);
            }
        }
        changes
    }

    /// The typed form of an object: the last good one if this one cannot be decoded.
    fn read<K, I, M>(&mut self, kind: Kind<K, I, M>, object: &Guard<K>) -> (I, Option<M>)
    where
        K: Resource<DynamicType = ()>,
        I: Id,
        M: Clone,
    {
        let id = I::of(object.meta());
        let (model, warnings) = match object.0.as_ref().map(kind.convert) {
            Ok(Ok(Converted { object, warnings })) => (Some(object), warnings),
            Ok(Err(error)) => (None, vec![warning::<K>(&id, &error.to_string())]),
            Err(invalid) => {
                let last_good = (kind.table)(&mut self.state).get(&id).cloned();
                let then = match last_good {
                    Some(_) => "its last good version stays",
                    None => "it is ignored until that is corrected",
                };
                let text = format!("cannot be decoded, {then}: {}", invalid.error);
                (last_good, vec![warning::<K>(&id, &text)])
            }
        };
        let key = (kind.name, id.to_string());
        if self.warnings.get(&key) != Some(&warnings) {
            for warning in &warnings {
                warn!(object = warning.object, "{}", warning.message);
            }
        }
        if warnings.is_empty() {
            self.warnings.remove(&key);
        } else {
            self.warnings.insert(key, warnings);
        }
        (id, model)
    }
}

fn warning<K: Resource<DynamicType = ()>>(id: &impl ToString, message: &str) -> Warning {
    Warning {
        object: format!("{} {}", K::kind(&()), id.to_string()),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
