//! The part of the maps that belongs to one port, taken out and put in.

use std::collections::BTreeMap;

use weft_abi::{
    addr::{Addr4, Addr6},
    service::{MaglevKey, SlotKey},
};

use super::writer::{Record, keys, range_keys};
use crate::{
    contents::{ServiceContents, ServiceTables},
    family::Address,
};

/// Moves what belongs to a port. It costs as much as that is.
pub fn take(from: &mut ServiceContents, record: &Record, to: &mut ServiceContents) {
    if record.key.is_ipv4() {
        take_family::<Addr4>(from, record, to);
    } else {
        take_family::<Addr6>(from, record, to);
    }
    let service = record.number;
    let slot = |slot| SlotKey { service, slot };
    take_range(&mut from.slots, slot(0), slot(u32::MAX), &mut to.slots);
    let block = |block| MaglevKey { service, block };
    take_range(&mut from.maglev, block(0), block(u32::MAX), &mut to.maglev);
}

fn take_family<A: Address>(from: &mut ServiceContents, record: &Record, to: &mut ServiceContents) {
    let (from, to) = (A::services_mut(from), A::services_mut(to));
    for key in record
        .claims
        .iter()
        .filter_map(|claim| keys::<A>(*claim))
        .flatten()
    {
        take_one(&mut from.frontends, &key, &mut to.frontends);
    }
    for key in range_keys::<A>(record.number, &record.ranges) {
        take_one(&mut from.source_ranges, &key, &mut to.source_ranges);
    }
    for number in &record.backends {
        take_one(&mut from.backends, number, &mut to.backends);
    }
}

fn take_one<K: Ord, V>(from: &mut BTreeMap<K, V>, key: &K, to: &mut BTreeMap<K, V>) {
    if let Some((key, value)) = from.remove_entry(key) {
        to.insert(key, value);
    }
}

fn take_range<K: Ord + Copy, V>(
    from: &mut BTreeMap<K, V>,
    first: K,
    last: K,
    to: &mut BTreeMap<K, V>,
) {
    let keys: Vec<_> = from.range(first..=last).map(|(key, _)| *key).collect();
    for key in keys {
        take_one(from, &key, to);
    }
}

/// Puts a part in.
pub fn add(to: &mut ServiceContents, part: ServiceContents) {
    add_family(&mut to.v4, part.v4);
    add_family(&mut to.v6, part.v6);
    add_map(&mut to.slots, part.slots);
    add_map(&mut to.maglev, part.maglev);
}

fn add_family<A: Address>(to: &mut ServiceTables<A>, part: ServiceTables<A>) {
    add_map(&mut to.frontends, part.frontends);
    add_map(&mut to.backends, part.backends);
    add_map(&mut to.source_ranges, part.source_ranges);
}

fn add_map<K: Ord, V>(to: &mut BTreeMap<K, V>, part: BTreeMap<K, V>) {
    if to.is_empty() {
        *to = part;
    } else {
        to.extend(part);
    }
}
