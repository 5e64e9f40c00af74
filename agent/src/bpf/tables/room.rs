//! Whether changes have room in the maps, before anything is written.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::contents::Contents;
use weft_core::diff::{Batch, Changes, Concern, FamilyBatch, Step, Writes};
use weft_core::family::Address;

use super::error::TableError;

/// The capacities of a family's maps.
pub struct FamilyRoom {
    pub endpoints: (&'static str, u32),
    pub ipcache: (&'static str, u32),
    pub frontends: (&'static str, u32),
    pub backends: (&'static str, u32),
    pub source_ranges: (&'static str, u32),
}

/// The capacities of the maps, with their names; 0: no limit.
pub struct Room {
    pub v4: FamilyRoom,
    pub v6: FamilyRoom,
    pub policy: (&'static str, u32),
    pub slots: (&'static str, u32),
    pub maglev: (&'static str, u32),
    pub bandwidth: (&'static str, u32),
}

/// The concerns of which a map would overflow at some moment of the changes, each with its first map.
pub fn overflows(
    changes: &Changes,
    mirror: &Contents,
    room: &Room,
) -> BTreeMap<Concern, TableError> {
    let batches = || {
        changes.steps.iter().filter_map(|step| match step {
            Step::Write(batch) => Some(batch),
            Step::BumpEpoch | Step::BumpBackends => None,
        })
    };
    let mut found = Found::default();
    let v4 = || {
        batches().filter_map(|batch| match batch {
            Batch::V4(batch) => Some(batch),
            _ => None,
        })
    };
    family(v4, mirror, &room.v4, &mut found);
    let v6 = || {
        batches().filter_map(|batch| match batch {
            Batch::V6(batch) => Some(batch),
            _ => None,
        })
    };
    family(v6, mirror, &room.v6, &mut found);
    let writes = || {
        batches().filter_map(|batch| match batch {
            Batch::Policy(writes) => Some(writes),
            _ => None,
        })
    };
    let Contents { policy, services } = mirror;
    found.look(Concern::Policy, room.policy, writes, &policy.verdicts);
    let writes = || {
        batches().filter_map(|batch| match batch {
            Batch::Slots(writes) => Some(writes),
            _ => None,
        })
    };
    found.look(Concern::Services, room.slots, writes, &services.slots);
    let writes = || {
        batches().filter_map(|batch| match batch {
            Batch::Maglev(writes) => Some(writes),
            _ => None,
        })
    };
    found.look(Concern::Services, room.maglev, writes, &services.maglev);
    let writes = || {
        batches().filter_map(|batch| match batch {
            Batch::Bandwidth(writes) => Some(writes),
            _ => None,
        })
    };
    found.look(Concern::Limits, room.bandwidth, writes, &policy.bandwidth);
    found.0
}

fn family<'a, A: Address + 'a, I: Iterator<Item = &'a FamilyBatch<A>>>(
    batches: impl Fn() -> I,
    mirror: &Contents,
    room: &FamilyRoom,
    found: &mut Found,
) {
    let policy = A::policy(&mirror.policy);
    let services = A::services(&mirror.services);
    let writes = || {
        batches().filter_map(|batch| match batch {
            FamilyBatch::Endpoints(writes) => Some(writes),
            _ => None,
        })
    };
    found.look(Concern::Policy, room.endpoints, writes, &policy.endpoints);
    let writes = || {
        batches().filter_map(|batch| match batch {
            FamilyBatch::Ipcache(writes) => Some(writes),
            _ => None,
        })
    };
    found.look(Concern::Policy, room.ipcache, writes, &policy.ipcache);
    let writes = || {
        batches().filter_map(|batch| match batch {
            FamilyBatch::Frontends(writes) => Some(writes),
            _ => None,
        })
    };
    found.look(
        Concern::Services,
        room.frontends,
        writes,
        &services.frontends,
    );
    let writes = || {
        batches().filter_map(|batch| match batch {
            FamilyBatch::Backends(writes) => Some(writes),
            _ => None,
        })
    };
    found.look(Concern::Services, room.backends, writes, &services.backends);
    let writes = || {
        batches().filter_map(|batch| match batch {
            FamilyBatch::SourceRanges(writes) => Some(writes),
            _ => None,
        })
    };
    let source_ranges = &services.source_ranges;
    found.look(Concern::Services, room.source_ranges, writes, source_ranges);
}

#[derive(Default)]
struct Found(BTreeMap<Concern, TableError>);

impl Found {
    fn look<'a, K: Ord + 'a, V: 'a, I: Iterator<Item = &'a Writes<K, V>>>(
        &mut self,
        concern: Concern,
        (map, capacity): (&'static str, u32),
        writes: impl Fn() -> I,
        mirror: &BTreeMap<K, V>,
    ) {
        if capacity == 0 {
            return;
        }
        let wanted = peak(writes, mirror, capacity as usize);
        if wanted > capacity as usize {
            self.0.entry(concern).or_insert(TableError::Overflow {
                map,
                wanted,
                capacity,
            });
        }
    }
}

/// How many entries a map has at the fullest moment of these writes; where it has room in any case,
/// a number that is not smaller.
fn peak<'a, K: Ord + 'a, V: 'a, I: Iterator<Item = &'a Writes<K, V>>>(
    writes: impl Fn() -> I,
    mirror: &BTreeMap<K, V>,
    capacity: usize,
) -> usize {
    let puts = writes().map(|writes| match writes {
        Writes::Put(entries) => entries.len(),
        Writes::Delete(_) => 0,
    });
    let bound = mirror.len() + puts.sum::<usize>();
    if bound <= capacity {
        return bound;
    }
    let mut keys: BTreeSet<&K> = mirror.keys().collect();
    let mut peak = keys.len();
    for writes in writes() {
        match writes {
            Writes::Put(entries) => keys.extend(entries.iter().map(|(key, _)| key)),
            Writes::Delete(gone) => {
                for key in gone {
                    keys.remove(key);
                }
            }
        }
        peak = peak.max(keys.len());
    }
    peak
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_moment_counts() {
        let mirror: BTreeMap<u32, ()> = (0..8).map(|key| (key, ())).collect();
        let put = |keys: std::ops::Range<u32>| Writes::Put(keys.map(|key| (key, ())).collect());
        let peak_of = |writes: &[Writes<u32, ()>]| peak(|| writes.iter(), &mirror, 10);
        assert_eq!(peak_of(&[]), 8);
        assert_eq!(peak_of(&[put(8..10)]), 10);
        assert_eq!(peak_of(&[put(8..11)]), 11);
        // What is there already takes no room.
        assert_eq!(peak_of(&[put(0..8), put(0..8)]), 8);
        // Puts come before deletes, so that both are there for a moment.
        assert_eq!(peak_of(&[put(8..12), Writes::Delete((0..8).collect())]), 12);
        assert_eq!(peak_of(&[Writes::Delete((0..4).collect()), put(8..12)]), 8);
    }
}
