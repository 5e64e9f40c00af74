//! Weft's own metrics, gathered at the moment they are asked for.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use weft_abi::ABI_VERSION;
use weft_abi::drop::{DropCount, DropReason};

use crate::bpf::tables::Fill;
use crate::reconcile::Shared;
use crate::watch::WatchStatus;

/// What there is to tell.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Drops by reason; none of those that are missing.
    pub drops: Vec<(DropReason, DropCount)>,
    /// How full the maps are.
    pub maps: Vec<Fill>,
    /// The watches, by kind.
    pub watches: BTreeMap<&'static str, WatchStatus>,
    /// Passes of the loop that changed something.
    pub applications: u64,
    /// Passes of the loop that failed.
    pub failures: u64,
    /// Whether the last one did not, and everything was told.
    pub follows: bool,
    /// Pods of this node.
    pub endpoints: usize,
    /// Those of them whose policy is in the maps.
    pub endpoints_ready: usize,
    /// Addresses that pods have.
    pub addresses: usize,
    /// Objects of which something is wrong.
    pub warnings: usize,
}

impl Snapshot {
    /// Everything as it is now.
    pub fn of(shared: &Shared) -> Self {
        let applied = shared.applied.borrow().clone();
        let endpoints = shared.endpoints.all();
        let addresses = shared.ipam().allocations().len();
        let watches = shared.cluster.watches();
        let warnings = shared.cluster.warnings().len();
        let maps = shared.maps();
        Self {
            // Unreadable counters are left at none: the other metrics matter more.
            drops: maps.tables.drops().unwrap_or_default(),
            maps: maps.tables.fill(&maps.mirror),
            watches,
            applications: applied.count,
            failures: applied.failures,
            follows: applied.complete && applied.clean,
            endpoints_ready: endpoints
                .iter()
                .filter(|record| applied.is_ready(record))
                .count(),
            endpoints: endpoints.len(),
            addresses,
            warnings: warnings + maps.desired.warnings.len(),
        }
    }

    fn encode(&self, out: &mut Out<'_>) -> fmt::Result {
        out.gauge(
            "build_info",
            "The agent",
            [(
                [
                    ("version", env!("CARGO_PKG_VERSION").to_owned()),
                    ("abi", ABI_VERSION.to_string()),
                ],
                1,
            )],
        )?;
        let drops: BTreeMap<_, _> = self.drops.iter().copied().collect();
        let drops = |value: fn(&DropCount) -> u64| {
            let drops = &drops;
            DropReason::ALL.iter().map(move |reason| {
                let count = drops.get(reason).map_or(0, value);
                ([("reason", reason.name())], count)
            })
        };
        out.counter("drops", "Packets dropped", drops(|count| count.packets))?;
        out.counter("drop_bytes", "Bytes dropped", drops(|count| count.bytes))?;

        let maps = |value: fn(&Fill) -> u64| {
            self.maps
                .iter()
                .map(move |fill| ([("map", fill.map)], value(fill)))
        };
        let entries = |fill: &Fill| fill.entries as u64;
        out.gauge("map_entries", "Entries in a map", maps(entries))?;
        out.gauge(
            "map_capacity",
            "Entries that a map can take",
            maps(|fill| u64::from(fill.capacity)),
        )?;
        out.gauge(
            "map_nearly_full",
            "Whether 90 % of a map are in use: give it more (--map-capacity)",
            maps(|fill| u64::from(fill.is_near_full())),
        )?;

        let watches = |value: fn(&WatchStatus) -> u64| {
            self.watches
                .iter()
                .map(move |(kind, watch)| ([("kind", *kind)], value(watch)))
        };
        out.gauge(
            "watch_connected",
            "Whether the last thing that a watch said was no error",
            watches(|watch| u64::from(watch.connected)),
        )?;
        out.gauge(
            "watch_synced",
            "Whether a kind was listed completely since the start",
            watches(|watch| u64::from(watch.synced)),
        )?;
        out.gauge(
            "watch_objects",
            "Objects of a kind that are known",
            watches(|watch| watch.objects as u64),
        )?;
        out.counter(
            "watch_lists",
            "Complete lists: the first one, and one after each gap",
            watches(|watch| watch.lists),
        )?;
        out.counter(
            "watch_errors",
            "Errors of a watch",
            watches(|watch| watch.errors),
        )?;

        out.one(
            "reconcile_applications",
            "Passes that changed the maps",
            &ConstCounter::new(self.applications),
        )?;
        out.one(
            "reconcile_errors",
            "Passes that failed; each is tried again",
            &ConstCounter::new(self.failures),
        )?;
        out.one(
            "reconcile_follows",
            "Whether the node is as the cluster wants it",
            &gauge(u64::from(self.follows)),
        )?;
        out.one(
            "endpoints",
            "Pods of this node",
            &gauge(self.endpoints as u64),
        )?;
        out.one(
            "endpoints_ready",
            "Pods of this node whose policy is in the maps",
            &gauge(self.endpoints_ready as u64),
        )?;
        out.one(
            "pod_addresses",
            "Addresses that pods of this node have",
            &gauge(self.addresses as u64),
        )?;
        out.one(
            "object_warnings",
            "Things that are wrong with objects; weft-agent status tells them",
            &gauge(self.warnings as u64),
        )
    }
}

fn gauge(value: u64) -> ConstGauge {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Writes metrics.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter<const N: usize, V: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
    ) -> fmt::Result {
        self.family(name, help, values, MetricType::Counter, ConstCounter::new)
    }

    fn gauge<const N: usize, V: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
    ) -> fmt::Result {
        self.family(name, help, values, MetricType::Gauge, gauge)
    }

    fn family<const N: usize, V: AsRef<str>, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
        kind: MetricType,
        metric: fn(u64) -> M,
    ) -> fmt::Result {
        let mut family = self.describe(name, help, kind)?;
        for (labels, value) in values {
            let labels = labels.each_ref().map(|(name, text)| (*name, text.as_ref()));
            metric(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn one(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        metric.encode(self.describe(name, help, metric.metric_type())?)
    }

    fn describe<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        // The library ends every text with a full stop, but for collectors.
        let help = format!("{help}.");
        self.0.encode_descriptor(name, &help, None, kind)
    }
}

/// Has a [`Snapshot`] gathered each time that metrics are asked for.
pub fn register(registry: &mut Registry, gather: impl Fn() -> Snapshot + Send + Sync + 'static) {
    let own = registry.sub_registry_with_prefix("weft");
    own.register_collector(Box::new(Gather(gather)));
}

struct Gather<F>(F);

impl<F> fmt::Debug for Gather<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gather")
    }
}

impl<F: Fn() -> Snapshot + Send + Sync + 'static> Collector for Gather<F> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)().encode(&mut Out(encoder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::text;

    #[test]
    fn every_reason_map_and_watch_is_told() {
        let fill = |map, entries| Fill {
            map,
            entries,
            capacity: 100,
        };
        let snapshot = Snapshot {
            drops: vec![(
                DropReason::PolicyIngress,
                DropCount {
                    packets: 3,
                    bytes: 300,
                },
            )],
            maps: vec![fill("policy", 90), fill("slots", 89)],
            watches: [(
                "pods",
                WatchStatus {
                    connected: true,
                    errors: 2,
                    ..WatchStatus::default()
                },
            )]
            .into(),
            failures: 4,
            ..Snapshot::default()
        };
        let mut registry = Registry::default();
        register(&mut registry, move || snapshot.clone());
        let text = text::classic(&registry).expect("encodes");
        for line in [
            "# HELP weft_drops_total Packets dropped.",
            "# TYPE weft_drops_total counter",
            r#"weft_drops_total{reason="policy-ingress"} 3"#,
            r#"weft_drop_bytes_total{reason="policy-ingress"} 300"#,
            r#"weft_drops_total{reason="malformed"} 0"#,
            r#"weft_map_entries{map="slots"} 89"#,
            r#"weft_map_capacity{map="slots"} 100"#,
            r#"weft_map_nearly_full{map="policy"} 1"#,
            r#"weft_map_nearly_full{map="slots"} 0"#,
            r#"weft_watch_connected{kind="pods"} 1"#,
            r#"weft_watch_synced{kind="pods"} 0"#,
            r#"weft_watch_errors_total{kind="pods"} 2"#,
            "weft_reconcile_errors_total 4",
            "weft_reconcile_follows 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        let reasons = text.matches("weft_drops_total{").count();
        assert_eq!(reasons, DropReason::ALL.len());
    }
}
