//! Clients of services that had the same backend each time, and need not any more.
//!
//! What the programs remember of a client outlives the connection. A service that is without session
//! affinity for a while must not find it again when it is switched on.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{debug, warn};
use weft_abi::service::{FRONTEND_AFFINITY, Frontend};
use weft_core::contents::ServiceContents;
use weft_core::diff::{Batch, Changes, FamilyBatch, Step};

use crate::bpf::tables::Tables;

/// Who forgets them.
#[derive(Debug, Default)]
pub struct Clients {
    /// The services with session affinity; `None`: clients of others may be remembered.
    services: Option<BTreeSet<u32>>,
}

impl Clients {
    /// Forgets the clients of services that lost their session affinity, or are gone, by these
    /// changes, which were made; the mirror is what the maps hold now.
    pub fn forget(&mut self, changes: &Changes, tables: &mut Tables, mirror: &ServiceContents) {
        if self.services.is_some() && !changes.steps.iter().any(is_of_frontends) {
            return;
        }
        let now: BTreeSet<u32> = sticky(&mirror.v4.frontends)
            .chain(sticky(&mirror.v6.frontends))
            .collect();
        if self
            .services
            .as_ref()
            .is_none_or(|services| !services.is_subset(&now))
        {
            match tables.forget_clients_except(&now) {
                Ok(0) => {}
                Ok(count) => debug!(
                    count,
                    "clients of services without session affinity forgotten"
                ),
                Err(error) => {
                    warn!(%error, "clients of services without session affinity are remembered");
                    self.services = None;
                    return;
                }
            }
        }
        self.services = Some(now);
    }
}

fn sticky<K>(frontends: &BTreeMap<K, Frontend>) -> impl Iterator<Item = u32> {
    let sticky = frontends
        .values()
        .filter(|frontend| frontend.flags & FRONTEND_AFFINITY != 0);
    sticky.map(|frontend| frontend.service)
}

const fn is_of_frontends(step: &Step) -> bool {
    matches!(
        step,
        Step::Write(Batch::V4(FamilyBatch::Frontends(_)) | Batch::V6(FamilyBatch::Frontends(_)))
    )
}
