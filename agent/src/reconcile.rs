//! The loop that makes the kernel follow the cluster.
//!
//! ```text
//!   a watch, an endpoint or the node's network changed --(a few ms for more)-->
//!       node's network --> compile --diff--> maps --> programs --> uplinks --> epoch
//!         ^                                                                      |
//!         `------------------------ again after a pause <------ failed ----------'
//! ```
//!
//! Invariants:
//! - Nothing is compiled before every watch was listed once. Until then only endpoints come and go,
//!   and new ones get no policy set, which the datapath reads as: only the own node's traffic.
//! - The programs of an earlier agent stay attached until the maps hold a complete compilation.
//! - An uplink is told to the datapath when its programs are in place and the maps are complete, and
//!   loses its programs when the datapath does not know it any more.
//! - A new epoch ends every change that decisions rest on: of maps, of the configuration, of uplinks,
//!   and of the node's routes.
//! - The mirror is what the maps hold: read back at the start and after every failure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::config::{CONFIG_DEPARTURE_TIME, Config as DatapathConfig, Uplink as UplinkEntry};
use weft_abi::endpoint::Endpoint;
use weft_core::compile::{Compiler, Desired};
use weft_core::contents::Contents;
use weft_core::diff::{Changes, Step, diff};
use weft_core::family::{Address, underlay};
use weft_core::model::Routing;

use crate::backoff::Backoff;
use crate::bpf::attach::Attacher;
use crate::bpf::cgroup;
use crate::bpf::tables::{TableError, Tables, next_epoch};
use crate::config::Config;
use crate::endpoints::{Endpoints, Record};
use crate::ipam::Ipam;
use crate::netlink::monitor::Monitor;
use crate::netlink::{overlay, socket};
use crate::node::{NodeFacts, NodeNetwork, NodeSetup, View, Wanted};
use crate::watch::Cluster;

/// How long to wait for more changes after the first: an object's change often comes with others.
const DEBOUNCE: Duration = Duration::from_millis(3);

/// How long to wait for more changes of the node's network after the first: they come in bursts.
const KERNEL_DEBOUNCE: Duration = Duration::from_millis(20);
/// How old a look at the kernel may be when something else is to be done.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What the agent's tasks share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// The cluster as the watches know it.
    pub cluster: Arc<Cluster>,
    /// The endpoints of this node.
    pub endpoints: Endpoints,
    /// The addresses of this node.
    pub ipam: Mutex<Ipam>,
    /// The programs.
    pub attacher: Mutex<Attacher>,
    /// The maps.
    pub maps: Mutex<Maps>,
    /// The node's network, once it is set up.
    pub node: watch::Sender<Option<NodeNetwork>>,
    /// What the last application left.
    pub applied: watch::Sender<Applied>,
}

/// The maps, what they hold, and what that means.
#[derive(Debug)]
pub struct Maps {
    /// The maps.
    pub tables: Tables,
    /// What they hold.
    pub mirror: Contents,
    /// The last compilation: the meaning of rule, identity and service numbers.
    pub desired: Desired,
    /// The datapath's configuration as it was last written.
    pub config: DatapathConfig,
    /// The uplinks that the datapath knows, by index.
    pub uplinks: BTreeMap<u32, UplinkEntry>,
    /// The state of the node's routes that the flows' epoch stands for.
    ways: u64,
    /// Whether flows may have been decided by maps that changed since, without a new epoch: an
    /// agent that ended between the last write and the epoch leaves no difference to be found.
    stale: bool,
}

/// The state of application.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Applied {
    /// Whether a complete compilation was ever applied by this agent.
    pub complete: bool,
    /// Whether the maps are as they should be.
    pub clean: bool,
    /// The host's interfaces of endpoints whose policy set is in the maps, by name and index: the
    /// same container may be added again.
    #[serde(skip)]
    pub ready: BTreeSet<(String, u32)>,
    /// When changes were last applied without a failure.
    #[serde(serialize_with = "crate::watch::unix_seconds")]
    pub at: Option<SystemTime>,
    /// How many times changes were applied.
    pub count: u64,
    /// Map entries written by the last application.
    pub entries: usize,
    /// Its duration, compilation included, in microseconds.
    pub micros: u128,
    /// Failures so far.
    pub failures: u64,
    /// The last failure; absent when the last attempt succeeded.
    pub error: Option<String>,
}

impl Applied {
    /// Whether the policy set of this very interface is in the maps.
    pub fn is_ready(&self, record: &Record) -> bool {
        let interface = (record.interface.clone(), record.ifindex);
        self.ready.contains(&interface)
    }
}

impl Shared {
    /// The maps, locked.
    pub fn maps(&self) -> MutexGuard<'_, Maps> {
        // What a panic may leave behind is found by the next read-back.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses, locked.
    pub fn ipam(&self) -> MutexGuard<'_, Ipam> {
        // Every change is on disk before it is in memory.
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The programs, locked.
    pub fn attacher(&self) -> MutexGuard<'_, Attacher> {
        self.attacher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps {
    /// Takes over what the maps hold.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn new(tables: Tables) -> Result<Self, TableError> {
        let mirror = tables.read()?;
        let config = tables.config()?;
        let uplinks = tables.uplinks()?;
        Ok(Self {
            tables,
            mirror,
            desired: Desired::default(),
            config,
            uplinks,
            ways: 0,
            stale: true,
        })
    }

    /// Applies changes; `complete` if they lead to a complete compilation.
    fn apply(&mut self, changes: &Changes, complete: bool) -> Result<(), TableError> {
        if let Err(error) = self
            .tables
            .apply(changes, &mut self.mirror, &mut self.config)
        {
            self.stale = true;
            return Err(error);
        }
        if complete && self.stale {
            // Deletes of policies alone, what such an end most likely leaves to do, bring none.
            if !changes.steps.contains(&Step::BumpEpoch) {
                self.bump_epoch()?;
            }
            self.stale = false;
        }
        Ok(())
    }

    /// Tells the datapath of the uplinks, and of routes that changed.
    fn set_uplinks(
        &mut self,
        wanted: &BTreeMap<u32, UplinkEntry>,
        ways: u64,
    ) -> Result<(), TableError> {
        if *wanted == self.uplinks && ways == self.ways && !self.stale {
            return Ok(());
        }
        self.stale = true;
        self.tables.set_uplinks(wanted, &mut self.uplinks)?;
        self.bump_epoch()?;
        self.ways = ways;
        self.stale = false;
        Ok(())
    }

    fn bump_epoch(&mut self) -> Result<(), TableError> {
        let epoch = next_epoch(self.config.epoch);
        self.set_config(DatapathConfig {
            epoch,
            ..self.config
        })
    }

    /// Trusts what the maps hold, after a failure.
    fn read_back(&mut self) -> Result<(), TableError> {
        self.mirror = self.tables.read()?;
        self.uplinks = self.tables.uplinks()?;
        Ok(())
    }

    fn set_config(&mut self, config: DatapathConfig) -> Result<(), TableError> {
        self.tables.set_config(config)?;
        self.config = config;
        Ok(())
    }
}

/// The loop.
pub struct Reconciler {
    shared: Arc<Shared>,
    node: NodeSetup,
    compiler: Compiler,
    monitor: Monitor,
    ticks_per_second: u32,
    netns_cookie: u64,
    backoff: Backoff,
    last_error: Option<String>,
    links_swapped: bool,
    sockets_attached: bool,
    /// Whether no overlay of an earlier time is left, in native routing.
    overlay_gone: bool,
    /// The uplinks with this agent's programs: names by index.
    uplinks: BTreeMap<u32, String>,
    /// The node's network as the kernel last showed it, unless it was told of a change since.
    view: Option<View>,
    /// The same whatever was told, and when that was.
    seen: Option<(Instant, View)>,
    /// The addresses that the node then had.
    addresses: BTreeSet<IpAddr>,
    /// What is known of the node, by the API or from an earlier time.
    facts: Option<NodeFacts>,
}

impl Reconciler {
    /// A loop over what is shared.
    ///
    /// # Errors
    ///
    /// When the kernel's tick cannot be found out, or there is no netlink socket to be had.
    pub fn new(shared: Arc<Shared>, node: NodeSetup) -> Result<Self> {
        let mut compiler = Compiler::new();
        compiler.adopt(&shared.maps().mirror);
        let settings = shared.config.settings.clone();
        shared.cluster.update(|state| state.settings = settings);
        Ok(Self {
            node,
            compiler,
            // Before the first look at the kernel, so that nothing is missed.
            monitor: Monitor::new()?,
            ticks_per_second: ticks_per_second()?,
            netns_cookie: socket::netns_cookie().unwrap_or_else(|error| {
                info!(%error, "the kernel numbers no network namespaces");
                0
            }),
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(10)),
            last_error: None,
            links_swapped: false,
            sockets_attached: false,
            overlay_gone: false,
            uplinks: BTreeMap::new(),
            view: None,
            seen: None,
            addresses: BTreeSet::new(),
            facts: None,
            shared,
        })
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        if let Some(remembered) = self.node.remembered() {
            self.facts = Some(remembered.facts.clone());
            let previous = self.shared.maps().uplinks.clone();
            let mut attach = self.overlay_programs();
            match self.node.restore(remembered, &previous, &mut attach).await {
                Ok(network) => self.set_node(network),
                Err(error) => warn!(
                    error = format!("{error:#}"),
                    "cannot restore the node's network"
                ),
            }
        }
        loop {
            match self.once().await {
                Ok(()) => {
                    self.backoff.reset();
                    self.last_error = None;
                    self.changed().await;
                }
                Err(error) => {
                    let pause = self.failed(&error);
                    // Either way it is time to try again.
                    let _ = tokio::time::timeout(pause, self.changed()).await;
                }
            }
        }
    }

    /// Waits until there is something to do. While pods come and go the kernel's answers take long,
    /// and a change of the cluster does not wait for them.
    async fn changed(&mut self) {
        let cluster = Arc::clone(&self.shared.cluster);
        loop {
            if self.view.is_some() {
                tokio::select! {
                    () = cluster.changed() => return tokio::time::sleep(DEBOUNCE).await,
                    told = self.monitor.changed() => {
                        self.view = None;
                        if let Err(error) = told {
                            warn!(%error, "changes of the node's network may go unnoticed; \
                                listening anew");
                            tokio::time::sleep(KERNEL_DEBOUNCE).await;
                            match Monitor::new() {
                                Ok(monitor) => self.monitor = monitor,
                                Err(error) => warn!(%error, "cannot listen to the kernel"),
                            }
                            return;
                        }
                    }
                }
                tokio::select! {
                    () = cluster.changed() => return tokio::time::sleep(DEBOUNCE).await,
                    () = tokio::time::sleep(KERNEL_DEBOUNCE) => {}
                }
            }
            let looked = tokio::select! {
                () = cluster.changed() => return tokio::time::sleep(DEBOUNCE).await,
                looked = self.look() => looked,
            };
            match looked {
                Ok(view) if self.node.is_current(&view) => {}
                Ok(_) => return,
                Err(_) => {
                    // The next application tells, as it looks again.
                    self.seen = None;
                    return tokio::time::sleep(KERNEL_DEBOUNCE).await;
                }
            }
        }
    }

    /// The node's network as it was a moment ago, for what else there is to do: what changed since then
    /// is looked at before anything is waited for.
    async fn look_for_others(&mut self) -> Result<View> {
        match &self.seen {
            Some((at, view)) if at.elapsed() < LOOK_AGAIN => Ok(view.clone()),
            _ => self.look().await,
        }
    }

    /// The node's network as it is: as the kernel showed it before, if nothing was told since.
    async fn look(&mut self) -> Result<View> {
        if self.monitor.drain().unwrap_or(true) {
            self.view = None;
        }
        if let Some(view) = &self.view {
            return Ok(view.clone());
        }
        let view = self.node.observe().await?;
        let interfaces = view.node.interfaces.values();
        let addresses: BTreeSet<IpAddr> = interfaces
            .flat_map(|interface| interface.addresses.iter().map(|address| address.ip))
            .collect();
        if let Some(gone) = self.addresses.difference(&addresses).next() {
            // A connection that has it gets no answers, and no error either.
            info!(address = %gone, "the node lost an address; connecting to the API anew");
            self.shared.cluster.reconnect();
        }
        self.addresses = addresses;
        self.view = Some(view.clone());
        self.seen = Some((Instant::now(), view.clone()));
        Ok(view)
    }

    fn failed(&mut self, error: &anyhow::Error) -> Duration {
        let text = format!("{error:#}");
        let pause = self.backoff.pause();
        if self.last_error.as_ref() == Some(&text) {
            debug!(
                error = text,
                ?pause,
                "the kernel still does not follow the cluster"
            );
        } else {
            error!(
                error = text,
                "the kernel does not follow the cluster; trying again until it does"
            );
        }
        self.shared.applied.send_modify(|applied| {
            applied.clean = false;
            applied.failures += 1;
            applied.error = Some(text.clone());
        });
        self.last_error = Some(text);
        // What was written before the failure is known, but not why it failed: trust the maps.
        if let Err(error) = self.shared.maps().read_back() {
            warn!(%error, "cannot read the maps back");
        }
        pause
    }

    async fn once(&mut self) -> Result<()> {
        let started = Instant::now();
        let synced = self.shared.cluster.synced();
        // Policies do not wait for a route that cannot be set: its failure counts at the end.
        let mut network = if synced {
            self.set_up_node().await
        } else {
            Ok(())
        };
        if self.shared.node.borrow().is_none() {
            std::mem::replace(&mut network, Ok(()))?;
        }
        let endpoints = self.shared.endpoints.for_compiler();
        let records = self.shared.endpoints.all();
        let desired = if synced {
            Some(tokio::task::block_in_place(|| {
                self.shared.cluster.update(|state| {
                    state.endpoints = endpoints;
                    self.compiler.compile(state)
                })
            }))
        } else {
            None
        };

        let entries = tokio::task::block_in_place(|| self.apply(desired, &records))?;
        if synced {
            if !self.links_swapped {
                self.swap_links(&records)?;
            }
            // One of these does not keep the others, nor pods from being ready.
            let uplinks = tokio::task::block_in_place(|| self.set_uplinks());
            let sockets = tokio::task::block_in_place(|| self.attach_sockets());
            let overlay = self.leave_overlay().await;
            network = network.and(uplinks).and(sockets).and(overlay);
        }
        let ready = self.ready(&records);
        self.shared.applied.send_modify(|applied| {
            applied.complete |= synced;
            applied.clean = network.is_ok();
            applied.ready = ready;
            applied.error = None;
            if entries > 0 {
                applied.at = Some(SystemTime::now());
                applied.count += 1;
                applied.entries = entries;
                applied.micros = started.elapsed().as_micros();
            }
        });
        if entries > 0 {
            debug!(entries, elapsed = ?started.elapsed(), "applied");
        }
        network
    }

    fn apply(&self, desired: Option<Desired>, records: &[Record]) -> Result<usize> {
        let mut maps = self.shared.maps();
        self.configure(&mut maps)?;
        let complete = desired.is_some();
        let changes = match desired {
            Some(desired) => {
                for warning in &desired.warnings {
                    if !maps.desired.warnings.contains(warning) {
                        warn!(object = warning.object, "{}", warning.message);
                    }
                }
                let changes = desired.changes(&maps.mirror);
                // The meanings first: an event of a new rule may come before this returns.
                maps.desired = desired;
                changes
            }
            None => diff(&maps.mirror, &without_policies(&maps.mirror, records)),
        };
        maps.apply(&changes, complete)
            .context("cannot write the maps")?;
        Ok(changes.entries())
    }

    /// Tells the datapath what it must know of the node, once that is known.
    fn configure(&self, maps: &mut Maps) -> Result<()> {
        let Some(network) = self.shared.node.borrow().clone() else {
            return Ok(());
        };
        let masquerade = self.shared.config.masquerade;
        let departure_times = if network.departure_times {
            CONFIG_DEPARTURE_TIME
        } else {
            0
        };
        let wanted = DatapathConfig {
            epoch: maps.config.epoch,
            overlay_ifindex: network.overlay,
            node_address: underlay(network.facts.address),
            vni: overlay::VNI,
            ticks_per_second: self.ticks_per_second,
            overlay_mtu: network.overlay_mtu,
            overlay_port: if network.overlay == 0 {
                0
            } else {
                overlay::PORT
            },
            flags: masquerade.flags() | departure_times,
            masquerade_first: masquerade.first_port,
            masquerade_ports: masquerade.ports(),
            reserved: 0,
            netns_cookie: self.netns_cookie,
        };
        // Until the cluster is known, the maps are an earlier agent's, and so is what fits to them:
        // the way through the overlay, or without it.
        let earlier = maps.config.epoch != 0 && !self.shared.cluster.synced();
        if earlier && (network.overlay == 0 || network.overlay == maps.config.overlay_ifindex) {
            return Ok(());
        }
        if wanted != maps.config || wanted.epoch == 0 {
            let epoch = next_epoch(wanted.epoch);
            maps.set_config(DatapathConfig { epoch, ..wanted })
                .context("cannot write the configuration")?;
        }
        Ok(())
    }

    async fn set_up_node(&mut self) -> Result<()> {
        let view = self.look_for_others().await?;
        let own_addresses = view.node.own_addresses();
        let config = &self.shared.config;
        let given = config.node_addresses.as_slice();
        let wanted = self.shared.cluster.update(|state| {
            state.own_addresses = own_addresses;
            let wanted = Wanted::of(state, given);
            if wanted.is_some() || self.facts.is_none() {
                return wanted;
            }
            // A Node object that was deleted, or lost its address, under running pods: they go on
            // with what was known of the node.
            let node = self.facts.as_ref()?.as_node(&state.node_name);
            state.nodes.insert(node.name.clone(), node);
            warn!(
                node = state.node_name,
                "the API's Node object is gone or has no InternalIP; \
                the last known address and pod networks stay"
            );
            Wanted::of(state, given)
        });
        let Some(wanted) = wanted else {
            anyhow::bail!(
                "the API has no Node {} with an InternalIP: check --node-name, or wait for the \
                 kubelet to register the node",
                self.shared.config.node_name
            );
        };
        let previous = self.shared.maps().uplinks.clone();
        let mut attach = self.overlay_programs();
        let outcome = self
            .node
            .apply(
                &wanted,
                &view,
                &previous,
                &self.shared.endpoints,
                &mut attach,
            )
            .await
            .context("cannot set up the node's network")?;
        if let Some(network) = outcome.network {
            self.set_node(network);
        }
        outcome.failure.map_or(Ok(()), Err)
    }

    /// What attaches the datapath to the overlay.
    fn overlay_programs(&self) -> impl FnMut() -> Result<()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            Ok(tokio::task::block_in_place(|| {
                shared.attacher().attach_overlay()
            })?)
        }
    }

    fn set_node(&mut self, network: NodeNetwork) {
        self.facts = Some(network.facts.clone());
        self.shared.ipam().set_pools(&network.facts.pod_cidrs);
        let overlay = self
            .shared
            .node
            .borrow()
            .as_ref()
            .map(|known| known.overlay);
        if overlay != Some(network.overlay) {
            // Another device: it has no programs yet.
            self.links_swapped = false;
        }
        self.shared.node.send_replace(Some(network));
    }

    /// Puts this agent's programs in the place of an earlier one's, and on the overlay.
    fn swap_links(&mut self, records: &[Record]) -> Result<()> {
        let overlay = self.shared.node.borrow().as_ref().map(|node| node.overlay);
        let mut attacher = self.shared.attacher();
        let mut interfaces = BTreeSet::from([overlay::DEVICE.to_owned()]);
        if overlay.is_some_and(|index| index != 0) {
            attacher.attach_overlay()?;
        }
        let mut failed = None;
        for record in records {
            interfaces.insert(record.interface.clone());
            // A pod that is just being removed has no interface any more; the others go on.
            if let Err(error) = attacher.attach_pod(&record.interface)
                && self.shared.endpoints.get(&record.interface).is_some()
            {
                failed = Some(error);
            }
        }
        // Endpoints that came since are attached by CNI ADD.
        interfaces.extend(
            self.shared
                .endpoints
                .all()
                .into_iter()
                .map(|record| record.interface),
        );
        attacher.sweep(&interfaces);
        if let Some(error) = failed {
            return Err(error.into());
        }
        self.links_swapped = true;
        info!(
            pods = records.len(),
            mode = attacher.mode(),
            "the datapath is in place"
        );
        Ok(())
    }

    /// Puts this agent's programs on the uplinks, tells the datapath of them, and takes the programs
    /// off what is no uplink any more.
    fn set_uplinks(&mut self) -> Result<()> {
        let Some(network) = self.shared.node.borrow().clone() else {
            return Ok(());
        };
        let mut failure = None;
        let mut entries = BTreeMap::new();
        let known = self.shared.maps().uplinks.clone();
        for uplink in &network.uplinks {
            if self.uplinks.get(&uplink.index) != Some(&uplink.name) {
                match self.shared.attacher().attach_uplink(&uplink.name) {
                    Ok(()) => {
                        self.uplinks.insert(uplink.index, uplink.name.clone());
                    }
                    Err(error) => {
                        failure = Some(error);
                        // An earlier agent's programs may be there: what leads to them stays.
                        if !known.contains_key(&uplink.index) {
                            continue;
                        }
                    }
                }
            }
            entries.insert(uplink.index, uplink.entry());
        }
        self.shared
            .maps()
            .set_uplinks(&entries, network.ways)
            .context("cannot tell the datapath of the uplinks")?;

        self.uplinks.retain(|index, _| entries.contains_key(index));
        let names: BTreeSet<&str> = network.uplinks.iter().map(|u| u.name.as_str()).collect();
        let gone = known.keys().filter(|index| !entries.contains_key(index));
        let gone = gone.filter_map(|index| nix::net::if_::if_indextoname(*index).ok());
        let gone = gone.map(|name| name.to_string_lossy().into_owned());
        let mut attacher = self.shared.attacher();
        let mut stale = attacher.pinned_uplinks();
        stale.extend(gone);
        for name in stale.iter().filter(|name| !names.contains(name.as_str())) {
            match attacher.detach_uplink(name) {
                Ok(()) => info!(interface = name, "an interface is no uplink any more"),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Attaches the socket programs, once.
    fn attach_sockets(&mut self) -> Result<()> {
        if self.sockets_attached {
            return Ok(());
        }
        let mut attacher = self.shared.attacher();
        if !attacher.loaded().has_socket_programs() {
            self.sockets_attached = true;
            return Ok(());
        }
        let root = match &self.shared.config.cgroup_root {
            Some(root) => Some(root.clone()),
            None => cgroup::find_root().context("cannot look for the cgroup2 file system")?,
        };
        match root {
            Some(root) if cgroup::is_cgroup2(&root) => attacher.attach_sockets(&root)?,
            root => warn!(
                cgroup = ?root,
                "no cgroup2 file system there: processes of the node itself reach no host ports on \
                 their own addresses. Mount one, and give --cgroup-root"
            ),
        }
        self.sockets_attached = true;
        Ok(())
    }

    /// Removes the overlay of an earlier time, which nothing uses any more in native routing.
    async fn leave_overlay(&mut self) -> Result<()> {
        let routing = self.shared.node.borrow().as_ref().map(|node| node.routing);
        if self.overlay_gone || routing != Some(Routing::Native) {
            return Ok(());
        }
        let removed = self.node.remove_overlay().await;
        removed.context("cannot remove the overlay device")?;
        self.shared.attacher().forget_overlay();
        self.overlay_gone = true;
        Ok(())
    }

    fn ready(&self, records: &[Record]) -> BTreeSet<(String, u32)> {
        let maps = self.shared.maps();
        let programmed = |record: &&Record| {
            record.addresses.iter().all(|address| {
                let entry = Addr4::from_ip(*address)
                    .map(|v4| maps.mirror.v4.endpoints.get(&v4))
                    .or_else(|| {
                        Addr6::from_ip(*address).map(|v6| maps.mirror.v6.endpoints.get(&v6))
                    });
                entry
                    .flatten()
                    .is_some_and(|entry| entry.policy_set != 0 && entry.ifindex == record.ifindex)
            })
        };
        records
            .iter()
            .filter(programmed)
            .map(|record| (record.interface.clone(), record.ifindex))
            .collect()
    }
}

/// The contents with the endpoints of these records, where nothing can be compiled yet: what is
/// programmed stays, what is new has no policy set.
fn without_policies(current: &Contents, records: &[Record]) -> Contents {
    let mut contents = current.clone();
    keep_endpoints::<Addr4>(&mut contents, records);
    keep_endpoints::<Addr6>(&mut contents, records);
    contents
}

fn keep_endpoints<A: Address>(contents: &mut Contents, records: &[Record]) {
    let endpoints = &mut A::tables_mut(contents).endpoints;
    let old = std::mem::take(endpoints);
    for record in records {
        for address in record
            .addresses
            .iter()
            .filter_map(|address| A::from_ip(*address))
        {
            let new = Endpoint {
                ifindex: record.ifindex,
                mac: record.mac,
                ..Endpoint::default()
            };
            let same = old
                .get(&address)
                .filter(|old| (old.ifindex, old.mac) == (new.ifindex, new.mac))
                .copied();
            endpoints.insert(address, same.unwrap_or(new));
        }
    }
}

/// Kernel ticks per second: the coarse clock's resolution is one tick.
fn ticks_per_second() -> Result<u32> {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .context("cannot read the clock's resolution")?;
    let nanoseconds = tick.tv_nsec();
    u32::try_from(1_000_000_000_i64.checked_div(nanoseconds).unwrap_or(0))
        .ok()
        .filter(|ticks| *ticks > 0)
        .with_context(|| format!("the clock's resolution of {nanoseconds} ns makes no sense"))
}

#[cfg(test)]
mod tests {
    use weft_abi::endpoint::ENFORCE_INGRESS;

    use super::*;
    use crate::endpoints::tests::record;

    #[test]
    fn an_interface_that_was_made_again_is_not_ready_yet() {
        let applied = Applied {
            ready: [(record(1).interface, record(1).ifindex)].into(),
            ..Applied::default()
        };
        assert!(applied.is_ready(&record(1)));
        let again = Record {
            ifindex: 99,
            ..record(1)
        };
        assert!(!applied.is_ready(&again));
    }

    #[test]
    fn no_epoch_is_ever_zero() {
        assert_eq!(next_epoch(0), 1);
        assert_eq!(next_epoch(1), 2);
        assert_eq!(next_epoch(u32::MAX), 1);
    }

    #[test]
    fn the_tick_is_one_that_linux_has() {
        let ticks = ticks_per_second().expect("known");
        assert!([100, 250, 300, 1000].contains(&ticks), "{ticks}");
    }

    #[test]
    fn before_the_first_compilation_new_endpoints_have_no_policy() {
        let programmed = Endpoint {
            ifindex: 1,
            policy_set: 7,
            identity: 3,
            mac: record(1).mac,
            enforce: ENFORCE_INGRESS,
            limits: 0,
        };
        let mut current = Contents::default();
        current
            .v4
            .endpoints
            .insert(Addr4::new([10, 0, 0, 1]), programmed);
        // An address whose pod went while the agent was down, and is another's now.
        current
            .v4
            .endpoints
            .insert(Addr4::new([10, 0, 0, 2]), programmed);
        current
            .v4
            .endpoints
            .insert(Addr4::new([10, 0, 0, 3]), programmed);
        let contents = without_policies(&current, &[record(1), record(2)]);
        let sets: Vec<_> = contents
            .v4
            .endpoints
            .iter()
            .map(|(a, e)| (*a, e.policy_set))
            .collect();
        assert_eq!(
            sets,
            [
                (Addr4::new([10, 0, 0, 1]), 7),
                (Addr4::new([10, 0, 0, 2]), 0)
            ]
        );
    }
}
