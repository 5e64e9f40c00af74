//! The maps that the agent writes, typed: read them back, apply changes to them.
//!
//! ```text
//!   [handle]  one map          [room]    whether changes fit, before they are written
//!   [error]   what goes wrong  [memory]  what the programs remember of services: clients, sockets
//! ```
//!
//! Invariants:
//! - Changes of a concern of which one map would overflow are not begun.
//! - Changes are applied in their order, up to the first failure of a concern; what was written is noted in the
//!   mirror, so that mirror and maps never differ in what succeeded.
//! - A map of a family that the datapath does not have yet is empty and takes everything: the
//!   compiler need not know.

mod error;
pub(super) mod handle;
mod memory;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{Array, Map, MapData, PerCpuArray};
use serde::Serialize;
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::config::{Config, Uplink};
use weft_abi::drop::{DropCount, DropReason};
use weft_abi::endpoint::{Bandwidth, Bucket, Endpoint};
use weft_abi::ipcache::IpcacheEntry;
use weft_abi::policy::{PolicyKey, PolicyVerdict};
use weft_abi::service::{
    Backend, Frontend, FrontendKey, MaglevBlock, MaglevKey, Slot, SlotKey, SourceRange,
};
use weft_core::contents::{
    Contents, LetIn, PolicyContents, PolicyTables, ServiceContents, ServiceTables,
};
use weft_core::diff::{Batch, Changes, Concern, FamilyBatch, Step, Writes};
use weft_core::family::Address;

pub use self::error::TableError;
use self::error::{kernel, open_failed};
use self::handle::{Hash, Lpm};
pub use self::memory::LedSocket;
use self::memory::Memory;
use self::room::{FamilyRoom, Room};
use super::load::Loaded;

/// The maps.
pub struct Tables {
    v4: FamilyHandles<Addr4>,
    v6: FamilyHandles<Addr6>,
    policy: Lpm<PolicyKey, PolicyVerdict>,
    slots: Hash<SlotKey, Slot>,
    maglev: Hash<MaglevKey, MaglevBlock>,
    bandwidth: Hash<u32, Bandwidth>,
    uplinks: Hash<u32, Uplink>,
    memory: Memory,
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

/// The part of a map's capacity, in percent, from which on it is near full.
const NEAR_FULL: usize = 90;

impl Fill {
    /// Whether there is not much room left.
    pub const fn is_near_full(&self) -> bool {
        self.entries.saturating_mul(100) >= (self.capacity as usize).saturating_mul(NEAR_FULL)
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            map,
            entries,
            capacity,
        } = self;
        write!(
            f,
            "map {map} has {entries} of at most {capacity} entries; restart the agent with a larger \
                capacity before it is full: --map-capacity {map}=<entries>"
        )
    }
}

struct FamilyHandles<A: Address + Pod>
where
    FrontendKey<A>: Pod + Ord,
    Backend<A>: Pod,
    SourceRange<A>: Pod + Ord,
{
    endpoints: Hash<A, Endpoint>,
    ipcache: Lpm<A, IpcacheEntry>,
    frontends: Hash<FrontendKey<A>, Frontend>,
    backends: Hash<u32, Backend<A>>,
    source_ranges: Lpm<SourceRange<A>, LetIn>,
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
                source_ranges: Lpm::open(loaded, "source_ranges4")?,
            },
            v6: FamilyHandles {
                endpoints: Hash::open(loaded, "endpoints6")?,
                ipcache: Lpm::open(loaded, "ipcache6")?,
                frontends: Hash::open(loaded, "frontends6")?,
                backends: Hash::open(loaded, "backends6")?,
                source_ranges: Lpm::open(loaded, "source_ranges6")?,
            },
            policy: Lpm::open(loaded, "policy")?,
            slots: Hash::open(loaded, "slots")?,
            maglev: Hash::open(loaded, "maglev")?,
            bandwidth: Hash::open(loaded, "bandwidth")?,
            uplinks: Hash::open(loaded, "uplinks")?,
            memory: Memory::open(loaded)?,
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
            policy: PolicyContents {
                v4: self.v4.read_policy()?,
                v6: self.v6.read_policy()?,
                verdicts: self.policy.read()?,
                bandwidth: self.limits()?,
            },
            services: ServiceContents {
                v4: self.v4.read_services()?,
                v6: self.v6.read_services()?,
                slots: self.slots.read()?,
                maglev: self.maglev.read()?,
            },
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
            Batch::V4(batch) => self.v4.write(batch, mirror),
            Batch::V6(batch) => self.v6.write(batch, mirror),
            Batch::Policy(writes) => self.policy.write(writes, &mut mirror.policy.verdicts),
            Batch::Slots(writes) => self.slots.write(writes, &mut mirror.services.slots),
            Batch::Maglev(writes) => self.maglev.write(writes, &mut mirror.services.maglev),
            Batch::Bandwidth(writes) => self.bandwidth.write(writes, &mut mirror.policy.bandwidth),
        }
    }

    /// Applies changes in their order. A write that fails ends those of its concern, and none of a
    /// concern is made if a map of it would overflow: a full map of services keeps no policy out, nor
    /// the other way round. `mirror` and `config` get what was written.
    ///
    /// # Errors
    ///
    /// The first write that failed, or would.
    pub fn apply(
        &mut self,
        changes: &Changes,
        mirror: &mut Contents,
        config: &mut Config,
    ) -> Result<(), TableError> {
        let mut failed = room::overflows(changes, mirror, &self.room());
        let mut took = BTreeMap::new();
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
                Step::BumpBackends => {
                    let backends_epoch = config.backends_epoch.wrapping_add(1);
                    let next = Config {
                        backends_epoch,
                        ..*config
                    };
                    self.set_config(next)?;
                    *config = next;
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

    fn room(&self) -> Room {
        Room {
            v4: self.v4.room(),
            v6: self.v6.room(),
            policy: (self.policy.name, self.policy.capacity),
            slots: (self.slots.name, self.slots.capacity),
            maglev: (self.maglev.name, self.maglev.capacity),
            bandwidth: (self.bandwidth.name, self.bandwidth.capacity),
        }
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
        self.v4.fill(mirror, &mut add);
        self.v6.fill(mirror, &mut add);
        let Contents { policy, services } = mirror;
        add(
            self.policy.name,
            self.policy.capacity,
            policy.verdicts.len(),
        );
        add(self.slots.name, self.slots.capacity, services.slots.len());
        add(
            self.maglev.name,
            self.maglev.capacity,
            services.maglev.len(),
        );
        add(
            self.bandwidth.name,
            self.bandwidth.capacity,
            policy.bandwidth.len(),
        );
        fill
    }
}

impl<A: Address + Pod> FamilyHandles<A>
where
    FrontendKey<A>: Pod + Ord,
    Backend<A>: Pod,
    SourceRange<A>: Pod + Ord,
{
    fn read_policy(&self) -> Result<PolicyTables<A>, TableError> {
        Ok(PolicyTables {
            endpoints: self.endpoints.read()?,
            ipcache: self.ipcache.read()?,
        })
    }

    fn read_services(&self) -> Result<ServiceTables<A>, TableError> {
        Ok(ServiceTables {
            frontends: self.frontends.read()?,
            backends: self.backends.read()?,
            source_ranges: self.source_ranges.read()?,
        })
    }

    fn write(&mut self, batch: &FamilyBatch<A>, mirror: &mut Contents) -> Result<(), TableError> {
        let policy = A::policy_mut(&mut mirror.policy);
        let services = A::services_mut(&mut mirror.services);
        match batch {
            FamilyBatch::Endpoints(writes) => self.endpoints.write(writes, &mut policy.endpoints),
            FamilyBatch::Ipcache(writes) => self.ipcache.write(writes, &mut policy.ipcache),
            FamilyBatch::Frontends(writes) => self.frontends.write(writes, &mut services.frontends),
            FamilyBatch::Backends(writes) => self.backends.write(writes, &mut services.backends),
            FamilyBatch::SourceRanges(writes) => self
                .source_ranges
                .write(writes, &mut services.source_ranges),
        }
    }

    const fn room(&self) -> FamilyRoom {
        FamilyRoom {
            endpoints: (self.endpoints.name, self.endpoints.capacity),
            ipcache: (self.ipcache.name, self.ipcache.capacity),
            frontends: (self.frontends.name, self.frontends.capacity),
            backends: (self.backends.name, self.backends.capacity),
            source_ranges: (self.source_ranges.name, self.source_ranges.capacity),
        }
    }

    fn fill(&self, mirror: &Contents, add: &mut impl FnMut(&'static str, u32, usize)) {
        let policy = A::policy(&mirror.policy);
        let services = A::services(&mirror.services);
        add(
            self.endpoints.name,
            self.endpoints.capacity,
            policy.endpoints.len(),
        );
        add(
            self.ipcache.name,
            self.ipcache.capacity,
            policy.ipcache.len(),
        );
        add(
            self.frontends.name,
            self.frontends.capacity,
            services.frontends.len(),
        );
        add(
            self.backends.name,
            self.backends.capacity,
            services.backends.len(),
        );
        add(
            self.source_ranges.name,
            self.source_ranges.capacity,
            services.source_ranges.len(),
        );
    }
}

/// The epoch after this one; 0 is never current.
#[must_use]
pub fn next_epoch(epoch: u32) -> u32 {
    epoch.wrapping_add(1).max(1)
}
