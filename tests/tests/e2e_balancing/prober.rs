//! Requests at a steady rate, each by itself: none waits for another that gets no answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use weft_tests::netns::Netns;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Tally {
    pub answered: usize,
    /// Who answered.
    pub servers: BTreeSet<String>,
    /// How many failed, by how.
    pub failed: BTreeMap<String, usize>,
}

impl Tally {
    fn note(&mut self, outcome: Result<String>) {
        match outcome {
            Ok(server) => {
                self.answered += 1;
                self.servers.insert(server);
            }
            Err(error) => *self.failed.entry(format!("{error:#}")).or_default() += 1,
        }
    }

    /// The share of the requests that were answered.
    pub fn share(&self) -> f64 {
        let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        let failed = self.failed.values().sum::<usize>();
        count(self.answered) / count(self.answered + failed).max(1.0)
    }
}

/// Requests over TCP, until it is stopped.
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

impl Prober {
    /// Begins in a namespace. Each request goes to the address that is given then; without one there is
    /// no request.
    pub fn start(
        netns: &Netns,
        per_second: u32,
        mut target: impl FnMut() -> Option<SocketAddr> + Send + 'static,
    ) -> Self {
        let netns = File::open(netns.path()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(async {
                let mut ticks = interval(Duration::from_secs(1) / per_second);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut requests = JoinSet::new();
                let mut tally = Tally::default();
                while !told.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    if let Some(target) = target() {
                        requests.spawn(ask(target));
                    }
                    while let Some(done) = requests.try_join_next() {
                        tally.note(done.unwrap());
                    }
                }
                while let Some(done) = requests.join_next().await {
                    tally.note(done.unwrap());
                }
                tally
            })
        });
        Prober { stop, thread }
    }

    /// Ends it, and waits for what is still under way.
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The name of the server that greets.
async fn ask(target: SocketAddr) -> Result<String> {
    let request = async {
        let stream = TcpStream::connect(target).await.context("connecting")?;
        let mut line = String::new();
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut line).await.context("reading")?;
        let server = line.split(' ').next().filter(|name| !name.is_empty());
        server.map(str::to_owned).context("there is no greeting")
    };
    timeout(PATIENCE, request).await.context("waiting")?
}
