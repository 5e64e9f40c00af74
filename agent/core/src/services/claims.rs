//! Who has what: of several services, and ports of pods, that want one address and port, one has it.
//!
//! Which of them does not depend on who came first, but only on what they are: so another agent, and
//! this one after a restart, decide the same.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use crate::model::ObjectKey;

/// What is wanted: an address and port that clients use, from inside and outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The address. Unspecified: every address of this node that has NodePorts.
    pub address: IpAddr,
    /// The port. 0, with protocol 0: the address as such.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// By what right. The lower, the better: nobody who may write an `externalIP` or a load balancer's
/// address takes a cluster IP with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The API server gave it to the service.
    ClusterIp,
    /// Likewise.
    NodePort,
    /// Its load balancer has it.
    LoadBalancer,
    /// The service says so.
    ExternalIp,
    /// A pod says so.
    HostPort,
}

/// A thing that is compiled as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// A service.
    Service(Arc<ObjectKey>),
    /// All ports of this node that pods have.
    HostPorts,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "Service {key}"),
            Self::HostPorts => f.write_str("a hostPort"),
        }
    }
}

/// One thing that a unit wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wish {
    /// What.
    pub claim: Claim,
    /// By what right.
    pub class: Class,
    /// Since when: see [`crate::model::Service::created`].
    pub since: i64,
}

/// All that is wanted. The first of a claim has it.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    bids: BTreeSet<(Wish, Unit)>,
}

impl Claims {
    /// Replaces what `unit` wants; both lists are sorted. Adds to `touched` whoever may have more or
    /// less by that. Costs as much as differs.
    pub fn replace(
        &mut self,
        unit: &Unit,
        before: &[Wish],
        after: &[Wish],
        touched: &mut BTreeSet<Unit>,
    ) {
        let lacks = |list: &[Wish], wish: &Wish| list.binary_search(wish).is_err();
        for wish in before.iter().filter(|wish| lacks(after, wish)) {
            self.bids.remove(&(*wish, unit.clone()));
            touched.extend(self.others(unit, wish.claim));
        }
        for wish in after.iter().filter(|wish| lacks(before, wish)) {
            touched.extend(self.others(unit, wish.claim));
            self.bids.insert((*wish, unit.clone()));
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.bids.clear();
    }

    /// Who has it.
    pub fn holder(&self, claim: Claim) -> Option<&Unit> {
        self.of(claim).next()
    }

    /// All that want it, best first.
    fn of(&self, claim: Claim) -> impl Iterator<Item = &Unit> {
        let first = Wish {
            claim,
            class: Class::ClusterIp,
            since: i64::MIN,
        };
        let least = Unit::Service(Arc::default());
        self.bids
            .range((first, least)..)
            .take_while(move |(wish, _)| wish.claim == claim)
            .map(|(_, unit)| unit)
    }

    fn others(&self, unit: &Unit, claim: Claim) -> impl Iterator<Item = Unit> {
        self.of(claim).filter(move |other| *other != unit).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> Unit {
        Unit::Service(Arc::new(ObjectKey::new("shop", name)))
    }

    fn wish(class: Class, since: i64) -> Wish {
        Wish {
            claim: Claim {
                address: IpAddr::from([203, 0, 113, 1]),
                port: 80,
                protocol: 6,
            },
            class,
            since,
        }
    }

    #[test]
    fn the_best_right_then_the_oldest_then_the_first_by_name() {
        let mut claims = Claims::default();
        let mut touched = BTreeSet::new();
        let claim = wish(Class::ExternalIp, 0).claim;
        let mut want = |name: &str, class, since| {
            touched.clear();
            claims.replace(&unit(name), &[], &[wish(class, since)], &mut touched);
            (claims.holder(claim).cloned(), touched.clone())
        };
        assert_eq!(want("d", Class::ExternalIp, 5).0, Some(unit("d")));
        assert_eq!(want("e", Class::ExternalIp, 5).0, Some(unit("d")));
        assert_eq!(want("c", Class::ExternalIp, 5).0, Some(unit("c")));
        assert_eq!(want("x", Class::ExternalIp, 4).0, Some(unit("x")));
        assert_eq!(want("z", Class::LoadBalancer, 9).0, Some(unit("z")));
        let all = ["c", "d", "e", "x"].map(unit);
        assert_eq!(want("zz", Class::ClusterIp, 9).1, {
            let mut all = BTreeSet::from(all.clone());
            all.insert(unit("z"));
            all
        });

        // Whoever is next gets what is given up.
        let gone = [wish(Class::ClusterIp, 9)];
        claims.replace(&unit("zz"), &gone, &[], &mut touched);
        assert_eq!(claims.holder(claim), Some(&unit("z")));
        assert!(touched.contains(&unit("z")));
    }
}
