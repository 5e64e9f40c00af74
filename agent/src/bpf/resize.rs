//! Pinned maps that the operator gives another capacity.
//!
//! The kernel cannot resize a map. So the loader makes a new one under the same name, which gets the
//! entries of the old one, and no connection ends by it:
//!
//! ```text
//!   set_aside     X becomes X-old                      the programs of an earlier agent go on with it
//!   (load)        X is made anew
//!   carry_over    what X-old holds goes into X, and its pin goes
//!   (the programs are swapped)
//!   catch_up      what the earlier programs added to the old map meanwhile follows
//! ```
//!
//! Invariants:
//! - An agent that ends before it carried over leaves X-old, which the next one puts back.
//! - A map whose entries have no room in the new capacity keeps the old one, and that is told.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use tracing::{debug, info, warn};
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::config::Uplink;
use weft_abi::endpoint::{Bandwidth, Endpoint};
use weft_abi::flow::{Flow, FlowKey};
use weft_abi::ipcache::IpcacheEntry;
use weft_abi::policy::{PolicyKey, PolicyVerdict};
use weft_abi::service::{
    Affinity, AffinityKey, Backend, Frontend, FrontendKey, MaglevBlock, MaglevKey, Slot, SlotKey,
    SourceRange,
};
use weft_abi::socket::{SocketKey, SocketPeer};
use weft_core::contents::LetIn;

use super::load::capacity;
use super::tables::handle::{KernelMap, copy, entries};
use crate::errors::chain;

/// What the pin of a map is called that is not copied yet.
const OLD: &str = "-old";

type Hash<K, V> = HashMap<MapData, K, V>;
type Trie<K, V> = LpmTrie<MapData, K, V>;

/// A map that another one takes the place of.
#[derive(Debug)]
pub struct Aside {
    name: &'static str,
    from: u32,
    pin: PathBuf,
    aside: PathBuf,
}

/// What to do with a map, whatever its types are.
enum Task<'a> {
    Count(&'a Path),
    Copy { from: &'a Path, to: &'a Path },
}

/// Whether a map may have another capacity than the ELF's.
pub fn is_resizable(name: &str) -> bool {
    !matches!(name, "config" | "drops")
}

/// Puts back what an agent left that ended too early.
pub fn recover(dir: &Path) -> io::Result<()> {
    for name in weft_abi::maps::PINNED {
        let aside = dir.join(format!("{name}{OLD}"));
        if aside.exists() {
            fs::rename(&aside, dir.join(name))?;
        }
    }
    Ok(())
}

/// Moves the pinned maps aside that shall have other capacities than they have.
pub fn set_aside(dir: &Path, wanted: &BTreeMap<&'static str, u32>) -> io::Result<Vec<Aside>> {
    let mut all = Vec::new();
    for (name, wanted) in wanted {
        let pin = dir.join(name);
        if !is_resizable(name) || !pin.exists() {
            continue;
        }
        let known = MapInfo::from_pin(&pin).map_err(io::Error::other)?;
        let from = known.max_entries();
        if from == *wanted {
            continue;
        }
        let count = run(name, &Task::Count(&pin)).map_err(io::Error::other)?;
        if count > *wanted as usize && !is_lru(name) {
            warn!(
                map = name,
                entries = count,
                capacity = from,
                wanted,
                "the map keeps its capacity: its entries have no room in what --map-capacity says"
            );
            continue;
        }
        let aside = dir.join(format!("{name}{OLD}"));
        if let Err(error) = fs::rename(&pin, &aside) {
            put_back(&all);
            return Err(error);
        }
        all.push(Aside {
            name,
            from,
            pin,
            aside,
        });
    }
    Ok(all)
}

/// Undoes [`set_aside`].
pub fn put_back(all: &[Aside]) {
    for Aside { aside, pin, .. } in all {
        if let Err(error) = fs::rename(aside, pin) {
            warn!(%error, pin = %pin.display(), "cannot put a map back; the next start tries again");
        }
    }
}

/// The old maps, until the programs that use them are gone.
#[derive(Debug, Default)]
pub struct Replaced {
    maps: Vec<(&'static str, MapData, MapData)>,
}

/// Copies what is in the old maps, and gives up their pins.
pub fn carry_over(all: &[Aside]) -> Result<Replaced, MapError> {
    let mut maps = Vec::new();
    for map in all {
        let (from, to) = (&map.aside, &map.pin);
        let count = run(map.name, &Task::Copy { from, to })?;
        let (old, new) = (MapData::from_pin(from)?, MapData::from_pin(to)?);
        info!(
            map = map.name,
            from = map.from,
            to = capacity(&new),
            entries = count,
            "the map has another capacity now, and its entries"
        );
        maps.push((map.name, old, new));
    }
    for map in all {
        if let Err(error) = fs::remove_file(&map.aside) {
            warn!(%error, pin = %map.aside.display(), "cannot remove the pin of the old map");
        }
    }
    Ok(Replaced { maps })
}

impl Replaced {
    /// Copies what the earlier programs added to the old maps of connections since. To be called when
    /// the new programs have taken their places.
    pub fn catch_up(&mut self) {
        for (name, old, new) in std::mem::take(&mut self.maps) {
            let added = match name {
                "flows4" => add::<Hash<FlowKey<Addr4>, Flow<Addr4>>>(old, new),
                "flows6" => add::<Hash<FlowKey<Addr6>, Flow<Addr6>>>(old, new),
                "sockets4" => add::<Hash<SocketKey<Addr4>, SocketPeer<Addr4>>>(old, new),
                "sockets6" => add::<Hash<SocketKey<Addr6>, SocketPeer<Addr6>>>(old, new),
                "affinity4" => add::<Hash<AffinityKey<Addr4>, Affinity>>(old, new),
                "affinity6" => add::<Hash<AffinityKey<Addr6>, Affinity>>(old, new),
                _ => continue,
            };
            match added {
                Ok(added) => debug!(map = name, added, "the map has what came meanwhile"),
                Err(error) => {
                    let error = chain(&error);
                    warn!(
                        map = name,
                        error, "what came meanwhile is not in the new map"
                    );
                }
            }
        }
    }
}

/// Adds the entries that are missing.
fn add<M: KernelMap>(old: MapData, new: MapData) -> Result<usize, MapError> {
    let (old, mut new) = (
        M::open(Map::LruHashMap(old))?,
        M::open(Map::LruHashMap(new))?,
    );
    let mut added = 0;
    let known: std::collections::BTreeSet<_> =
        entries(&new)?.iter().map(|(key, _)| M::key(key)).collect();
    for (key, value) in entries(&old)? {
        if !known.contains(&M::key(&key)) {
            new.insert(&key, &value)?;
            added += 1;
        }
    }
    Ok(added)
}

/// Whether the kernel makes room in a full map.
fn is_lru(name: &str) -> bool {
    ["flows", "sockets", "affinity"]
        .iter()
        .any(|lru| name.starts_with(lru))
}

/// Does something with a map; how many entries there were.
fn run(name: &str, task: &Task<'_>) -> Result<usize, MapError> {
    match name {
        "flows4" => hash::<Hash<FlowKey<Addr4>, Flow<Addr4>>>(task),
        "flows6" => hash::<Hash<FlowKey<Addr6>, Flow<Addr6>>>(task),
        "endpoints4" => hash::<Hash<Addr4, Endpoint>>(task),
        "endpoints6" => hash::<Hash<Addr6, Endpoint>>(task),
        "ipcache4" => trie::<Trie<Addr4, IpcacheEntry>>(task),
        "ipcache6" => trie::<Trie<Addr6, IpcacheEntry>>(task),
        "policy" => trie::<Trie<PolicyKey, PolicyVerdict>>(task),
        "frontends4" => hash::<Hash<FrontendKey<Addr4>, Frontend>>(task),
        "frontends6" => hash::<Hash<FrontendKey<Addr6>, Frontend>>(task),
        "slots" => hash::<Hash<SlotKey, Slot>>(task),
        "backends4" => hash::<Hash<u32, Backend<Addr4>>>(task),
        "backends6" => hash::<Hash<u32, Backend<Addr6>>>(task),
        "maglev" => hash::<Hash<MaglevKey, MaglevBlock>>(task),
        "source_ranges4" => trie::<Trie<SourceRange<Addr4>, LetIn>>(task),
        "source_ranges6" => trie::<Trie<SourceRange<Addr6>, LetIn>>(task),
        "affinity4" => hash::<Hash<AffinityKey<Addr4>, Affinity>>(task),
        "affinity6" => hash::<Hash<AffinityKey<Addr6>, Affinity>>(task),
        "uplinks" => hash::<Hash<u32, Uplink>>(task),
        "bandwidth" => hash::<Hash<u32, Bandwidth>>(task),
        "sockets4" => hash::<Hash<SocketKey<Addr4>, SocketPeer<Addr4>>>(task),
        "sockets6" => hash::<Hash<SocketKey<Addr6>, SocketPeer<Addr6>>>(task),
        _ => Err(MapError::InvalidName { name: name.into() }),
    }
}

fn hash<M: KernelMap>(task: &Task<'_>) -> Result<usize, MapError> {
    // LRU or not is the same to the calls.
    perform::<M>(task, Map::LruHashMap)
}

fn trie<M: KernelMap>(task: &Task<'_>) -> Result<usize, MapError> {
    perform::<M>(task, Map::LpmTrie)
}

fn perform<M: KernelMap>(task: &Task<'_>, of: fn(MapData) -> Map) -> Result<usize, MapError> {
    let open = |path: &Path| M::open(of(MapData::from_pin(path)?));
    match task {
        Task::Count(path) => Ok(entries(&open(path)?)?.len()),
        Task::Copy { from, to } => {
            let all = entries(&open(from)?)?;
            copy(&all, &mut open(to)?)?;
            Ok(all.len())
        }
    }
}
