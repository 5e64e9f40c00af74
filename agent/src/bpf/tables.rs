//! The maps that the agent writes, typed: read them back, apply changes to them.
//!
//! Invariants:
//! - Changes are applied in their order, up to the first failure of a concern; what was written is noted in the
//!   mirror entry by entry, so that mirror and maps never differ in what succeeded.
//! - A map of a family that the datapath does not have yet is empty and takes everything: the
//!   compiler need not know.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use serde::Serialize;
use thiserror::Error;
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::config::{Config, Uplink};
use weft_abi::drop::{DropCount, DropReason};
use weft_abi::endpoint::{Bandwidth, Bucket, Endpoint};
use weft_abi::ipcache::IpcacheEntry;
use weft_abi::policy::{PolicyKey, PolicyVerdict};
use weft_abi::service::{Backend, Frontend, FrontendKey, Slot, SlotKey};
use weft_core::contents::{Contents, FamilyTables, LpmKey};
use weft_core::diff::{Batch, Changes, Concern, FamilyBatch, Step, Writes};
use weft_core::family::Address;

use super::load::{Loaded, capacity};
use crate::errors::chain;

/// A map operation that failed.
#[derive(Debug, Error)]
pub enum TableError {
    /// The map has no room.
    #[error(
        "map {map} is full ({capacity} entries): {key} is missing in it. Raise its capacity \
            (--map-capacity {map}=<entries>) and remove the pin with the node drained"
    )]
    Full {
        /// The map.
        map: &'static str,
        /// Its capacity.
        capacity: u32,
        /// The first key that found no room.
        key: String,
    },
    /// The kernel refused.
    #[error("cannot {what} map {map}: {error}")]
    Kernel {
        /// Write to, delete from, read; with the key.
        what: String,
        /// The map.
        map: &'static str,
        /// What the kernel said.
        error: String,
    },
    /// The ELF lacks the map, or it is of another type.
    #[error("the datapath's map {map}: {error}")]
    Open {
        /// The map.
        map: &'static str,
        /// What is wrong.
        error: String,
    },
}

/// The maps.
pub struct Tables {
    v4: FamilyHandles<Addr4>,
    v6: FamilyHandles<Addr6>,
    policy: Lpm<PolicyKey, PolicyVerdict>,
    slots: Hash<SlotKey, Slot>,
    bandwidth: Hash<u32, Bandwidth>,
    uplinks: Hash<u32, Uplink>,
    config: Array<MapData, Config>,
    drops: PerCpuArray<MapData, DropCount>,
    outcome: Option<Outcome>,
}

/// What became of changes.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How long it took to write those of each concern.
    pub took: BTreeMap<Concern, Duration>,
    /// The concerns that were not written whole.
    pub failed: BTreeSet<Concern>,
}

impl Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

/// How full a map is.
#[derive(Clone, Debug, Serialize)]
pub struct Fill {
    /// The map.
    pub map: &'static str,
    /// Entries in it.
    pub entries: usize,
    /// Entries it can take.
    pub capacity: u32,
}

struct FamilyHandles<A> {
    endpoints: Hash<A, Endpoint>,
    ipcache: Lpm<A, IpcacheEntry>,
    frontends: Hash<FrontendKey<A>, Frontend>,
    backends: Hash<u32, Backend<A>>,
}

/// A hash map, or its absence.
struct Hash<K, V> {
    name: &'static str,
    capacity: u32,
    map: Option<HashMap<MapData, K, V>>,
}

/// A longest-prefix-match map, or its absence.
struct Lpm<K, V> {
    name: &'static str,
    capacity: u32,
    map: Option<LpmTrie<MapData, K, V>>,
}

impl Tables {
    /// Takes the maps out of the loaded datapath.
    ///
    /// # Errors
    ///
    /// When one that the agent cannot do without is missing, or one has another type.
    pub fn new(loaded: &mut Loaded) -> Result<Self, TableError> {
        let required = |map, found: Option<Map>| {
            found.ok_or_else(|| TableError::Open {
                map,
                error: "the ELF has none".to_owned(),
            })
        };
        let config = required("config", loaded.take_map("config"))?;
        let drops = required("drops", loaded.take_map("drops"))?;
        Ok(Self {
            v4: FamilyHandles {
                endpoints: Hash::open(loaded, "endpoints4")?,
                ipcache: Lpm::open(loaded, "ipcache4")?,
                frontends: Hash::open(loaded, "frontends4")?,
                backends: Hash::open(loaded, "backends4")?,
            },
            v6: FamilyHandles {
                endpoints: Hash::open(loaded, "endpoints6")?,
                ipcache: Lpm::open(loaded, "ipcache6")?,
                frontends: Hash::open(loaded, "frontends6")?,
                backends: Hash::open(loaded, "backends6")?,
            },
            policy: Lpm::open(loaded, "policy")?,
            slots: Hash::open(loaded, "slots")?,
            bandwidth: Hash::open(loaded, "bandwidth")?,
            uplinks: Hash::open(loaded, "uplinks")?,
            config: Array::try_from(config).map_err(|error| open_failed("config", &error))?,
            drops: PerCpuArray::try_from(drops).map_err(|error| open_failed("drops", &error))?,
            outcome: None,
        })
    }

    /// What the maps hold.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn read(&self) -> Result<Contents, TableError> {
        Ok(Contents {
            v4: self.v4.read()?,
            v6: self.v6.read()?,
            policy: self.policy.read()?,
            slots: self.slots.read()?,
            bandwidth: self.limits()?,
        })
    }

    /// The limits of bandwidth, without what the programs write into them.
    fn limits(&self) -> Result<BTreeMap<u32, Bandwidth>, TableError> {
        let plain = |bucket: Bucket| Bucket {
            full_at: 0,
            ..bucket
        };
        let mut limits = self.bandwidth.read()?;
        for limit in limits.values_mut() {
            limit.egress = plain(limit.egress);
            limit.ingress = plain(limit.ingress);
        }
        Ok(limits)
    }

    /// Writes one batch. `mirror` gets what was written, also when it fails half-way.
    ///
    /// # Errors
    ///
    /// The first entry that the kernel refused; the rest of the batch is not written.
    pub fn write(&mut self, batch: &Batch, mirror: &mut Contents) -> Result<(), TableError> {
        match batch {
            Batch::V4(batch) => self.v4.write(batch, &mut mirror.v4),
            Batch::V6(batch) => self.v6.write(batch, &mut mirror.v6),
            Batch::Policy(writes) => self.policy.write(writes, &mut mirror.policy),
            Batch::Slots(writes) => self.slots.write(writes, &mut mirror.slots),
            Batch::Bandwidth(writes) => self.bandwidth.write(writes, &mut mirror.bandwidth),
        }
    }

    /// Applies changes in their order. A write that fails ends those of its concern: a full map of
    /// services keeps no policy out, nor the other way round. `mirror` and `config` get what was
    /// written.
    ///
    /// # Errors
    ///
    /// The first write that failed.
    pub fn apply(
        &mut self,
        changes: &Changes,
        mirror: &mut Contents,
        config: &mut Config,
    ) -> Result<(), TableError> {
        let mut failed = BTreeMap::new();
        let mut took: BTreeMap<Concern, Duration> = BTreeMap::new();
        self.outcome = None;
        for step in &changes.steps {
            match step {
                Step::Write(batch) if failed.contains_key(&batch.concern()) => {}
                Step::Write(batch) => {
                    let (concern, started) = (batch.concern(), Instant::now());
                    if let Err(error) = self.write(batch, mirror) {
                        failed.insert(concern, error);
                    }
                    *took.entry(concern).or_default() += started.elapsed();
                }
                Step::BumpEpoch => {
                    let epoch = next_epoch(config.epoch);
                    self.set_config(Config { epoch, ..*config })?;
                    config.epoch = epoch;
                }
            }
        }
        self.outcome = Some(Outcome {
            took,
            failed: failed.keys().copied().collect(),
        });
        failed.into_values().next().map_or(Ok(()), Err)
    }

    /// What became of the last changes, once; `None` if they were not applied to their end.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// The configuration that the datapath has.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn config(&self) -> Result<Config, TableError> {
        self.config
            .get(&0, 0)
            .map_err(|error| kernel("config", "read", &error))
    }

    /// Gives the datapath a configuration.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_config(&mut self, config: Config) -> Result<(), TableError> {
        self.config
            .set(0, config, 0)
            .map_err(|error| kernel("config", "write to", &error))
    }

    /// The uplinks that the datapath knows, by index.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn uplinks(&self) -> Result<BTreeMap<u32, Uplink>, TableError> {
        self.uplinks.read()
    }

    /// Makes the uplinks equal to the wanted ones; `current` gets what was written.
    ///
    /// # Errors
    ///
    /// The first entry that the kernel refused.
    pub fn set_uplinks(
        &mut self,
        wanted: &BTreeMap<u32, Uplink>,
        current: &mut BTreeMap<u32, Uplink>,
    ) -> Result<(), TableError> {
        let put = wanted
            .iter()
            .filter(|(index, uplink)| current.get(index) != Some(uplink));
        let put: Vec<_> = put.map(|(index, uplink)| (*index, *uplink)).collect();
        self.uplinks.write(&Writes::Put(put), current)?;
        let gone = current.keys().filter(|index| !wanted.contains_key(index));
        let gone: Vec<_> = gone.copied().collect();
        self.uplinks.write(&Writes::Delete(gone), current)
    }

    /// Drops by reason, summed over the CPUs; reasons without drops are left out.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn drops(&self) -> Result<Vec<(DropReason, DropCount)>, TableError> {
        let mut counts = Vec::new();
        for reason in DropReason::ALL {
            let slots = self
                .drops
                .get(&u32::from(*reason as u8), 0)
                .map_err(|error| kernel("drops", "read", &error))?;
            let sum = slots
                .iter()
                .fold(DropCount::default(), |sum, slot| DropCount {
                    packets: sum.packets + slot.packets,
                    bytes: sum.bytes + slot.bytes,
                });
            if sum.packets > 0 {
                counts.push((*reason, sum));
            }
        }
        Ok(counts)
    }

    /// How full the maps are, by what the mirror says.
    pub fn fill(&self, mirror: &Contents) -> Vec<Fill> {
        let mut fill = Vec::new();
        let mut add = |map, capacity, entries| {
            if capacity > 0 {
                fill.push(Fill {
                    map,
                    entries,
                    capacity,
                });
            }
        };
        self.v4.fill(&mirror.v4, &mut add);
        self.v6.fill(&mirror.v6, &mut add);
        add(self.policy.name, self.policy.capacity, mirror.policy.len());
        add(self.slots.name, self.slots.capacity, mirror.slots.len());
        add(
            self.bandwidth.name,
            self.bandwidth.capacity,
            mirror.bandwidth.len(),
        );
        fill
    }
}

impl<A: Address + Pod> FamilyHandles<A>
where
    FrontendKey<A>: Pod + Ord,
    Backend<A>: Pod,
{
    fn read(&self) -> Result<FamilyTables<A>, TableError> {
        Ok(FamilyTables {
            endpoints: self.endpoints.read()?,
            ipcache: self.ipcache.read()?,
            frontends: self.frontends.read()?,
            backends: self.backends.read()?,
        })
    }

    fn write(
        &mut self,
        batch: &FamilyBatch<A>,
        mirror: &mut FamilyTables<A>,
    ) -> Result<(), TableError> {
        match batch {
            FamilyBatch::Endpoints(writes) => self.endpoints.write(writes, &mut mirror.endpoints),
            FamilyBatch::Ipcache(writes) => self.ipcache.write(writes, &mut mirror.ipcache),
            FamilyBatch::Frontends(writes) => self.frontends.write(writes, &mut mirror.frontends),
            FamilyBatch::Backends(writes) => self.backends.write(writes, &mut mirror.backends),
        }
    }

    fn fill(&self, mirror: &FamilyTables<A>, add: &mut impl FnMut(&'static str, u32, usize)) {
        add(
            self.endpoints.name,
            self.endpoints.capacity,
            mirror.endpoints.len(),
        );
        add(
            self.ipcache.name,
            self.ipcache.capacity,
            mirror.ipcache.len(),
        );
        add(
            self.frontends.name,
            self.frontends.capacity,
            mirror.frontends.len(),
        );
        add(
            self.backends.name,
            self.backends.capacity,
            mirror.backends.len(),
        );
    }
}

impl<K: Pod + Ord + Debug, V: Pod> Hash<K, V> {
    fn open(loaded: &mut Loaded, name: &'static str) -> Result<Self, TableError> {
        let Some(map) = loaded.take_map(name) else {
            return Ok(Self {
                name,
                capacity: 0,
                map: None,
            });
        };
        let capacity = match &map {
            Map::HashMap(data) => capacity(data),
            _ => 0,
        };
        let map = HashMap::try_from(map).map_err(|error| open_failed(name, &error))?;
        Ok(Self {
            name,
            capacity,
            map: Some(map),
        })
    }

    fn read(&self) -> Result<BTreeMap<K, V>, TableError> {
        let entries = self.map.iter().flat_map(HashMap::iter);
        entries
            .collect::<Result<_, _>>()
            .map_err(|error| kernel(self.name, "read", &error))
    }

    fn write(
        &mut self,
        writes: &Writes<K, V>,
        mirror: &mut BTreeMap<K, V>,
    ) -> Result<(), TableError> {
        let Some(map) = &mut self.map else {
            writes.apply(mirror);
            return Ok(());
        };
        match writes {
            Writes::Put(entries) => {
                for (key, value) in entries {
                    map.insert(key, value, 0)
                        .map_err(|error| put_failed(self.name, self.capacity, key, &error))?;
                    mirror.insert(*key, *value);
                }
            }
            Writes::Delete(keys) => {
                for key in keys {
                    gone(map.remove(key)).map_err(|error| delete_failed(self.name, key, &error))?;
                    mirror.remove(key);
                }
            }
        }
        Ok(())
    }
}

impl<K: Pod + Ord + Debug, V: Pod> Lpm<K, V> {
    fn open(loaded: &mut Loaded, name: &'static str) -> Result<Self, TableError> {
        let Some(map) = loaded.take_map(name) else {
            return Ok(Self {
                name,
                capacity: 0,
                map: None,
            });
        };
        let capacity = match &map {
            Map::LpmTrie(data) => capacity(data),
            _ => 0,
        };
        let map = LpmTrie::try_from(map).map_err(|error| open_failed(name, &error))?;
        Ok(Self {
            name,
            capacity,
            map: Some(map),
        })
    }

    fn read(&self) -> Result<BTreeMap<LpmKey<K>, V>, TableError> {
        let entries = self.map.iter().flat_map(LpmTrie::iter);
        entries
            .map(|entry| {
                let (key, value) = entry?;
                Ok((
                    LpmKey {
                        prefix_len: key.prefix_len(),
                        data: key.data(),
                    },
                    value,
                ))
            })
            .collect::<Result<_, _>>()
            .map_err(|error: MapError| kernel(self.name, "read", &error))
    }

    fn write(
        &mut self,
        writes: &Writes<LpmKey<K>, V>,
        mirror: &mut BTreeMap<LpmKey<K>, V>,
    ) -> Result<(), TableError> {
        let Some(map) = &mut self.map else {
            writes.apply(mirror);
            return Ok(());
        };
        match writes {
            Writes::Put(entries) => {
                for (key, value) in entries {
                    map.insert(&Key::new(key.prefix_len, key.data), value, 0)
                        .map_err(|error| put_failed(self.name, self.capacity, key, &error))?;
                    mirror.insert(*key, *value);
                }
            }
            Writes::Delete(keys) => {
                for key in keys {
                    gone(map.remove(&Key::new(key.prefix_len, key.data)))
                        .map_err(|error| delete_failed(self.name, key, &error))?;
                    mirror.remove(key);
                }
            }
        }
        Ok(())
    }
}

/// A deletion that finds nothing has done its work.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn put_failed(map: &'static str, capacity: u32, key: &impl Debug, error: &MapError) -> TableError {
    // A hash map says E2BIG, a trie ENOSPC.
    match errno(error) {
        Some(libc::E2BIG | libc::ENOSPC) => TableError::Full {
            map,
            capacity,
            key: format!("{key:?}"),
        },
        _ => kernel(map, &format!("write {key:?} to"), error),
    }
}

fn delete_failed(map: &'static str, key: &impl Debug, error: &MapError) -> TableError {
    kernel(map, &format!("delete {key:?} from"), error)
}

fn kernel(map: &'static str, what: &str, error: &MapError) -> TableError {
    TableError::Kernel {
        what: what.to_owned(),
        map,
        error: chain(error),
    }
}

fn open_failed(map: &'static str, error: &MapError) -> TableError {
    TableError::Open {
        map,
        error: chain(error),
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        MapError::KeyNotFound => Some(libc::ENOENT),
        _ => None,
    }
}

/// The epoch after this one; 0 is never current.
#[must_use]
pub fn next_epoch(epoch: u32) -> u32 {
    epoch.wrapping_add(1).max(1)
}
