//! The caches that the controllers share, and the watches that fill them.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::cache::Cache;

/// The cluster as the watches have shown it.
pub struct Cluster {
    client: Client,
    /// Nodes.
    pub nodes: Cache<Node>,
    /// Namespaces.
    pub namespaces: Cache<Namespace>,
    /// Pods.
    pub pods: Cache<Pod>,
    /// Services.
    pub services: Cache<Service>,
    /// EndpointSlices.
    pub slices: Cache<EndpointSlice>,
    /// Deployments.
    pub deployments: Cache<Deployment>,
    /// ReplicaSets.
    pub replica_sets: Cache<ReplicaSet>,
    changed: watch::Sender<()>,
}

/// What every watched kind is.
trait Kind: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync {}

impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync> Kind for K {}

impl Cluster {
    /// Nothing known yet.
    pub fn new(client: Client) -> Self {
        Cluster {
            client,
            nodes: Cache::default(),
            namespaces: Cache::default(),
            pods: Cache::default(),
            services: Cache::default(),
            slices: Cache::default(),
            deployments: Cache::default(),
            replica_sets: Cache::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Starts the watches. They end with the set.
    pub fn start(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        tasks.spawn(fill(self.clone(), |cluster| &cluster.nodes));
        tasks.spawn(fill(self.clone(), |cluster| &cluster.namespaces));
        tasks.spawn(fill(self.clone(), |cluster| &cluster.pods));
        tasks.spawn(fill(self.clone(), |cluster| &cluster.services));
        tasks.spawn(fill(self.clone(), |cluster| &cluster.slices));
        tasks.spawn(fill(self.clone(), |cluster| &cluster.deployments));
        tasks.spawn(fill(self.clone(), |cluster| &cluster.replica_sets));
    }

    /// Waits until every kind was listed once.
    pub async fn listed(&self) {
        self.nodes.listed().await;
        self.namespaces.listed().await;
        self.pods.listed().await;
        self.services.listed().await;
        self.slices.listed().await;
        self.deployments.listed().await;
        self.replica_sets.listed().await;
    }

    /// Tells of every change of any cache; changes that come together are told once.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A client of the API server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The objects of a kind in one namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client(), namespace)
    }

    /// The objects of a kind outside namespaces.
    pub fn global_api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Api::all(self.client())
    }
}

async fn fill<K: Kind + 'static>(cluster: Arc<Cluster>, cache: fn(&Cluster) -> &Cache<K>) {
    let watch = watcher::watcher(Api::<K>::all(cluster.client()), watcher::Config::default());
    let mut events = watch.default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if cache(&cluster).update(event) {
                    cluster.changed.send_replace(());
                }
            }
            Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "the watch broke"),
        }
    }
}
