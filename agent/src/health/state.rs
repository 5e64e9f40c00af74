//! Whether the proxy follows the cluster.
//!
//! As in kube-proxy: a change is queued when it is known and done when it is in the maps; a family
//! whose oldest queued change waits for [`TIMEOUT`] is not healthy. That nothing changes is healthy,
//! however long it lasts, and so is an agent that still waits for the API: what the datapath has
//! stays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::jiff::Timestamp;
use serde::{Serialize, Serializer};
use weft_core::diff::Concern;

use super::{Clock, Family};
use crate::metrics::proxy::{Code, Policy, Probe, ProxyMetrics, Sync};

/// How long a change may wait: twice kube-proxy's sync period.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// What Go writes for a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The proxy's health, as the reconcile loop tells it and others ask for it.
#[derive(Debug)]
pub struct ProxyHealth {
    clock: Arc<dyn Clock>,
    timeout: Duration,
    state: Mutex<State>,
    metrics: ProxyMetrics,
}

#[derive(Debug, Default)]
struct State {
    families: BTreeMap<Family, Progress>,
    /// Whether load balancers may choose this node; `None`: there is no such node.
    eligible: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// When the oldest change came that is not in the maps.
    waiting_since: Option<Instant>,
    /// When the maps were last up to date.
    applied: Option<SystemTime>,
}

/// What a pass of the loop is worth remembering for.
#[derive(Clone, Copy, Debug)]
pub enum Observation {
    /// A pass was done; `full` if it began with what the maps really held.
    Synced {
        /// Whether everything was looked at.
        full: bool,
        /// How long it took.
        took: Duration,
    },
    /// What a concern's maps should hold was compiled.
    Compiled(Concern, Duration),
    /// What the maps of a concern were told is in them.
    Written(Concern, Duration),
    /// What happened to an endpoint then is in the maps now.
    Programmed(Family, SystemTime),
    /// Changes of services that came since the start, and those of them that are in the maps.
    Services(u64, u64),
    /// The same of endpoint slices.
    Endpoints(u64, u64),
    /// How many services have a `Local` traffic policy and no endpoint here.
    NoLocalEndpoints {
        /// Of which family.
        family: Family,
        /// `internalTrafficPolicy`.
        internal: usize,
        /// `externalTrafficPolicy`.
        external: usize,
    },
}

/// What `/healthz` and `/livez` tell; fields and formats are kube-proxy's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// When a family was last up to date, or now if everything is well: load balancers of earlier
    /// times took an old time for a failure.
    #[serde(serialize_with = "timestamp")]
    pub last_updated: Option<SystemTime>,
    /// Now.
    #[serde(serialize_with = "timestamp")]
    pub current_time: Option<SystemTime>,
    /// Whether load balancers may choose this node; only `/healthz` tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// Whether no family is behind.
    pub healthy: bool,
    /// The families that ever had a change.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub status: BTreeMap<&'static str, FamilyHealth>,
}

/// The same of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyHealth {
    /// When it was last up to date.
    #[serde(serialize_with = "timestamp")]
    pub last_updated: Option<SystemTime>,
    /// Whether it is not behind.
    pub healthy: bool,
}

fn timestamp<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time.and_then(|time| Timestamp::try_from(time).ok()) {
        Some(time) => serializer.collect_str(&time),
        None => serializer.serialize_str(NEVER),
    }
}

impl ProxyHealth {
    /// Nothing queued, and no node known yet.
    pub fn new(clock: Arc<dyn Clock>, timeout: Duration) -> Self {
        Self {
            clock,
            timeout,
            state: Mutex::default(),
            metrics: ProxyMetrics::default(),
        }
    }

    /// Its metrics, to be registered.
    pub const fn metrics(&self) -> &ProxyMetrics {
        &self.metrics
    }

    /// There may be changes of this family that are not in the maps.
    pub fn queued(&self, family: Family) {
        let now = self.clock.now();
        let mut state = self.lock();
        let progress = state.families.entry(family).or_default();
        progress.waiting_since.get_or_insert(now.steady);
        self.metrics.queued(family, now.wall);
    }

    /// Everything that was queued of this family is in the maps.
    pub fn applied(&self, family: Family) {
        let now = self.clock.now();
        let mut state = self.lock();
        let progress = state.families.entry(family).or_default();
        progress.waiting_since = None;
        progress.applied = Some(now.wall);
        self.metrics.applied(family, now.wall);
    }

    /// Whether load balancers may choose this node; `None`: there is no such node.
    pub fn node(&self, eligible: Option<bool>) {
        self.lock().eligible = eligible;
    }

    /// Notes what happened, for the metrics. Both families are done in one pass, so what a pass took
    /// and brought counts for each.
    pub fn observe(&self, observation: Observation) {
        let metrics = &self.metrics;
        match observation {
            Observation::Synced { full, took } => {
                let kind = if full { Sync::Full } else { Sync::Partial };
                metrics.synced(kind, took);
            }
            Observation::Compiled(concern, took) => metrics.compiled(concern, took),
            Observation::Written(concern, took) => metrics.written(concern, took),
            Observation::Programmed(family, since) => {
                // Clocks of nodes differ: what seems to come from the future took no time.
                let took = self.clock.now().wall.duration_since(since);
                metrics.programmed(family, took.unwrap_or_default());
            }
            Observation::Services(total, applied) => metrics.services.set(total, applied),
            Observation::Endpoints(total, applied) => metrics.endpoints.set(total, applied),
            Observation::NoLocalEndpoints {
                family,
                internal,
                external,
            } => {
                metrics.no_local_endpoints(family, Policy::Internal, internal);
                metrics.no_local_endpoints(family, Policy::External, external);
            }
        }
    }

    /// Whether no family is behind.
    pub fn is_healthy(&self) -> bool {
        self.health().healthy
    }

    /// What is to be told, without the node.
    pub fn health(&self) -> Health {
        let now = self.clock.now();
        let state = self.lock();
        let families = state.families.iter().map(|(family, progress)| {
            let waits = progress
                .waiting_since
                .map(|since| now.steady.saturating_duration_since(since));
            let health = FamilyHealth {
                last_updated: progress.applied,
                healthy: waits.is_none_or(|waits| waits < self.timeout),
            };
            (family.name(), health)
        });
        let status: BTreeMap<_, _> = families.collect();
        Health {
            last_updated: status
                .values()
                .filter_map(|health| health.last_updated)
                .max(),
            current_time: Some(now.wall),
            node_eligible: None,
            healthy: status.values().all(|health| health.healthy),
            status,
        }
    }

    /// The answer of `/healthz`: whether load balancers may use this node.
    pub fn healthz(&self) -> (bool, Health) {
        let mut health = self.health();
        let eligible = self.lock().eligible.unwrap_or(false);
        health.node_eligible = Some(eligible);
        let well = health.healthy && eligible;
        self.answered(Probe::Healthz, well, health)
    }

    /// The answer of `/livez`: whether the proxy works, whatever becomes of the node.
    pub fn livez(&self) -> (bool, Health) {
        let health = self.health();
        let well = health.healthy;
        self.answered(Probe::Livez, well, health)
    }

    fn answered(&self, probe: Probe, well: bool, mut health: Health) -> (bool, Health) {
        if well {
            health.last_updated = health.current_time;
        }
        let code = if well { Code::Ok } else { Code::Unavailable };
        self.metrics.asked(probe, code);
        (well, health)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::health::clock::tests::ManualClock;

    fn health() -> (Arc<ManualClock>, ProxyHealth) {
        let clock = ManualClock::new();
        (clock.clone(), ProxyHealth::new(clock, TIMEOUT))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_family_is_unhealthy_while_its_oldest_change_waits_too_long() {
        let (clock, health) = health();
        health.queued(Family::V4);
        health.applied(Family::V4);
        health.applied(Family::V6);
        // Nothing to do is well.
        clock.advance(TIMEOUT * 10);
        assert!(health.is_healthy());

        health.queued(Family::V6);
        clock.advance(TIMEOUT - SECOND);
        // A newer one does not make the older one younger.
        health.queued(Family::V6);
        assert!(health.is_healthy());
        clock.advance(SECOND);
        assert!(!health.is_healthy());
        // The other family's success is not this one's.
        health.applied(Family::V4);
        let told = health.health();
        assert!(!told.healthy && told.status["IPv4"].healthy && !told.status["IPv6"].healthy);
        health.applied(Family::V6);
        assert!(health.is_healthy());
    }

    #[test]
    fn a_first_change_that_never_gets_there_is_not_well() {
        let (clock, health) = health();
        assert!(health.is_healthy());
        health.queued(Family::V4);
        clock.advance(TIMEOUT);
        assert!(!health.is_healthy());
        let told = serde_json::to_value(health.livez().1).expect("JSON");
        assert_eq!(
            told["status"],
            json!({ "IPv4": { "lastUpdated": NEVER, "healthy": false } })
        );
        assert_eq!(told["lastUpdated"], NEVER);
    }

    #[test]
    fn load_balancers_are_told_of_the_node_and_others_are_not() {
        let (_, health) = health();
        for (node, eligible) in [(None, false), (Some(false), false), (Some(true), true)] {
            health.node(node);
            let (well, told) = health.healthz();
            assert_eq!((well, told.node_eligible), (eligible, Some(eligible)));
            let (well, told) = health.livez();
            assert_eq!((well, told.node_eligible), (true, None));
        }
    }

    #[test]
    fn the_form_is_that_of_kube_proxy() {
        let (clock, health) = health();
        health.node(Some(false));
        let (_, told) = health.healthz();
        assert_eq!(
            serde_json::to_value(told).expect("JSON"),
            json!({
                "lastUpdated": NEVER,
                "currentTime": "2030-01-01T00:00:00Z",
                "nodeEligible": false,
                "healthy": true,
            })
        );
        health.applied(Family::V4);
        clock.advance(SECOND);
        health.applied(Family::V6);
        clock.advance(SECOND / 2);
        let v4 = json!({ "lastUpdated": "2030-01-01T00:00:00Z", "healthy": true });
        let v6 = json!({ "lastUpdated": "2030-01-01T00:00:01Z", "healthy": true });
        let status = json!({ "IPv4": v4, "IPv6": v6 });
        assert_eq!(
            serde_json::to_value(health.healthz().1).expect("JSON"),
            json!({
                "lastUpdated": "2030-01-01T00:00:01Z",
                "currentTime": "2030-01-01T00:00:01.5Z",
                "nodeEligible": false,
                "healthy": true,
                "status": status,
            })
        );
        // While all is well, the last time is now.
        assert_eq!(
            serde_json::to_value(health.livez().1).expect("JSON"),
            json!({
                "lastUpdated": "2030-01-01T00:00:01.5Z",
                "currentTime": "2030-01-01T00:00:01.5Z",
                "healthy": true,
                "status": status,
            })
        );
    }
}
