//! Endpoints and their policy sets, as far as they are not the compiler's: before the first
//! compilation, and what pods wait for.
//!
//! Invariant: an endpoint that was never compiled has no policy set, which the datapath reads as: only
//! the own node's traffic. What an earlier agent programmed for the same interface stays.

use std::collections::BTreeSet;

use weft_abi::addr::{Addr4, Addr6};
use weft_abi::endpoint::Endpoint;
use weft_core::contents::PolicyContents;
use weft_core::family::Address;

use crate::endpoints::Record;

/// The contents with the endpoints of these records, where nothing can be compiled yet: what is
/// programmed stays, what is new has no policy set.
pub fn without_policies(current: &PolicyContents, records: &[Record]) -> PolicyContents {
    let mut contents = current.clone();
    keep_endpoints::<Addr4>(&mut contents, records);
    keep_endpoints::<Addr6>(&mut contents, records);
    contents
}

fn keep_endpoints<A: Address>(contents: &mut PolicyContents, records: &[Record]) {
    let endpoints = &mut A::policy_mut(contents).endpoints;
    let old = std::mem::take(endpoints);
    for record in records {
        for address in record
            .addresses
            .iter()
            .filter_map(|address| A::from_ip(*address))
        {
            let new = Endpoint {
                ifindex: record.ifindex,
                mac: record.mac,
                ..Endpoint::default()
            };
            let same = old
                .get(&address)
                .filter(|old| (old.ifindex, old.mac) == (new.ifindex, new.mac))
                .copied();
            endpoints.insert(address, same.unwrap_or(new));
        }
    }
}

/// The host's interfaces of endpoints whose policy set is in the maps, by name and index.
pub fn ready(mirror: &PolicyContents, records: &[Record]) -> BTreeSet<(String, u32)> {
    let programmed = |record: &&Record| {
        record.addresses.iter().all(|address| {
            let entry = Addr4::from_ip(*address)
                .map(|v4| mirror.v4.endpoints.get(&v4))
                .or_else(|| Addr6::from_ip(*address).map(|v6| mirror.v6.endpoints.get(&v6)));
            entry
                .flatten()
                .is_some_and(|entry| entry.policy_set != 0 && entry.ifindex == record.ifindex)
        })
    };
    records
        .iter()
        .filter(programmed)
        .map(|record| (record.interface.clone(), record.ifindex))
        .collect()
}

#[cfg(test)]
mod tests {
    use weft_abi::endpoint::ENFORCE_INGRESS;

    use super::*;
    use crate::endpoints::tests::record;

    #[test]
    fn before_the_first_compilation_new_endpoints_have_no_policy() {
        let programmed = Endpoint {
            ifindex: 1,
            policy_set: 7,
            identity: 3,
            mac: record(1).mac,
            enforce: ENFORCE_INGRESS,
            limits: 0,
        };
        let mut current = PolicyContents::default();
        current
            .v4
            .endpoints
            .insert(Addr4::new([10, 0, 0, 1]), programmed);
        // An address whose pod went while the agent was down, and is another's now.
        current
            .v4
            .endpoints
            .insert(Addr4::new([10, 0, 0, 2]), programmed);
        current
            .v4
            .endpoints
            .insert(Addr4::new([10, 0, 0, 3]), programmed);
        let contents = without_policies(&current, &[record(1), record(2)]);
        let sets: Vec<_> = contents
            .v4
            .endpoints
            .iter()
            .map(|(a, e)| (*a, e.policy_set))
            .collect();
        assert_eq!(
            sets,
            [
                (Addr4::new([10, 0, 0, 1]), 7),
                (Addr4::new([10, 0, 0, 2]), 0)
            ]
        );
    }
}
