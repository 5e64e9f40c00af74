//! Label selectors.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A label selector: all requirements must hold; none selects everything.
///
/// Requirements are sorted and without duplicates, so that selectors that were written differently
/// but require the same are equal, and share their numbers in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: BTreeSet<Requirement>,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label is present, with one of the values.
    In(String, BTreeSet<String>),
    /// The label is absent, or has another value.
    NotIn(String, BTreeSet<String>),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
    /// Not understood: nothing meets it.
    Never,
}

impl Requirement {
    /// Whether an object with these labels meets it.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
            Self::Never => false,
        }
    }

    /// The label that it reads.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::In(key, _)
            | Self::NotIn(key, _)
            | Self::Exists(key)
            | Self::DoesNotExist(key) => Some(key),
            Self::Never => None,
        }
    }
}

impl Selector {
    /// The selector with these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        Self {
            requirements: requirements.into_iter().collect(),
        }
    }

    /// Whether it selects an object with these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.matches(labels))
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The labels that it reads: objects that agree on these are the same to it.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().filter_map(Requirement::key)
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("*");
        }
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |values: &BTreeSet<String>| {
            values
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(",")
        };
        match self {
            Self::In(key, values) => match values.first() {
                Some(only) if values.len() == 1 => write!(f, "{key}={only}"),
                _ => write!(f, "{key} in ({})", list(values)),
            },
            Self::NotIn(key, values) => write!(f, "{key} notin ({})", list(values)),
            Self::Exists(key) => f.write_str(key),
            Self::DoesNotExist(key) => write!(f, "!{key}"),
            Self::Never => f.write_str("<not understood>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    fn values(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|value| (*value).into()).collect()
    }

    #[test]
    fn requirements_follow_kubernetes() {
        let with = labels(&[("app", "web"), ("empty", "")]);
        let without = labels(&[]);
        let table = [
            (
                Requirement::In("app".into(), values(&["web", "api"])),
                true,
                false,
            ),
            (
                Requirement::In("app".into(), values(&["api"])),
                false,
                false,
            ),
            (Requirement::In("empty".into(), values(&[""])), true, false),
            (
                Requirement::NotIn("app".into(), values(&["web"])),
                false,
                true,
            ),
            (
                Requirement::NotIn("app".into(), values(&["api"])),
                true,
                true,
            ),
            (Requirement::Exists("app".into()), true, false),
            (Requirement::DoesNotExist("app".into()), false, true),
            (Requirement::Never, false, false),
        ];
        for (requirement, on_with, on_without) in table {
            assert_eq!(
                requirement.matches(&with),
                on_with,
                "{requirement} on {with:?}"
            );
            assert_eq!(
                requirement.matches(&without),
                on_without,
                "{requirement} on nothing"
            );
        }
    }

    #[test]
    fn the_empty_selector_selects_everything() {
        assert!(Selector::default().matches(&labels(&[])));
        assert!(Selector::default().is_everything());
    }

    #[test]
    fn shows_as_kubectl_does() {
        let selector = Selector::new([
            Requirement::In("app".into(), values(&["web"])),
            Requirement::NotIn("tier".into(), values(&["x", "y"])),
            Requirement::DoesNotExist("old".into()),
        ]);
        assert_eq!(selector.to_string(), "app=web,tier notin (x,y),!old");
        assert_eq!(Selector::default().to_string(), "*");
    }
}
