//! The node's own part of the network: uplinks, overlay device, routes to the other nodes, kernel
//! settings, and the MTUs that follow from them.
//!
//! ```text
//!   ClusterState --[wanted]--.                                .--> NodeNetwork: configuration, uplinks
//!                            |-- [NodeSetup::apply] --(kernel)-|
//!   kernel --[NodeSetup::observe]                             `--> overlay, routes, settings, MTUs
//! ```
//!
//! Each application looks at the kernel again and changes what differs, so that it repairs what
//! others broke, and can run after every change and every failure.
//!
//! What must be known of this node is kept on disk ([`facts`]).

pub mod facts;
pub mod mtu;
pub mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tracing::{info, warn};
use weft_abi::config::Uplink as UplinkEntry;
use weft_core::model::Routing;

pub use self::facts::{NodeFacts, Remembered};
pub use self::wanted::Wanted;
use crate::cli::BandwidthMode;
use crate::config::{Config, Masquerade};
use crate::endpoints::{Endpoints, Record};
use crate::netlink::routes::{self, Route, Via};
use crate::netlink::uplinks::{self, Criteria, HostRoute, Observed, PodLinks, Uplink};
use crate::netlink::{Link, NetNs, Netlink, overlay, qdisc, reserved, sysctl, veth};

/// The smallest MTU with which the kernel lets an interface have IPv6.
const IPV6_MTU_MIN: u32 = 1280;

/// The node's network as it was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNetwork {
    /// What it was made for.
    pub facts: NodeFacts,
    /// How packets get to other nodes' pods.
    pub routing: Routing,
    /// Index of the overlay device; 0 without overlay.
    pub overlay: u32,
    /// Whether some tunnels go over IPv6.
    pub ipv6_tunnels: bool,
    /// MTU of pods, in bytes.
    pub mtu: u32,
    /// MTU of the overlay, in bytes.
    pub overlay_mtu: u32,
    /// By which packets leave the node, by index.
    pub uplinks: Vec<Uplink>,
    /// Whether packets are sent at the departure times that the datapath gives them.
    pub departure_times: bool,
    /// Counts changes of the routes, which decisions of the datapath rest on.
    pub ways: u64,
    /// What an operator should know of it.
    pub problems: BTreeSet<String>,
}

/// What the operator decided.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The file that keeps what is known of the node.
    pub path: PathBuf,
    /// MTU of pods and overlay, if given.
    pub mtu: Option<u32>,
    /// How packets get to other nodes' pods.
    pub routing: Routing,
    /// The uplinks' names, if given.
    pub uplinks: Vec<String>,
    /// Masquerading.
    pub masquerade: Masquerade,
    /// Whether departure times may be used.
    pub bandwidth: BandwidthMode,
}

impl From<&Config> for NodeOptions {
    fn from(config: &Config) -> Self {
        Self {
            path: config.state_dir.join("node.json"),
            mtu: config.mtu,
            routing: config.settings.routing,
            uplinks: config.uplinks.clone(),
            masquerade: config.masquerade,
            bandwidth: config.bandwidth,
        }
    }
}

/// The kernel's side, as it was seen.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The node's own interfaces, addresses and routes.
    pub node: Observed,
    /// Its pods' interfaces.
    pub pods: PodLinks,
}

/// What an application led to.
#[derive(Debug)]
pub struct Outcome {
    /// The network, if it is another one than after the last application.
    pub network: Option<NodeNetwork>,
    /// What could not be done; the next application tries again.
    pub failure: Option<anyhow::Error>,
}

/// Attaches the datapath to the overlay device, which is set up only then.
pub type AttachOverlay<'a> = &'a mut (dyn FnMut() -> Result<()> + Send);

/// Sets the node's network up, and again whenever what it depends on changes.
#[derive(Debug)]
pub struct NodeSetup {
    netlink: Netlink,
    options: NodeOptions,
    /// What was applied, completely, and what was seen before.
    done: Option<(Wanted, Observed)>,
    network: Option<NodeNetwork>,
    /// MTUs that pods were given, and which follow a change.
    former_mtus: BTreeSet<u32>,
    /// Others' routes when they were last counted.
    routes: BTreeSet<HostRoute>,
    ways: u64,
}

impl NodeSetup {
    /// A setup that did nothing yet.
    ///
    /// # Errors
    ///
    /// When there is no netlink socket to be had.
    pub fn new(options: NodeOptions) -> Result<Self> {
        let remembered = Remembered::load(&options.path);
        Ok(Self {
            netlink: Netlink::host()?,
            done: None,
            network: None,
            former_mtus: remembered.and_then(|known| known.mtu).into_iter().collect(),
            routes: BTreeSet::new(),
            ways: 0,
            options,
        })
    }

    /// What an earlier agent knew of the node.
    pub fn remembered(&self) -> Option<Remembered> {
        Remembered::load(&self.options.path)
    }

    /// Looks at the kernel.
    ///
    /// # Errors
    ///
    /// When it refuses.
    pub async fn observe(&self) -> Result<View> {
        let (node, pods) = uplinks::observe(&self.netlink)
            .await
            .context("cannot look at the node's network")?;
        Ok(View { node, pods })
    }

    /// Whether the kernel still is as the last application saw and left it.
    pub fn is_current(&self, view: &View) -> bool {
        let Some((_, seen)) = &self.done else {
            return false;
        };
        let mtu = self.network.as_ref().map(|network| network.mtu);
        let follows = |link: &Link| Some(link.mtu) != mtu && self.former_mtus.contains(&link.mtu);
        *seen == view.node && !view.pods.values().any(follows)
    }

    /// Makes the network for facts from an earlier time: the overlay device only. Routes, uplinks and
    /// the overlay of another mode stay as they are until the cluster is known.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn restore(
        &mut self,
        remembered: Remembered,
        previous: &BTreeMap<u32, UplinkEntry>,
        attach: AttachOverlay<'_>,
    ) -> Result<NodeNetwork> {
        sysctl::enable_forwarding();
        let view = self.observe().await?;
        let wanted = Wanted::alone(remembered.facts);
        let mut network = self.plan(&wanted, &view.node, previous).await?;
        // The other nodes, who are not known, may have a say in it.
        network.mtu = self.options.mtu.or(remembered.mtu).unwrap_or(network.mtu);
        if let Some(there) = &view.node.overlay {
            network.overlay_mtu = there.mtu;
        }
        if network.routing == Routing::Vxlan {
            network.overlay = self.overlay(network.overlay_mtu, attach).await?;
        }
        Ok(network)
    }

    /// Makes the network as it is wanted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses so much that there is no network; the next call tries again.
    pub async fn apply(
        &mut self,
        wanted: &Wanted,
        view: &View,
        previous: &BTreeMap<u32, UplinkEntry>,
        endpoints: &Endpoints,
        attach: AttachOverlay<'_>,
    ) -> Result<Outcome> {
        let current = self.done.as_ref().is_some_and(|(done, _)| done == wanted);
        if current && self.is_current(view) {
            return Ok(Outcome {
                network: None,
                failure: None,
            });
        }
        self.done = None;
        let known = self.network.as_ref().map(|network| network.mtu);
        self.remember(&wanted.facts, known.or(self.former_mtus.first().copied()))?;
        let mut network = self.plan(wanted, &view.node, previous).await?;
        sysctl::enable_forwarding();
        if wanted.facts.has_ipv6_pods() {
            let uplinks = network.uplinks.iter().map(|uplink| uplink.name.as_str());
            sysctl::enable_ipv6_forwarding(uplinks);
        }
        if self.options.masquerade.is_on() {
            let Masquerade {
                first_port,
                last_port,
                ..
            } = self.options.masquerade;
            if let Some(state) = self.options.path.parent() {
                reserved::reserve(first_port, last_port, state);
            }
        }
        if network.routing == Routing::Vxlan {
            network.overlay = self.overlay(network.overlay_mtu, attach).await?;
        }

        let routes = self.routes(wanted, &mut network).await?;
        let there = view.node.overlay.as_ref().map_or(0, |link| link.index);
        let overlay = if network.overlay == 0 {
            there
        } else {
            network.overlay
        };
        let outcome = routes::reconcile(&self.netlink, overlay, &routes).await?;
        if self.routes != view.node.routes || outcome.added + outcome.removed > 0 {
            self.routes.clone_from(&view.node.routes);
            self.ways += 1;
        }
        network.ways = self.ways;
        let failure = (outcome.failed > 0).then(|| {
            anyhow::anyhow!(
                "{} of {} routes could not be set",
                outcome.failed,
                routes.len()
            )
        });

        self.former_mtus.extend(known);
        self.follow_mtu(&view.pods, endpoints, &mut network).await;
        let addresses = self.network.as_ref().map(|known| known.facts.addresses());
        if addresses != Some(network.facts.addresses()) {
            self.readdress(endpoints, &network.facts).await;
        }
        self.remember(&wanted.facts, Some(network.mtu))?;
        self.former_mtus.insert(network.mtu);

        if failure.is_none() {
            self.done = Some((wanted.clone(), view.node.clone()));
        }
        self.tell(&network);
        let changed = self.network.as_ref() != Some(&network);
        if changed {
            info!(
                addresses = ?network.facts.addresses(), mtu = network.mtu, ?network.routing,
                uplinks = ?network.uplinks.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(),
                routes = routes.len(), added = outcome.added, removed = outcome.removed,
                "the node's network is set up"
            );
            self.network = Some(network.clone());
        }
        Ok(Outcome {
            network: changed.then_some(network),
            failure,
        })
    }

    /// Removes the overlay device, once nothing is sent through it any more; whether there was one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_overlay(&self) -> Result<bool> {
        let Some(link) = self.netlink.find_link(overlay::DEVICE).await? else {
            return Ok(false);
        };
        self.netlink.delete_link(&link).await?;
        info!(
            interface = overlay::DEVICE,
            "removed the overlay: routing is native now"
        );
        Ok(true)
    }

    /// What follows from cluster and kernel, without effects.
    async fn plan(
        &self,
        wanted: &Wanted,
        observed: &Observed,
        previous: &BTreeMap<u32, UplinkEntry>,
    ) -> Result<NodeNetwork> {
        let node = wanted.facts.addresses();
        let criteria = Criteria {
            names: &self.options.uplinks,
            node: &node,
            peers: &wanted.peer_addresses(),
            previous,
        };
        let (uplinks, problems) = uplinks::select(observed, &criteria);
        let mut problems: BTreeSet<String> = problems.iter().map(ToString::to_string).collect();
        let ipv6_tunnels = wanted.has_ipv6_tunnels();
        let mtus = mtu::mtus(
            self.options.mtu,
            self.options.routing,
            ipv6_tunnels,
            &uplinks,
        );
        if mtus.assumed {
            problems.insert(
                "no uplink has the node's address; its MTU is assumed. Give --uplink, --mtu or \
                 --node-address if that is wrong"
                    .to_owned(),
            );
        }
        if wanted.facts.has_ipv6_pods() && mtus.pods < IPV6_MTU_MIN {
            problems.insert(format!(
                "an MTU of {} is too small for IPv6, which needs {IPV6_MTU_MIN}: IPv6 does not work \
                 in pods. Give uplinks a larger one",
                mtus.pods
            ));
        }
        let indices: Vec<u32> = uplinks.iter().map(|uplink| uplink.index).collect();
        let departure_times = self.options.bandwidth == BandwidthMode::Auto
            && qdisc::send_at_departure_times(&self.netlink, &indices).await?;
        Ok(NodeNetwork {
            facts: wanted.facts.clone(),
            routing: self.options.routing,
            overlay: 0,
            ipv6_tunnels,
            mtu: mtus.pods,
            overlay_mtu: mtus.overlay,
            uplinks,
            departure_times,
            ways: self.ways,
            problems,
        })
    }

    /// The overlay device, with programs and up; its index.
    async fn overlay(&self, mtu: u32, attach: AttachOverlay<'_>) -> Result<u32> {
        let link = overlay::ensure(&self.netlink, mtu).await?;
        if !link.up {
            attach().context("cannot attach the datapath to the overlay")?;
            overlay::activate(&self.netlink, &link).await?;
        }
        Ok(link.index)
    }

    /// The routes that this node needs.
    async fn routes(&self, wanted: &Wanted, network: &mut NodeNetwork) -> Result<BTreeSet<Route>> {
        let mut routes = BTreeSet::new();
        for to in &wanted.facts.pod_cidrs {
            routes.insert(Route {
                to: *to,
                via: Via::Unreachable,
            });
        }
        for (name, peer) in &wanted.peers {
            for to in &peer.pod_cidrs {
                let via = match network.routing {
                    Routing::Vxlan => peer.tunnel.map(|_| {
                        let source = network.facts.source_for(to.network());
                        Via::out_of(network.overlay, source)
                    }),
                    Routing::Native => {
                        let Some(node) = peer.address_for(to) else {
                            network.problems.insert(format!(
                                "node {name} has no InternalIP of the family of its podCIDR {to}, \
                                 so there is no route to its pods of that family"
                            ));
                            continue;
                        };
                        self.by_link(node, &network.uplinks).await?
                    }
                };
                routes.extend(via.map(|via| Route { to: *to, via }));
            }
        }
        Ok(routes)
    }

    /// The way by a node on an uplink's own link. To all others the underlay's routers know it.
    async fn by_link(&self, node: IpAddr, uplinks: &[Uplink]) -> Result<Option<Via>> {
        let hop = routes::lookup(&self.netlink, node).await?;
        let on_link = hop.filter(|hop| {
            hop.gateway.is_none() && uplinks.iter().any(|uplink| uplink.index == hop.interface)
        });
        Ok(on_link.map(|hop| Via::Gateway {
            index: hop.interface,
            gateway: node,
        }))
    }

    /// Gives pods that have an MTU of before the present one. A pod that was given another one by its
    /// CNI configuration keeps it.
    async fn follow_mtu(&self, pods: &PodLinks, endpoints: &Endpoints, network: &mut NodeNetwork) {
        let (mut followed, mut failed) = (0_usize, Vec::new());
        for record in endpoints.all() {
            let Some(link) = pods.get(&record.interface) else {
                continue;
            };
            if link.mtu == network.mtu || !self.former_mtus.contains(&link.mtu) {
                continue;
            }
            match self.change_mtu(&record, link, network.mtu).await {
                Ok(()) => followed += 1,
                // It is just going.
                Err(_) if endpoints.get(&record.interface).is_none() => {}
                Err(error) => failed.push(format!(
                    "pod {}/{} keeps an MTU of {}: {error:#}",
                    record.namespace, record.pod, link.mtu
                )),
            }
        }
        network.problems.extend(failed);
        if followed > 0 {
            info!(pods = followed, mtu = network.mtu, "pods follow the MTU");
        }
    }

    /// Changes both ends, the larger one last, or first where it grows: neither end ever sends what
    /// the other does not take.
    async fn change_mtu(&self, record: &Record, link: &Link, mtu: u32) -> Result<()> {
        let netns = NetNs::open_pod(record.netns.as_ref())?;
        let inside = Netlink::inside(&netns)?;
        let end = inside.link(&record.owner.ifname).await?;
        if mtu < link.mtu {
            inside.set_mtu(&end, mtu).await?;
            self.netlink.set_mtu(link, mtu).await?;
            return Ok(());
        }
        self.netlink.set_mtu(link, mtu).await?;
        if let Err(error) = inside.set_mtu(&end, mtu).await {
            // So that the next application tries again.
            self.netlink.set_mtu(link, link.mtu).await?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Makes the node's side of every pod again, with its present addresses as their sources.
    async fn readdress(&self, endpoints: &Endpoints, facts: &NodeFacts) {
        for record in endpoints.all() {
            let result = async {
                let link = self.netlink.link(&record.interface).await?;
                let (mac, addresses) = (record.mac, &record.addresses);
                veth::activate_host(&self.netlink, &link, mac, addresses, facts.addresses()).await
            }
            .await;
            if let Err(error) = result
                && endpoints.get(&record.interface).is_some()
            {
                warn!(interface = record.interface, pod = record.pod, %error, "cannot renew the \
                    way to a pod");
            }
        }
    }

    fn remember(&self, facts: &NodeFacts, mtu: Option<u32>) -> Result<()> {
        let remembered = Remembered {
            facts: facts.clone(),
            mtu,
        };
        remembered.store(&self.options.path)
    }

    fn tell(&self, network: &NodeNetwork) {
        let told = self.network.as_ref().map(|known| &known.problems);
        for problem in &network.problems {
            if !told.is_some_and(|told| told.contains(problem)) {
                warn!("{problem}");
            }
        }
    }
}
