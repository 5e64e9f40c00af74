//! The result, for people and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::agent::Pass;
use crate::bench::statistics::{Times, milliseconds};

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    pub services: u32,
    pub endpoints: u64,
    pub load: Load,
    /// Of the maps of services.
    pub map_bytes: u64,
    /// Of all maps.
    pub all_map_bytes: u64,
    pub changes: Times,
    pub entries_per_change: u64,
    #[serde(rename = "cpu_per_change_ms", serialize_with = "milliseconds")]
    pub cpu_per_change: Duration,
    #[serde(rename = "restart_ms", serialize_with = "milliseconds")]
    pub restart: Duration,
    pub pods: [Times; 2],
    pub nftables: Option<NfTables>,
}

/// From an agent's start to the last entry.
#[derive(Serialize)]
pub struct Load {
    #[serde(rename = "total_ms", serialize_with = "milliseconds")]
    pub total: Duration,
    /// Until the programs were loaded, and the maps made.
    #[serde(rename = "loaded_ms", serialize_with = "milliseconds")]
    pub loaded: Duration,
    #[serde(flatten)]
    pub figures: Pass,
    #[serde(rename = "cpu_ms", serialize_with = "milliseconds")]
    pub cpu: Duration,
    pub entries: u64,
    pub rss: u64,
    pub peak: u64,
}

/// The other way to have the same services.
#[derive(Serialize)]
pub struct NfTables {
    #[serde(rename = "load_ms", serialize_with = "milliseconds")]
    pub load: Duration,
    pub rules: u64,
    pub changes: Times,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            services,
            endpoints,
            load,
            ..
        } = self;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "{services} services with {endpoints} endpoints: {} map entries\n",
            load.entries
        )?;
        let Pass {
            whole,
            compile,
            write,
        } = load.figures;
        let listed = load.total.saturating_sub(whole + load.loaded);
        let rest = whole.saturating_sub(compile + write);
        writeln!(f, "from the agent's start to the last entry, in seconds")?;
        for (what, time) in [
            ("load programs, make maps", load.loaded),
            ("list and convert", listed),
            ("compile", compile),
            ("write", write),
            ("else, the node's network for example", rest),
            ("together", load.total),
            ("processor time of the agent", load.cpu),
            ("agent again, over these maps", self.restart),
        ] {
            writeln!(f, "{what:36} {:>16.2}", time.as_secs_f64())?;
        }
        writeln!(
            f,
            "\nmemory of the agent {:.0} MiB, at most {:.0}; of the maps of services {:.0}, of all \
             maps {:.0}\n",
            mib(load.rss),
            mib(load.peak),
            mib(self.map_bytes),
            mib(self.all_map_bytes)
        )?;
        let mut times = vec![self.changes.clone()];
        times.extend(self.pods.iter().cloned());
        if let Some(nftables) = &self.nftables {
            times.push(nftables.changes.clone());
        }
        Times::write_table(&times, f)?;
        writeln!(
            f,
            "\na change: {} map entries, {:.2} ms of the agent's processor time",
            self.entries_per_change,
            self.cpu_per_change.as_secs_f64() * 1000.0
        )?;
        let Some(nftables) = &self.nftables else {
            return writeln!(f, "no nft here to compare with");
        };
        let ratio = |theirs: Duration, ours: Duration| theirs.as_secs_f64() / ours.as_secs_f64();
        writeln!(
            f,
            "nftables as kube-proxy fills it: {} rules and elements in {:.2} s, {:.1} times what \
             compiling and writing take here; a change, at p50, {:.1} times",
            nftables.rules,
            nftables.load.as_secs_f64(),
            ratio(nftables.load, compile + write),
            ratio(nftables.changes.p50, self.changes.p50)
        )
    }
}
