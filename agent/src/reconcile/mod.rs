//! The loop that makes the kernel follow the cluster.
//!
//! ```text
//!   a watch, an endpoint or the node's network changed --(a few ms for more)-->
//!       node's network --> compile --diff--> maps --> programs --> uplinks --> epoch
//!         ^                                                                      |
//!         `------------------------ again after a pause <------ failed ----------'
//!
//!   inputs         what is waited for
//!   network        the node's addresses, routes, overlay device
//!   configuration  what the datapath must know of the node
//!   compilation    from the cluster to the maps; policy: endpoints that were not compiled yet
//!   clients        clients whose service has no session affinity any more
//!   deserted       processes of the node whose backend is gone
//!   programs       where they are attached
//!   failures       when to try again
//!
//!   [Shared] what other tasks see: [Maps], mirror and epoch; [Applied], what was done
//! ```
//!
//! Invariants of the order:
//! - Nothing is compiled before every watch was listed once. Until then only endpoints come and go,
//!   and new ones get no policy set, which the datapath reads as: only the own node's traffic.
//! - Programs are attached when the maps hold a complete compilation: those of an earlier agent stay
//!   until then.
//! - A route, an uplink or a socket program that fails keeps no policy from the maps, and no pod from
//!   being ready. Whatever failed is tried again.

mod applied;
mod clients;
mod compilation;
mod configuration;
mod deserted;
mod failures;
mod inputs;
mod maps;
mod network;
mod policy;
mod programs;
mod shared;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use tokio::task::block_in_place;
use tracing::{debug, warn};
use weft_core::compile::Desired;

pub use self::applied::Applied;
use self::compilation::Compilation;
use self::configuration::Constants;
use self::failures::Failures;
use self::inputs::Inputs;
pub use self::maps::Maps;
use self::network::Network;
use self::programs::Programs;
pub use self::shared::Shared;
use crate::endpoints::Record;
use crate::health::{Family, Observation};
use crate::node::NodeSetup;

/// The loop.
#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    inputs: Inputs,
    network: Network,
    constants: Constants,
    compilation: Compilation,
    programs: Programs,
    failures: Failures,
    /// Whether the next pass begins with what the maps really hold.
    full: bool,
}

impl Reconciler {
    /// A loop over what is shared.
    ///
    /// # Errors
    ///
    /// When the kernel's tick cannot be found out, or there is no netlink socket to be had.
    pub fn new(shared: Arc<Shared>, node: NodeSetup) -> Result<Self> {
        Ok(Self {
            compilation: Compilation::new(&shared),
            inputs: Inputs::new(Arc::clone(&shared.cluster))?,
            constants: Constants::find()?,
            network: Network::new(Arc::clone(&shared), node),
            programs: Programs::new(Arc::clone(&shared)),
            failures: Failures::new(),
            full: true,
            shared,
        })
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        self.network.restore().await;
        loop {
            match self.once().await {
                Ok(()) => {
                    self.failures.end();
                    self.inputs.changed(self.network.setup()).await;
                }
                Err(error) => {
                    let pause = self.failed(&error);
                    let changed = self.inputs.changed(self.network.setup());
                    // Either way it is time to try again.
                    let _ = tokio::time::timeout(pause, changed).await;
                }
            }
        }
    }

    fn failed(&mut self, error: &anyhow::Error) -> Duration {
        let text = format!("{error:#}");
        let pause = self.failures.add(&text);
        self.shared.applied.send_modify(|applied| {
            applied.clean = false;
            applied.failures += 1;
            applied.error = Some(text);
        });
        // What was written before the failure is known, but not why it failed: trust the maps.
        if let Err(error) = self.shared.maps().read_back() {
            warn!(%error, "cannot read the maps back");
        }
        self.full = true;
        pause
    }

    async fn once(&mut self) -> Result<()> {
        let started = Instant::now();
        let synced = self.shared.cluster.synced();
        if synced {
            // From here on, whatever the pass waits for.
            for family in Family::ALL {
                self.shared.health.queued(family);
            }
        }
        // Policies do not wait for a route that cannot be set: its failure counts at the end.
        let mut network = if synced {
            self.follow_network().await
        } else {
            Ok(())
        };
        if self.shared.node.borrow().is_none() {
            std::mem::replace(&mut network, Ok(()))?;
        }
        let endpoints = self.shared.endpoints.for_compiler();
        let records = self.shared.endpoints.all();
        let desired = if synced {
            block_in_place(|| self.compilation.compile(&self.shared, endpoints))
        } else {
            None
        };
        let written = block_in_place(|| self.write(synced, desired, &records));
        let is_ok = written.is_ok();
        if self.compilation.tell(&self.shared, synced, is_ok) {
            let full = std::mem::replace(&mut self.full, false);
            let took = started.elapsed();
            let observation = Observation::Synced { full, took };
            self.shared.health.observe(observation);
        }
        let entries = written?;
        if synced {
            self.programs.swap(&records)?;
            // One of these does not keep the others, nor pods from being ready.
            let uplinks = block_in_place(|| self.programs.set_uplinks());
            let sockets = block_in_place(|| self.programs.attach_sockets());
            let overlay = self.network.leave_overlay().await;
            if uplinks.is_ok() && sockets.is_ok() {
                block_in_place(|| self.shared.attacher().catch_up());
            }
            network = network.and(uplinks).and(sockets).and(overlay);
        }
        let ready = policy::ready(&self.shared.maps().mirror.policy, &records);
        self.shared.applied.send_modify(|applied| {
            applied.complete |= synced;
            applied.clean = network.is_ok();
            applied.ready = ready;
            applied.error = None;
            if entries > 0 {
                applied.at = Some(SystemTime::now());
                applied.count += 1;
                applied.entries = entries;
                applied.micros = started.elapsed().as_micros();
            }
        });
        if entries > 0 {
            debug!(entries, elapsed = ?started.elapsed(), "applied");
        }
        network
    }

    async fn follow_network(&mut self) -> Result<()> {
        let view = self.inputs.look_for_others(self.network.setup()).await?;
        self.network.follow(&view).await
    }

    /// Writes the configuration and the maps; how many entries the maps got.
    fn write(
        &mut self,
        synced: bool,
        desired: Option<Desired>,
        records: &[Record],
    ) -> Result<usize> {
        let mut maps = self.shared.maps();
        self.constants.configure(&self.shared, &mut maps)?;
        if synced {
            self.compilation
                .write(&self.shared.cluster, &mut maps, desired)
        } else {
            compilation::write_endpoints(&mut maps, records)
        }
    }
}
