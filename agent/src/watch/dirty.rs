//! What changed of the cluster since somebody last asked.
//!
//! Invariant: a change is marked under the same lock that it is made under, so whoever takes the marks
//! and then reads the state has read at least what they tell of. What changes in between is in that
//! state and marked again, which costs nothing but a second look.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::services;

/// What changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services and slices that came, changed or went.
    pub services: services::Dirty,
    /// The kinds of which objects did, by the names of [`super::KINDS`]; services and slices among
    /// them.
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
    pub fn merge(&mut self, mut other: Self) {
        self.services.merge(other.services);
        self.kinds.append(&mut other.kinds);
    }
}

/// How a change of an object is marked.
pub(super) type Mark<I> = fn(&mut services::Dirty, &I);

/// What is found when objects of one kind are exchanged.
pub(super) struct Marker<'a, I> {
    dirty: &'a mut Dirty,
    kind: &'static str,
    mark: Mark<I>,
    /// How many objects came, changed or went.
    pub changes: u64,
}

impl<'a, I: Ord> Marker<'a, I> {
    /// Marks objects of this kind.
    pub fn new(dirty: &'a mut Dirty, kind: &'static str, mark: Mark<I>) -> Self {
        Self {
            dirty,
            kind,
            mark,
            changes: 0,
        }
    }

    /// An object as it was, and as it is.
    pub fn compare<M: PartialEq>(&mut self, id: &I, old: Option<&M>, new: Option<&M>) {
        if old != new {
            self.changes += 1;
            self.dirty.kinds.insert(self.kind);
            (self.mark)(&mut self.dirty.services, id);
        }
    }

    /// Every object as it was, and as it is.
    pub fn compare_all<M: PartialEq>(&mut self, old: &BTreeMap<I, M>, new: &BTreeMap<I, M>) {
        for (id, model) in new {
            self.compare(id, old.get(id), Some(model));
        }
        for (id, model) in old.iter().filter(|(id, _)| !new.contains_key(id)) {
            self.compare(id, Some(model), None);
        }
    }
}
