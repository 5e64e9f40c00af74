//! What the last application left: what the status shows, and what CNI ADD waits for.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::Serialize;

use crate::endpoints::Record;

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

#[cfg(test)]
mod tests {
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
}
