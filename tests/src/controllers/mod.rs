//! The controllers of a cluster's control plane, as far as a scenario needs them.
//!
//! Each one is level-triggered: a change says which keys to look at, looking at a key compares what
//! should be with what is, and writes the difference. They share one thread and one cursor into the
//! store's history; a key whose write failed is looked at again.
//!
//! ```text
//! Node ─ node_cidrs         Pod ─ scheduler        Namespace ─ namespaces
//! Deployment ─ deployments ─ ReplicaSet ─ replica_sets ─ Pod      DaemonSet ─ daemon_sets ─ Pod
//! Service, Pod ─ endpoint_slices ─ EndpointSlice   everything ─ garbage
//! Endpoints ─ endpoint_mirror ─ EndpointSlice
//! ServiceCIDR, IPAddress ─ service_cidrs           Service ─ load_balancers (only if asked for)
//! ```

mod daemon_sets;
mod deployments;
mod endpoint_mirror;
mod endpoint_slices;
mod garbage;
mod load_balancers;
mod namespaces;
mod node_cidrs;
mod pods;
mod replica_sets;
mod scheduler;
mod service_cidrs;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub use self::node_cidrs::{PodRange, PodRanges};
use crate::api::registry::WriteOptions;
use crate::api::resources::ALL;
use crate::api::{Change, Key, Registry, Status};

/// How soon a key is looked at again whose write failed.
const RETRY: Duration = Duration::from_millis(50);

/// Brings one kind of object into its desired state.
trait Controller: Send {
    /// Who it is, for logs and `managedFields`.
    fn name(&self) -> &'static str;

    /// The keys to look at after a change.
    fn keys(&mut self, registry: &Registry, change: &Change) -> Vec<Key>;

    /// Makes the object of the key, and what follows from it, what it should be.
    ///
    /// # Errors
    ///
    /// When a write is refused; it is tried again.
    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status>;

    /// How it writes.
    fn options(&self) -> WriteOptions {
        WriteOptions::by(self.name())
    }
}

/// What the controllers are told about the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where nodes' pod ranges come from.
    pub pods: PodRanges,
    /// The most endpoints of one slice.
    pub slice_size: usize,
    /// Where Services of type LoadBalancer get their addresses from, at most one range per family;
    /// empty for a cluster without load balancers.
    pub load_balancers: Vec<IpNet>,
}

impl Default for Settings {
    /// The defaults of Kubernetes, without load balancers.
    fn default() -> Self {
        Settings {
            pods: PodRanges::default(),
            slice_size: 100,
            load_balancers: Vec::new(),
        }
    }
}

/// The running controllers. Dropping them stops them.
#[derive(Debug)]
pub struct Controllers {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Controllers {
    /// Starts all controllers on a thread of their own.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(registry: Arc<Registry>, settings: Settings) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .context("cannot start the controllers")?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut controllers: Vec<Box<dyn Controller>> = vec![
            Box::new(namespaces::Namespaces),
            Box::new(node_cidrs::NodeCidrs::new(settings.pods)),
            Box::new(deployments::Deployments),
            Box::new(replica_sets::ReplicaSets),
            Box::new(daemon_sets::DaemonSets),
            Box::new(scheduler::Scheduler),
            Box::new(endpoint_slices::EndpointSlices::new(settings.slice_size)),
            Box::new(endpoint_mirror::EndpointMirror),
            Box::new(service_cidrs::ServiceCidrs),
            Box::new(garbage::Garbage::default()),
        ];
        if !settings.load_balancers.is_empty() {
            let balancers = load_balancers::LoadBalancers::new(settings.load_balancers);
            controllers.push(Box::new(balancers));
        }
        let thread = thread::Builder::new()
            .name("controllers".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = run(&registry, controllers) => {}
                        () = stopped.cancelled() => {}
                    }
                });
            })
            .context("cannot start the controllers")?;
        Ok(Controllers {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It has nothing to return, and a panic there was printed already.
            let _ = thread.join();
        }
    }
}

async fn run(registry: &Registry, mut controllers: Vec<Box<dyn Controller>>) {
    let mut versions = registry.store().versions();
    let mut cursor = None;
    let mut queues: Vec<BTreeSet<Key>> = controllers.iter().map(|_| BTreeSet::new()).collect();
    loop {
        let (changes, version) = changes_since(registry, cursor);
        cursor = Some(version);
        let mut failed = false;
        for (controller, queue) in controllers.iter_mut().zip(&mut queues) {
            for change in &changes {
                queue.extend(controller.keys(registry, change));
            }
            for key in std::mem::take(queue) {
                if let Err(error) = controller.reconcile(registry, &key) {
                    let name = controller.name();
                    tracing::debug!(controller = name, ?key, %error, "to be tried again");
                    queue.insert(key);
                    failed = true;
                }
            }
        }
        let retry = Instant::now() + RETRY;
        tokio::select! {
            // The sender lives in the registry.
            _ = versions.wait_for(|newest| *newest > version) => {}
            () = sleep_until(retry), if failed => {}
        }
    }
}

/// What changed after the cursor; everything there is when there is no cursor or it is too old.
fn changes_since(registry: &Registry, cursor: Option<u64>) -> (Vec<Change>, u64) {
    let transaction = registry.store().transaction();
    if let Some(Ok((changes, version))) = cursor.map(|cursor| transaction.changes(cursor)) {
        return (changes.cloned().collect(), version);
    }
    let version = transaction.version();
    let all = ALL
        .iter()
        .flat_map(|resource| transaction.list(resource, ""));
    let changes = all.map(|(key, object)| Change {
        version,
        key: key.clone(),
        before: None,
        after: object.clone(),
        deleted: false,
    });
    (changes.collect(), version)
}
