//! An embedded Kubernetes API server: HTTP over real sockets, objects in memory.
//!
//! ```text
//! kubectl, kube-rs ──TCP── http ──┐
//!                                 ├── registry ── store
//! controllers ── in-process ──────┘   (the rules)  (objects, versions, history)
//! ```
//!
//! It is written from Kubernetes' documented behaviour, generic over a table of [`resources`], and can
//! be told to misbehave ([`Faults`]). There is no authentication and no authorisation: whoever reaches
//! the socket may do everything.
//!
//! Invariants: everything that happens to an object happens in the [`registry`], in one transaction;
//! `http` only translates; the store outlives connections, so that a server that is stopped and
//! restarted has the same objects at the same versions.

mod decode;
mod defaults;
mod events;
mod faults;
mod http;
pub mod object;
pub mod patch;
pub mod registry;
pub mod resources;
mod selector;
mod services;
mod status;
mod store;
mod table;
mod validate;

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::decode::FieldValidation;
pub use self::faults::Faults;
pub use self::registry::Registry;
pub use self::selector::Selector;
pub use self::services::ServiceRanges;
pub use self::status::{Cause, Status};
pub use self::store::{Change, Key, Object, Store};

/// A running API server. Dropping it ends everything.
#[derive(Debug)]
pub struct ApiServer {
    registry: Arc<Registry>,
    faults: Faults,
    stop: CancellationToken,
    acceptors: TaskTracker,
    // Some until it is dropped.
    runtime: Option<Runtime>,
}

impl ApiServer {
    /// Serves an empty cluster on the listeners. They may belong to any network namespace.
    ///
    /// # Errors
    ///
    /// When the server's threads cannot be started or a listener cannot be used.
    pub fn start(listeners: Vec<TcpListener>) -> anyhow::Result<Self> {
        ApiServer::start_with(listeners, &ServiceRanges::default())
    }

    /// The same with other ranges for ClusterIPs and node ports.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn start_with(listeners: Vec<TcpListener>, ranges: &ServiceRanges) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("api-server")
            .enable_all()
            .build()
            .context("cannot start the API server's threads")?;
        let registry = Arc::new(Registry::new(ranges));
        let faults = Faults::new(registry.clone());
        let mut server = ApiServer {
            registry,
            faults,
            stop: CancellationToken::new(),
            acceptors: TaskTracker::new(),
            runtime: Some(runtime),
        };
        server.listen(listeners)?;
        Ok(server)
    }

    /// The objects and their rules, for callers in this process.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Makes the server misbehave.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Closes all listeners and connections. Objects stay.
    pub fn stop(&mut self) {
        self.stop.cancel();
        self.acceptors.close();
        if let Some(runtime) = &self.runtime {
            // Once this returns, the ports refuse connections and can be bound again. The channel
            // lets it wait on any thread, also on one of another runtime.
            let (done, wait) = std::sync::mpsc::channel::<()>();
            let tasks = self.acceptors.clone();
            runtime.spawn(async move {
                tasks.wait().await;
                drop(done);
            });
            // An error is what is waited for: the sender is gone.
            let _ = wait.recv();
        }
    }

    /// Stops, and serves the same objects on other listeners.
    ///
    /// # Errors
    ///
    /// When a listener cannot be used.
    pub fn restart(&mut self, listeners: Vec<TcpListener>) -> anyhow::Result<()> {
        self.stop();
        self.stop = CancellationToken::new();
        self.acceptors = TaskTracker::new();
        self.listen(listeners)
    }

    fn listen(&mut self, listeners: Vec<TcpListener>) -> anyhow::Result<()> {
        let runtime = self.runtime.as_ref().context("the API server is gone")?;
        let _entered = runtime.enter();
        for listener in listeners {
            listener
                .set_nonblocking(true)
                .context("cannot use a listener of the API server")?;
            let listener = tokio::net::TcpListener::from_std(listener)
                .context("cannot use a listener of the API server")?;
            let context = http::Context {
                registry: self.registry.clone(),
                faults: self.faults.clone(),
            };
            let tasks = self.acceptors.clone();
            self.acceptors
                .spawn(http::serve(listener, context, self.stop.clone(), tasks));
        }
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A kubeconfig for a server at that URL, such as `http://172.30.0.1:6443`. YAML, because JSON is.
#[must_use]
pub fn kubeconfig(server_url: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "playground", "cluster": { "server": server_url } }],
        "users": [{ "name": "playground", "user": {} }],
        "contexts": [{ "name": "playground", "context": { "cluster": "playground", "user": "playground" } }],
        "current-context": "playground",
    });
    serde_norway::to_string(&config).unwrap_or_else(|_| config.to_string())
}
