//! What the programs remember of services: the backend that a client had, and the backends that the
//! sockets of the node's own processes were led to.
//!
//! The programs write these maps, the kernel evicts from them. The agent takes out what must not
//! linger, and reads who must be told that a backend is gone.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::SocketAddr;

use aya::Pod;
use aya::maps::{HashMap, MapData};
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::service::{Affinity, AffinityKey, Backend};
use weft_abi::socket::{SOCKET_BACK, SocketKey, SocketPeer};
use weft_core::contents::{ServiceContents, ServiceTables};
use weft_core::family::Address;

use super::error::TableError;
use super::handle::{Hash, KernelMap, Table};
use super::{Loaded, Tables};

/// The maps.
pub struct Memory {
    affinity4: Hash<AffinityKey<Addr4>, Affinity>,
    affinity6: Hash<AffinityKey<Addr6>, Affinity>,
    sockets4: Hash<SocketKey<Addr4>, SocketPeer<Addr4>>,
    sockets6: Hash<SocketKey<Addr6>, SocketPeer<Addr6>>,
}

/// A socket of a process of this node that was led to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LedSocket {
    /// Its cookie.
    pub cookie: u64,
    /// The backend that it was led to.
    pub backend: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
}

impl Memory {
    pub fn open(loaded: &mut Loaded) -> Result<Self, TableError> {
        Ok(Self {
            affinity4: Hash::open(loaded, "affinity4")?,
            affinity6: Hash::open(loaded, "affinity6")?,
            sockets4: Hash::open(loaded, "sockets4")?,
            sockets6: Hash::open(loaded, "sockets6")?,
        })
    }
}

impl Tables {
    /// Forgets which backends the clients of services other than these had, and returns how many
    /// clients there were. To be called when no frontend of the others asks for session affinity.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forget_clients_except(&mut self, services: &BTreeSet<u32>) -> Result<usize, TableError> {
        let memory = &mut self.memory;
        Ok(forget(&mut memory.affinity4, services)? + forget(&mut memory.affinity6, services)?)
    }

    /// The sockets that were led to a backend which serves no more: the mirror does not have it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn deserted_sockets(
        &self,
        mirror: &ServiceContents,
    ) -> Result<BTreeSet<LedSocket>, TableError> {
        let mut sockets = deserted(&self.memory.sockets4, &mirror.v4)?;
        sockets.append(&mut deserted(&self.memory.sockets6, &mirror.v6)?);
        Ok(sockets)
    }
}

fn forget<A: Debug + Copy + Ord>(
    clients: &mut Table<HashMap<MapData, AffinityKey<A>, Affinity>>,
    services: &BTreeSet<u32>,
) -> Result<usize, TableError>
where
    AffinityKey<A>: Pod,
{
    let keys = clients.entries()?.into_iter().map(|(key, _)| key);
    let keys: Vec<_> = keys
        .filter(|key| !services.contains(&key.service))
        .collect();
    clients.delete(&keys, |_| {})?;
    Ok(keys.len())
}

fn deserted<A: Address>(
    sockets: &Table<HashMap<MapData, SocketKey<A>, SocketPeer<A>>>,
    mirror: &ServiceTables<A>,
) -> Result<BTreeSet<LedSocket>, TableError>
where
    HashMap<MapData, SocketKey<A>, SocketPeer<A>>:
        KernelMap<Key = SocketKey<A>, Value = SocketPeer<A>>,
{
    let is_deserted = |(key, peer): &(SocketKey<A>, SocketPeer<A>)| {
        let serves = |backend: &Backend<A>| {
            (backend.address, backend.port, backend.service)
                == (key.address, key.port, peer.service)
        };
        key.kind == SOCKET_BACK && !mirror.backends.get(&peer.backend).is_some_and(serves)
    };
    let sockets = sockets.entries()?.into_iter().filter(is_deserted);
    let led = |(key, _): (SocketKey<A>, SocketPeer<A>)| {
        let [low, high] = key.cookie.map(u64::from);
        LedSocket {
            cookie: high << 32 | low,
            backend: SocketAddr::new(key.address.to_ip(), key.port),
            protocol: key.protocol,
        }
    };
    Ok(sockets.map(led).collect())
}
