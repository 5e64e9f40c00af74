//! How a service's connections spread over its pods.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::app::{API, Application, VISITOR};
use super::table::{Align, Cell, Table};
use super::terminal::{Style, Terminal};
use crate::playground::Playground;

/// Connections in all, and how many clients make them.
const CONNECTIONS: usize = 120;
const CLIENTS: usize = 8;

/// The characters of the longest bar.
const BAR: usize = 30;

/// Connections by pod.
pub struct Balance {
    /// Each pod's name and node, and how many connections it got.
    counts: BTreeMap<(String, String), usize>,
}

impl Balance {
    /// Connects to the API's service, over and over.
    ///
    /// # Errors
    ///
    /// When a connection fails or is answered by a pod that is none of the service's.
    pub fn measure(playground: &Playground, application: &Application) -> Result<Self> {
        let client = application
            .pods_of(VISITOR)
            .next()
            .context("there is no visitor")?;
        let target = application.service(API, 80)?.to_string();
        let pods = application
            .pods_of(API)
            .map(|pod| ((pod.name.clone(), pod.node.clone()), 0));
        let counts = Mutex::new(pods.collect::<BTreeMap<_, _>>());
        let work = || -> Result<()> {
            for _ in 0..CONNECTIONS / CLIENTS {
                let words = [
                    "connect",
                    "http",
                    &target,
                    "--path",
                    "/hostname",
                    "--timeout",
                    "5",
                ];
                let output = playground.exec(client.workload.namespace, &client.name, &words)?;
                let errors = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "connecting to {target}: {errors}");
                let answer = String::from_utf8_lossy(&output.stdout);
                let mut counts = counts.lock().map_err(|_| anyhow!("a client panicked"))?;
                let pod = counts
                    .iter_mut()
                    .find(|((name, _), _)| name == answer.trim());
                let (_, count) = pod.with_context(|| format!("{target} answers as {answer:?}"))?;
                *count += 1;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
            let joined = clients.into_iter().map(|client| {
                client
                    .join()
                    .map_err(|_| anyhow!("a client panicked"))
                    .and_then(|done| done)
            });
            joined.fold(Ok(()), Result::and)
        })?;
        Ok(Balance {
            counts: counts.into_inner().ok().context("a client panicked")?,
        })
    }

    /// Whether every pod got connections.
    pub fn all_hit(&self) -> bool {
        self.counts.values().all(|count| *count > 0)
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.counts.values().sum()
    }

    /// Draws the counts as bars.
    pub fn render(&self, terminal: Terminal) -> String {
        let most = self.counts.values().copied().max().unwrap_or(0).max(1);
        let mut table = Table::new(vec![Align::Left, Align::Left, Align::Right, Align::Left]);
        table.header(["pod", "node", "connections", ""]);
        for ((pod, node), count) in &self.counts {
            let style = if *count > 0 {
                Style::Good
            } else {
                Style::Wrong
            };
            table.line(vec![
                Cell::plain(pod.as_str()),
                Cell::plain(node.as_str()),
                Cell::plain(count.to_string()),
                Cell::new(style, "█".repeat((count * BAR).div_ceil(most))),
            ]);
        }
        table.render(terminal)
    }
}
