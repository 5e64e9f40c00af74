//! `kill -9` of the agents while numbered messages are on their way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::app::{API, Application, DATABASE, FRONTEND, NAMESERVER, RunningPod, Workload};
use super::table::{Align, Cell, Table};
use super::terminal::{Style, Terminal};
use crate::playground::{Background, Playground};

/// Messages per second and stream.
const RATE: u32 = 400;

/// How long the streams run: long enough for what happens meanwhile.
const DURATION: Duration = Duration::from_secs(12);

/// What `weft-testpod stream` reports.
#[derive(Debug, Deserialize)]
struct Report {
    sent: u64,
    received: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    longest_gap_ms: u64,
    error: Option<String>,
}

impl Report {
    fn clean(&self) -> bool {
        let wrong = self.lost + self.duplicated + self.reordered;
        self.sent > 0 && self.received == self.sent && wrong == 0 && self.error.is_none()
    }
}

/// Traffic on its way.
pub struct Traffic {
    streams: Vec<Stream>,
    end: Instant,
}

struct Stream {
    protocol: &'static str,
    from: Workload,
    to: String,
    process: Background,
}

impl Traffic {
    /// Starts a TCP and a UDP stream through services, both between nodes where there is a choice;
    /// returns once answers come.
    ///
    /// # Errors
    ///
    /// When they get no answer.
    pub fn start(playground: &Playground, application: &Application) -> Result<Self> {
        let mut streams = Vec::new();
        for (protocol, from, to, port) in [
            ("tcp", API, DATABASE, 5432),
            ("udp", FRONTEND, NAMESERVER, 53),
        ] {
            let client = far_from(application, from, to)?;
            let target = application.service(to, port)?;
            let process = stream(playground, protocol, client, target)?;
            let to = format!("{}/{}:{port}", to.namespace, to.name);
            streams.push(Stream {
                protocol,
                from,
                to,
                process,
            });
        }
        Ok(Traffic {
            streams,
            end: Instant::now() + DURATION,
        })
    }

    /// Whether messages are still being sent.
    pub fn is_running(&self) -> bool {
        Instant::now() < self.end
    }

    /// Waits for the end, and says what became of the messages.
    ///
    /// # Errors
    ///
    /// When a stream's program does not report.
    pub fn finish(self) -> Result<Outcome> {
        let mut outcome = Outcome { lines: Vec::new() };
        for stream in self.streams {
            let output = stream.process.finish()?;
            let report = serde_json::from_slice(&output.stdout).with_context(|| {
                let errors = String::from_utf8_lossy(&output.stderr);
                format!(
                    "the {} stream to {} reports {errors}",
                    stream.protocol, stream.to
                )
            })?;
            let from = format!("{}/{}", stream.from.namespace, stream.from.name);
            outcome
                .lines
                .push((stream.protocol, from, stream.to, report));
        }
        Ok(outcome)
    }
}

/// What became of the messages.
pub struct Outcome {
    lines: Vec<(&'static str, String, String, Report)>,
}

impl Outcome {
    /// Whether every message was answered once and in order.
    pub fn clean(&self) -> bool {
        self.lines.iter().all(|(.., report)| report.clean())
    }

    /// Draws the numbers.
    pub fn render(&self, terminal: Terminal) -> String {
        let mut columns = vec![Align::Left; 3];
        columns.extend([Align::Right; 5]);
        let mut table = Table::new(columns);
        table.header([
            "",
            "from",
            "to",
            "sent",
            "answered",
            "lost",
            "twice",
            "longest gap",
        ]);
        for (protocol, from, to, report) in &self.lines {
            let style = if report.clean() {
                Style::Good
            } else {
                Style::Wrong
            };
            table.line(vec![
                Cell::plain(protocol.to_uppercase()),
                Cell::plain(from.as_str()),
                Cell::plain(to.as_str()),
                Cell::plain(report.sent.to_string()),
                Cell::plain(report.received.to_string()),
                Cell::new(style, report.lost.to_string()),
                Cell::plain(report.duplicated.to_string()),
                Cell::plain(format!("{} ms", report.longest_gap_ms)),
            ]);
        }
        let errors = self.lines.iter().filter_map(|(protocol, .., report)| {
            let error = report.error.as_ref()?;
            Some(format!("   the {protocol} stream ended early: {error}\n"))
        });
        table.render(terminal) + &errors.collect::<String>()
    }
}

fn stream(
    playground: &Playground,
    protocol: &str,
    client: &RunningPod,
    target: SocketAddr,
) -> Result<Background> {
    let (target, rate) = (target.to_string(), RATE.to_string());
    let duration = DURATION.as_secs().to_string();
    let words = [
        "stream",
        protocol,
        &target,
        "--rate",
        &rate,
        "--duration",
        &duration,
    ];
    playground.spawn(client.workload.namespace, &client.name, &words)
}

/// A pod of one workload on a node that does not run the other one, if there is any.
fn far_from(application: &Application, client: Workload, server: Workload) -> Result<&RunningPod> {
    let near = |pod: &&RunningPod| {
        application
            .pods_of(server)
            .any(|other| other.node == pod.node)
    };
    let far = application.pods_of(client).find(|pod| !near(pod));
    match far.or_else(|| application.pods_of(client).next()) {
        Some(pod) => Ok(pod),
        None => bail!("{}/{} has no pods", client.namespace, client.name),
    }
}
