//! Rule numbers, resolved: what every verdict and every drop event refers to.

use std::{collections::BTreeMap, fmt};

use crate::model::ObjectKey;

/// The direction of a policy, as seen from the pod that it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The number of the direction in map keys.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Ingress => weft_abi::policy::INGRESS,
            Self::Egress => weft_abi::policy::EGRESS,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A rule of a policy allowed it.
    Allow {
        /// The policy.
        policy: ObjectKey,
        /// The list that the rule is in.
        direction: Direction,
        /// Its index in that list.
        index: u32,
    },
    /// No rule allowed it, and these policies isolate the pod.
    Isolated {
        /// The direction in which they do.
        direction: Direction,
        /// The policies.
        policies: Vec<ObjectKey>,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow {
                policy,
                direction,
                index,
            } => {
                write!(f, "NetworkPolicy {policy} {direction}[{index}]")
            }
            Self::Isolated {
                direction,
                policies,
            } => {
                write!(f, "no {direction} rule of NetworkPolicy ")?;
                for (index, policy) in policies.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    policy.fmt(f)?;
                }
                Ok(())
            }
        }
    }
}

/// Every rule that the compiled policy refers to, by its number.
///
/// A number is a hash of the rule, so it means the same after a restart of the agent. Flows may
/// still hold numbers of rules that no longer exist; those resolve to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleTable {
    rules: BTreeMap<u32, Rule>,
}

impl RuleTable {
    /// The rule of a number.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Rule> {
        self.rules.get(&number)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Rule)> {
        self.rules.iter().map(|(number, rule)| (*number, rule))
    }

    pub(crate) fn insert(&mut self, number: u32, rule: Rule) {
        self.rules.insert(number, rule);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_a_sentence() {
        let policy = ObjectKey::new("shop", "api");
        let allow = Rule::Allow {
            policy: policy.clone(),
            direction: Direction::Ingress,
            index: 2,
        };
        assert_eq!(allow.to_string(), "NetworkPolicy shop/api ingress[2]");
        let isolated = Rule::Isolated {
            direction: Direction::Egress,
            policies: vec![policy, ObjectKey::new("shop", "deny-all")],
        };
        assert_eq!(
            isolated.to_string(),
            "no egress rule of NetworkPolicy shop/api, shop/deny-all"
        );
    }
}
