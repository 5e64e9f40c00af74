//! One map: read it, write to it, in batches where the kernel has them.

use std::collections::BTreeMap;
use std::fmt::Debug;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use weft_core::contents::LpmKey;
use weft_core::diff::Writes;

use super::error::{TableError, delete_failed, errno, kernel, open_failed, put_failed};
use crate::bpf::batch;
use crate::bpf::load::{Loaded, capacity};

/// Fewer entries than this are written one by one.
const WORTH_A_BATCH: usize = 8;

/// Entries, in no order.
pub type Entries<K, V> = Vec<(K, V)>;

/// A map of the kernel, and how its keys are mirrored.
pub trait KernelMap: Sized {
    /// The key in the mirror.
    type Key: Copy + Ord + Debug;
    /// The same as the kernel has it.
    type Raw: Pod;
    /// The value.
    type Value: Pod;

    /// Makes a typed map of one.
    fn open(map: Map) -> Result<Self, MapError>;
    /// The map itself.
    fn data(&self) -> &MapData;
    /// The key as the kernel has it.
    fn raw(key: &Self::Key) -> Self::Raw;
    /// The key in the mirror.
    fn key(raw: &Self::Raw) -> Self::Key;
    /// Every entry.
    fn entries(&self) -> Result<Entries<Self::Raw, Self::Value>, MapError>;
    /// Inserts or overwrites.
    fn insert(&mut self, raw: &Self::Raw, value: &Self::Value) -> Result<(), MapError>;
    /// Removes.
    fn remove(&mut self, raw: &Self::Raw) -> Result<(), MapError>;
}

impl<K: Pod + Ord + Debug, V: Pod> KernelMap for HashMap<MapData, K, V> {
    type Key = K;
    type Raw = K;
    type Value = V;

    fn open(map: Map) -> Result<Self, MapError> {
        Self::try_from(map)
    }

    fn data(&self) -> &MapData {
        self.map()
    }

    fn raw(key: &K) -> K {
        *key
    }

    fn key(raw: &K) -> K {
        *raw
    }

    fn entries(&self) -> Result<Entries<K, V>, MapError> {
        self.iter().collect()
    }

    fn insert(&mut self, raw: &K, value: &V) -> Result<(), MapError> {
        Self::insert(self, raw, value, 0)
    }

    fn remove(&mut self, raw: &K) -> Result<(), MapError> {
        Self::remove(self, raw)
    }
}

impl<K: Pod + Ord + Debug, V: Pod> KernelMap for LpmTrie<MapData, K, V> {
    type Key = LpmKey<K>;
    type Raw = Key<K>;
    type Value = V;

    fn open(map: Map) -> Result<Self, MapError> {
        Self::try_from(map)
    }

    fn data(&self) -> &MapData {
        self.map()
    }

    fn raw(key: &LpmKey<K>) -> Key<K> {
        Key::new(key.prefix_len, key.data)
    }

    fn key(raw: &Key<K>) -> LpmKey<K> {
        LpmKey {
            prefix_len: raw.prefix_len(),
            data: raw.data(),
        }
    }

    fn entries(&self) -> Result<Entries<Key<K>, V>, MapError> {
        self.iter().collect()
    }

    fn insert(&mut self, raw: &Key<K>, value: &V) -> Result<(), MapError> {
        Self::insert(self, raw, value, 0)
    }

    fn remove(&mut self, raw: &Key<K>) -> Result<(), MapError> {
        Self::remove(self, raw)
    }
}

/// A map, or its absence.
pub struct Table<M> {
    /// Its name.
    pub name: &'static str,
    /// Entries it can take; 0 if it is absent.
    pub capacity: u32,
    map: Option<M>,
}

/// A hash map.
pub type Hash<K, V> = Table<HashMap<MapData, K, V>>;
/// A longest-prefix-match map.
pub type Lpm<K, V> = Table<LpmTrie<MapData, K, V>>;

impl<M: KernelMap> Table<M> {
    pub fn open(loaded: &mut Loaded, name: &'static str) -> Result<Self, TableError> {
        let Some(map) = loaded.take_map(name) else {
            return Ok(Self {
                name,
                capacity: 0,
                map: None,
            });
        };
        let map = M::open(map).map_err(|error| open_failed(name, &error))?;
        Ok(Self {
            name,
            capacity: capacity(map.data()),
            map: Some(map),
        })
    }

    /// Every entry.
    pub fn entries(&self) -> Result<Entries<M::Key, M::Value>, TableError> {
        let Some(map) = &self.map else {
            return Ok(Vec::new());
        };
        let entries = entries(map).map_err(|error| kernel(self.name, "read", &error))?;
        let keyed = |(raw, value)| (M::key(&raw), value);
        Ok(entries.into_iter().map(keyed).collect())
    }

    pub fn read(&self) -> Result<BTreeMap<M::Key, M::Value>, TableError> {
        Ok(self.entries()?.into_iter().collect())
    }

    /// Writes; `mirror` gets what was written, also when it fails half-way.
    pub fn write(
        &mut self,
        writes: &Writes<M::Key, M::Value>,
        mirror: &mut BTreeMap<M::Key, M::Value>,
    ) -> Result<(), TableError> {
        if self.map.is_none() {
            writes.apply(mirror);
            return Ok(());
        }
        match writes {
            Writes::Put(entries) => self.put(entries, mirror),
            Writes::Delete(keys) => self.delete(keys, |key| {
                mirror.remove(key);
            }),
        }
    }

    fn put(
        &mut self,
        entries: &[(M::Key, M::Value)],
        mirror: &mut BTreeMap<M::Key, M::Value>,
    ) -> Result<(), TableError> {
        let Some(map) = &mut self.map else {
            return Ok(());
        };
        let mut rest = entries;
        while rest.len() >= WORTH_A_BATCH {
            let some = &rest[..rest.len().min(batch::ENTRIES)];
            let keys: Vec<_> = some.iter().map(|(key, _)| M::raw(key)).collect();
            let values: Vec<_> = some.iter().map(|(_, value)| *value).collect();
            let done = batch::update(map.data(), &keys, &values);
            mirror.extend(rest[..done].iter().copied());
            rest = &rest[done..];
            if done < keys.len() {
                // The call for one entry says which it is, and why.
                break;
            }
        }
        for (key, value) in rest {
            map.insert(&M::raw(key), value)
                .map_err(|error| put_failed(self.name, self.capacity, key, &error))?;
            mirror.insert(*key, *value);
        }
        Ok(())
    }

    /// Deletes; `deleted` hears of each key.
    pub fn delete(
        &mut self,
        keys: &[M::Key],
        mut deleted: impl FnMut(&M::Key),
    ) -> Result<(), TableError> {
        let Some(map) = &mut self.map else {
            return Ok(());
        };
        let mut rest = keys;
        while rest.len() >= WORTH_A_BATCH {
            let some = &rest[..rest.len().min(batch::ENTRIES)];
            let raw: Vec<_> = some.iter().map(M::raw).collect();
            let done = batch::delete(map.data(), &raw);
            rest[..done].iter().for_each(&mut deleted);
            rest = &rest[done..];
            if done < raw.len() {
                break;
            }
        }
        for key in rest {
            gone(map.remove(&M::raw(key)))
                .map_err(|error| delete_failed(self.name, key, &error))?;
            deleted(key);
        }
        Ok(())
    }
}

/// Every entry, as the kernel has it.
pub fn entries<M: KernelMap>(map: &M) -> Result<Entries<M::Raw, M::Value>, MapError> {
    match batch::read(map.data()) {
        Some(entries) => Ok(entries),
        None => map.entries(),
    }
}

/// Puts entries of one map into another.
pub fn copy<M: KernelMap>(entries: &[(M::Raw, M::Value)], to: &mut M) -> Result<(), MapError> {
    for some in entries.chunks(batch::ENTRIES) {
        let (keys, values): (Vec<_>, Vec<_>) = some.iter().copied().unzip();
        let done = batch::update(to.data(), &keys, &values);
        for (key, value) in &some[done..] {
            to.insert(key, value)?;
        }
    }
    Ok(())
}

/// A deletion that finds nothing has done its work.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
