//! The result: figures as tables for people, and as JSON.

use std::fmt::{self, Display, Formatter};
use std::fs;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Datapath;
use super::cluster::Path;
use super::load::{Cpus, STREAM_UNIT, Workload};
use super::packets::Packets;
use super::reference::{self, Reference};
use super::statistics::Summary;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    kernel: String,
    cpus: usize,
    rounds: u32,
    seconds: f64,
    clients_and_servers: Cpus,
    reference: &'static str,
    measurements: Vec<Measurement>,
    packets: Packets,
}

/// One path under one workload.
#[derive(Debug, Serialize)]
pub struct Measurement {
    path: Path,
    workload: Workload,
    /// Operations per second through Weft.
    weft: Summary,
    /// Operations per second through the kernel's routing.
    bare: Summary,
    /// The first by the second, of the same round.
    ratio: Summary,
    /// Packets that Weft's side lost, in per cent.
    lost: f64,
    programs: Vec<ProgramCost>,
    bpf_ns_per_operation: f64,
    bpf_runs_per_operation: f64,
    cilium: Option<Reference>,
    /// BPF time, relative to Cilium's.
    share_of_cilium: Option<f64>,
}

/// What one program costs on a path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProgramCost {
    /// The program.
    pub program: &'static str,
    /// Runs, over both nodes.
    pub runs_per_operation: f64,
    /// Nanoseconds of one run.
    pub ns_per_run: f64,
}

impl ProgramCost {
    /// Nanoseconds, over both nodes.
    pub fn ns_per_operation(&self) -> f64 {
        self.runs_per_operation * self.ns_per_run
    }
}

impl Measurement {
    /// Puts the figures of one path together; `rates` are Weft's, bare and their ratio.
    pub fn new(
        path: Path,
        workload: Workload,
        rates: [Summary; 3],
        lost: f64,
        programs: Vec<ProgramCost>,
    ) -> Self {
        let [weft, bare, ratio] = rates;
        let bpf_ns_per_operation = programs.iter().map(ProgramCost::ns_per_operation).sum();
        let bpf_runs_per_operation = programs.iter().map(|cost| cost.runs_per_operation).sum();
        let cilium = reference::cilium(path, workload);
        // The aim is judged by the smallest figure that Cilium had.
        let share_of_cilium = cilium
            .and_then(|cilium| cilium.bpf)
            .map(|bpf| bpf_ns_per_operation / bpf.least);
        Self {
            path,
            workload,
            weft,
            bare,
            ratio,
            lost,
            programs,
            bpf_ns_per_operation,
            bpf_runs_per_operation,
            cilium,
            share_of_cilium,
        }
    }
}

impl Report {
    /// Adds what the machine is.
    ///
    /// # Errors
    ///
    /// When the machine does not say.
    pub fn new(
        options: &Datapath,
        measurements: Vec<Measurement>,
        packets: Packets,
    ) -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("reading the kernel's release")?;
        Ok(Self {
            kernel: kernel.trim().to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            rounds: options.rounds,
            seconds: options.seconds.as_secs_f64(),
            clients_and_servers: options.cpus,
            reference: reference::NOTE,
            measurements,
            packets,
        })
    }

    fn of(&self, workload: Workload) -> impl Iterator<Item = &Measurement> {
        self.measurements
            .iter()
            .filter(move |measurement| measurement.workload == workload)
    }

    fn rates(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nOperations per second: medians of {} alternating runs of {} s; ratios to bare \
             namespaces with range; clients and servers that take turns {}",
            self.rounds,
            self.seconds,
            match self.clients_and_servers {
                Cpus::Shared => "share a CPU",
                Cpus::Apart => "have a CPU each",
            }
        )?;
        for workload in Workload::ALL {
            let mut table = Table::new(["path", "Weft", "bare", "ratio", "range", "Cilium's"]);
            for measured in self.of(workload) {
                let rate = |summary: &Summary| match workload {
                    Workload::Stream => {
                        format!("{:.2} Gbit/s", gigabits(summary.median))
                    }
                    _ => thousands(summary.median),
                };
                let mut name = measured.path.name().to_owned();
                if measured.lost >= 1.0 {
                    name += &format!(" ({:.0} % lost)", measured.lost);
                }
                table.row([
                    name,
                    rate(&measured.weft),
                    rate(&measured.bare),
                    format!("{:.2}", measured.ratio.median),
                    format!("{:.2}-{:.2}", measured.ratio.least, measured.ratio.most),
                    measured
                        .cilium
                        .map_or("-".to_owned(), |cilium| format!("{:.2}", cilium.ratio)),
                ]);
            }
            write!(f, "\n{}\n{table}", workload.name())?;
        }
        Ok(())
    }

    fn programs(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nBPF time per operation, by kernel run-time statistics (in runs of their own), over \
             both nodes; the aim is at most half of Cilium's"
        )?;
        for workload in Workload::ALL {
            let mut table = Table::new([
                "path",
                "runs",
                "ns/run",
                "ns/op",
                "Cilium's ns/op",
                "share",
                "aim",
            ]);
            for measured in self.of(workload) {
                let bpf = measured.cilium.and_then(|cilium| cilium.bpf);
                let theirs = bpf.map_or("-".to_owned(), |bpf| {
                    if bpf.least < bpf.most {
                        format!("{}-{}", thousands(bpf.least), thousands(bpf.most))
                    } else {
                        thousands(bpf.least)
                    }
                });
                let share = measured.share_of_cilium;
                table.row([
                    measured.path.name().to_owned(),
                    format!("{:.2}", measured.bpf_runs_per_operation),
                    String::new(),
                    thousands(measured.bpf_ns_per_operation),
                    theirs,
                    share.map_or("-".to_owned(), |share| format!("{share:.2}")),
                    share
                        .map_or("-", |share| if share <= 0.5 { "met" } else { "MISSED" })
                        .to_owned(),
                ]);
                for cost in &measured.programs {
                    table.row([
                        format!("  {}", cost.program),
                        format!("{:.2}", cost.runs_per_operation),
                        format!("{:.0}", cost.ns_per_run),
                        thousands(cost.ns_per_operation()),
                    ]);
                }
            }
            let unit = match workload {
                Workload::Stream => format!(" (an operation is {} KiB)", STREAM_UNIT / 1024),
                _ => String::new(),
            };
            write!(f, "\n{}{unit}\n{table}", workload.name())?;
        }
        Ok(())
    }

    fn packets(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["packet", "program", "one by one", "back to back"]);
        for cost in &self.packets.costs {
            table.row([
                cost.packet.to_owned(),
                cost.program.to_owned(),
                format!("{:.0}", cost.single.median),
                cost.repeated
                    .map_or("-".to_owned(), |cost| format!("{:.0}", cost.median)),
            ]);
        }
        writeln!(
            f,
            "\nNanoseconds per packet, by BPF_PROG_TEST_RUN: medians. One by one includes the \
             clock, which the first row shows\n\n{table}"
        )?;

        let mut table = Table::new([
            "packet",
            "program",
            "flows",
            "endpoints",
            "ipcache",
            "policy",
            "services",
            "promise",
        ]);
        for count in &self.packets.lookups {
            table.row([
                count.packet.to_owned(),
                count.program.to_owned(),
                format!("{:.3}", count.flows),
                format!("{:.3}", count.endpoints),
                format!("{:.3}", count.ipcache),
                format!("{:.3}", count.policy),
                format!("{:.3}", count.services),
                if count.keeps_the_promise() {
                    "kept"
                } else {
                    "BROKEN"
                }
                .to_owned(),
            ]);
        }
        write!(
            f,
            "Map lookups per packet of an established flow, counted by the program: the promise is \
             one in the flow table and none elsewhere\n\n{table}"
        )
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Weft's datapath on Linux {}, {} CPUs",
            self.kernel, self.cpus
        )?;
        self.packets(f)?;
        if !self.measurements.is_empty() {
            self.rates(f)?;
            self.programs(f)?;
            writeln!(f, "\n{}.", self.reference)?;
        }
        Ok(())
    }
}

/// Columns as wide as their widest cell: the first to the left, the others to the right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new<const N: usize>(header: [&str; N]) -> Self {
        Self {
            rows: vec![header.map(str::to_owned).to_vec()],
        }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        for row in &self.rows {
            let mut line = String::from(" ");
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    line += &format!(" {cell:<width$}");
                } else {
                    line += &format!("  {cell:>width$}");
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A whole number with separators.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Stream units per second in Gbit/s.
fn gigabits(units: f64) -> f64 {
    units * STREAM_UNIT as f64 * 8.0 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_separators() {
        for (number, text) in [
            (0.4, "0"),
            (999.0, "999"),
            (1_000.0, "1,000"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["path", "n"]);
        table.row(["long name".to_owned(), "1,000".to_owned()]);
        table.row(["x".to_owned()]);
        assert_eq!(
            table.to_string(),
            "  path           n\n  long name  1,000\n  x\n"
        );
    }

    #[test]
    fn the_aim_is_judged_by_ciliums_best_figure() {
        let rate = Summary {
            median: 1.0,
            least: 1.0,
            most: 1.0,
        };
        let cost = ProgramCost {
            program: "from_container",
            runs_per_operation: 2.0,
            ns_per_run: 445.0,
        };
        let measured = |path| {
            Measurement::new(
                path,
                Workload::RequestResponse,
                [rate, rate, rate],
                0.0,
                vec![cost.clone()],
            )
        };
        let same = measured(Path::Same);
        assert_eq!(same.bpf_ns_per_operation, 890.0);
        assert_eq!(same.share_of_cilium, Some(890.0 / 1_780.0));
        assert_eq!(measured(Path::ServiceSame).share_of_cilium, None);
    }
}
