//! Maglev tables: which backend a client gets, the same on every node.
//!
//! After Google's Maglev (NSDI 2016, section 3.4): each backend has its own order of preference over
//! all entries, and the backends take entries in turns, each the first that it prefers and that is
//! free. So every backend gets the same share, and when one leaves or comes most entries stay as they
//! are. The order of preference comes from the backend's address and port alone, and turns are taken
//! in the order of those: nodes that know the same backends have the same table, whatever numbers
//! they gave them.
//!
//! The paper makes the order of preference an arithmetic progression. Here it is a pseudo-random
//! sequence: two progressions may keep in step, and then one backend's leaving moves many entries of
//! the other (8 % of them with 5 backends and 2,039 entries was seen). That also frees the size from
//! being a prime; it is a power of two, so that tables have whole blocks.
//!
//! The size follows from the number of backends, such that of all entries no more than 1 % move
//! besides those that must when one backend leaves (the test measures it). It cannot depend on what
//! the size was before, although that would keep a service whose number of backends goes to and fro
//! over a threshold from getting a new table each time: a node that saw the service only afterwards
//! would have another table. Therefore the thresholds are few. Established flows do not notice: they
//! have their backend in the flow table.
//!
//! A table takes 4 bytes per entry in the map and as much in the agent: at most 256 KiB. So the map
//! bounds how many services can have one: by default 256 with more than 16 backends, or 4,096 with no
//! more than 3.

use std::{hash::Hasher, net::IpAddr};

use weft_abi::service::{MAGLEV_BLOCK, MaglevBlock};

use crate::compile::numbers::StableHasher;

/// The numbers of backends up to which a table has so many entries.
const SIZES: [(usize, usize); 4] = [
    (1, MAGLEV_BLOCK),
    (3, 4_096),
    (16, 16_384),
    (usize::MAX, 65_536),
];

/// A backend: address, port and number; they sort in this order.
pub type Backend = (IpAddr, u16, u32);

/// How many entries the table of so many backends has.
pub fn size(backends: usize) -> usize {
    let found = SIZES.iter().find(|(most, _)| backends <= *most);
    found.map_or(MAGLEV_BLOCK, |(_, size)| *size)
}

/// The table of some backends, of which there is at least one, in blocks; they are sorted. Without
/// any there is no table.
pub fn table(backends: &[Backend]) -> Vec<MaglevBlock> {
    let size = size(backends.len());
    let mut turns: Vec<_> = backends.iter().map(Preferences::new).collect();
    let mut entries = vec![0; size];
    let mut free = if backends.is_empty() { 0 } else { size };
    'full: loop {
        for turn in &mut turns {
            if free == 0 {
                break 'full;
            }
            while !turn.take(&mut entries) {}
            free -= 1;
        }
        if turns.is_empty() {
            return Vec::new();
        }
    }
    let blocks = entries.chunks_exact(MAGLEV_BLOCK);
    blocks
        .filter_map(|block| {
            let backends = block.try_into().ok()?;
            Some(MaglevBlock { backends })
        })
        .collect()
}

/// The entries that a backend prefers, one after the other.
struct Preferences {
    backend: u32,
    state: u64,
}

impl Preferences {
    fn new((address, port, number): &Backend) -> Self {
        let address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => *v6,
        };
        let mut hasher = StableHasher::default();
        hasher.write(&address.octets());
        hasher.write(&port.to_be_bytes());
        Self {
            backend: *number,
            state: hasher.finish(),
        }
    }

    /// Takes the next entry that it prefers, if that is free. It comes by every entry, sooner or
    /// later: the sequence is that of SplitMix64.
    fn take(&mut self, entries: &mut [u32]) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The length is a power of two.
        let at = usize::try_from(mixed & (entries.len() as u64 - 1)).unwrap_or(0);
        match entries.get_mut(at) {
            Some(entry) if *entry == 0 => {
                *entry = self.backend;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Backends of a service, another one for each seed; numbered as a node may.
    fn backends(count: u32, seed: u8, number: impl Fn(u32) -> u32) -> Vec<Backend> {
        let address = |index: u32| {
            let [_, _, high, low] = index.to_be_bytes();
            IpAddr::from([10, seed, high, low])
        };
        let all = 0..count;
        all.map(|index| (address(index), 8080, number(index)))
            .collect()
    }

    fn entries(backends: &[Backend]) -> Vec<u32> {
        let blocks = table(backends).into_iter();
        blocks.flat_map(|block| block.backends).collect()
    }

    #[test]
    fn every_backend_has_its_share_and_few_entries_move_when_one_leaves() {
        for (count, seeds) in [
            (2, 8),
            (3, 8),
            (4, 8),
            (5, 8),
            (10, 4),
            (16, 4),
            (17, 2),
            (25, 2),
            (50, 2),
            (100, 1),
            (250, 1),
            (1_000, 1),
            (5_000, 1),
        ] {
            for seed in 0..seeds {
                let all = backends(count, seed, |index| index + 1);
                let before = entries(&all);
                let size = before.len();
                assert_eq!(size, super::size(all.len()));

                let mut shares = BTreeMap::<u32, usize>::new();
                for backend in &before {
                    *shares.entry(*backend).or_default() += 1;
                }
                assert_eq!(shares.len(), all.len());
                let (least, most) = (size / all.len(), size.div_ceil(all.len()));
                assert!(shares.values().all(|share| (least..=most).contains(share)));

                // Over a threshold the table is another one.
                if super::size(all.len() - 1) != size {
                    continue;
                }
                for leaving in [0, all.len() / 2, all.len() - 1] {
                    let mut rest = all.clone();
                    let (.., gone) = rest.remove(leaving);
                    let after = entries(&rest);
                    let moved = before.iter().zip(&after);
                    let moved = moved.filter(|(before, after)| before != after && **before != gone);
                    let (moved, percent) = (moved.count(), size / 100);
                    assert!(
                        moved <= percent,
                        "{count} backends: {moved} of {size} moved"
                    );
                }
            }
        }
    }

    #[test]
    fn nodes_agree_whatever_numbers_they_gave() {
        let one = backends(20, 1, |index| index + 1);
        let other = backends(20, 1, |index| 1_000 - index);
        let told = |backends: &[Backend]| {
            let targets: BTreeMap<_, _> = backends
                .iter()
                .map(|(address, port, number)| (*number, (*address, *port)))
                .collect();
            let entries = entries(backends).into_iter();
            entries.map(|entry| targets[&entry]).collect::<Vec<_>>()
        };
        assert_eq!(told(&one), told(&other));
        // Another build, too: established tables stay as they are.
        let sum = entries(&one)
            .iter()
            .zip(1_u64..)
            .fold(0_u64, |sum, (entry, at)| {
                sum.wrapping_mul(31).wrapping_add(u64::from(*entry) * at)
            });
        assert_eq!(sum, 17_896_867_881_874_456_712);
    }

    #[test]
    fn without_a_backend_there_is_no_table() {
        assert_eq!(table(&[]), []);
        let alone = entries(&backends(1, 1, |_| 7));
        assert_eq!(alone, [7; MAGLEV_BLOCK]);
    }
}
