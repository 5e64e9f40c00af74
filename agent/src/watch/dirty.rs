//! What changed of the cluster since somebody last asked.
//!
//! Invariant: a change is marked under the same lock that it is made under, so whoever takes the marks
//! and then reads the state has read at least what they tell of. What changes in between is in that
//! state and marked again, which costs nothing but a second look.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::model::ObjectKey;

/// What changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// The services of which something changed: they themselves, or a slice that is theirs, or was.
    /// It may be that there is no such service, or none any more.
    pub services: BTreeSet<ObjectKey>,
    /// The kinds of which objects changed, by the names of [`super::KINDS`]; services and slices
    /// among them.
    pub kinds: BTreeSet<&'static str>,
}

impl Dirty {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.kinds.is_empty()
    }

    /// Whether an object of this kind changed.
    pub fn has(&self, kind: &str) -> bool {
        self.kinds.contains(kind)
    }

    /// Adds what changed at another time.
    pub fn add(&mut self, mut other: Self) {
        self.services.append(&mut other.services);
        self.kinds.append(&mut other.kinds);
    }
}

/// What is found when objects of one kind are exchanged.
pub(super) struct Marker<'a, M> {
    dirty: &'a mut Dirty,
    service: fn(&M) -> Option<ObjectKey>,
    /// How many objects came, changed or went.
    pub changes: u64,
}

impl<'a, M: PartialEq> Marker<'a, M> {
    /// `service` is what tells whose an object is.
    pub fn new(dirty: &'a mut Dirty, service: fn(&M) -> Option<ObjectKey>) -> Self {
        Self {
            dirty,
            service,
            changes: 0,
        }
    }

    /// An object as it was, and as it is.
    pub fn compare(&mut self, old: Option<&M>, new: Option<&M>) {
        if old == new {
            return;
        }
        self.changes += 1;
        let services = old.into_iter().chain(new).filter_map(self.service);
        self.dirty.services.extend(services);
    }

    /// Every object as it was, and as it is.
    pub fn compare_all<I: Ord>(&mut self, old: &BTreeMap<I, M>, new: &BTreeMap<I, M>) {
        for (id, model) in new {
            self.compare(old.get(id), Some(model));
        }
        for (_, model) in old.iter().filter(|(id, _)| !new.contains_key(id)) {
            self.compare(Some(model), None);
        }
    }
}
