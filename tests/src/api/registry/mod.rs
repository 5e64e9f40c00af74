//! The API's behaviour without HTTP: what the server answers and what controllers call in-process.
//!
//! Every write runs as one transaction on the store: read, change, decode, default, validate,
//! allocate, commit. Whatever fails leaves everything as it was.

mod delete;
mod read;
mod scale;
mod write;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;

pub use self::delete::{DeleteOptions, Deleted};
pub use self::read::{Event, EventKind, List, ListOptions, VersionMatch, Watch, WatchOptions};
pub use self::write::{Part, WriteOptions, Written};
use super::resources::NAMESPACES;
use super::services::{Allocations, ServiceRanges};
use super::store::Store;

/// The objects of a cluster with the rules of their API.
#[derive(Debug)]
pub struct Registry {
    store: Store,
    services: Mutex<Allocations>,
}

impl Registry {
    /// A cluster with the usual namespaces and nothing in them.
    #[must_use]
    pub fn new(ranges: ServiceRanges) -> Self {
        let registry = Registry {
            store: Store::default(),
            services: Mutex::new(Allocations::new(ranges)),
        };
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace = json!({ "metadata": { "name": name } });
            let options = WriteOptions::by("kube-apiserver");
            if let Err(error) = registry.create(&NAMESPACES, "", namespace, &options) {
                tracing::error!(%error, name, "cannot make a namespace of the system");
            }
        }
        registry
    }

    /// The raw objects. Writing here goes around every rule.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn services(&self) -> MutexGuard<'_, Allocations> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
