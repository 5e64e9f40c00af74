//! Numbers for things that maps refer to by number.
//!
//! A number is a hash of what it stands for. So the same thing has the same number in every process
//! and after every restart, a number that is found in an old flow still means what it meant, and
//! nothing has to be stored. Things whose hashes collide get the next hash; which of them does is
//! remembered as long as the thing exists. The numbers of services, on which flows depend, are
//! remembered by those who compile them, and recovered from the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
};

/// Numbers of one kind of thing; never less than a lowest one, and never `u32::MAX`.
#[derive(Clone, Debug)]
pub struct Numbers<K> {
    lowest: u32,
    assigned: BTreeMap<K, Assigned>,
    taken: BTreeSet<u32>,
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Assigned {
    number: u32,
    /// The last generation that used it.
    used: u64,
}

impl<K: Clone + Hash + Ord> Numbers<K> {
    /// No numbers given yet; they will be at least `lowest`.
    pub const fn new(lowest: u32) -> Self {
        Self {
            lowest,
            assigned: BTreeMap::new(),
            taken: BTreeSet::new(),
            generation: 0,
        }
    }

    /// Begins a compilation. What the previous one did not use loses its number; what it used keeps
    /// it for one more, because the maps may still hold it.
    pub fn begin(&mut self) {
        let previous = self.generation;
        self.generation += 1;
        let taken = &mut self.taken;
        self.assigned.retain(|_, assigned| {
            let keep = assigned.used >= previous;
            if !keep {
                taken.remove(&assigned.number);
            }
            keep
        });
    }

    /// The number of `key`.
    pub fn number(&mut self, key: &K) -> u32 {
        if let Some(assigned) = self.assigned.get_mut(key) {
            assigned.used = self.generation;
            return assigned.number;
        }
        let number = self.fresh(key);
        self.taken.insert(number);
        self.assigned.insert(
            key.clone(),
            Assigned {
                number,
                used: self.generation,
            },
        );
        number
    }

    fn fresh(&self, key: &K) -> u32 {
        let mut probe = 0;
        loop {
            let number = candidate(key, self.lowest, probe);
            if !self.taken.contains(&number) {
                return number;
            }
            probe = probe.wrapping_add(1);
        }
    }
}

/// A number that a thing may have: at least `lowest`, and never `u32::MAX`. Each probe gives another
/// one.
pub fn candidate(key: &(impl Hash + ?Sized), lowest: u32, probe: u32) -> u32 {
    let mut hasher = StableHasher::default();
    key.hash(&mut hasher);
    probe.hash(&mut hasher);
    let span = u64::from(u32::MAX - lowest).max(1);
    let number = u64::from(lowest) + hasher.finish() % span;
    u32::try_from(number).unwrap_or(lowest)
}

/// FNV-1a with a final mix: the same in every process and on every machine, unlike the standard
/// library's hashers. Numbers need no secrecy: a collision costs a probe and nothing else.
pub struct StableHasher {
    state: u64,
}

impl Default for StableHasher {
    fn default() -> Self {
        Self {
            state: 0xcbf2_9ce4_8422_2325,
        }
    }
}

impl Hasher for StableHasher {
    fn finish(&self) -> u64 {
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.state = (self.state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write(&number.to_le_bytes());
    }

    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_u128(&mut self, number: u128) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write(&(number as u64).to_le_bytes());
    }

    fn write_isize(&mut self, number: isize) {
        self.write(&(number as i64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thing whose hashes collide with those of every other one.
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Colliding(&'static str);

    impl Hash for Colliding {
        fn hash<H: Hasher>(&self, hasher: &mut H) {
            0_u8.hash(hasher);
        }
    }

    #[test]
    fn numbers_do_not_depend_on_the_order() {
        let (mut one, mut other) = (Numbers::new(2), Numbers::new(2));
        let forward: Vec<_> = (0..100_u32).map(|key| one.number(&key)).collect();
        let mut backward: Vec<_> = (0..100_u32).rev().map(|key| other.number(&key)).collect();
        backward.reverse();
        assert_eq!(forward, backward);
        assert!(forward.iter().all(|number| (2..u32::MAX).contains(number)));
        assert_eq!(forward.iter().collect::<BTreeSet<_>>().len(), 100);
    }

    #[test]
    fn a_collision_gets_another_number_and_keeps_it() {
        let mut numbers = Numbers::new(1);
        let first = numbers.number(&Colliding("b"));
        let second = numbers.number(&Colliding("a"));
        assert_ne!(first, second);
        numbers.begin();
        assert_eq!(numbers.number(&Colliding("a")), second);
        // "b" is not used by this compilation, but the maps may still hold its number.
        assert_ne!(numbers.number(&Colliding("c")), first);
        numbers.begin();
        assert_eq!(numbers.number(&Colliding("a")), second);
        assert_eq!(numbers.number(&Colliding("d")), first);
    }
}
