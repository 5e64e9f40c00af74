//! The maps of a node's services, as they are in the kernel: what the agent says does not count.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use weft_abi::ABI_VERSION;
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::config::Config;
use weft_abi::maps::PINNED;
use weft_abi::service::{Backend, Frontend, FrontendKey, SCOPE_INTERNAL, Slot, SlotKey};
use weft_core::family::Address;

use super::population::{PORT, TARGET};

/// The number that IP has for TCP.
const TCP: u8 = 6;

/// The maps.
pub struct Pins {
    v4: FamilyPins<Addr4>,
    v6: FamilyPins<Addr6>,
    slots: HashMap<MapData, SlotKey, Slot>,
    config: Array<MapData, Config>,
}

struct FamilyPins<A>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
{
    frontends: HashMap<MapData, FrontendKey<A>, Frontend>,
    backends: HashMap<MapData, u32, Backend<A>>,
}

/// Where a service has a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    slot: SlotKey,
    backend: u32,
}

/// Where a node's maps are pinned.
pub fn directory(bpf_root: &Path) -> PathBuf {
    bpf_root.join(format!("weft/v{ABI_VERSION}"))
}

impl Pins {
    /// Opens them; an error as long as no agent has made them.
    pub fn open(directory: &Path) -> Result<Self> {
        let config = Array::try_from(Map::Array(pinned(directory, "config")?))?;
        Ok(Self {
            v4: FamilyPins::open(directory, "frontends4", "backends4")?,
            v6: FamilyPins::open(directory, "frontends6", "backends6")?,
            slots: hash(directory, "slots")?,
            config,
        })
    }

    /// What is written last whenever something was: 0 before the first time.
    pub fn epoch(&self) -> Result<u32> {
        Ok(self.config.get(&0, 0)?.epoch)
    }

    /// How many backends clients of this address choose from; `None` if it is not there yet.
    pub fn backends(&self, service: IpAddr) -> Result<Option<u32>> {
        Ok(self.frontend(service)?.map(|frontend| frontend.count))
    }

    /// Where the service has the backend of this address.
    pub fn find(&self, service: IpAddr, backend: IpAddr) -> Result<Option<Place>> {
        let Some(frontend) = self.frontend(service)? else {
            return Ok(None);
        };
        for slot in 0..frontend.count {
            let slot = SlotKey {
                service: frontend.service,
                slot: frontend.first + slot,
            };
            let Some(Slot { backend: number }) = found(self.slots.get(&slot, 0))? else {
                continue;
            };
            if self.address(number, service.is_ipv4())? == Some(backend) {
                let backend = number;
                return Ok(Some(Place { slot, backend }));
            }
        }
        Ok(None)
    }

    /// Whether the place has another backend meanwhile, of this address.
    pub fn has_become(&self, place: Place, address: IpAddr) -> Result<bool> {
        let now = found(self.slots.get(&place.slot, 0))?;
        let Some(Slot { backend }) = now.filter(|now| now.backend != place.backend) else {
            return Ok(false);
        };
        Ok(self.address(backend, address.is_ipv4())? == Some(address))
    }

    fn frontend(&self, service: IpAddr) -> Result<Option<Frontend>> {
        match service {
            IpAddr::V4(v4) => self.v4.frontend(v4.into()),
            IpAddr::V6(v6) => self.v6.frontend(v6.into()),
        }
    }

    fn address(&self, backend: u32, ipv4: bool) -> Result<Option<IpAddr>> {
        if ipv4 {
            self.v4.address(backend)
        } else {
            self.v6.address(backend)
        }
    }
}

impl<A: Address> FamilyPins<A>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
{
    fn open(directory: &Path, frontends: &str, backends: &str) -> Result<Self> {
        Ok(Self {
            frontends: hash(directory, frontends)?,
            backends: hash(directory, backends)?,
        })
    }

    fn frontend(&self, address: A) -> Result<Option<Frontend>> {
        let key = FrontendKey {
            address,
            port: PORT,
            protocol: TCP,
            scope: SCOPE_INTERNAL,
        };
        found(self.frontends.get(&key, 0))
    }

    fn address(&self, backend: u32) -> Result<Option<IpAddr>> {
        let backend = found(self.backends.get(&backend, 0))?;
        let backend = backend.filter(|backend| backend.port == TARGET);
        Ok(backend.map(|backend| backend.address.to_ip()))
    }
}

fn found<T>(looked_up: Result<T, MapError>) -> Result<Option<T>> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn hash<K: Pod, V: Pod>(directory: &Path, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(HashMap::try_from(Map::HashMap(pinned(directory, name)?))?)
}

fn pinned(directory: &Path, name: &str) -> Result<MapData> {
    let pin = directory.join(name);
    MapData::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))
}

/// Memory that maps take in the kernel, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Those of services.
    pub services: u64,
    /// All of them, the flow tables included.
    pub all: u64,
}

/// What the kernel says that the maps take: their entries, and what they take without any.
pub fn memory(directory: &Path) -> Result<Memory> {
    let mut memory = Memory {
        services: 0,
        all: 0,
    };
    for name in PINNED {
        let bytes = locked(&directory.join(name)).with_context(|| format!("map {name}"))?;
        memory.all += bytes;
        let of_services = ["frontends", "backends", "slots", "maglev", "source_ranges"];
        if of_services.iter().any(|start| name.starts_with(start)) {
            memory.services += bytes;
        }
    }
    Ok(memory)
}

fn locked(pin: &Path) -> Result<u64> {
    let info = MapInfo::from_pin(pin)?;
    let fd = info.fd()?;
    let number = fd.as_fd().as_raw_fd();
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let Some(bytes) = told.lines().find_map(|line| line.strip_prefix("memlock:")) else {
        bail!("the kernel does not tell the memory of maps");
    };
    Ok(bytes.trim().parse()?)
}
