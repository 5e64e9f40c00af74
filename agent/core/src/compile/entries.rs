//! The entries of the policy map: the sets, spelled out for the identities that exist.
//!
//! Network policies only allow. So an entry of an identity never has to repeat what everyone is
//! allowed: what it does not allow itself is looked up among everyone's entries, and the last of
//! those is the denial. Precedence among overlapping ports does not matter either; an entry that
//! is covered by a shorter prefix, or by everyone's, is left out.

use std::{collections::BTreeMap, sync::Arc};

use weft_abi::policy::{
    ALLOW, DENY, IDENTITY_ANY, POLICY_PREFIX_PEER, POLICY_PREFIX_PORT, POLICY_PREFIX_PROTOCOL,
    PolicyKey, PolicyVerdict,
};

use super::{
    identities::{AtomIndex, Atoms, Identities},
    numbers::Numbers,
    sets::{PolicySet, Side, What, Who},
};
use crate::{
    contents::{LpmKey, PolicyContents},
    rules::{Direction, Rule, RuleTable},
};

/// Which identities an atom matches, each with the port that the atom resolves there.
pub type Members = BTreeMap<AtomIndex, Vec<(u32, u16)>>;

/// The members of every atom; `numbers` are those of the identities, by index.
pub fn members(identities: &Identities, numbers: &[u32]) -> Members {
    let mut members = Members::new();
    for (index, elements) in identities.iter() {
        let Some(number) = numbers.get(index) else {
            continue;
        };
        for (atom, port) in elements {
            members.entry(*atom).or_default().push((*number, *port));
        }
    }
    members
}

/// Destination ports with a common prefix, and the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PortPrefix {
    length: u32,
    protocol: u8,
    port: u16,
}

impl PortPrefix {
    const EVERYTHING: Self = Self {
        length: POLICY_PREFIX_PEER,
        protocol: 0,
        port: 0,
    };

    /// The prefixes that cover this one, itself included.
    fn covering(self) -> impl Iterator<Item = Self> {
        let protocol = Self {
            length: POLICY_PREFIX_PROTOCOL,
            port: 0,
            ..self
        };
        let ports = (POLICY_PREFIX_PROTOCOL + 1..=self.length).map(move |length| {
            let beyond = POLICY_PREFIX_PORT - length;
            Self {
                length,
                port: self.port >> beyond << beyond,
                ..self
            }
        });
        let has_protocol = self.length >= POLICY_PREFIX_PROTOCOL;
        [Self::EVERYTHING]
            .into_iter()
            .chain(has_protocol.then_some(protocol))
            .chain(ports)
    }
}

/// The prefixes that together are the ports from `first` to `last`.
fn split(protocol: u8, first: u16, last: u16) -> Vec<PortPrefix> {
    let mut prefixes = Vec::new();
    let (mut next, last) = (u32::from(first), u32::from(last));
    while next <= last {
        // The largest block that starts here: limited by alignment, then by what is left.
        let mut bits = next.trailing_zeros().min(16);
        while bits > 0 && next + (1 << bits) - 1 > last {
            bits -= 1;
        }
        let port = u16::try_from(next).unwrap_or(u16::MAX);
        prefixes.push(PortPrefix {
            length: POLICY_PREFIX_PORT - bits,
            protocol,
            port,
        });
        next += 1 << bits;
    }
    prefixes
}

/// What a grant allows, where its atom resolves to `resolved`.
fn prefixes(what: What, resolved: u16) -> Vec<PortPrefix> {
    match what {
        What::Everything => vec![PortPrefix::EVERYTHING],
        What::Protocol(protocol) => {
            let protocol = protocol.number();
            vec![PortPrefix {
                length: POLICY_PREFIX_PROTOCOL,
                protocol,
                port: 0,
            }]
        }
        What::Ports(protocol, first, last) => split(protocol.number(), first, last),
        What::Resolved(protocol) => split(protocol.number(), resolved, resolved),
    }
}

/// The rules that allow something; the first one of a prefix counts.
type Allowed = BTreeMap<PortPrefix, Arc<Rule>>;

/// Writes the entries of sets, and the rules that they refer to.
pub struct Writer<'a> {
    /// The atoms of all sets.
    pub atoms: &'a Atoms,
    /// Their members.
    pub members: &'a Members,
    /// Numbers of rules.
    pub numbers: &'a mut Numbers<Arc<Rule>>,
    /// Where the rules go.
    pub rules: &'a mut RuleTable,
    /// Where the entries go.
    pub contents: &'a mut PolicyContents,
}

impl Writer<'_> {
    /// Writes the entries of one set.
    pub fn write(&mut self, number: u32, set: &PolicySet) {
        for (direction, side) in set.sides() {
            self.write_side(number, direction, side);
        }
    }

    fn write_side(&mut self, set: u32, direction: Direction, side: &Side) {
        let mut anyone = Allowed::new();
        let mut identities = BTreeMap::<u32, Allowed>::new();
        for grant in &side.grants {
            let allow = |allowed: &mut Allowed, resolved: u16| {
                for prefix in prefixes(grant.what, resolved) {
                    allowed
                        .entry(prefix)
                        .or_insert_with(|| Arc::clone(&grant.rule));
                }
            };
            match &grant.who {
                Who::Anyone => allow(&mut anyone, 0),
                Who::Matching(atom) => {
                    let index = self.atoms.index_of(atom);
                    let members = index.and_then(|index| self.members.get(&index));
                    for (identity, resolved) in members.into_iter().flatten() {
                        allow(identities.entry(*identity).or_default(), *resolved);
                    }
                }
            }
        }

        let base = PolicyKey {
            policy_set: set,
            identity: IDENTITY_ANY,
            direction: direction.number(),
            protocol: 0,
            port: [0, 0],
        };
        self.put(base, PortPrefix::EVERYTHING, &side.isolated, DENY);
        for (identity, allowed) in identities {
            let own = PolicyKey { identity, ..base };
            for (prefix, rule) in &allowed {
                let by_anyone = prefix.covering().any(|outer| anyone.contains_key(&outer));
                if !by_anyone && !is_covered(&allowed, *prefix) {
                    self.put(own, *prefix, rule, ALLOW);
                }
            }
        }
        for (prefix, rule) in &anyone {
            if !is_covered(&anyone, *prefix) {
                self.put(base, *prefix, rule, ALLOW);
            }
        }
    }

    fn put(&mut self, key: PolicyKey, prefix: PortPrefix, rule: &Arc<Rule>, verdict: u8) {
        let number = self.numbers.number(rule);
        if self.rules.get(number).is_none() {
            self.rules.insert(number, Rule::clone(rule));
        }
        let key = PolicyKey {
            protocol: prefix.protocol,
            port: prefix.port.to_be_bytes(),
            ..key
        };
        let value = PolicyVerdict {
            rule: number,
            verdict,
            reserved: [0; 3],
        };
        self.contents
            .verdicts
            .insert(LpmKey::policy(key, prefix.length), value);
    }
}

/// Whether a shorter prefix allows what this one does.
fn is_covered(allowed: &Allowed, prefix: PortPrefix) -> bool {
    prefix
        .covering()
        .any(|outer| outer != prefix && allowed.contains_key(&outer))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_split_into_few_prefixes() {
        assert_eq!(split(6, 80, 80).len(), 1);
        assert_eq!(split(6, 8080, 8099).len(), 2);
        assert_eq!(split(6, 0, u16::MAX).len(), 1);
        assert_eq!(split(6, 1, u16::MAX - 1).len(), 30);
        assert_eq!(split(6, u16::MAX, u16::MAX).len(), 1);
    }

    proptest! {
        #[test]
        fn a_split_range_covers_exactly_its_ports(a: u16, b: u16, near in -3_i32..4) {
            let (first, last) = (a.min(b), a.max(b));
            let split = split(6, first, last);
            let covers = |port: u16| {
                let exact = PortPrefix { length: POLICY_PREFIX_PORT, protocol: 6, port };
                exact.covering().filter(|prefix| split.contains(prefix)).count()
            };
            for end in [first, last] {
                let port = i32::from(end) + near;
                if let Ok(port) = u16::try_from(port) {
                    let expected = usize::from((first..=last).contains(&port));
                    prop_assert_eq!(covers(port), expected, "port {}", port);
                }
            }
        }
    }
}
