//! Which attachments are being added, or were just now: GC must leave those alone, whatever list it
//! was given. The runtime made the list earlier than the agent sees it, and promises that nothing was
//! added since; a pod must not lose its network over a broken promise. What is left alone for its age
//! and is stale all the same, the next GC takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ipam::Owner;

/// How long after its ADD an attachment is left alone: longer than a runtime takes from its list to
/// the call. It deletes what it finds in its own cache in between.
const GRACE: Duration = Duration::from_secs(10);

/// The ADDs that run, those that ended just now, and those that began during a GC.
#[derive(Debug, Default)]
pub struct Adding {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many ADDs of an attachment run or wait for their turn.
    running: BTreeMap<Owner, u32>,
    /// When ADDs ended, those of longer than [`GRACE`] ago left out now and then.
    ended: BTreeMap<Owner, Instant>,
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

    /// A GC begins; there is one at a time. Everything that was added just now, is being added or
    /// will be is protected from it.
    pub fn collect(&self) -> Collecting<'_> {
        self.collect_at(Instant::now())
    }

    fn collect_at(&self, now: Instant) -> Collecting<'_> {
        let mut state = self.lock();
        state.forget_before(now);
        let running = state.running.keys();
        state.protected = Some(running.chain(state.ended.keys()).cloned().collect());
        Collecting { adding: self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_before(&mut self, now: Instant) {
        self.ended
            .retain(|_, ended| now.saturating_duration_since(*ended) < GRACE);
    }
}

impl Collecting<'_> {
    /// Whether the attachment was being added at some moment since the GC began, or just before.
    pub fn is_protected(&self, owner: &Owner) -> bool {
        let state = self.adding.lock();
        let protected = state.protected.as_ref();
        protected.is_some_and(|protected| protected.contains(owner))
    }

    /// All that were being added at some moment since the GC began, or just before.
    pub fn protected(&self) -> BTreeSet<Owner> {
        self.adding.lock().protected.clone().unwrap_or_default()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.adding.lock();
        let now = Instant::now();
        state.forget_before(now);
        state.ended.insert(self.owner.clone(), now);
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
        let _running = adding.begin(&owner("running"));
        let again = adding.begin(&owner("running"));
        let collecting = adding.collect();
        drop(again);
        drop(adding.begin(&owner("during")));
        assert!(!collecting.is_protected(&owner("another")));
        assert!(collecting.is_protected(&owner("running")));
        assert!(
            collecting.is_protected(&owner("during")),
            "also when it has ended"
        );
        assert_eq!(collecting.protected().len(), 2);
    }

    #[test]
    fn what_was_added_just_before_a_collection_is_protected() {
        let adding = Adding::default();
        drop(adding.begin(&owner("before")));
        let ended = Instant::now();
        let just = |now| adding.collect_at(now).is_protected(&owner("before"));
        assert!(just(ended));
        assert!(!just(ended + GRACE));
        assert!(adding.lock().ended.is_empty(), "it is forgotten");
    }
}
