//! What very many services cost a node: how soon they are in the maps, and one change of them.
//!
//! ```text
//!   objects ──► API server ──► agent ──► maps        [population], [agent], [pins]
//!      `──────► rules ──────► nft ──► kernel         [kube_proxy], where there is `nft`
//! ```
//!
//! One node with a real agent, which starts when the objects are there. No pod is behind the
//! endpoints: nothing here sends a packet. What is in the maps is seen by looking into the maps.
//! The API server runs on the same machine and takes its time there, mostly while it is listed.

mod agent;
mod kube_proxy;
mod pins;
mod population;
mod report;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::agent::Agent;
use self::pins::{Memory, Pins};
use self::population::{ClusterIps, Population};
use self::report::{Load, NfTables, Report};
use super::cni;
use super::statistics::Times;
use crate::interrupt::Interrupt;
use crate::netns::Netns;
use crate::playground::{Families, Family, Playground, cleanup};

/// The node.
const NODE: &str = "node1";
/// How long to wait until something is in the maps.
const PATIENCE: Duration = Duration::from_secs(300);
/// Slots for all services, by default; see [`weft_abi::maps::SLOTS`].
const SLOTS: u64 = weft_abi::maps::SLOTS as u64 - 1000;

/// How many services, and how often to change them.
#[derive(Args, Clone, Debug)]
pub struct Services {
    /// Services, of one port each.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    services: u32,
    /// Endpoints of each service, in each family.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100))]
    endpoints: u32,
    /// Services of both families: twice as many endpoints and rules.
    #[arg(long)]
    dual_stack: bool,
    /// Changes of one endpoint, one after the other.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Pods that are attached and detached meanwhile, one after the other.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pods: u32,
    /// Leave out nftables, also where there is `nft`.
    #[arg(long)]
    no_nft: bool,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

/// The service whose endpoint a change replaces: all over the range.
fn changed(change: u32, services: u32) -> u32 {
    // A prime.
    ((u64::from(change) * 7919) % u64::from(services)) as u32
}

/// Measures what services cost and prints it.
///
/// # Errors
///
/// When the playground does not come up, or something does not get into the maps.
pub fn services(options: &Services) -> Result<()> {
    let families = if options.dual_stack {
        Families::Dual
    } else {
        Families::V4
    };
    let population = Population {
        services: options.services,
        endpoints: options.endpoints,
        families,
    };
    if population.total() > SLOTS {
        bail!(
            "{} endpoints are more than the maps take by default, {SLOTS}",
            population.total()
        );
    }
    super::progress("starting a playground of one node");
    let interrupt = Interrupt::catch(|| ())?;
    let plan = Playground::builder().name("benchsvc").families(families);
    let playground = plan.without_agents().without_kubelets().start()?;
    let mut bench = Bench {
        playground,
        population,
        ips: Vec::new(),
        interrupt,
    };
    let report = bench.measure(options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

struct Bench {
    playground: Playground,
    population: Population,
    ips: ClusterIps,
    interrupt: Interrupt,
}

impl Bench {
    fn measure(&mut self, options: &Services) -> Result<Report> {
        let population = self.population;
        super::progress(&format!(
            "making {} services with {} endpoints",
            population.services,
            population.total()
        ));
        let (registry, interrupt) = (self.playground.api().registry(), &self.interrupt);
        self.ips = population.create(registry, || interrupt.check())?;
        // What watches would replay is not what is measured.
        registry.store().compact();

        super::progress("starting the agent");
        let load = self.load()?;
        let pins = self.pins()?;
        let Memory { services, all } = pins::memory(&self.map_directory()?)?;

        super::progress(&format!("{} changes of one endpoint", options.changes));
        let agent = self.agent()?;
        let before = agent.cpu()?;
        let changes = self.changes(&pins, options.changes)?;
        let cpu_per_change = (agent.cpu()? - before) / options.changes;
        let entries_per_change = agent.last_entries(&self.playground)?;

        super::progress("starting the agent again");
        let restart = self.restart(&pins)?;

        super::progress(&format!("{} pods, one after the other", options.pods));
        self.playground.wait_agent_ready(NODE)?;
        let node = cni::Node::of(&self.playground, NODE)?;
        let pods = node.alone(options.pods, &self.interrupt)?;

        let nftables = match kube_proxy::find().filter(|_| !options.no_nft) {
            Some(program) => Some(self.nftables(&program, options.changes)?),
            None => None,
        };
        Ok(Report {
            services: population.services,
            endpoints: population.total(),
            load,
            map_bytes: services,
            all_map_bytes: all,
            changes: Times::of("one endpoint, from the API to the maps", changes),
            entries_per_change,
            cpu_per_change,
            restart,
            pods,
            nftables,
        })
    }

    /// From an agent that starts to maps that have everything.
    fn load(&mut self) -> Result<Load> {
        let directory = self.map_directory()?;
        let started = Instant::now();
        self.playground.start_agent(NODE)?;
        let pins = self.wait("the agent has made the maps", || {
            Ok(Pins::open(&directory).ok())
        })?;
        let loaded = started.elapsed();
        // Frontends are written by address, and after what they lead to.
        let last = |family: &Family| {
            let ips = self.ips.iter().flatten();
            ips.filter(|ip| Family::of(**ip) == *family).max().copied()
        };
        let last: Vec<IpAddr> = self
            .population
            .families
            .each()
            .iter()
            .filter_map(last)
            .collect();
        self.wait("the last service is in the maps", || {
            for ip in &last {
                if pins.backends(*ip)?.is_none() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })?;
        let total = started.elapsed();
        for ip in self.ips.iter().flatten() {
            let backends = pins.backends(*ip)?;
            if backends != Some(self.population.endpoints) {
                bail!("service {ip} has {backends:?} backends");
            }
        }
        let agent = self.agent()?;
        let figures = agent.first_pass(&self.playground)?;
        let (rss, peak) = agent.memory()?;
        Ok(Load {
            total,
            loaded,
            figures,
            cpu: agent.cpu()?,
            entries: agent.entries(&self.playground)?,
            rss,
            peak,
        })
    }

    /// From an agent that starts over maps that have everything to the new epoch, after which it
    /// follows the cluster.
    fn restart(&mut self, pins: &Pins) -> Result<Duration> {
        self.playground.kill_agent(NODE)?;
        let before = pins.epoch()?;
        let started = Instant::now();
        self.playground.start_agent(NODE)?;
        self.wait("the agent follows the cluster again", || {
            Ok((pins.epoch()? != before).then_some(()))
        })?;
        Ok(started.elapsed())
    }

    /// Replaces an endpoint of one service after the other.
    fn changes(&self, pins: &Pins, count: u32) -> Result<Vec<Duration>> {
        let population = self.population;
        let registry = self.playground.api().registry();
        let family = population.families.each()[0];
        let mut first = BTreeMap::new();
        let mut took = Vec::new();
        for change in 0..count {
            self.interrupt.check()?;
            let service = changed(change, population.services);
            let ip = self.ips[service as usize][0];
            let old = first.insert(service, Population::replacement(family, change));
            let old = old.unwrap_or_else(|| population.address(family, service, 0));
            let new = Population::replacement(family, change);
            let place = pins.find(ip, old)?;
            let place = place.with_context(|| format!("{ip} does not lead to {old}"))?;
            let started = Instant::now();
            population.replace_first(registry, family, service, new)?;
            self.wait("a changed endpoint is in the maps", || {
                Ok(pins.has_become(place, new)?.then_some(()))
            })?;
            took.push(started.elapsed());
        }
        Ok(took)
    }

    fn nftables(&self, program: &std::path::Path, changes: u32) -> Result<NfTables> {
        super::progress(&format!("the same with {}", program.display()));
        let netns = Netns::create(&cleanup::netns_name(self.playground.id(), "nft"))?;
        let directory = self.playground.dir();
        let took = kube_proxy::measure(
            program,
            &netns,
            &directory,
            (self.population, &self.ips),
            changes,
        );
        netns.delete()?;
        let took = took?;
        Ok(NfTables {
            load: took.load,
            rules: took.rules,
            changes: Times::of("one endpoint, by nft -f", took.changes),
        })
    }

    fn agent(&mut self) -> Result<Agent> {
        Agent::of(&mut self.playground, NODE)
    }

    fn pins(&self) -> Result<Pins> {
        Pins::open(&self.map_directory()?)
    }

    fn map_directory(&self) -> Result<std::path::PathBuf> {
        Ok(pins::directory(&self.playground.node(NODE)?.bpf_dir()))
    }

    /// Asks often, so that what is waited for is known when it is there, and not long after.
    fn wait<T>(&self, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(there) = ask()? {
                return Ok(there);
            }
            self.interrupt.check()?;
            if Instant::now() > deadline {
                let node = self.playground.node(NODE)?;
                bail!(
                    "waited {PATIENCE:?} until {what}; the agent's log ends:\n{}",
                    node.agent_log_tail(20)
                );
            }
            thread::sleep(Duration::from_micros(100));
        }
    }
}
