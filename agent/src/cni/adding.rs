//! Which attachments are being added: GC must leave those alone, whatever list it was given. The
//! list is older than an ADD that began after it was made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ipam::Owner;

/// The ADDs that run, and those that began during a GC.
#[derive(Debug, Default)]
pub struct Adding {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many ADDs of an attachment run or wait for their turn.
    running: BTreeMap<Owner, u32>,
    /// What a GC must leave alone; `None` while there is no GC.
    protected: Option<BTreeSet<Owner>>,
}

/// An ADD that runs until this is dropped.
#[derive(Debug)]
pub struct Running<'a> {
    adding: &'a Adding,
    owner: Owner,
}

/// A GC that runs until this is dropped.
#[derive(Debug)]
pub struct Collecting<'a> {
    adding: &'a Adding,
}

impl Adding {
    /// An ADD begins.
    pub fn begin(&self, owner: &Owner) -> Running<'_> {
        let mut state = self.lock();
        *state.running.entry(owner.clone()).or_default() += 1;
        if let Some(protected) = &mut state.protected {
            protected.insert(owner.clone());
        }
        Running {
            adding: self,
            owner: owner.clone(),
        }
    }

    /// A GC begins; there is one at a time. Everything that is being added now or will be is
    /// protected from it.
    pub fn collect(&self) -> Collecting<'_> {
        let mut state = self.lock();
        state.protected = Some(state.running.keys().cloned().collect());
        Collecting { adding: self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collecting<'_> {
    /// Whether the attachment was being added at some moment since the GC began.
    pub fn is_protected(&self, owner: &Owner) -> bool {
        let state = self.adding.lock();
        let protected = state.protected.as_ref();
        protected.is_some_and(|protected| protected.contains(owner))
    }

    /// All that were being added at some moment since the GC began.
    pub fn protected(&self) -> BTreeSet<Owner> {
        self.adding.lock().protected.clone().unwrap_or_default()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.adding.lock();
        if let Some(count) = state.running.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(&self.owner);
            }
        }
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        self.adding.lock().protected = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(id: &str) -> Owner {
        Owner {
            container_id: id.to_owned(),
            ifname: "eth0".to_owned(),
        }
    }

    #[test]
    fn what_was_added_at_any_moment_of_a_collection_is_protected() {
        let adding = Adding::default();
        drop(adding.begin(&owner("before")));
        let _running = adding.begin(&owner("running"));
        let _again = adding.begin(&owner("running"));
        let collecting = adding.collect();
        drop(_again);
        drop(adding.begin(&owner("during")));
        assert!(!collecting.is_protected(&owner("before")));
        assert!(collecting.is_protected(&owner("running")));
        assert!(
            collecting.is_protected(&owner("during")),
            "also when it has ended"
        );
        assert_eq!(collecting.protected().len(), 2);
        drop(collecting);
        let next = adding.collect();
        assert!(next.is_protected(&owner("running")));
        assert!(!next.is_protected(&owner("during")));
    }
}
