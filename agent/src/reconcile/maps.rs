//! The maps, their mirror, and the epoch.
//!
//! Invariants:
//! - The mirror is what the maps hold: read back at the start and after every failure.
//! - A new epoch ends every change that decisions rest on: of maps, of the configuration, of uplinks,
//!   and of the node's routes. A change that was begun and may lack its epoch is remembered
//!   ([`Maps::apply`], [`Maps::set_uplinks`]) until there was one.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;
use weft_abi::config::{Config as DatapathConfig, Uplink as UplinkEntry};
use weft_core::compile::Desired;
use weft_core::contents::Contents;
use weft_core::diff::{Changes, Step};
use weft_core::services::ServiceCompiler;

use super::clients::Clients;
use super::deserted::Deserted;
use crate::bpf::tables::{TableError, Tables, next_epoch};

/// The maps, what they hold, and what that means.
#[derive(Debug)]
pub struct Maps {
    /// The maps.
    pub tables: Tables,
    /// What they hold.
    pub mirror: Contents,
    /// The last compilation of policies: the meaning of rule and identity numbers.
    pub desired: Desired,
    /// What was compiled of services: the meaning of their numbers.
    pub services: ServiceCompiler,
    /// The datapath's configuration as it was last written.
    pub config: DatapathConfig,
    /// The uplinks that the datapath knows, by index.
    pub uplinks: BTreeMap<u32, UplinkEntry>,
    /// The state of the node's routes that the flows' epoch stands for.
    ways: u64,
    /// Whether flows may have been decided by maps that changed since, without a new epoch: an
    /// agent that ended between the last write and the epoch leaves no difference to be found.
    stale: bool,
    /// The maps that are near full, as far as that was told.
    near_full: BTreeSet<&'static str>,
    clients: Clients,
    deserted: Deserted,
}

impl Maps {
    /// Takes over what the maps hold.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn new(tables: Tables) -> Result<Self, TableError> {
        let mirror = tables.read()?;
        let mut services = ServiceCompiler::new();
        services.adopt(&mirror.services);
        let config = tables.config()?;
        let uplinks = tables.uplinks()?;
        Ok(Self {
            tables,
            mirror,
            desired: Desired::default(),
            services,
            config,
            uplinks,
            ways: 0,
            stale: true,
            near_full: BTreeSet::new(),
            clients: Clients::default(),
            deserted: Deserted::default(),
        })
    }

    /// Applies changes; `complete` if they lead to a complete compilation.
    pub(super) fn apply(&mut self, changes: &Changes, complete: bool) -> Result<(), TableError> {
        let applied = self
            .tables
            .apply(changes, &mut self.mirror, &mut self.config);
        if complete {
            // Also where another concern failed: the mirror tells what is gone.
            self.clients
                .forget(changes, &mut self.tables, &self.mirror.services);
            self.deserted
                .end(changes, &self.tables, &self.mirror.services);
        }
        if !changes.is_empty() {
            self.warn_of_near_full();
        }
        if let Err(error) = applied {
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

    /// Logs which maps have become near full since it was last looked.
    fn warn_of_near_full(&mut self) {
        let fill = self.tables.fill(&self.mirror);
        let near = fill.iter().filter(|fill| fill.is_near_full());
        for fill in near.clone() {
            if !self.near_full.contains(fill.map) {
                warn!("{fill}");
            }
        }
        self.near_full = near.map(|fill| fill.map).collect();
    }

    /// Tells the datapath of the uplinks, and of routes that changed.
    pub(super) fn set_uplinks(
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

    /// Whether the maps hold what was compiled last: so what a compilation changes is all that is to
    /// be written.
    pub(super) const fn is_sound(&self) -> bool {
        !self.stale
    }

    /// Trusts what the maps hold, after a failure.
    pub(super) fn read_back(&mut self) -> Result<(), TableError> {
        self.mirror = self.tables.read()?;
        self.uplinks = self.tables.uplinks()?;
        Ok(())
    }

    /// Gives the datapath a configuration.
    pub(super) fn set_config(&mut self, config: DatapathConfig) -> Result<(), TableError> {
        self.tables.set_config(config)?;
        self.config = config;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_epoch_is_ever_zero() {
        assert_eq!(next_epoch(0), 1);
        assert_eq!(next_epoch(1), 2);
        assert_eq!(next_epoch(u32::MAX), 1);
    }
}
