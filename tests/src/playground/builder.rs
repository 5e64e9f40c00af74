//! What a playground is to be like.

use std::net::Ipv4Addr;

use anyhow::Result;
use ipnet::Ipv4Net;

use super::Playground;

/// Describes a playground.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) nodes: u8,
    pub(super) zones: Vec<String>,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) service_cidr: Ipv4Net,
    pub(super) agents: bool,
    pub(super) agent_flags: Vec<String>,
}

impl Default for Builder {
    fn default() -> Self {
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
        Playground::start(&self)
    }
}
