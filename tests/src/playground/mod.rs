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

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::runtime::Runtime;

use crate::api::{ApiServer, ServiceRanges, kubeconfig};
use crate::controllers::{Controllers, PodRanges};
use crate::netns::Netns;

mod agents;
mod builder;
pub mod cgroup;
pub mod cleanup;
pub mod cni;
mod exec;
pub mod kubectl;
pub mod kubelet;
pub mod network;
pub mod node;
mod objects;
pub mod process;
mod wait;

pub use builder::Builder;
pub use exec::Background;
pub use node::{Binaries, Node};
pub use process::Limit;
pub use wait::{Fatal, PATIENCE, wait};

/// The fabric's address, where the nodes find the API server.
const FABRIC: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);

/// The prefix length of the fabric's network.
const FABRIC_PREFIX: u8 = 16;

/// Where the API server listens in the fabric.
const API_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(FABRIC), 6443);

/// The last octet of the first node's address.
const FIRST_NODE: u8 = 10;

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
    fabric: Netns,
    client: Client,
    /// Where the server listens in the root namespace.
    address: SocketAddr,
    _controllers: Controllers,
    api: ApiServer,
}

impl Playground {
    /// A playground with one node and default ranges, to be changed.
    pub fn builder() -> Builder {
        Builder::default()
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

    fn start(plan: &Builder) -> Result<Self> {
        cleanup::remove_abandoned()?;
        let id = match &plan.id {
            Some(id) if cleanup::is_id(id) => id.clone(),
            Some(id) => bail!("{id:?} cannot be an id: lower-case letters and digits only"),
            None => unique_id(&plan.name)?,
        };
        let binaries = Binaries::find(plan.agents)?;
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
            agent_flags: plan.agent_flags.clone(),
            control_plane: None,
            runtime: Some(runtime),
        };
        playground.build(plan)?;
        Ok(playground)
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
        self.control_plane = Some(self.start_control_plane(fabric, plan)?);
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

    fn start_control_plane(&self, fabric: Netns, plan: &Builder) -> Result<ControlPlane> {
        let listeners = listen(&fabric, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listeners[1].local_addr()?;
        let ranges = ServiceRanges {
            cidrs: vec![plan.service_cidr.into()],
            ..ServiceRanges::default()
        };
        let api =
            ApiServer::start_with(listeners.into(), ranges).context("starting the API server")?;
        for node in &self.nodes {
            let file = node.kubeconfig();
            fs::write(&file, kubeconfig(&format!("http://{API_ADDRESS}")))
                .with_context(|| format!("writing {}", file.display()))?;
        }
        let url = format!("http://{address}");
        let own = cleanup::dir(&self.id).join("kubeconfig");
        fs::write(&own, kubeconfig(&url)).with_context(|| format!("writing {}", own.display()))?;

        let runtime = self.runtime();
        let _context = runtime.enter();
        let config = kube::Config::new(url.parse().context("the API server's address")?);
        let client = Client::try_from(config).context("making a client")?;
        let controllers = Controllers::start(
            api.registry().clone(),
            PodRanges::single(plan.pod_cidr.into()),
        )?;
        Ok(ControlPlane {
            fabric,
            client,
            address,
            _controllers: controllers,
            api,
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

    /// The API server, to look behind it or to make it misbehave.
    pub fn api(&self) -> &ApiServer {
        &self.plane().api
    }

    /// Stops the API server: every connection breaks, new ones are refused.
    pub fn stop_api(&mut self) {
        if let Some(plane) = &mut self.control_plane {
            plane.api.stop();
        }
    }

    /// Starts a stopped API server with the objects that it had, where it was.
    ///
    /// # Errors
    ///
    /// When its ports are taken.
    pub fn restart_api(&mut self) -> Result<()> {
        let plane = self
            .control_plane
            .as_mut()
            .context("there is no API server")?;
        plane.api.stop();
        let listeners = listen(&plane.fabric, plane.address)?;
        plane.api.restart(listeners.into())
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

/// The API server's sockets: in the fabric for the nodes, in the root namespace for everyone else.
fn listen(fabric: &Netns, outside: SocketAddr) -> Result<[TcpListener; 2]> {
    let inside = fabric
        .run(|| TcpListener::bind(API_ADDRESS))?
        .with_context(|| format!("listening on {API_ADDRESS} in the fabric"))?;
    let outside = TcpListener::bind(outside).with_context(|| format!("listening on {outside}"))?;
    Ok([inside, outside])
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
