//! The compiler's part: from the cluster to the maps.
//!
//! ```text
//!   Cluster + endpoints --compile--> Desired ---diff with the mirror--> Changes --apply--> maps
//!                       --update--> services --'
//! ```
//!
//! Invariants:
//! - Nothing is compiled before every watch was listed once. Until then only endpoints come and go.
//! - What numbers mean is known before the datapath tells of them.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result};
use tracing::warn;
use weft_core::compile::{Compiler, Desired};
use weft_core::diff::{Concern, diff_policy, diff_services};
use weft_core::model::{LocalEndpoint, Warning};
use weft_core::services::Dirty;

use super::maps::Maps;
use super::policy;
use super::shared::Shared;
use crate::endpoints::Record;
use crate::health::{Counts, LocalServices, Observation, Progress};
use crate::watch::Cluster;

/// The compiler of policies, and the numbers that it gave.
#[derive(Debug)]
pub struct Compilation {
    compiler: Compiler,
    progress: Progress,
    /// What the last compilation has of the node's own endpoints.
    local: LocalServices,
}

impl Compilation {
    /// Compiles by the operator's settings.
    pub fn new(shared: &Shared) -> Self {
        let settings = shared.config.settings.clone();
        shared.cluster.update(|state| state.settings = settings);
        Self {
            compiler: Compiler::new(),
            progress: Progress::new(SystemTime::now()),
            local: LocalServices::default(),
        }
    }

    /// What the maps should hold, by the cluster as it is now and these endpoints.
    pub fn compile(
        &mut self,
        shared: &Shared,
        endpoints: BTreeMap<String, LocalEndpoint>,
    ) -> Desired {
        let counts = Counts {
            services: shared.cluster.changes("services"),
            endpoints: shared.cluster.changes("endpointslices"),
        };
        shared.cluster.update(|state| {
            state.endpoints = endpoints;
            self.progress.begin(state, counts, &shared.health);
            let started = Instant::now();
            let desired = self.compiler.compile(state);
            let compiled = Observation::Compiled(started.elapsed());
            shared.health.observe(compiled);
            self.local = LocalServices::of(state);
            desired
        })
    }

    /// Tells what became of the last writes; whether all that was compiled of services is in the maps.
    /// Policy that finds no room is no reason for load balancers to leave the node.
    pub fn tell(&mut self, shared: &Shared, compiled: bool, written: bool) -> bool {
        let outcome = shared.maps().tables.take_outcome();
        let Some(outcome) = outcome else {
            return false;
        };
        for (concern, took) in &outcome.took {
            let observation = Observation::Written(*concern, *took);
            shared.health.observe(observation);
        }
        // Without a failure of any concern, what failed was the epoch: flows do not know of it.
        let services_failed = if outcome.failed.is_empty() {
            !written
        } else {
            outcome.failed.contains(&Concern::Services)
        };
        if !compiled || services_failed {
            return false;
        }
        self.progress.done(&shared.health);
        self.local.tell(&shared.health, &shared.health_checks);
        true
    }
}

/// Makes the maps hold what is desired or, without that, these endpoints besides what they hold; how
/// many entries were written.
///
/// # Errors
///
/// When a map takes no more.
pub fn write(
    cluster: &Cluster,
    maps: &mut Maps,
    desired: Option<Desired>,
    records: &[Record],
) -> Result<usize> {
    let complete = desired.is_some();
    let changes = match desired {
        Some(desired) => {
            tell(&desired.warnings, &maps.desired.warnings);
            let known: Vec<_> = maps.services.warnings().cloned().collect();
            // The meanings first: an event of a new rule may come before this returns.
            cluster.with(|state| maps.services.update(state, &Dirty::everything()));
            tell(maps.services.warnings(), &known);
            let services = diff_services(&maps.mirror.services, maps.services.contents());
            let changes = services.then(desired.changes(&maps.mirror.policy));
            maps.desired = desired;
            changes
        }
        None => diff_policy(
            &maps.mirror.policy,
            &policy::without_policies(&maps.mirror.policy, records),
        ),
    };
    maps.apply(&changes, complete)
        .context("cannot write the maps")?;
    Ok(changes.entries())
}

/// Logs the warnings that are not known yet.
fn tell<'a>(warnings: impl IntoIterator<Item = &'a Warning>, known: &[Warning]) {
    for warning in warnings {
        if !known.contains(warning) {
            warn!(object = warning.object, "{}", warning.message);
        }
    }
}
