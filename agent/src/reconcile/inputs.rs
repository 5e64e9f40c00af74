//! What the loop waits for: changes of the cluster and of endpoints, and of the node's network as the
//! kernel shows it.
//!
//! Invariants:
//! - A change is not missed: the kernel is listened to before it is looked at, and what it tells while
//!   it is looked at makes the look an old one.
//! - A change of the cluster does not wait for a look at the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{info, warn};

use crate::netlink::NetlinkError;
use crate::netlink::monitor::Monitor;
use crate::node::{NodeSetup, View};
use crate::watch::Cluster;

/// How long to wait for more changes after the first: an object's change often comes with others.
const DEBOUNCE: Duration = Duration::from_millis(3);

/// How long to wait for more changes of the node's network after the first: they come in bursts.
const KERNEL_DEBOUNCE: Duration = Duration::from_millis(20);
/// How old a look at the kernel may be when something else is to be done.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The inputs, and the last look at the kernel.
#[derive(Debug)]
pub struct Inputs {
    cluster: Arc<Cluster>,
    monitor: Monitor,
    /// The node's network as the kernel last showed it, unless it was told of a change since.
    view: Option<View>,
    /// The same whatever was told, and when that was.
    seen: Option<(Instant, View)>,
    /// The addresses that the node then had.
    addresses: BTreeSet<IpAddr>,
}

impl Inputs {
    /// Listens from now on. Must be called within a tokio runtime, before the first look.
    ///
    /// # Errors
    ///
    /// When there is no netlink socket to be had.
    pub fn new(cluster: Arc<Cluster>) -> Result<Self, NetlinkError> {
        Ok(Self {
            cluster,
            monitor: Monitor::new()?,
            view: None,
            seen: None,
            addresses: BTreeSet::new(),
        })
    }

    /// Waits until there is something to do. While pods come and go the kernel's answers take long,
    /// and a change of the cluster does not wait for them.
    pub async fn changed(&mut self, node: &NodeSetup) {
        let cluster = Arc::clone(&self.cluster);
        loop {
            if self.view.is_some() {
                tokio::select! {
                    () = cluster.changed() => return tokio::time::sleep(DEBOUNCE).await,
                    told = self.monitor.changed() => {
                        self.view = None;
                        if let Err(error) = told {
                            warn!(%error, "changes of the node's network may go unnoticed; \
                                listening anew");
                            tokio::time::sleep(KERNEL_DEBOUNCE).await;
                            match Monitor::new() {
                                Ok(monitor) => self.monitor = monitor,
                                Err(error) => warn!(%error, "cannot listen to the kernel"),
                            }
                            return;
                        }
                    }
                }
                tokio::select! {
                    () = cluster.changed() => return tokio::time::sleep(DEBOUNCE).await,
                    () = tokio::time::sleep(KERNEL_DEBOUNCE) => {}
                }
            }
            let looked = tokio::select! {
                () = cluster.changed() => return tokio::time::sleep(DEBOUNCE).await,
                looked = self.look(node) => looked,
            };
            match looked {
                Ok(view) if node.is_current(&view) => {}
                Ok(_) => return,
                Err(_) => {
                    // The next application tells, as it looks again.
                    self.seen = None;
                    return tokio::time::sleep(KERNEL_DEBOUNCE).await;
                }
            }
        }
    }

    /// The node's network as it was a moment ago, for what else there is to do: what changed since
    /// then is looked at before anything is waited for.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn look_for_others(&mut self, node: &NodeSetup) -> Result<View> {
        match &self.seen {
            Some((at, view)) if at.elapsed() < LOOK_AGAIN => Ok(view.clone()),
            _ => self.look(node).await,
        }
    }

    /// The node's network as it is: as the kernel showed it before, if nothing was told since.
    async fn look(&mut self, node: &NodeSetup) -> Result<View> {
        if self.monitor.drain().unwrap_or(true) {
            self.view = None;
        }
        if let Some(view) = &self.view {
            return Ok(view.clone());
        }
        let view = node.observe().await?;
        let interfaces = view.node.interfaces.values();
        let addresses: BTreeSet<IpAddr> = interfaces
            .flat_map(|interface| interface.addresses.iter().map(|address| address.ip))
            .collect();
        if let Some(gone) = self.addresses.difference(&addresses).next() {
            // A connection that has it gets no answers, and no error either.
            info!(address = %gone, "the node lost an address; connecting to the API anew");
            self.cluster.reconnect();
        }
        self.addresses = addresses;
        self.view = Some(view.clone());
        self.seen = Some((Instant::now(), view.clone()));
        Ok(view)
    }
}
