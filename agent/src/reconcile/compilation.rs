//! The compiler's part: from the cluster to the maps.
//!
//! ```text
//!   Cluster + endpoints --compile--> Desired --diff with the mirror--> Changes --apply--> maps
//! ```
//!
//! Invariants:
//! - Nothing is compiled before every watch was listed once. Until then only endpoints come and go.
//! - What numbers mean is known before the datapath tells of them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use tracing::warn;
use weft_core::compile::{Compiler, Desired};
use weft_core::diff::diff;
use weft_core::model::LocalEndpoint;

use super::maps::Maps;
use super::policy;
use super::shared::Shared;
use crate::endpoints::Record;

/// The compiler, and the numbers that it gave.
#[derive(Debug)]
pub struct Compilation {
    compiler: Compiler,
}

impl Compilation {
    /// Goes on with the numbers that the maps hold.
    pub fn new(shared: &Shared) -> Self {
        let mut compiler = Compiler::new();
        compiler.adopt(&shared.maps().mirror);
        let settings = shared.config.settings.clone();
        shared.cluster.update(|state| state.settings = settings);
        Self { compiler }
    }

    /// What the maps should hold, by the cluster as it is now and these endpoints.
    pub fn compile(
        &mut self,
        shared: &Shared,
        endpoints: BTreeMap<String, LocalEndpoint>,
    ) -> Desired {
        shared.cluster.update(|state| {
            state.endpoints = endpoints;
            self.compiler.compile(state)
        })
    }
}

/// Makes the maps hold what is desired or, without that, these endpoints besides what they hold; how
/// many entries were written.
///
/// # Errors
///
/// When a map takes no more.
pub fn write(maps: &mut Maps, desired: Option<Desired>, records: &[Record]) -> Result<usize> {
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
        None => diff(
            &maps.mirror,
            &policy::without_policies(&maps.mirror, records),
        ),
    };
    maps.apply(&changes, complete)
        .context("cannot write the maps")?;
    Ok(changes.entries())
}
