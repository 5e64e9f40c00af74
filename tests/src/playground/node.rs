//! One node: namespace, mounts, directories, agent.

use std::fs::{self, OpenOptions};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::families::Family;
use super::kubelet::{Kubelet, Sandboxes};
use super::{cgroup, cleanup, cni, network, process};
use crate::netns::{self, Netns};

/// A node of a playground.
pub struct Node {
    /// Its name, also in the API.
    pub name: String,
    /// Its addresses.
    pub addresses: Addresses,
    /// Its zone, if the playground has zones.
    pub zone: Option<String>,
    /// Its namespace.
    pub netns: Arc<Netns>,
    /// Its directory.
    pub dir: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Its pods.
    pub sandboxes: Sandboxes,
    pub(super) agent: Option<Child>,
    pub(super) kubelet: Option<Kubelet>,
}

/// A node's InternalIPs, the preferred one first. They can change; all copies see it.
///
/// Invariant: there is at least one.
#[derive(Clone, Debug)]
pub struct Addresses(Arc<Mutex<Vec<IpAddr>>>);

impl Addresses {
    fn new(addresses: Vec<IpAddr>) -> Result<Self> {
        if addresses.is_empty() {
            bail!("a node needs an address");
        }
        Ok(Addresses(Arc::new(Mutex::new(addresses))))
    }

    /// All of them.
    pub fn all(&self) -> Vec<IpAddr> {
        self.locked().clone()
    }

    /// The preferred one.
    pub fn first(&self) -> IpAddr {
        self.locked()[0]
    }

    /// The first of a family.
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        let all = self.locked();
        all.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    /// The first IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        match self.of(Family::V4) {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        }
    }

    /// Puts an address in the place of another; false when that is not there.
    pub(super) fn replace(&self, old: IpAddr, new: IpAddr) -> bool {
        let mut all = self.locked();
        let place = all.iter_mut().find(|address| **address == old);
        place.map(|address| *address = new).is_some()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<IpAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Makes what a machine would have: everything but the network's wires and the processes.
    ///
    /// # Errors
    ///
    /// When anything of it cannot be made, or there is no address.
    pub fn make(
        id: &str,
        name: &str,
        addresses: Vec<IpAddr>,
        zone: Option<String>,
    ) -> Result<Self> {
        let addresses = Addresses::new(addresses)?;
        let dir = cleanup::dir(id).join(name);
        for part in ["bpf", "state", "run", "cni/bin", "cni/net.d", "log"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
        }
        let bpf = dir.join("bpf");
        let none: Option<&str> = None;
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), none)
            .with_context(|| format!("mounting a BPF file system on {}", bpf.display()))?;
        let cgroup = cleanup::cgroup_dir(id)?.join(name);
        for part in ["agent", "host", "pods"] {
            cgroup::create(&cgroup.join(part))?;
        }
        let netns_name = cleanup::netns_name(id, name);
        let netns = Netns::create(&netns_name)
            .with_context(|| format!("making the namespace {netns_name}"))?;
        // What every Kubernetes node's operator sets, and what `exec_host` needs to ping.
        network::forward(&netns)?;
        netns.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        // As systemd has it: an address does not take the others of its network with it.
        netns.sysctl("net/ipv4/conf/all/promote_secondaries", "1")?;
        Ok(Node {
            name: name.to_owned(),
            addresses,
            zone,
            netns: Arc::new(netns),
            dir,
            cgroup,
            sandboxes: Sandboxes::default(),
            agent: None,
            kubelet: None,
        })
    }

    /// Its preferred address.
    pub fn address(&self) -> IpAddr {
        self.addresses.first()
    }

    /// The Node object as a kubelet registers it.
    pub fn object(&self) -> Value {
        let mut labels = json!({
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        });
        if let Some(zone) = &self.zone {
            labels["topology.kubernetes.io/zone"] = json!(zone);
        }
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": self.name, "labels": labels },
            "spec": {},
        })
    }

    /// The node's status as a kubelet reports it.
    pub fn status(&self) -> Value {
        let internal = |ip: &IpAddr| json!({ "type": "InternalIP", "address": ip });
        let mut addresses: Vec<Value> = self.addresses.all().iter().map(internal).collect();
        addresses.push(json!({ "type": "Hostname", "address": self.name }));
        json!({ "status": {
            "addresses": addresses,
            "capacity": { "pods": "110" },
            "allocatable": { "pods": "110" },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "the playground's kubelet is posting ready status",
            }],
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux", "bootID": "", "machineID": "",
                "systemUUID": "", "containerRuntimeVersion": "weft://0", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "v1.33.0", "osImage": "playground",
            },
        }})
    }

    /// The node's CNI set-up.
    pub fn cni(&self) -> cni::Runtime {
        cni::Runtime {
            conf_dir: self.dir.join("cni/net.d"),
            bin_dir: self.dir.join("cni/bin"),
            cgroup: Some(self.cgroup.join("host")),
        }
    }

    /// Where the agent finds the API.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The BPF file system of the node.
    pub fn bpf_dir(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// What the agent logged.
    pub fn agent_log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// The directory of the agent's sockets.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Starts the agent in the node's namespace.
    pub fn start_agent(&mut self, binaries: &Binaries, extra: &[String]) -> Result<()> {
        if let Some(pid) = self.agent_pid()? {
            bail!("the agent of {} is running as process {pid}", self.name);
        }
        let log = self.agent_log();
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new(&binaries.agent);
        let flag = |command: &mut Command, name: &str, value: &Path| {
            command.arg(name).arg(value);
        };
        command.args(["run", "--node-name", &self.name]);
        flag(&mut command, "--kubeconfig", &self.kubeconfig());
        flag(&mut command, "--bpf-root", &self.bpf_dir());
        flag(&mut command, "--state-dir", &self.dir.join("state"));
        flag(&mut command, "--run-dir", &self.run_dir());
        flag(&mut command, "--cni-bin-dir", &self.dir.join("cni/bin"));
        flag(&mut command, "--cni-conf-dir", &self.dir.join("cni/net.d"));
        flag(&mut command, "--cni-binary", &binaries.cni);
        // Its socket programs are for this node's processes only.
        command.env("WEFT_CGROUP_ROOT", &self.cgroup);
        command.args(extra);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        netns::enter(&mut command, &self.netns, Some(&self.cgroup.join("agent")))?;
        let agent = command
            .spawn()
            .with_context(|| format!("starting {}", binaries.agent.display()))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The agent's process, if it runs.
    ///
    /// # Errors
    ///
    /// When its state cannot be found out.
    pub fn agent_pid(&mut self) -> Result<Option<u32>> {
        let Some(agent) = &mut self.agent else {
            return Ok(None);
        };
        if let Some(status) = agent.try_wait()? {
            tracing::warn!(node = self.name, "the agent ended: {status}");
            self.agent = None;
            return Ok(None);
        }
        Ok(Some(agent.id()))
    }

    /// Kills the agent without a warning, as `kill -9` does.
    pub fn kill_agent(&mut self) -> Result<()> {
        let mut agent = self
            .agent
            .take()
            .with_context(|| format!("the agent of {} does not run", self.name))?;
        agent
            .kill()
            .with_context(|| format!("killing the agent of {}", self.name))?;
        agent.wait()?;
        Ok(())
    }

    /// The last lines of the agent's log, for messages.
    pub fn agent_log_tail(&self, lines: usize) -> String {
        let log = fs::read_to_string(self.agent_log()).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// The programs that a playground runs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `weft-agent`.
    pub agent: PathBuf,
    /// `weft-cni`.
    pub cni: PathBuf,
    /// `weft-testpod`.
    pub testpod: PathBuf,
}

impl Binaries {
    /// Finds them. Without agents the first two are not needed and may be absent.
    pub fn find(with_agents: bool) -> Result<Self> {
        let optional = |name, variable| match process::find_binary(name, variable) {
            Err(_) if !with_agents => Ok(PathBuf::new()),
            found => found,
        };
        Ok(Binaries {
            agent: optional("weft-agent", "WEFT_AGENT_BIN")?,
            cni: optional("weft-cni", "WEFT_CNI_BIN")?,
            testpod: process::find_binary("weft-testpod", "WEFT_TESTPOD_BIN")?,
        })
    }
}
