//! What a playground is to be like.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Playground;
use super::families::{BALANCED, Families, Family};
use crate::controllers::{PodRange, PodRanges, Settings};

/// How pods' packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Routing {
    /// In VXLAN.
    #[default]
    Vxlan,
    /// As they are, by the nodes' routes.
    Native,
}

/// Describes a playground.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) nodes: u8,
    pub(super) zones: Vec<String>,
    pub(super) families: Families,
    pub(super) underlay: Option<Families>,
    pub(super) routing: Routing,
    pub(super) second_uplink: bool,
    pub(super) pods: [PodRange; 2],
    pub(super) services: [IpNet; 2],
    pub(super) slice_size: usize,
    pub(super) load_balancers: bool,
    pub(super) agents: bool,
    pub(super) kubelets: bool,
    pub(super) agent_flags: Vec<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            name: "play".to_owned(),
            id: None,
            nodes: 1,
            zones: Vec::new(),
            families: Families::default(),
            underlay: None,
            routing: Routing::default(),
            second_uplink: false,
            pods: [
                PodRange {
                    cluster: v4([10, 244], 16),
                    node_prefix: 24,
                },
                PodRange {
                    cluster: v6([0xfd00, 0x10, 0x244], 56),
                    node_prefix: 64,
                },
            ],
            services: [v4([10, 96], 16), v6([0xfd00, 0x10, 0x96], 112)],
            slice_size: Settings::default().slice_size,
            load_balancers: false,
            agents: true,
            kubelets: true,
            agent_flags: Vec::new(),
        }
    }
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

    /// The families of pods and services; IPv4 only by default. Both nodes and cluster prefer the
    /// first.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// The families of the nodes' addresses; by default those of the cluster.
    #[must_use]
    pub fn underlay(mut self, families: Families) -> Self {
        self.underlay = Some(families);
        self
    }

    /// How pods' packets get from node to node: what `--routing` says to the agents.
    #[must_use]
    pub fn routing(mut self, routing: Routing) -> Self {
        self.routing = routing;
        self
    }

    /// Gives each node a second uplink, `eth1`, into a network of its own with one machine in it,
    /// [`Playground::second_machine`].
    #[must_use]
    pub fn second_uplink(mut self) -> Self {
        self.second_uplink = true;
        self
    }

    /// The range of its family that nodes get their pod ranges from, by default `10.244.0.0/16` and
    /// `fd00:10:244::/56`, and the prefix length of a node's part of it, by default 24 and 64.
    #[must_use]
    pub fn pod_cidr(mut self, range: impl Into<IpNet>, node_prefix: u8) -> Self {
        let cluster = range.into();
        self.pods[slot(&cluster)] = PodRange {
            cluster,
            node_prefix,
        };
        self
    }

    /// The range of its family that services get their addresses from, by default `10.96.0.0/16` and
    /// `fd00:10:96::/112`.
    #[must_use]
    pub fn service_cidr(mut self, range: impl Into<IpNet>) -> Self {
        let range = range.into();
        self.services[slot(&range)] = range;
        self
    }

    /// The most endpoints of one EndpointSlice, by default 100.
    #[must_use]
    pub fn slice_size(mut self, endpoints: usize) -> Self {
        self.slice_size = endpoints;
        self
    }

    /// Gives Services of type LoadBalancer addresses of [`BALANCED`]. Who is to answer for
    /// one from outside is up to the test: [`Playground::show_outside`].
    #[must_use]
    pub fn load_balancers(mut self) -> Self {
        self.load_balancers = true;
        self
    }

    /// Leaves the nodes without agents: then only host-network pods can run.
    #[must_use]
    pub fn without_agents(mut self) -> Self {
        self.agents = false;
        self
    }

    /// Leaves the nodes without kubelets: pods stay objects, for the test to be their runtime.
    #[must_use]
    pub fn without_kubelets(mut self) -> Self {
        self.kubelets = false;
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
        Playground::start(&self)
    }

    /// The families of the nodes' addresses.
    pub(super) fn node_families(&self) -> &'static [Family] {
        self.underlay.unwrap_or(self.families).each()
    }

    /// What the controllers are told.
    pub(super) fn controllers(&self) -> Settings {
        let range = |family: &Family| self.pods[*family as usize];
        let families = self.families.each().iter();
        let balanced = families.clone().filter(|_| self.load_balancers);
        Settings {
            pods: PodRanges(families.map(range).collect()),
            slice_size: self.slice_size,
            load_balancers: balanced.map(|family| BALANCED.of(*family)).collect(),
        }
    }

    /// The service ranges, the preferred family's first.
    pub(super) fn service_ranges(&self) -> Vec<IpNet> {
        let range = |family: &Family| self.services[*family as usize];
        self.families.each().iter().map(range).collect()
    }

    /// What each agent is started with besides its own.
    pub(super) fn flags(&self) -> Vec<String> {
        let mut flags = self.agent_flags.clone();
        if self.routing == Routing::Native {
            flags.push("--routing=native".to_owned());
        }
        flags
    }
}

fn slot(range: &IpNet) -> usize {
    Family::of(range.addr()) as usize
}

fn v4([a, b]: [u8; 2], prefix: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), prefix).into()
}

fn v6([a, b, c]: [u16; 3], prefix: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix).into()
}
