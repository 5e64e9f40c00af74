//! From when to when: which changes a pass of the reconcile loop takes in, and when it is done.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use weft_core::model::{ClusterState, EndpointSlice, Node, ObjectKey};
use weft_core::services::Dirty;

use super::{Family, Observation, ProxyHealth};

/// Changes of objects that came since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of services.
    pub services: u64,
    /// Of endpoint slices.
    pub endpoints: u64,
}

/// What is compiled, until it is in the maps.
#[derive(Debug)]
pub struct Progress {
    /// What happened before the agent began is nothing that it was slow to follow, microseconds
    /// since 1970.
    started: i64,
    /// When what each slice tells happened, microseconds since 1970.
    slices: BTreeMap<ObjectKey, i64>,
    /// The same of those that are not in the maps yet.
    waiting: Vec<(Family, i64)>,
    compiled: Counts,
    applied: Counts,
}

impl Progress {
    /// Begins now.
    pub fn new(now: SystemTime) -> Self {
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let micros = since.map_or(0, |since| since.as_micros());
        Self {
            started: i64::try_from(micros).unwrap_or(i64::MAX),
            slices: BTreeMap::new(),
            waiting: Vec::new(),
            compiled: Counts::default(),
            applied: Counts::default(),
        }
    }

    /// A pass takes in this state, which contains so many changes.
    pub fn begin(
        &mut self,
        state: &ClusterState,
        dirty: &Dirty,
        counts: Counts,
        health: &ProxyHealth,
    ) {
        self.compiled = counts;
        self.tell(health);
        let node = state.nodes.get(&state.node_name);
        health.node(node.map(Node::eligible));
        for key in dirty.slices() {
            let Some((family, at)) = state.slices.get(key).and_then(triggered) else {
                self.slices.remove(key);
                continue;
            };
            if self.slices.get(key) == Some(&at) {
                continue;
            }
            self.slices.insert(key.clone(), at);
            if at > self.started {
                self.waiting.push((family, at));
            }
        }
    }

    /// What the last pass took in of services is in the maps.
    pub fn done(&mut self, health: &ProxyHealth) {
        self.applied = self.compiled;
        self.tell(health);
        for family in Family::ALL {
            health.applied(family);
        }
        for (family, at) in self.waiting.drain(..) {
            let since = Duration::from_micros(u64::try_from(at).unwrap_or(0));
            health.observe(Observation::Programmed(
                family,
                SystemTime::UNIX_EPOCH + since,
            ));
        }
    }

    fn tell(&self, health: &ProxyHealth) {
        let (all, applied) = (self.compiled, self.applied);
        health.observe(Observation::Services(all.services, applied.services));
        health.observe(Observation::Endpoints(all.endpoints, applied.endpoints));
    }
}

/// When what the slice tells happened, and to which family.
fn triggered(slice: &EndpointSlice) -> Option<(Family, i64)> {
    let endpoint = slice.endpoints.first()?;
    Some((Family::of(endpoint.address), slice.triggered?))
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use weft_core::model::SliceEndpoint;

    use super::*;
    use crate::health::clock::tests::ManualClock;
    use crate::health::{Clock as _, TIMEOUT};
    use crate::metrics::text;

    /// Every slice may have changed.
    fn all(state: &ClusterState) -> Dirty {
        let mut dirty = Dirty::default();
        for key in state.slices.keys() {
            dirty.slice(key.clone());
        }
        dirty
    }

    fn state(clock: &ManualClock, after: i64) -> ClusterState {
        let now = clock.now().wall.duration_since(SystemTime::UNIX_EPOCH);
        let micros = i64::try_from(now.expect("later").as_micros()).expect("fits");
        let slice = EndpointSlice {
            key: ObjectKey::new("default", "web-1"),
            endpoints: vec![SliceEndpoint::new([10, 0, 0, 1].into())],
            triggered: Some(micros + after),
            ..EndpointSlice::default()
        };
        ClusterState {
            node_name: "a".to_owned(),
            slices: [(slice.key.clone(), slice)].into(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn each_change_is_measured_once_and_when_it_is_done() {
        let clock = ManualClock::new();
        let health = ProxyHealth::new(clock.clone(), TIMEOUT);
        let mut progress = Progress::new(clock.now().wall);
        let mut registry = Registry::default();
        health.metrics().register(&mut registry);
        let line = |start: &str| {
            let text = text::classic(&registry).expect("encodes");
            let line = text.lines().find(|line| line.starts_with(start));
            line.map(|line| line.rsplit(' ').next().expect("a value").to_owned())
        };
        let programmed =
            r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}"#;
        let pending = r#"kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family="IPv4"}"#;

        // What happened before the start is no matter.
        let counts = |endpoints| Counts {
            services: 1,
            endpoints,
        };
        progress.begin(
            &state(&clock, -1),
            &all(&state(&clock, -1)),
            counts(3),
            &health,
        );
        assert_eq!(line(pending).as_deref(), Some("3"));
        progress.done(&health);
        assert_eq!(line(pending).as_deref(), Some("0"));
        assert_eq!(line(programmed), None);

        let changed = state(&clock, 1);
        progress.begin(&changed, &all(&changed), counts(4), &health);
        // The pass failed; the next one brings the same.
        progress.begin(&changed, &all(&changed), counts(4), &health);
        assert_eq!(line(pending).as_deref(), Some("1"));
        assert_eq!(line(programmed), None);
        progress.done(&health);
        progress.begin(&changed, &all(&changed), counts(4), &health);
        progress.done(&health);
        assert_eq!(line(programmed).as_deref(), Some("1"));
    }

    #[test]
    fn a_pass_tells_of_the_node_and_clears_what_waits() {
        let clock = ManualClock::new();
        let health = ProxyHealth::new(clock.clone(), TIMEOUT);
        let mut progress = Progress::new(clock.now().wall);
        let mut state = state(&clock, 0);
        progress.begin(&state, &all(&state), Counts::default(), &health);
        progress.done(&health);
        assert!(!health.healthz().0, "there is no node");
        let node = Node {
            name: "a".to_owned(),
            ..Node::default()
        };
        state.nodes.insert(node.name.clone(), node);
        for family in Family::ALL {
            health.queued(family);
        }
        progress.begin(&state, &all(&state), Counts::default(), &health);
        assert!(health.healthz().0);
        clock.advance(TIMEOUT);
        assert!(!health.healthz().0, "the pass is not done");
        progress.done(&health);
        assert!(health.healthz().0);
    }
}
