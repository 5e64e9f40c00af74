//! What the agent's tasks share with the loop.
//!
//! Invariant: of addresses, programs and maps nobody holds two at once, and none across an await.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::applied::Applied;
use super::maps::Maps;
use crate::bpf::attach::Attacher;
use crate::config::Config;
use crate::endpoints::Endpoints;
use crate::health::{HealthChecks, ProxyHealth};
use crate::ipam::Ipam;
use crate::node::NodeNetwork;
use crate::watch::Cluster;

/// What the agent's tasks share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// The cluster as the watches know it.
    pub cluster: Arc<Cluster>,
    /// The endpoints of this node.
    pub endpoints: Endpoints,
    /// The addresses of this node.
    pub ipam: Mutex<Ipam>,
    /// The programs.
    pub attacher: Mutex<Attacher>,
    /// The maps.
    pub maps: Mutex<Maps>,
    /// The node's network, once it is set up.
    pub node: watch::Sender<Option<NodeNetwork>>,
    /// What the last application left.
    pub applied: watch::Sender<Applied>,
    /// What load balancers and operators are told of the proxy.
    pub health: Arc<ProxyHealth>,
    /// The services whose health load balancers ask for.
    pub health_checks: watch::Sender<HealthChecks>,
}

impl Shared {
    /// The maps, locked.
    pub fn maps(&self) -> MutexGuard<'_, Maps> {
        // What a panic may leave behind is found by the next read-back.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses, locked.
    pub fn ipam(&self) -> MutexGuard<'_, Ipam> {
        // Every change is on disk before it is in memory.
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The programs, locked.
    pub fn attacher(&self) -> MutexGuard<'_, Attacher> {
        self.attacher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
