//! The compiler's part: from the cluster to the maps.
//!
//! ```text
//!   Cluster + endpoints --compile--> policy ---diff with the mirror--> changes --apply--> maps
//!   what changed of it ---update--> services --------------------------'
//! ```
//!
//! Services and policy are compiled each by itself: most changes are of endpoint slices, and cost as
//! much as the services that they are of. Policy is compiled as a whole, when something that it rests
//! on changed.
//!
//! Invariants:
//! - What changed is taken from the watches once, and kept until it is compiled. After a failure
//!   everything is compared with what the maps hold.
//! - Nothing is compiled before every watch was listed once. Until then only endpoints come and go.
//! - What numbers mean is known before the datapath tells of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use super::maps::Maps;
use super::policy;
use super::shared::Shared;
use crate::endpoints::Record;
use crate::health::{Counts, LocalServices, Observation, Progress};
use crate::watch::{Cluster, Dirty};
use anyhow::{Context as _, Result};
use tracing::warn;
use weft_core::compile::{Compiler, Desired};
use weft_core::diff::{Concern, diff_policy, diff_services};
use weft_core::model::{ClusterState, LocalEndpoint, Node, Warning};

/// The compiler of policies, and the numbers that it gave.
#[derive(Debug)]
pub struct Compilation {
    compiler: Compiler,
    progress: Progress,
    /// What changed, and was not compiled yet.
    dirty: Dirty,
    /// What policy is being compiled of, besides the API's objects; `None`: of what it was.
    compiling: Option<Own>,
    /// What it was compiled of; `None`: that is not in the maps.
    compiled: Option<Own>,
    /// How long services took to compile, until that is told.
    took: Option<Duration>,
}

/// What policy rests on, besides the API's objects. This node's is among that: while the API has none,
/// what was known of it is put in its place, which no watch tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Own {
    node: Option<Node>,
    endpoints: BTreeMap<String, LocalEndpoint>,
    addresses: BTreeSet<IpAddr>,
}

impl Own {
    fn of(state: &ClusterState) -> Self {
        Self {
            node: state.own_node().cloned(),
            endpoints: state.endpoints.clone(),
            addresses: state.own_addresses.clone(),
        }
    }
}

/// The kinds of objects that policy has nothing to do with.
const OF_SERVICES: [&str; 2] = ["services", "endpointslices"];

impl Compilation {
    /// Compiles by the operator's settings.
    pub fn new(shared: &Shared) -> Self {
        let settings = shared.config.settings.clone();
        shared.cluster.update(|state| state.settings = settings);
        Self {
            compiler: Compiler::new(),
            progress: Progress::new(SystemTime::now()),
            dirty: Dirty::default(),
            compiling: None,
            compiled: None,
            took: None,
        }
    }

    /// Takes in the cluster as it is now, with these endpoints; what the maps should hold of policy,
    /// unless that is what they hold.
    pub fn compile(
        &mut self,
        shared: &Shared,
        endpoints: BTreeMap<String, LocalEndpoint>,
    ) -> Option<Desired> {
        let counts = Counts {
            services: shared.cluster.changes("services"),
            endpoints: shared.cluster.changes("endpointslices"),
        };
        self.dirty.merge(shared.cluster.take_dirty());
        let dirty = &self.dirty;
        let objects = dirty.kinds.iter().any(|kind| !OF_SERVICES.contains(kind));
        shared.cluster.update(|state| {
            state.endpoints = endpoints;
            self.progress
                .begin(state, &dirty.services, counts, &shared.health);
            let own = Own::of(state);
            if !objects && self.compiled.as_ref() == Some(&own) {
                return None;
            }
            // Until it is in the maps.
            self.compiled = None;
            self.compiling = Some(own);
            let started = Instant::now();
            let desired = self.compiler.compile(state);
            let compiled = Observation::Compiled(Concern::Policy, started.elapsed());
            shared.health.observe(compiled);
            Some(desired)
        })
    }

    /// Makes the maps hold what was compiled, policy included if there is any; how many entries were
    /// written.
    ///
    /// # Errors
    ///
    /// When a map takes no more.
    pub fn write(
        &mut self,
        cluster: &Cluster,
        maps: &mut Maps,
        desired: Option<Desired>,
    ) -> Result<usize> {
        let known: Vec<_> = maps.services.warnings().cloned().collect();
        let dirty = std::mem::take(&mut self.dirty);
        let started = Instant::now();
        let changes = cluster.with(|state| maps.services.update(state, &dirty.services));
        self.took = Some(started.elapsed());
        tell(maps.services.warnings(), &known);
        let mut changes = if maps.is_sound() {
            changes
        } else {
            diff_services(&maps.mirror.services, maps.services.contents())
        };
        if let Some(desired) = desired {
            tell(&desired.warnings, &maps.desired.warnings);
            changes = changes.then(desired.changes(&maps.mirror.policy));
            // The meanings first: an event of a new rule may come before this returns.
            maps.desired = desired;
        }
        let written = maps.apply(&changes, true).context("cannot write the maps");
        let compiled = self.compiling.take().or_else(|| self.compiled.take());
        self.compiled = compiled.filter(|_| written.is_ok());
        written?;
        Ok(changes.entries())
    }

    /// Tells what became of the last writes; whether all that was compiled of services is in the maps.
    /// Policy that finds no room is no reason for load balancers to leave the node.
    pub fn tell(&mut self, shared: &Shared, compiled: bool, written: bool) -> bool {
        if let Some(took) = self.took.take() {
            let compiled = Observation::Compiled(Concern::Services, took);
            shared.health.observe(compiled);
        }
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
        let local = {
            let maps = shared.maps();
            shared
                .cluster
                .with(|state| LocalServices::of(&maps.services, state))
        };
        local.tell(&shared.health, &shared.health_checks);
        true
    }
}

/// Makes the maps hold these endpoints besides what they hold, before the cluster is known; how many
/// entries were written.
///
/// # Errors
///
/// When a map takes no more.
pub fn write_endpoints(maps: &mut Maps, records: &[Record]) -> Result<usize> {
    let changes = diff_policy(
        &maps.mirror.policy,
        &policy::without_policies(&maps.mirror.policy, records),
    );
    maps.apply(&changes, false)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_rests_on_the_nodes_own_object_wherever_it_comes_from() {
        let mut state = ClusterState {
            node_name: "a".to_owned(),
            ..ClusterState::default()
        };
        // Deleted after the pass had seen that it was there, so compiled without.
        let without = Own::of(&state);
        // The next pass puts it back, and marks nothing.
        let node = Node {
            name: "a".to_owned(),
            pod_cidrs: vec!["10.0.0.0/24".parse().expect("a network")],
            ..Node::default()
        };
        state.nodes.insert(node.name.clone(), node);
        assert_ne!(Own::of(&state), without, "it is compiled again");
        // Others' changes are marked by their watch.
        let with = Own::of(&state);
        let other = Node {
            name: "b".to_owned(),
            ..Node::default()
        };
        state.nodes.insert(other.name.clone(), other);
        assert_eq!(Own::of(&state), with);
    }
}
