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
use super::object;
use super::resources::{NAMESPACES, SERVICECIDRS};
use super::services::{Allocations, DEFAULT_RANGE, ServiceRanges};
use super::status::Status;
use super::store::{Key, Store};

/// The objects of a cluster with the rules of their API.
#[derive(Debug)]
pub struct Registry {
    store: Store,
    services: Mutex<Allocations>,
}

impl Registry {
    /// A cluster with the usual namespaces, the ServiceCIDR `kubernetes`, and nothing else.
    #[must_use]
    pub fn new(ranges: &ServiceRanges) -> Self {
        let registry = Registry {
            store: Store::default(),
            services: Mutex::new(Allocations::new(ranges)),
        };
        if let Err(error) = registry.create_default_range(ranges) {
            tracing::error!(%error, "cannot make the default ServiceCIDR");
        }
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace = json!({ "metadata": { "name": name } });
            let options = WriteOptions::by("kube-apiserver");
            if let Err(error) = registry.create(&NAMESPACES, "", namespace, &options) {
                tracing::error!(%error, name, "cannot make a namespace of the system");
            }
        }
        registry
    }

    fn create_default_range(&self, ranges: &ServiceRanges) -> Result<(), Status> {
        let cidrs: Vec<_> = ranges.cidrs.iter().map(ToString::to_string).collect();
        let range = json!({ "metadata": { "name": DEFAULT_RANGE }, "spec": { "cidrs": cidrs } });
        let options = WriteOptions::by("kube-apiserver");
        self.create(&SERVICECIDRS, "", range, &options)?;
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": object::now(),
            "message": "Kubernetes default Service CIDR is ready",
        });
        let key = Key::new(&SERVICECIDRS, "", DEFAULT_RANGE);
        self.modify(&key, Part::Status, &options, |range| {
            let mut range = range.clone();
            range["status"] = json!({ "conditions": [ready] });
            Ok(range)
        })
        .map(drop)
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
