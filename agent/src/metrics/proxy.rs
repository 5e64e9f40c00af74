//! kube-proxy's metrics, by its names, labels and buckets, for the dashboards and alerts that know
//! them; and how long the parts of a pass take.
//!
//! Left out is what tells of iptables, nftables and conntrack, which Weft has none of.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family as Metrics, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;
use weft_core::diff::Concern;

use crate::health::Family;

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Histograms = Metrics<Labels<1>, Histogram, Buckets>;
type Seconds = Gauge<f64, AtomicU64>;

/// How long a pass took that looked at everything, or at what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// At everything.
    Full,
    /// At what changed.
    Partial,
}

/// Which traffic policy is `Local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `internalTrafficPolicy`.
    Internal,
    /// `externalTrafficPolicy`.
    External,
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 200.
    Ok,
    /// 503.
    Unavailable,
}

/// The buckets of a histogram, in seconds.
#[derive(Clone, Copy, Debug)]
enum Buckets {
    /// 1 ms to 16 s, as kube-proxy has them.
    Sync,
    /// A quarter of a second to 5 minutes, as kube-proxy has them.
    Programming,
    /// 10 µs to 10 s: parts of a pass.
    Part,
}

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        match self {
            Self::Sync => Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            Self::Programming => Histogram::new(
                linear_buckets(0.25, 0.25, 2)
                    .chain(linear_buckets(1.0, 1.0, 59))
                    .chain(linear_buckets(60.0, 5.0, 12))
                    .chain(linear_buckets(120.0, 30.0, 7)),
            ),
            Self::Part => Histogram::new(exponential_buckets(0.000_01, 4.0, 11)),
        }
    }
}

/// Changes of one kind of object: how many came, and how many of them wait.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    total: Metrics<Labels<1>, Counter>,
    pending: Metrics<Labels<1>, Gauge>,
}

impl Changes {
    /// So many came since the start, and so many of them are in the maps.
    pub fn set(&self, total: u64, applied: u64) {
        for family in Family::ALL {
            let labels = of(family);
            let counter = self.total.get_or_create_owned(&labels);
            counter.inner().fetch_max(total, Ordering::Relaxed);
            let pending = i64::try_from(total.saturating_sub(applied)).unwrap_or(i64::MAX);
            self.pending.get_or_create(&labels).set(pending);
        }
    }
}

/// The metrics.
#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    sync: Histograms,
    sync_full: Histograms,
    sync_partial: Histograms,
    last_applied: Metrics<Labels<1>, Seconds>,
    last_queued: Metrics<Labels<1>, Seconds>,
    programming: Histograms,
    /// Of services.
    pub services: Changes,
    /// Of endpoint slices.
    pub endpoints: Changes,
    no_local_endpoints: Metrics<Labels<2>, Gauge>,
    healthz: Metrics<Labels<1>, Counter>,
    livez: Metrics<Labels<1>, Counter>,
    compile: Histograms,
    write: Histograms,
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        let histograms = Metrics::new_with_constructor;
        Self {
            sync: histograms(Buckets::Sync),
            sync_full: histograms(Buckets::Sync),
            sync_partial: histograms(Buckets::Sync),
            last_applied: Metrics::default(),
            last_queued: Metrics::default(),
            programming: histograms(Buckets::Programming),
            services: Changes::default(),
            endpoints: Changes::default(),
            no_local_endpoints: Metrics::default(),
            healthz: Metrics::default(),
            livez: Metrics::default(),
            compile: histograms(Buckets::Part),
            write: histograms(Buckets::Part),
        }
    }
}

impl ProxyMetrics {
    /// Has them told.
    pub fn register(&self, registry: &mut Registry) {
        let own = registry.sub_registry_with_prefix("weft");
        own.register(
            "compile_duration_seconds",
            "How long it took to compile what changed of the cluster, by what it decides",
            self.compile.clone(),
        );
        own.register(
            "write_duration_seconds",
            "How long it took to write what changed to the maps, by what these decide",
            self.write.clone(),
        );

        let kube_proxy = registry.sub_registry_with_prefix("kubeproxy");
        let mut add = |name, help, metric: &Histograms| {
            kube_proxy.register(name, help, metric.clone());
        };
        add(
            "sync_proxy_rules_duration_seconds",
            "How long a pass took that brought the cluster's changes into the maps",
            &self.sync,
        );
        add(
            "sync_full_proxy_rules_duration_seconds",
            "The same, of passes that began with what the maps really held",
            &self.sync_full,
        );
        add(
            "sync_partial_proxy_rules_duration_seconds",
            "The same, of passes that wrote what had changed since the last one",
            &self.sync_partial,
        );
        add(
            "network_programming_duration_seconds",
            "Time from an endpoint's change to the change of the maps",
            &self.programming,
        );
        let mut add = |name, help, metric: &Metrics<Labels<1>, Seconds>| {
            kube_proxy.register(name, help, metric.clone());
        };
        add(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the maps were last up to date",
            &self.last_applied,
        );
        add(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When there was last something to do",
            &self.last_queued,
        );
        let mut add = |name, help, metric: &Metrics<Labels<1>, Counter>| {
            // The encoder appends _total.
            kube_proxy.register(name, help, metric.clone());
        };
        add(
            "sync_proxy_rules_service_changes",
            "Changes of services",
            &self.services.total,
        );
        add(
            "sync_proxy_rules_endpoint_changes",
            "Changes of endpoint slices",
            &self.endpoints.total,
        );
        add("proxy_healthz", "Answers of /healthz", &self.healthz);
        add("proxy_livez", "Answers of /livez", &self.livez);
        kube_proxy.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of services that are not in the maps yet",
            self.services.pending.clone(),
        );
        kube_proxy.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of endpoint slices that are not in the maps yet",
            self.endpoints.pending.clone(),
        );
        kube_proxy.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a Local traffic policy and no endpoint on this node",
            self.no_local_endpoints.clone(),
        );
    }

    pub(crate) fn queued(&self, family: Family, at: SystemTime) {
        let gauge = self.last_queued.get_or_create(&of(family));
        gauge.set(unix_seconds(at));
    }

    pub(crate) fn applied(&self, family: Family, at: SystemTime) {
        let gauge = self.last_applied.get_or_create(&of(family));
        gauge.set(unix_seconds(at));
    }

    pub(crate) fn synced(&self, kind: Sync, took: Duration) {
        let which = match kind {
            Sync::Full => &self.sync_full,
            Sync::Partial => &self.sync_partial,
        };
        for family in Family::ALL {
            for histograms in [&self.sync, which] {
                let histogram = histograms.get_or_create(&of(family));
                histogram.observe(took.as_secs_f64());
            }
        }
    }

    pub(crate) fn compiled(&self, concern: Concern, took: Duration) {
        observe(&self.compile, concern, took);
    }

    pub(crate) fn written(&self, concern: Concern, took: Duration) {
        observe(&self.write, concern, took);
    }

    pub(crate) fn programmed(&self, family: Family, took: Duration) {
        let histogram = self.programming.get_or_create(&of(family));
        histogram.observe(took.as_secs_f64());
    }

    pub(crate) fn no_local_endpoints(&self, family: Family, policy: Policy, services: usize) {
        let policy = match policy {
            Policy::Internal => "internal",
            Policy::External => "external",
        };
        let labels = [("traffic_policy", policy), of(family)[0]];
        let gauge = self.no_local_endpoints.get_or_create(&labels);
        gauge.set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    pub(crate) fn asked(&self, probe: Probe, code: Code) {
        let answers = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        let code = match code {
            Code::Ok => "200",
            Code::Unavailable => "503",
        };
        answers.get_or_create(&[("code", code)]).inc();
    }
}

fn observe(histograms: &Histograms, concern: Concern, took: Duration) {
    let concern = match concern {
        Concern::Services => "services",
        Concern::Policy => "policy",
        Concern::Limits => "limits",
    };
    let histogram = histograms.get_or_create(&[("concern", concern)]);
    histogram.observe(took.as_secs_f64());
}

const fn of(family: Family) -> Labels<1> {
    [("ip_family", family.name())]
}

fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::text;

    #[test]
    fn names_and_labels_are_those_of_kube_proxy() {
        let metrics = ProxyMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let second = Duration::from_secs(1);
        metrics.queued(Family::V4, SystemTime::UNIX_EPOCH + second);
        metrics.applied(Family::V6, SystemTime::UNIX_EPOCH + second * 2);
        metrics.synced(Sync::Full, second);
        metrics.synced(Sync::Partial, second);
        metrics.programmed(Family::V6, second * 400);
        metrics.no_local_endpoints(Family::V4, Policy::External, 3);
        metrics.asked(Probe::Healthz, Code::Unavailable);
        metrics.asked(Probe::Livez, Code::Ok);
        metrics.services.set(5, 3);
        metrics.services.set(7, 7);
        metrics.endpoints.set(9, 8);
        metrics.compiled(Concern::Services, second);
        metrics.written(Concern::Policy, second);
        let text = text::classic(&registry).expect("encodes");
        for line in [
            r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 1.0"#,
            r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} 2.0"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 2"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="1.024",ip_family="IPv4"} 2"#,
            r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="300.0",ip_family="IPv6"} 0"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="+Inf",ip_family="IPv6"} 1"#,
            r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external",ip_family="IPv4"} 3"#,
            "# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge",
            r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
            r#"kubeproxy_proxy_livez_total{code="200"} 1"#,
            r#"kubeproxy_sync_proxy_rules_service_changes_total{ip_family="IPv4"} 7"#,
            r#"kubeproxy_sync_proxy_rules_service_changes_pending{ip_family="IPv6"} 0"#,
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family="IPv4"} 9"#,
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family="IPv6"} 1"#,
            "# TYPE kubeproxy_proxy_healthz_total counter",
            r#"weft_compile_duration_seconds_count{concern="services"} 1"#,
            r#"weft_write_duration_seconds_count{concern="policy"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
