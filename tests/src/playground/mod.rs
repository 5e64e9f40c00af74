//! A cluster on one machine, with nothing faked on the packet's path.
//!
//! ```text
//!   root namespace                 weft-<id>-fabric            weft-<id>-<node>
//!   +---------------------+        +---------------------+     +-----------------------------+
//!   | API server          |        | API server's other  |     | eth0 172.30.0.10+i          |
//!   | 127.0.0.1:<random>  |        | socket              |     | weft-agent (a process)      |
//!   | controllers         |        | 172.30.0.1:6443     |     |  +-------------------+      |
//!   | kubelets (tasks)    |        | bridge 172.30.0.1/16|-----|  | pod's namespace   | ...  |
//!   | the test            |        |                     |     |  | weft-testpod      |      |
//!   +---------------------+        +---------------------+     +--+-------------------+------+
//! ```
//!
//! Each node has a namespace, a BPF file system, a cgroup, a state directory and CNI directories of
//! its own, so that its agent is as alone as on a machine; the agent gets a kubeconfig and cannot
//! tell the playground from a cluster.
//!
//! Invariants:
//! - Every name on the machine is derived from the playground's id ([`cleanup`]); addresses repeat
//!   from playground to playground, which cannot see one another.
//! - Dropping the playground removes everything, also after a panic; what a crash leaves is removed by
//!   the next playground.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::runtime::Runtime;

use crate::api::ApiServer;
use crate::controllers::Controllers;
use crate::netns::{self, Netns};

pub mod cgroup;
pub mod cleanup;
pub mod cni;
pub mod kubectl;
pub mod kubelet;
pub mod network;
pub mod node;
pub mod process;

pub use node::{Binaries, Node};
pub use process::Limit;

/// The fabric's address, where the nodes find the API server.
const FABRIC: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);

/// The prefix length of the fabric's network.
const FABRIC_PREFIX: u8 = 16;

/// The API server's port in the fabric.
const API_PORT: u16 = 6443;

/// The last octet of the first node's address.
const FIRST_NODE: u8 = 10;

/// How long to wait for what should happen, unless the test says otherwise: generous, because it only
/// ever passes in full before a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Describes a playground.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    id: Option<String>,
    nodes: u8,
    zones: Vec<String>,
    pod_cidr: Ipv4Net,
    service_cidr: Ipv4Net,
    agents: bool,
    agent_flags: Vec<String>,
}

impl Builder {
    /// What the playground's names begin with: lower-case letters and digits.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The playground's id itself, for one that others must find; there can only be one of it.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// How many nodes there are, named `node1` and so on.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// The nodes' zones, in turn.
    #[must_use]
    pub fn zones(mut self, zones: &[&str]) -> Self {
        self.zones = zones.iter().map(|zone| (*zone).to_owned()).collect();
        self
    }

    /// The range that nodes get their pod ranges from.
    #[must_use]
    pub fn pod_cidr(mut self, range: Ipv4Net) -> Self {
        self.pod_cidr = range;
        self
    }

    /// The range that services get their addresses from.
    #[must_use]
    pub fn service_cidr(mut self, range: Ipv4Net) -> Self {
        self.service_cidr = range;
        self
    }

    /// Leaves the nodes without agents: then only host-network pods can run.
    #[must_use]
    pub fn without_agents(mut self) -> Self {
        self.agents = false;
        self
    }

    /// More flags for `weft-agent run`.
    #[must_use]
    pub fn agent_flags(mut self, flags: &[&str]) -> Self {
        self.agent_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self
    }

    /// Makes the playground and waits until every agent serves.
    ///
    /// # Errors
    ///
    /// When anything cannot be made, or an agent does not come up; nothing is left then.
    pub fn start(self) -> Result<Playground> {
        cleanup::remove_abandoned()?;
        let id = match &self.id {
            Some(id) if cleanup::is_id(id) => id.clone(),
            Some(id) => bail!("{id:?} cannot be an id: lower-case letters and digits only"),
            None => unique_id(&self.name)?,
        };
        let binaries = Binaries::find(self.agents)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("playground")
            .enable_all()
            .build()?;
        // From here on dropping the playground removes what there is of it.
        let mut playground = Playground {
            _claim: cleanup::claim(&id)?,
            id,
            nodes: Vec::new(),
            binaries,
            agent_flags: self.agent_flags.clone(),
            control_plane: None,
            runtime: Some(runtime),
        };
        playground.build(&self)?;
        Ok(playground)
    }
}

/// A running cluster. Dropping it removes it.
pub struct Playground {
    id: String,
    nodes: Vec<Node>,
    binaries: Binaries,
    agent_flags: Vec<String>,
    control_plane: Option<ControlPlane>,
    /// None only while dropping.
    runtime: Option<Runtime>,
    _claim: cleanup::Claim,
}

/// What a cluster's control-plane node runs.
struct ControlPlane {
    client: Client,
    address: SocketAddr,
    _controllers: Controllers,
    _api: ApiServer,
}

impl Playground {
    /// A playground with one node and default ranges, to be changed.
    pub fn builder() -> Builder {
        Builder {
            name: "play".to_owned(),
            id: None,
            nodes: 1,
            zones: Vec::new(),
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            agents: true,
            agent_flags: Vec::new(),
        }
    }

    /// Removes a playground by its id, wherever it runs or ran.
    ///
    /// # Errors
    ///
    /// When something of it cannot be removed.
    pub fn clean(id: &str) -> Result<()> {
        cleanup::remove_by_id(id)
    }

    /// Removes what crashed playgrounds left behind; those in use are not touched.
    ///
    /// # Errors
    ///
    /// When something cannot be removed.
    pub fn clean_all() -> Result<()> {
        cleanup::remove_abandoned()
    }

    fn build(&mut self, plan: &Builder) -> Result<()> {
        let name = cleanup::netns_name(&self.id, "fabric");
        let fabric = Netns::create(&name).with_context(|| format!("making {name}"))?;
        network::make_fabric(&fabric, FABRIC, FABRIC_PREFIX)?;
        for index in 0..plan.nodes {
            let name = format!("node{}", index + 1);
            let zone = plan
                .zones
                .get(usize::from(index) % plan.zones.len().max(1))
                .cloned();
            let octet = FIRST_NODE.checked_add(index).context("too many nodes")?;
            let address = Ipv4Addr::new(172, 30, 0, octet);
            let node = Node::make(&self.id, &name, address, zone)?;
            network::join(&fabric, &node.netns, &name, address, FABRIC_PREFIX, FABRIC)?;
            self.nodes.push(node);
        }
        self.control_plane = Some(self.start_control_plane(&fabric, plan)?);
        self.register_nodes()?;
        for index in 0..self.nodes.len() {
            self.start_kubelet(index)?;
        }
        if plan.agents {
            let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
            for name in &names {
                self.start_agent(name)?;
            }
            for name in &names {
                self.wait_agent_ready(name)?;
            }
        }
        Ok(())
    }

    fn start_control_plane(&self, fabric: &Netns, plan: &Builder) -> Result<ControlPlane> {
        let inside = SocketAddr::from((FABRIC, API_PORT));
        let inside_listener = fabric
            .run(|| TcpListener::bind(inside))?
            .with_context(|| format!("listening on {inside} in the fabric"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;

        let runtime = self.runtime();
        let _context = runtime.enter();
        let api =
            ApiServer::start(vec![inside_listener, listener]).context("starting the API server")?;
        for node in &self.nodes {
            let file = node.kubeconfig();
            fs::write(&file, crate::api::kubeconfig(&format!("http://{inside}")))
                .with_context(|| format!("writing {}", file.display()))?;
        }
        let url = format!("http://{address}");
        let own = cleanup::dir(&self.id).join("kubeconfig");
        fs::write(&own, crate::api::kubeconfig(&url))
            .with_context(|| format!("writing {}", own.display()))?;
        let config = kube::Config::new(url.parse().context("the API server's address")?);
        let client = Client::try_from(config).context("making a client")?;
        let controllers = Controllers::start(client.clone(), plan.pod_cidr, plan.service_cidr);
        Ok(ControlPlane {
            client,
            address,
            _controllers: controllers,
            _api: api,
        })
    }

    fn register_nodes(&self) -> Result<()> {
        let client = self.client();
        self.block_on(async {
            let api: Api<NodeObject> = Api::all(client);
            for node in &self.nodes {
                let object = serde_json::from_value(node.object())?;
                api.create(&PostParams::default(), &object).await?;
                let status = Patch::Merge(node.status());
                api.patch_status(&node.name, &PatchParams::default(), &status)
                    .await?;
            }
            anyhow::Ok(())
        })
        .context("registering the nodes")
    }

    fn start_kubelet(&mut self, index: usize) -> Result<()> {
        let client = self.client();
        let handle = self.runtime().handle().clone();
        let program = self.binaries.testpod.clone();
        let playground = self.id.clone();
        let node = self.nodes.get_mut(index).context("no such node")?;
        let host = kubelet::Host {
            playground,
            node: node.name.clone(),
            address: node.address,
            netns: Arc::clone(&node.netns),
            cni: node.cni(),
            cgroup: node.cgroup.join("pods"),
            log_dir: node.dir.join("log"),
            program,
            sandboxes: node.sandboxes.clone(),
        };
        node.kubelet = Some(kubelet::start(&handle, client, host));
        Ok(())
    }

    /// The playground's id, the middle part of all its names.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The playground's directory.
    pub fn dir(&self) -> PathBuf {
        cleanup::dir(&self.id)
    }

    /// A kubeconfig for the root namespace, for `kubectl`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// Where the API server listens in the root namespace.
    pub fn api_address(&self) -> SocketAddr {
        self.plane().address
    }

    /// A client of the API server.
    pub fn client(&self) -> Client {
        self.plane().client.clone()
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("no node {name}"))
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.with_context(|| format!("no node {name}"))
    }

    /// A node's address.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn node_ip(&self, name: &str) -> Result<IpAddr> {
        Ok(self.node(name)?.address.into())
    }

    /// Runs asynchronous work, such as requests with [`Playground::client`].
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime().block_on(work)
    }

    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .unwrap_or_else(|| unreachable!("the runtime goes with the playground"))
    }

    fn plane(&self) -> &ControlPlane {
        self.control_plane
            .as_ref()
            .unwrap_or_else(|| unreachable!("started before it is handed out"))
    }
}

/// Kubernetes objects.
impl Playground {
    /// Applies the manifests of a YAML text, as `kubectl apply` does.
    ///
    /// # Errors
    ///
    /// When one is refused; those before it are in place.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.block_on(kubectl::apply(&self.client(), yaml))
            .map(drop)
    }

    /// Deletes the objects of a YAML text; pods go gracefully, so they may be there for a while.
    ///
    /// # Errors
    ///
    /// When one cannot be deleted.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        self.block_on(kubectl::delete(&self.client(), yaml))
    }

    /// A pod's object; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        self.block_on(api.get_opt(name))
            .with_context(|| format!("reading pod {namespace}/{name}"))
    }

    /// Waits until a pod is ready, and returns its address.
    ///
    /// # Errors
    ///
    /// When it takes too long; the error has the pod's own words.
    pub fn wait_pod_ready(&self, namespace: &str, name: &str) -> Result<IpAddr> {
        wait(
            &format!("pod {namespace}/{name} is ready"),
            PATIENCE,
            || {
                let Some(pod) = self.pod(namespace, name)? else {
                    bail!("there is no such pod")
                };
                ready_address(&pod)
            },
        )
    }

    /// Waits until every pod of a namespace is ready.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn wait_all_ready(&self, namespace: &str) -> Result<BTreeMap<String, IpAddr>> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        wait(
            &format!("the pods of {namespace} are ready"),
            PATIENCE,
            || {
                let pods = self.block_on(api.list(&kube::api::ListParams::default()))?;
                let address = |pod: Pod| {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    let address = ready_address(&pod).with_context(|| format!("pod {name}"))?;
                    Ok((name, address))
                };
                if pods.items.is_empty() {
                    bail!("there are no pods");
                }
                pods.items.into_iter().map(address).collect()
            },
        )
    }

    /// Deletes a pod and waits until it is gone, sandbox included.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        match self.block_on(api.delete(name, &DeleteParams::default())) {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => {
                done.with_context(|| format!("deleting pod {namespace}/{name}"))?;
            }
        }
        wait(
            &format!("pod {namespace}/{name} is gone"),
            PATIENCE,
            || match self.pod(namespace, name)? {
                None => Ok(()),
                Some(_) => bail!("its object is still there"),
            },
        )
    }
}

/// Processes in pods and on nodes.
impl Playground {
    /// Runs `weft-testpod` in a pod and waits for its end. See its `--help` for what it can do.
    ///
    /// # Errors
    ///
    /// When there is no such pod, or the program does not end. How it ended is no error here.
    pub fn exec(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<Output> {
        process::run(&mut self.in_pod(namespace, pod, args)?, b"", Limit::CLIENT)
            .with_context(|| format!("running {args:?} in pod {namespace}/{pod}"))
    }

    /// Runs `weft-testpod` in a node's own namespace, as a process of the host.
    ///
    /// # Errors
    ///
    /// As for [`Playground::exec`].
    pub fn exec_host(&self, node: &str, args: &[&str]) -> Result<Output> {
        process::run(&mut self.on_host(node, args)?, b"", Limit::CLIENT)
            .with_context(|| format!("running {args:?} on {node}"))
    }

    /// Starts `weft-testpod` in a pod, and returns once it has printed its first line.
    ///
    /// # Errors
    ///
    /// When there is no such pod, or the program ends before it prints.
    pub fn spawn(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<Background> {
        Background::start(self.in_pod(namespace, pod, args)?)
            .with_context(|| format!("running {args:?} in pod {namespace}/{pod}"))
    }

    /// Starts `weft-testpod` on a node, and returns once it has printed its first line.
    ///
    /// # Errors
    ///
    /// As for [`Playground::spawn`].
    pub fn spawn_host(&self, node: &str, args: &[&str]) -> Result<Background> {
        Background::start(self.on_host(node, args)?)
            .with_context(|| format!("running {args:?} on {node}"))
    }

    fn in_pod(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<Command> {
        let sandbox = self
            .nodes
            .iter()
            .find_map(|node| node.sandboxes.get(namespace, pod))
            .with_context(|| format!("pod {namespace}/{pod} does not run on any node"))?;
        let mut command = self.testpod(args);
        netns::enter(&mut command, &sandbox.netns, Some(&sandbox.cgroup))?;
        Ok(command)
    }

    fn on_host(&self, node: &str, args: &[&str]) -> Result<Command> {
        let node = self.node(node)?;
        let mut command = self.testpod(args);
        netns::enter(&mut command, &node.netns, Some(&node.cgroup.join("host")))?;
        Ok(command)
    }

    fn testpod(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.testpod);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// Agents.
impl Playground {
    /// Starts a node's agent. It serves once [`Playground::wait_agent_ready`] says so.
    ///
    /// # Errors
    ///
    /// When it runs already or cannot be started.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        let (binaries, flags) = (self.binaries.clone(), self.agent_flags.clone());
        self.node_mut(node)?.start_agent(&binaries, &flags)
    }

    /// Kills a node's agent with SIGKILL.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill_agent(&mut self, node: &str) -> Result<()> {
        self.node_mut(node)?.kill_agent()
    }

    /// Waits until the CNI plugin that a node's agent installed says that pods can be attached.
    ///
    /// # Errors
    ///
    /// When the agent ends or takes too long; the error has the end of its log.
    pub fn wait_agent_ready(&mut self, name: &str) -> Result<()> {
        let node = self.node_mut(name)?;
        let ready = wait(&format!("the agent of {name} is ready"), PATIENCE, || {
            if node.agent_pid()?.is_none() {
                return Err(Fatal("the agent does not run".to_owned()).into());
            }
            let cni = node.cni();
            let network = cni
                .network()?
                .with_context(|| cni::no_network(&cni.conf_dir))?;
            cni.status(&node.netns, &network)
        });
        ready.with_context(|| format!("the agent's log ends:\n{}", node.agent_log_tail(20)))
    }

    /// Asks a node's running agent, as an operator does: `status`, `endpoints`, ...
    ///
    /// # Errors
    ///
    /// When the program cannot be run.
    pub fn ask_agent(&self, node: &str, args: &[&str]) -> Result<Output> {
        let node = self.node(node)?;
        let mut command = Command::new(&self.binaries.agent);
        command.args(args).arg("--run-dir").arg(node.run_dir());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        netns::enter(&mut command, &node.netns, Some(&node.cgroup.join("host")))?;
        process::run(&mut command, b"", Limit::CLIENT)
            .with_context(|| format!("asking the agent of {}: {args:?}", node.name))
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if thread::panicking() {
            // The logs go with the playground, and they are what explains a failed test.
            for node in &self.nodes {
                eprintln!(
                    "the log of {}'s agent ends:\n{}",
                    node.name,
                    node.agent_log_tail(30)
                );
            }
        }
        for node in &mut self.nodes {
            node.kubelet = None;
        }
        // First the processes: what waits for them ends then, and the runtime can.
        let killed = cleanup::cgroup_dir(&self.id).and_then(|dir| cgroup::remove(&dir));
        for node in &mut self.nodes {
            if let Some(mut agent) = node.agent.take() {
                // Dead already; this buries it.
                let _ = agent.wait();
            }
        }
        self.control_plane = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
        for error in [killed, cleanup::remove(&self.id)]
            .into_iter()
            .filter_map(Result::err)
        {
            eprintln!("removing the playground {}: {error:#}", self.id);
        }
    }
}

/// A process that runs while the test goes on; killed when dropped.
pub struct Background {
    child: Option<Child>,
    stdout: Option<BufReader<std::process::ChildStdout>>,
    /// The first line that it printed.
    pub first_line: String,
}

impl Background {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("the output is not a pipe")?;
        let mut background = Background {
            child: Some(child),
            stdout: Some(BufReader::new(stdout)),
            first_line: String::new(),
        };
        // The programs bound their own time, so this ends.
        if let Some(stdout) = &mut background.stdout {
            stdout.read_line(&mut background.first_line)?;
        }
        if background.first_line.is_empty() {
            let output = background.finish()?;
            bail!(
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(background)
    }

    /// Waits for the end, and returns what was printed after the first line.
    ///
    /// # Errors
    ///
    /// When the program does not end.
    pub fn finish(mut self) -> Result<Output> {
        let child = self.child.take().context("the process has ended")?;
        let mut rest = Vec::new();
        if let Some(mut stdout) = self.stdout.take() {
            std::io::Read::read_to_end(&mut stdout, &mut rest)?;
        }
        let mut output = process::finish(child, b"", Limit::CLIENT)?;
        output.stdout = rest;
        Ok(output)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An error that waiting does not help against.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// Tries until it works, and returns what came out; the last error when it does not in time. A
/// [`Fatal`] error ends it at once.
///
/// # Errors
///
/// The last error of the attempts.
pub fn wait<T>(
    description: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(5);
    loop {
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.is::<Fatal>() || Instant::now() >= deadline {
            return Err(error.context(format!("waited {timeout:?} until {description}")));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

fn ready_address(pod: &Pod) -> Result<IpAddr> {
    let status = pod.status.as_ref().context("the pod has no status")?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => {
            let address = status.pod_ip.as_deref().context("the pod has no address")?;
            address
                .parse()
                .with_context(|| format!("the pod's address {address:?}"))
        }
        Some(condition) => bail!(
            "{}",
            condition.message.as_deref().unwrap_or("it is not ready")
        ),
        None => bail!("its node has not reported yet ({:?})", status.phase),
    }
}

fn unique_id(name: &str) -> Result<String> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
    let id = format!("{name}{:x}x{serial}", std::process::id());
    if !cleanup::is_id(&id) {
        bail!("{name:?} cannot name a playground: lower-case letters and digits only");
    }
    Ok(id)
}
