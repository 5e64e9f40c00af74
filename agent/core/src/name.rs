//! Names that occur in very many objects, each kept once.
//!
//! Every endpoint of the cluster names its node, and with topology hints some zones. There are a
//! quarter of a million endpoints in a large cluster, and a few thousand names.

use std::{
    collections::BTreeSet,
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

/// The names that somebody has; and those that nobody has any more, until there are too many.
static KNOWN: Mutex<Known> = Mutex::new(Known {
    names: BTreeSet::new(),
    prune_at: 0,
});

struct Known {
    names: BTreeSet<Arc<str>>,
    /// How many names there are when the unused are looked for next.
    prune_at: usize,
}

/// The name of a node or a zone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        // What a panic leaves behind is a set of names all the same.
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = known.names.get(text) {
            return Self(Arc::clone(name));
        }
        if known.names.len() >= known.prune_at {
            known.names.retain(|name| Arc::strong_count(name) > 1);
            known.prune_at = known.names.len().saturating_mul(2).max(1024);
        }
        let name: Arc<str> = text.into();
        known.names.insert(Arc::clone(&name));
        Self(name)
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once() {
        let one = Name::from("node-of-this-test");
        let other = Name::from("node-of-this-test");
        assert!(Arc::ptr_eq(&one.0, &other.0));
        assert_ne!(one, Name::from("another-of-this-test"));
    }
}
