//! What Weft's datapath costs, measured on the real thing.
//!
//! ```text
//!   playground of two nodes ─┬─ rates: Weft and bare namespaces in alternating runs   (load, bare)
//!                            └─ programs: runs and nanoseconds, by kernel statistics  (programs)
//!   packet lab ───────────────── packets: nanoseconds and lookups, by test runs       (packets)
//!
//!   playground of one node ──┬─ cni: how long pods wait for their network             (cni)
//!                            └─ services: very many of them, from the API to the maps (services)
//! ```
//!
//! Nothing here judges a time: figures depend on the machine and are printed, beside what another
//! datapath cost on one of the same kind ([`reference`]).

mod bare;
mod cluster;
pub mod cni;
mod load;
mod packets;
mod programs;
pub mod reference;
mod report;
pub mod services;
mod statistics;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use self::cluster::{Cluster, Path, Side};
use self::load::{Cpus, Workload};
use self::programs::Runs;
use self::report::{Measurement, ProgramCost, Report};
use self::statistics::Summary;
use crate::interrupt::Interrupt;

/// What to measure, and for how long.
#[derive(Args, Clone, Debug)]
pub struct Datapath {
    /// Alternations between Weft and bare namespaces.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds per run, fractions allowed.
    #[arg(long, default_value = "1", value_parser = seconds)]
    seconds: Duration,
    /// Where client and server of request/response and connect/request/close run.
    #[arg(long, value_enum, default_value_t = Cpus::Shared)]
    cpus: Cpus,
    /// Only single packets through the programs: no playground, done in seconds.
    #[arg(long)]
    packets_only: bool,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

/// Passes with run-time statistics on; nanoseconds per run move little.
const PASSES: u32 = 3;

/// Measures the datapath and prints what it costs.
///
/// # Errors
///
/// When the playground does not come up, or a path does not carry traffic.
pub fn datapath(options: &Datapath) -> Result<()> {
    progress("packets through the programs");
    let packets = packets::measure()?;
    let measurements = if options.packets_only {
        Vec::new()
    } else {
        progress("starting a playground of two nodes");
        // Between two runs an interruption is an error like any other, and the playground goes.
        let interrupt = Interrupt::catch(|| ())?;
        let cluster = Cluster::start()?;
        let rates = rates(&cluster, options, &interrupt)?;
        let costs = costs(&cluster, options, &interrupt)?;
        measurements(&rates, &costs)
    };
    let report = Report::new(options, measurements, packets)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Operations per second, by what was loaded, one per round.
type Rates = BTreeMap<(Workload, Side), Vec<Rate>>;

/// One run's result.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    lost: f64,
}

/// Program runs and operations, by what was loaded, one per pass.
type Costs = BTreeMap<(Workload, Path), Vec<(f64, BTreeMap<String, Runs>)>>;

/// Weft and bare namespaces in alternating runs, statistics off.
fn rates(cluster: &Cluster, options: &Datapath, interrupt: &Interrupt) -> Result<Rates> {
    let mut sides = vec![
        Side::Weft(Path::Same),
        Side::Bare(Path::Same),
        Side::Weft(Path::ServiceSame),
        Side::Weft(Path::Other),
        Side::Bare(Path::Other),
        Side::Weft(Path::ServiceOther),
    ];
    let mut rates = Rates::new();
    for round in 1..=options.rounds {
        progress(&format!("rates, round {round} of {}", options.rounds));
        for workload in Workload::ALL {
            for side in &sides {
                interrupt.check()?;
                let sample = workload
                    .run(cluster.ends(*side), options.cpus, options.seconds)
                    .with_context(|| format!("{side:?}"))?;
                let rate = Rate {
                    per_second: sample.rate(),
                    lost: sample.lost,
                };
                rates.entry((workload, *side)).or_default().push(rate);
            }
        }
        // What warms up or tires in the course of a round does so for the other side next time.
        sides.reverse();
    }
    Ok(rates)
}

/// Runs and nanoseconds of each program, statistics on.
fn costs(cluster: &Cluster, options: &Datapath, interrupt: &Interrupt) -> Result<Costs> {
    let duration = options.seconds / 2;
    let mut costs = Costs::new();
    for pass in 1..=PASSES.min(options.rounds) {
        progress(&format!("BPF run-time statistics, pass {pass}"));
        for workload in Workload::ALL {
            for path in Path::ALL {
                interrupt.check()?;
                let ends = cluster.ends(Side::Weft(path));
                let (sample, runs) = cluster
                    .programs
                    .measure(|| workload.run(ends, options.cpus, duration))
                    .with_context(|| format!("{path:?} with statistics"))?;
                costs
                    .entry((workload, path))
                    .or_default()
                    .push((sample.total, runs));
            }
        }
    }
    Ok(costs)
}

/// Joins both into one measurement per workload and path.
fn measurements(rates: &Rates, costs: &Costs) -> Vec<Measurement> {
    let mut measurements = Vec::new();
    for workload in Workload::ALL {
        for path in Path::ALL {
            let of =
                |side| -> Vec<Rate> { rates.get(&(workload, side)).cloned().unwrap_or_default() };
            let (weft, bare) = (of(Side::Weft(path)), of(Side::Bare(path.direct())));
            let per_second =
                |rates: &[Rate]| rates.iter().map(|rate| rate.per_second).collect::<Vec<_>>();
            let (ours, theirs) = (per_second(&weft), per_second(&bare));
            let (Some(weft_rate), Some(bare_rate), Some(ratio)) = (
                Summary::of(ours.iter().copied()),
                Summary::of(theirs.iter().copied()),
                Summary::of_ratios(&ours, &theirs),
            ) else {
                continue;
            };
            let passes = costs.get(&(workload, path)).map_or(&[][..], Vec::as_slice);
            measurements.push(Measurement::new(
                path,
                workload,
                [weft_rate, bare_rate, ratio],
                Summary::of(weft.iter().map(|rate| rate.lost)).map_or(0.0, |lost| lost.median),
                programs(passes),
            ));
        }
    }
    measurements
}

/// Medians over the passes, by program, in the order of the packet's way.
fn programs(passes: &[(f64, BTreeMap<String, Runs>)]) -> Vec<ProgramCost> {
    let mut costs = Vec::new();
    for name in weft_abi::maps::programs::ALL {
        let seen = || {
            passes.iter().filter_map(|(operations, runs)| {
                let runs = runs.get(*name)?;
                Some((*operations, runs.count as f64, runs.time.as_nanos() as f64))
            })
        };
        let runs = Summary::of(seen().map(|(operations, count, _)| count / operations));
        let nanoseconds = Summary::of(seen().map(|(_, count, time)| time / count));
        let (Some(runs), Some(nanoseconds)) = (runs, nanoseconds) else {
            continue;
        };
        // A stray packet, such as a late acknowledgement, is no part of the path.
        if runs.median >= 0.01 {
            costs.push(ProgramCost {
                program: name,
                runs_per_operation: runs.median,
                ns_per_run: nanoseconds.median,
            });
        }
    }
    costs
}

/// Tells on stderr what takes its time; stdout is for results.
fn progress(what: &str) {
    eprintln!("bench: {what}");
}

/// A flag's value in seconds: long enough to count something, short enough to wait for.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if !(0.01..=60.0).contains(&seconds) {
        return Err("give between 0.01 and 60 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_reported_per_operation() {
        let runs = |count, nanoseconds| Runs {
            count,
            time: Duration::from_nanos(nanoseconds),
        };
        let pass = |operations, from: Runs, to: Runs| {
            let by_name = [
                ("from_container".to_owned(), from),
                ("to_container".to_owned(), to),
            ];
            (operations, BTreeMap::from(by_name))
        };
        let costs = programs(&[
            pass(100.0, runs(200, 60_000), runs(0, 0)),
            pass(1000.0, runs(2000, 800_000), runs(1, 500)),
            pass(10.0, runs(20, 10_000), runs(0, 0)),
        ]);
        assert_eq!(costs.len(), 1, "strays do not count: {costs:?}");
        assert_eq!(costs[0].program, "from_container");
        assert_eq!(
            (costs[0].runs_per_operation, costs[0].ns_per_run),
            (2.0, 400.0)
        );
        assert_eq!(costs[0].ns_per_operation(), 800.0);
    }

    #[test]
    fn durations_are_bounded() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "NaN", "1e9", "soon", ""] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
