//! How long pods wait for their network: ADD and DEL as a runtime calls them, plugin's start included.
//!
//! One node with a real agent that has pods already. The benchmark is the runtime: it makes the
//! sandboxes, which is not measured, and runs the installed plugin. The pods that it names exist in
//! the API, so that ADD waits for their policy as it does in a cluster; no kubelet runs them.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde::Serialize;
use serde_json::{Value, json};

use super::statistics::Times;
use crate::interrupt::Interrupt;
use crate::netns::Netns;
use crate::playground::cni::{Attachment, Network, Runtime, kubernetes_args};
use crate::playground::{Families, Playground, cleanup};

/// The node, and the namespace of the pods.
const NODE: &str = "node1";
const NAMESPACE: &str = "default";

/// How often to measure, and beside how many pods.
#[derive(Args, Clone, Debug)]
pub struct Cni {
    /// Pods that the node has meanwhile.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=120))]
    pods: u32,
    /// Pods that are attached and detached one after the other.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    alone: u32,
    /// Pods that are attached at the same time, and then detached at the same time.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=120))]
    at_once: u32,
    /// How often those are.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// A pod that is not attached.
struct Sandbox {
    netns: Option<Netns>,
    attachment: Attachment,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(netns) = self.netns.take() {
            // The playground removes what is left.
            let _ = netns.delete();
        }
    }
}

/// The runtime of a node.
pub struct Node<'a> {
    playground: &'a Playground,
    netns: &'a Netns,
    runtime: Runtime,
    network: Network,
}

#[derive(Serialize)]
struct Report {
    pods: u32,
    times: Vec<Times>,
}

/// Measures ADD and DEL and prints what they take.
///
/// # Errors
///
/// When the playground does not come up, or any of the calls fails.
pub fn cni(options: &Cni) -> Result<()> {
    super::progress("starting a playground of one node");
    let interrupt = Interrupt::catch(|| ())?;
    let plan = Playground::builder()
        .name("benchcni")
        .families(Families::Dual);
    let playground = plan.without_kubelets().start()?;
    let report = measure(&playground, options, &interrupt)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

fn measure(playground: &Playground, options: &Cni, interrupt: &Interrupt) -> Result<Report> {
    let node = Node::of(playground, NODE)?;
    super::progress(&format!("attaching {} pods that stay", options.pods));
    let stay = node.sandboxes("stay", options.pods)?;
    for sandbox in &stay {
        interrupt.check()?;
        node.add(sandbox)?;
    }

    super::progress(&format!("{} pods, one after the other", options.alone));
    let mut times = node.alone(options.alone, interrupt)?.to_vec();

    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    let (mut all_adds, mut all_dels) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        interrupt.check()?;
        let (at_once, rounds) = (options.at_once, options.rounds);
        super::progress(&format!(
            "{at_once} pods at once, round {round} of {rounds}"
        ));
        let sandboxes = node.sandboxes(&format!("round{round}p"), at_once)?;
        let started = Instant::now();
        let added = at_the_same_time(&sandboxes, |sandbox| node.add(sandbox))?;
        all_adds.push(started.elapsed());
        adds.extend(added.iter().map(|(_, time)| *time));
        let pairs: Vec<_> = sandboxes.iter().zip(added).collect();
        let started = Instant::now();
        dels.extend(at_the_same_time(&pairs, |(sandbox, (result, _))| {
            node.del(sandbox, result)
        })?);
        all_dels.push(started.elapsed());
    }
    let at_once = |what: &str| format!("{what}, {} at once", options.at_once);
    times.push(Times::of(at_once("ADD"), adds));
    times.push(Times::of(at_once("DEL"), dels));
    times.push(Times::of(at_once("all ADDs"), all_adds));
    times.push(Times::of(at_once("all DELs"), all_dels));
    Ok(Report {
        pods: options.pods,
        times,
    })
}

/// One thread for each.
fn at_the_same_time<T: Sync, R: Send>(
    all: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = all
            .iter()
            .map(|one| scope.spawn(move || work(one)))
            .collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect()
    })
}

impl<'a> Node<'a> {
    /// The node of this name, whose agent serves.
    ///
    /// # Errors
    ///
    /// When there is none, or its agent installed no network.
    pub fn of(playground: &'a Playground, name: &str) -> Result<Self> {
        let node = playground.node(name)?;
        let runtime = node.cni();
        let network = runtime
            .network()?
            .context("the agent installed no network")?;
        Ok(Node {
            playground,
            netns: &node.netns,
            runtime,
            network,
        })
    }

    /// Attaches and detaches pods, one after the other: what each ADD and each DEL takes.
    ///
    /// # Errors
    ///
    /// When one of them fails.
    pub fn alone(&self, count: u32, interrupt: &Interrupt) -> Result<[Times; 2]> {
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for number in 0..count {
            interrupt.check()?;
            let sandbox = self.sandbox(&format!("alone{number}"))?;
            let (result, time) = self.add(&sandbox)?;
            adds.push(time);
            dels.push(self.del(&sandbox, &result)?);
        }
        Ok([Times::of("ADD, alone", adds), Times::of("DEL, alone", dels)])
    }

    fn sandboxes(&self, prefix: &str, count: u32) -> Result<Vec<Sandbox>> {
        (0..count)
            .map(|number| self.sandbox(&format!("{prefix}{number}")))
            .collect()
    }

    /// What a runtime has when it calls the plugin: the pod's object and a namespace.
    fn sandbox(&self, name: &str) -> Result<Sandbox> {
        let pod = json!({
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "nodeName": NODE, "containers": [{ "name": "main", "image": "pause" }] },
        });
        let api: Api<Pod> = Api::namespaced(self.playground.client(), NAMESPACE);
        let pod = serde_json::from_value(pod)?;
        let created = self
            .playground
            .block_on(api.create(&PostParams::default(), &pod))?;
        let uid = created.metadata.uid.unwrap_or_default();
        let netns = Netns::create(&cleanup::netns_name(self.playground.id(), name))?;
        let container_id = format!("sandbox-{name}");
        let attachment = Attachment {
            netns: netns.path(),
            ifname: "eth0".to_owned(),
            args: kubernetes_args(NAMESPACE, name, &uid, &container_id),
            container_id,
            ..Attachment::default()
        };
        Ok(Sandbox {
            netns: Some(netns),
            attachment,
        })
    }

    fn add(&self, sandbox: &Sandbox) -> Result<(Value, Duration)> {
        let started = Instant::now();
        let result = self
            .runtime
            .add(self.netns, &self.network, &sandbox.attachment)?;
        Ok((result, started.elapsed()))
    }

    fn del(&self, sandbox: &Sandbox, result: &Value) -> Result<Duration> {
        let started = Instant::now();
        let attachment = &sandbox.attachment;
        self.runtime
            .del(self.netns, &self.network, attachment, Some(result))?;
        Ok(started.elapsed())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "CNI on a node with {} pods, in milliseconds", self.pods)?;
        Times::write_table(&self.times, f)?;
        Ok(())
    }
}
