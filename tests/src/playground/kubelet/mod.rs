//! A miniature kubelet: what a node does for the pods that are bound to it.
//!
//! It watches the pods of its node and gives each a worker ([`pod`]). What a pod runs is a plain
//! process in the pod's network namespace and cgroup, started by the image of [`container`];
//! networking comes from the CNI plugins that the node's configuration names, as in a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::cni;
use super::node::Addresses;
use crate::netns::Netns;

mod capabilities;
mod container;
mod pod;
mod probe;
mod status;

/// How long a broken watch rests.
const WATCH_PAUSE: Duration = Duration::from_millis(200);

/// What the kubelet knows of its node.
pub struct Host {
    /// The playground's id.
    pub playground: String,
    /// The node's name.
    pub node: String,
    /// The node's addresses.
    pub addresses: Addresses,
    /// The node's namespace.
    pub netns: Arc<Netns>,
    /// The node's CNI set-up.
    pub cni: cni::Runtime,
    /// The cgroup below which pods get theirs.
    pub cgroup: PathBuf,
    /// Where containers' output goes.
    pub log_dir: PathBuf,
    /// The program that every image holds.
    pub program: PathBuf,
    /// The pods that run.
    pub sandboxes: Sandboxes,
}

/// A pod's surroundings.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id, as the runtime names it to the plugins.
    pub container_id: String,
    /// Its namespace; the node's for host-network pods.
    pub netns: Arc<Netns>,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Its first address.
    pub address: std::net::IpAddr,
    /// All its addresses, in the order of the CNI result.
    pub addresses: Vec<std::net::IpAddr>,
}

/// The sandboxes of a node's pods, by namespace and name.
#[derive(Clone, Debug, Default)]
pub struct Sandboxes(Arc<Mutex<ByName>>);

type ByName = BTreeMap<(String, String), Arc<Sandbox>>;

impl Sandboxes {
    /// A pod's sandbox.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Sandbox>> {
        self.locked(|map| map.get(&(namespace.to_owned(), name.to_owned())).cloned())
    }

    fn insert(&self, namespace: &str, name: &str, sandbox: Arc<Sandbox>) {
        self.locked(|map| map.insert((namespace.to_owned(), name.to_owned()), sandbox));
    }

    /// Forgets a sandbox; a later one of the same name stays.
    fn remove(&self, namespace: &str, name: &str, sandbox: &Arc<Sandbox>) {
        let key = (namespace.to_owned(), name.to_owned());
        self.locked(|map| {
            if map
                .get(&key)
                .is_some_and(|current| Arc::ptr_eq(current, sandbox))
            {
                map.remove(&key);
            }
        });
    }

    fn locked<T>(&self, work: impl FnOnce(&mut ByName) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A running kubelet; ends when it is dropped.
pub struct Kubelet {
    task: JoinHandle<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts the kubelet of a node.
pub fn start(runtime: &tokio::runtime::Handle, client: Client, host: Host) -> Kubelet {
    let host = Arc::new(host);
    Kubelet {
        task: runtime.spawn(watch_pods(client, host)),
    }
}

/// What a pod's worker is told.
#[derive(Clone)]
enum Wanted {
    /// The object as it is now.
    Present(Box<Pod>),
    /// The object is gone.
    Absent,
}

async fn watch_pods(client: Client, host: Arc<Host>) {
    let pods: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", host.node));
    let events = watcher::watcher(pods, config);
    pin_mut!(events);
    let mut fleet = Fleet {
        client,
        host,
        workers: BTreeMap::new(),
        tasks: JoinSet::new(),
    };
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(pod)) => fleet.update(pod),
            Ok(Event::Delete(pod)) => fleet.remove(&pod.uid().unwrap_or_default()),
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(pod.uid().unwrap_or_default());
                fleet.update(pod);
            }
            Ok(Event::InitDone) => fleet.retain(&listed),
            Err(error) => {
                tracing::warn!(node = fleet.host.node, "watching pods: {error}");
                tokio::time::sleep(WATCH_PAUSE).await;
            }
        }
    }
}

/// The workers of a node's pods, by uid.
struct Fleet {
    client: Client,
    host: Arc<Host>,
    workers: BTreeMap<String, watch::Sender<Wanted>>,
    /// Aborts the workers with the kubelet.
    tasks: JoinSet<()>,
}

impl Fleet {
    fn update(&mut self, pod: Pod) {
        self.sweep();
        let uid = pod.uid().unwrap_or_default();
        if let Some(worker) = self.workers.get(&uid) {
            worker.send_replace(Wanted::Present(Box::new(pod)));
            return;
        }
        let (sender, receiver) = watch::channel(Wanted::Present(Box::new(pod.clone())));
        self.workers.insert(uid, sender);
        self.tasks.spawn(pod::run(
            self.client.clone(),
            Arc::clone(&self.host),
            pod,
            receiver,
        ));
    }

    fn remove(&mut self, uid: &str) {
        if let Some(worker) = self.workers.remove(uid) {
            worker.send_replace(Wanted::Absent);
        }
    }

    fn retain(&mut self, listed: &BTreeSet<String>) {
        let gone: Vec<_> = self
            .workers
            .keys()
            .filter(|uid| !listed.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.remove(&uid);
        }
    }

    fn sweep(&mut self) {
        self.workers.retain(|_, worker| !worker.is_closed());
        while self.tasks.try_join_next().is_some() {}
    }
}

/// Runs blocking work; only what blocks for a bounded time belongs here.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("the work panicked")?
}
