//! A cluster on one machine, with nothing faked on the packet's path.
//!
//! ```text
//!   root namespace          fabric                          node<n>
//!   +------------------+    +--------------------------+    +-----------------------------+
//!   | API server       |    | API server's other       |    | eth0 172.30.0.<9+n>         |
//!   | 127.0.0.1:<any>  |    | sockets, port 6443       |    |      fd00:172:30::<9+n>     |
//!   | controllers      |    | bridge 172.30.0.1/16     |----|  weft-agent (a process)     |
//!   | kubelets (tasks) |    |        fd00:172:30::1/64 |    |  +-------------------+      |
//!   | the test         |    | routes between nodes and |    |  | pod's namespace   | ...  |
//!   +------------------+    | the outside              |    |  | weft-testpod      |      |
//!                           +--------------------------+    +--+-------------------+------+
//!                                | link with an MTU of its own
//!                           router ---- outside 198.51.100.10 to .13, 2001:db8:51::a to ::d
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
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::runtime::Runtime;

use crate::api::{ApiServer, ServiceRanges, kubeconfig};
use crate::controllers::Controllers;
use crate::netns::Netns;
use families::{FIRST_NODE, NODES, ROUTER, SECOND};

mod agents;
mod builder;
pub mod cgroup;
mod changes;
pub mod cleanup;
mod clients;
pub mod cni;
mod exec;
pub mod families;
pub mod kubectl;
pub mod kubelet;
mod machine;
pub mod network;
pub mod node;
mod objects;
pub mod process;
mod services;
mod wait;

pub use builder::{Builder, Routing};
pub use clients::{Counted, Place, Went};
pub use exec::Background;
pub use families::{Families, Family};
pub use machine::Machine;
pub use node::{Binaries, Node};
pub use process::Limit;
pub use wait::{Fatal, PATIENCE, until, wait};

/// Where the API server listens in the fabric.
const API_PORT: u16 = 6443;

/// A running cluster. Dropping it removes it.
pub struct Playground {
    id: String,
    plan: Builder,
    nodes: Vec<Node>,
    /// How many nodes there ever were: names and addresses are not used twice.
    joined: u8,
    binaries: Binaries,
    world: Option<machine::World>,
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
            plan: plan.clone(),
            nodes: Vec::new(),
            joined: 0,
            binaries,
            world: None,
            control_plane: None,
            runtime: Some(runtime),
        };
        playground.build()?;
        Ok(playground)
    }

    fn build(&mut self) -> Result<()> {
        let make = |what: &str| {
            let name = cleanup::netns_name(&self.id, what);
            Netns::create(&name).with_context(|| format!("making {name}"))
        };
        let fabric = make("fabric")?;
        network::make_fabric(&fabric)?;
        self.world = Some(machine::World::make(
            &self.id,
            &fabric,
            make,
            self.plan.second_uplink,
        )?);
        self.control_plane = Some(self.start_control_plane(fabric)?);
        let agents = self.plan.agents;
        let names = (0..self.plan.nodes)
            .map(|_| self.join_node())
            .collect::<Result<Vec<_>>>()?;
        if agents {
            for name in &names {
                self.start_agent(name)?;
            }
            for name in &names {
                self.wait_agent_ready(name)?;
            }
        }
        Ok(())
    }

    /// Makes the next node, registers it and starts its kubelet.
    fn join_node(&mut self) -> Result<String> {
        let index = self.joined;
        let number = FIRST_NODE.checked_add(index).context("too many nodes")?;
        self.joined += 1;
        let name = format!("node{}", self.joined);
        let plan = &self.plan;
        let zones = plan.zones.len().max(1);
        let zone = plan.zones.get(usize::from(index) % zones).cloned();
        let families = plan.node_families();
        let own = families.iter().map(|f| NODES.host(*f, number)).collect();
        // From here on it is removed with the playground.
        self.nodes.push(Node::make(&self.id, &name, own, zone)?);
        let node = self.node(&name)?;
        let on = |subnet: families::Subnet| -> Vec<IpNet> {
            families
                .iter()
                .map(|f| subnet.interface(*f, number))
                .collect()
        };
        let fabric = &self.plane().fabric;
        let uplink = on(NODES);
        network::join(
            fabric,
            network::BRIDGE,
            &name,
            &node.netns,
            network::UPLINK,
            &uplink,
        )?;
        for family in families {
            network::set_default_route(&node.netns, *family)?;
        }
        if plan.second_uplink {
            let (bridge, uplink) = (network::SECOND_BRIDGE, network::SECOND_UPLINK);
            let port = format!("{name}-{uplink}");
            network::join(fabric, bridge, &port, &node.netns, uplink, &on(SECOND))?;
        }
        let file = node.kubeconfig();
        let api = SocketAddr::new(NODES.host(families[0], ROUTER), API_PORT);
        fs::write(&file, kubeconfig(&format!("http://{api}")))
            .with_context(|| format!("writing {}", file.display()))?;
        self.register_node(&name)?;
        if self.plan.kubelets {
            self.start_kubelet(&name)?;
        }
        Ok(name)
    }

    fn start_control_plane(&self, fabric: Netns) -> Result<ControlPlane> {
        let listeners = listen(&fabric, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listeners[0].local_addr()?;
        let ranges = ServiceRanges {
            cidrs: self.plan.service_ranges(),
            ..ServiceRanges::default()
        };
        let api = ApiServer::start_with(listeners, &ranges).context("starting the API server")?;
        services::publish_api(api.registry(), &ranges.cidrs, API_PORT)
            .context("publishing the API server")?;
        let url = format!("http://{address}");
        let own = cleanup::dir(&self.id).join("kubeconfig");
        fs::write(&own, kubeconfig(&url)).with_context(|| format!("writing {}", own.display()))?;

        let runtime = self.runtime();
        let _context = runtime.enter();
        let config = kube::Config::new(url.parse().context("the API server's address")?);
        let client = Client::try_from(config).context("making a client")?;
        let controllers = Controllers::start(api.registry().clone(), self.plan.controllers())?;
        Ok(ControlPlane {
            fabric,
            client,
            address,
            _controllers: controllers,
            api,
        })
    }

    fn register_node(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        let api: Api<NodeObject> = Api::all(self.client());
        self.block_on(async {
            let object = serde_json::from_value(node.object())?;
            api.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        })
        .and_then(|()| self.report_node(name))
        .with_context(|| format!("registering {name}"))
    }

    /// Writes a node's status as it is now.
    fn report_node(&self, name: &str) -> Result<()> {
        let status = Patch::Merge(self.node(name)?.status());
        let api: Api<NodeObject> = Api::all(self.client());
        let done = self.block_on(api.patch_status(name, &PatchParams::default(), &status));
        done.map(drop)
            .with_context(|| format!("reporting the status of {name}"))
    }

    fn start_kubelet(&mut self, name: &str) -> Result<()> {
        let client = self.client();
        let handle = self.runtime().handle().clone();
        let program = self.binaries.testpod.clone();
        let playground = self.id.clone();
        let node = self.node_mut(name)?;
        let host = kubelet::Host {
            playground,
            node: node.name.clone(),
            addresses: node.addresses.clone(),
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
        plane.api.restart(listeners)
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

    pub(crate) fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.with_context(|| format!("no node {name}"))
    }

    /// A node's preferred address.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn node_ip(&self, name: &str) -> Result<IpAddr> {
        Ok(self.node(name)?.address())
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

/// The API server's sockets: in the root namespace for everyone else, in the fabric for the nodes.
fn listen(fabric: &Netns, outside: SocketAddr) -> Result<Vec<TcpListener>> {
    let mut listeners =
        vec![TcpListener::bind(outside).with_context(|| format!("listening on {outside}"))?];
    for family in Family::BOTH {
        let address = SocketAddr::new(NODES.host(family, ROUTER), API_PORT);
        let inside = fabric
            .run(|| TcpListener::bind(address))?
            .with_context(|| format!("listening on {address} in the fabric"))?;
        listeners.push(inside);
    }
    Ok(listeners)
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
