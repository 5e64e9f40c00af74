//! What an agent and the kernel tell of an agent: its metrics, its memory, its processor time.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;
use serde_json::Value;

use crate::bench::statistics::milliseconds;
use crate::playground::Playground;

/// Where the agent tells its metrics.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10249);

/// A running agent.
pub struct Agent {
    node: String,
    pid: u32,
}

/// What the agent tells of its first pass over the cluster.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pass {
    /// All of it.
    #[serde(rename = "pass_ms", serialize_with = "milliseconds")]
    pub whole: Duration,
    /// Compiling services.
    #[serde(rename = "compile_ms", serialize_with = "milliseconds")]
    pub compile: Duration,
    /// Writing the maps of services.
    #[serde(rename = "write_ms", serialize_with = "milliseconds")]
    pub write: Duration,
}

impl Agent {
    /// The one of a node.
    pub fn of(playground: &mut Playground, name: &str) -> Result<Self> {
        let node = playground.node_mut(name)?;
        let pid = node.agent_pid()?.context("the agent does not run")?;
        Ok(Self {
            node: name.to_owned(),
            pid,
        })
    }

    /// What it tells of its first pass, after which it has had little to do.
    pub fn first_pass(&self, playground: &Playground) -> Result<Pass> {
        let metrics = self.metrics(playground)?;
        let seconds = |name: &str, label: &str| -> Result<Duration> {
            let name = format!("{name}_sum{{");
            let line = metrics
                .lines()
                .find(|line| line.starts_with(&name) && line.contains(label));
            let line = line.with_context(|| format!("no metric {name}{label}"))?;
            let value = line.rsplit(' ').next().unwrap_or_default();
            Ok(Duration::try_from_secs_f64(value.parse()?)?)
        };
        Ok(Pass {
            whole: seconds(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "ip_family=\"IPv4\"",
            )?,
            compile: seconds("weft_compile_duration_seconds", "services")?,
            write: seconds("weft_write_duration_seconds", "services")?,
        })
    }

    /// Entries in the maps of services.
    pub fn entries(&self, playground: &Playground) -> Result<u64> {
        let status = self.status(playground)?;
        let maps = status["maps"].as_array().context("no maps")?;
        let of_services = maps.iter().filter(|map| {
            let name = map["map"].as_str().unwrap_or_default();
            ["frontends", "backends", "slots"]
                .iter()
                .any(|start| name.starts_with(start))
        });
        Ok(of_services.filter_map(|map| map["entries"].as_u64()).sum())
    }

    /// Entries that were written or deleted last.
    pub fn last_entries(&self, playground: &Playground) -> Result<u64> {
        let status = self.status(playground)?;
        let entries = status["applied"]["entries"].as_u64();
        entries.context("the agent does not tell what it wrote")
    }

    /// Memory now and at most, in bytes.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let told = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let bytes = |name: &str| -> Result<u64> {
            let line = told.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            let kib: u64 = number.with_context(|| format!("no {name}"))?.parse()?;
            Ok(kib * 1024)
        };
        Ok((bytes("VmRSS:")?, bytes("VmHWM:")?))
    }

    /// Processor time so far.
    pub fn cpu(&self) -> Result<Duration> {
        let told = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The program's name may have spaces: what follows it has none.
        let fields = told.rsplit(") ").next().unwrap_or_default();
        let fields: Vec<&str> = fields.split(' ').collect();
        let [Some(user), Some(system)] = [11, 12].map(|field| fields.get(field)) else {
            bail!("/proc/{}/stat is too short", self.pid);
        };
        let ticks = user.parse::<f64>()? + system.parse::<f64>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(Duration::from_secs_f64(ticks / per_second as f64))
    }

    fn status(&self, playground: &Playground) -> Result<Value> {
        let output = playground.ask_agent(&self.node, &["status", "-o", "json"])?;
        if !output.status.success() {
            bail!("the agent tells no status");
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn metrics(&self, playground: &Playground) -> Result<String> {
        let ask = || -> Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let node = playground.node(&self.node)?;
        node.netns.run(ask)?.context("asking for metrics")
    }
}
