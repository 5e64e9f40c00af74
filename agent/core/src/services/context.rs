//! What the compilation of every service depends on, besides the service.

use std::net::IpAddr;

use weft_abi::maps;

use crate::model::{ClusterState, LoadBalancing, LoadBalancingReturn};

/// What this node is, and what its operator decided. Another one means to compile everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The name of this node.
    pub node: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Its InternalIPs.
    pub internal_ips: Vec<IpAddr>,
    /// How backends are chosen, of services that do not say.
    pub load_balancing: LoadBalancing,
    /// How backends answer clients from outside, of services that do not say.
    pub load_balancing_return: LoadBalancingReturn,
    /// How many blocks of Maglev tables there is room for.
    pub maglev_blocks: usize,
}

impl Context {
    /// The context of a cluster's state.
    pub fn of(state: &ClusterState) -> Self {
        let own = state.own_node();
        Self {
            node: state.node_name.clone(),
            zone: own.and_then(|own| own.zone()).map(str::to_owned),
            internal_ips: own.map_or_else(Vec::new, |own| own.internal_ips.clone()),
            load_balancing: state.settings.load_balancing,
            load_balancing_return: state.settings.load_balancing_return,
            maglev_blocks: state.settings.maglev_blocks.unwrap_or(maps::MAGLEV),
        }
    }
}
