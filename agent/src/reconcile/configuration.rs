//! The datapath's configuration: what it must know of the node.
//!
//! Invariant: until the cluster is known the maps are an earlier agent's, and so is the configuration
//! that fits to them.

use anyhow::{Context as _, Result};
use tracing::info;
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::config::{CONFIG_DEPARTURE_TIME, Config as DatapathConfig};
use weft_core::family::{Address as _, underlay};

use super::maps::Maps;
use super::shared::Shared;
use crate::bpf::tables::next_epoch;
use crate::netlink::{overlay, socket};

/// What never changes while the agent runs.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    ticks_per_second: u32,
    netns_cookie: u64,
}

impl Constants {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// When its tick cannot be found out.
    pub fn find() -> Result<Self> {
        Ok(Self {
            ticks_per_second: ticks_per_second()?,
            netns_cookie: socket::netns_cookie().unwrap_or_else(|error| {
                info!(%error, "the kernel numbers no network namespaces");
                0
            }),
        })
    }

    /// Tells the datapath what it must know of the node, once that is known.
    ///
    /// # Errors
    ///
    /// When the map takes no configuration.
    pub fn configure(&self, shared: &Shared, maps: &mut Maps) -> Result<()> {
        let Some(network) = shared.node.borrow().clone() else {
            return Ok(());
        };
        let masquerade = shared.config.masquerade;
        let departure_times = if network.departure_times {
            CONFIG_DEPARTURE_TIME
        } else {
            0
        };
        let own = network.facts.addresses();
        let wanted = DatapathConfig {
            epoch: maps.config.epoch,
            backends_epoch: maps.config.backends_epoch,
            reserved: 0,
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
            node_v4: own
                .iter()
                .find_map(|ip| Addr4::from_ip(*ip))
                .unwrap_or_default(),
            netns_cookie: self.netns_cookie,
            node_v6: own
                .iter()
                .find_map(|ip| Addr6::from_ip(*ip))
                .unwrap_or_default(),
        };
        // Until the cluster is known, the maps are an earlier agent's, and so is what fits to them:
        // the way through the overlay, or without it.
        let earlier = maps.config.epoch != 0 && !shared.cluster.synced();
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
    use super::*;

    #[test]
    fn the_tick_is_one_that_linux_has() {
        let ticks = ticks_per_second().expect("known");
        assert!([100, 250, 300, 1000].contains(&ticks), "{ticks}");
    }
}
