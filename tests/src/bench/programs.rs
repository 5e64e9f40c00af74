//! The kernel's run-time statistics of a playground's programs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Sub;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use weft_abi::ABI_VERSION;

/// A map that every program reads, and so a way to tell whose a program is.
const COMMON_MAP: &str = "config";

/// The programs of some nodes, whatever else is loaded on the machine.
#[derive(Debug)]
pub struct Programs {
    /// Ids of the nodes' pinned maps.
    maps: BTreeSet<u32>,
}

/// How often a program ran and for how long, over all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Runs.
    pub count: u64,
    /// Time in the program.
    pub time: Duration,
}

impl Programs {
    /// The programs of the nodes with these BPF file systems.
    ///
    /// # Errors
    ///
    /// When one has no pinned maps: no agent has run there.
    pub fn of_nodes(bpf_roots: &[PathBuf]) -> Result<Self> {
        let maps = bpf_roots
            .iter()
            .map(|root| {
                let pin = root.join(format!("weft/v{ABI_VERSION}/{COMMON_MAP}"));
                let info = MapInfo::from_pin(&pin)
                    .with_context(|| format!("opening {}", pin.display()))?;
                Ok(info.id())
            })
            .collect::<Result<_>>()?;
        Ok(Self { maps })
    }

    /// Runs by program while `work` is done, with what it returns.
    ///
    /// The kernel takes the time of every run meanwhile, which costs some 20 to 30 ns a run: rates
    /// are measured elsewhere.
    ///
    /// # Errors
    ///
    /// When the kernel has no statistics (before 5.8), or when the work fails.
    pub fn measure<T>(
        &self,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, BTreeMap<String, Runs>)> {
        let statistics = enable_stats(Stats::RunTime).context("enabling run-time statistics")?;
        let before = self.runs()?;
        let done = work()?;
        let after = self.runs()?;
        drop(statistics);
        let mut by_name: BTreeMap<String, Runs> = BTreeMap::new();
        for (id, (name, runs)) in after {
            let earlier = before.get(&id).map(|(_, runs)| *runs).unwrap_or_default();
            let during = runs - earlier;
            if during.count > 0 {
                let sum = by_name.entry(name).or_default();
                sum.count += during.count;
                sum.time += during.time;
            }
        }
        if by_name.is_empty() {
            bail!("none of Weft's programs ran: they are not on this path, or not attached");
        }
        Ok((done, by_name))
    }

    /// Names and runs since loading, by program id.
    fn runs(&self) -> Result<BTreeMap<u32, (String, Runs)>> {
        let mut all = BTreeMap::new();
        for program in loaded_programs() {
            // A program may be unloaded while they are listed.
            let Ok(program) = program else { continue };
            let Ok(Some(maps)) = program.map_ids() else {
                continue;
            };
            if maps.iter().any(|map| self.maps.contains(map)) {
                let name = program.name_as_str().unwrap_or("?").to_owned();
                let runs = Runs {
                    count: program.run_count(),
                    time: program.run_time(),
                };
                all.insert(program.id(), (name, runs));
            }
        }
        Ok(all)
    }
}

impl Sub for Runs {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            count: self.count.saturating_sub(earlier.count),
            time: self.time.saturating_sub(earlier.time),
        }
    }
}
