//! Services: which backend serves a new flow.
//!
//! ```text
//!   frontend ──► source ranges ──► affinity ──► Maglev table or random slot ──► backend
//! ```
//!
//! What each frontend is for whom (traffic policies, topology, what is rejected and what dropped) is
//! the compiler's business: a frontend names the list of slots that is meant for those who see it.

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::{HashMap, LpmTrie, LruHashMap, lpm_trie::Key},
    helpers::bpf_get_prandom_u32,
    macros::btf_map,
};
use weft_abi::{
    drop::DropReason,
    flow::{Flow, Tuple},
    ipcache::{IPCACHE_NODEPORT, KIND_HOST, KIND_REMOTE_NODE},
    maps,
    service::{
        ANY_PORT, Affinity, AffinityKey, BACKEND_CLUSTER, BACKEND_LOCAL, Backend,
        FRONTEND_AFFINITY, FRONTEND_REJECT, FRONTEND_SOURCE_RANGES, Frontend, FrontendKey,
        LOCAL_SLOTS, MAGLEV_BLOCK, MaglevBlock, MaglevKey, SCOPE_FORWARDED, SOURCE_RANGE_PREFIX,
        Slot, SlotKey, SourceRange,
    },
};

use crate::{
    addresses, clock,
    drops::Drop,
    family::{Family, ON_DEMAND},
    lookups::{self, Table},
};

#[btf_map(name = "slots")]
static SLOTS: HashMap<SlotKey, Slot, { maps::SLOTS }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "maglev")]
static MAGLEV: HashMap<MaglevKey, MaglevBlock, { maps::MAGLEV }, ON_DEMAND> = HashMap::new();

/// The sources that the services of a family let in.
pub type SourceRangeTable<A> = LpmTrie<SourceRange<A>, u32, { maps::SOURCE_RANGES }>;
/// The backends that the clients of a family had. Preallocated, as LRU maps are.
pub type AffinityTable<A> = LruHashMap<AffinityKey<A>, Affinity, { maps::AFFINITY }>;

/// A backend chosen for a flow.
#[derive(Clone, Copy)]
pub struct Choice<A> {
    /// The backend's address.
    pub address: A,
    /// The backend's port.
    pub port: u16,
    /// The backend's number.
    pub backend: u32,
}

/// Who asks for a backend.
pub struct Client<A> {
    /// Its address; zero for the node's own processes.
    pub address: A,
    /// What its flow is known by to every node that sees it ([`Family::hash`]); `None`: no node but
    /// this one.
    pub hash: Option<u32>,
    /// Now, in kernel ticks.
    pub now: u32,
    /// How many of them are a second.
    pub ticks_per_second: u32,
}

/// Whether a service may have this destination: one that has a NodePort's number may be another
/// host's.
#[inline(always)]
pub fn may_have<F: Family>(tuple: &Tuple<F::Addr>, protocol: u8, scope: u8) -> bool {
    let (address, port) = (tuple.destination, tuple.destination_port);
    exact::<F>(address, port, protocol, scope).is_some()
        || exact::<F>(F::ZERO, port, protocol, scope).is_some()
}

/// The service port at this address, as traffic of this `SCOPE_` sees it.
#[inline(always)]
pub fn frontend<F: Family>(
    address: F::Addr,
    port: u16,
    protocol: u8,
    scope: u8,
) -> Option<&'static Frontend> {
    if address == F::ZERO {
        // That stands for every address of the node, and is none itself.
        return None;
    }
    if let Some(frontend) = exact::<F>(address, port, protocol, scope) {
        return Some(frontend);
    }
    let frontend = exact::<F>(F::ZERO, port, protocol, scope)?;
    let entry = addresses::ipcache::<F>(address)?;
    let has_it = if scope == SCOPE_FORWARDED {
        entry.kind == KIND_REMOTE_NODE
    } else {
        entry.kind == KIND_HOST && entry.flags & IPCACHE_NODEPORT != 0
    };
    has_it.then_some(frontend)
}

/// Whether the address is a service's, whatever its ports.
#[inline(always)]
pub fn is_allocated<F: Family>(address: F::Addr, scope: u8) -> bool {
    exact::<F>(address, ANY_PORT, 0, scope).is_some()
}

#[inline(always)]
fn exact<F: Family>(
    address: F::Addr,
    port: u16,
    protocol: u8,
    scope: u8,
) -> Option<&'static Frontend> {
    let key = FrontendKey {
        address,
        port,
        protocol,
        scope,
    };
    lookups::count(Table::Services);
    // SAFETY: read at once and not kept across map changes of this program.
    unsafe { F::frontends().get(key) }
}

/// Whether the service lets this source in.
#[inline(always)]
pub fn lets_in<F: Family>(frontend: &Frontend, source: F::Addr) -> bool {
    if frontend.flags & FRONTEND_SOURCE_RANGES == 0 {
        return true;
    }
    let range = SourceRange {
        service: frontend.service,
        address: source,
    };
    lookups::count(Table::Services);
    F::source_ranges()
        .get(&Key::new(SOURCE_RANGE_PREFIX + F::BITS, range))
        .is_some()
}

/// A backend for a new flow: the one that the client had, if it is to have that again; else that of
/// the flow's place in the Maglev table, or any.
#[inline(always)]
pub fn choose<F: Family>(
    frontend: &Frontend,
    client: &Client<F::Addr>,
) -> Result<Choice<F::Addr>, Drop> {
    if frontend.count == 0 {
        return Err(Drop::because(if frontend.flags & FRONTEND_REJECT != 0 {
            DropReason::NoBackend
        } else {
            DropReason::NoLocalBackend
        }));
    }
    let sticky = frontend.flags & FRONTEND_AFFINITY != 0;
    if sticky && let Some(choice) = affine::<F>(frontend, client) {
        return Ok(choice);
    }
    let found = match client.hash {
        Some(hash) if frontend.table != 0 => by_hash::<F>(frontend, hash),
        _ => None,
    };
    let number = match found {
        Some(number) => number,
        None => {
            // SAFETY: the helper takes nothing and returns a number.
            let random = unsafe { bpf_get_prandom_u32() };
            slot(frontend, random % frontend.count.max(1)).unwrap_or(0)
        }
    };
    // Backends come before slots, and slots before frontends: there always is one.
    let Some(backend) = backend::<F>(number) else {
        return Err(Drop::because(DropReason::NoBackend));
    };
    if sticky {
        let key = AffinityKey {
            client: client.address,
            service: frontend.service,
        };
        let value = Affinity {
            backend: number,
            used: client.now,
        };
        // Not remembering is as mild as having forgotten.
        let _ = F::affinity().insert(key, value, u64::from(BPF_ANY));
    }
    Ok(Choice {
        address: backend.address,
        port: backend.port,
        backend: number,
    })
}

/// The backend that this client had less than the affinity's duration ago, if it still gets new flows.
#[inline(always)]
fn affine<F: Family>(frontend: &Frontend, client: &Client<F::Addr>) -> Option<Choice<F::Addr>> {
    let key = AffinityKey {
        client: client.address,
        service: frontend.service,
    };
    lookups::count(Table::Services);
    // SAFETY: entries are plain data in preallocated slots, valid for the program's run; one that is
    // reused meanwhile is another client's plain data.
    let affinity = unsafe { &mut *F::affinity().get_ptr_mut(key)? };
    let age = clock::since(client.now, affinity.used) / client.ticks_per_second.max(1);
    if age >= frontend.affinity_seconds {
        return None;
    }
    let number = affinity.backend;
    let backend = backend::<F>(number)?;
    if backend.service != frontend.service || backend.flags & list(frontend) == 0 {
        return None;
    }
    affinity.used = client.now;
    Some(Choice {
        address: backend.address,
        port: backend.port,
        backend: number,
    })
}

/// The bit of the backends that are in the frontend's list.
#[inline(always)]
fn list(frontend: &Frontend) -> u16 {
    if frontend.first == LOCAL_SLOTS {
        BACKEND_LOCAL
    } else {
        BACKEND_CLUSTER
    }
}

/// The backend of a place in the Maglev table, if it still gets new flows: every node finds the same.
#[inline(always)]
fn by_hash<F: Family>(frontend: &Frontend, hash: u32) -> Option<u32> {
    let entry = hash % frontend.table.max(1);
    let key = MaglevKey {
        service: frontend.service,
        block: entry / MAGLEV_BLOCK as u32,
    };
    lookups::count(Table::Services);
    // SAFETY: read at once and not kept across map changes of this program.
    let block = unsafe { MAGLEV.get(key) }?;
    let number = block.backends[entry as usize % MAGLEV_BLOCK];
    let backend = backend::<F>(number)?;
    let serves = backend.service == frontend.service && backend.flags & list(frontend) != 0;
    serves.then_some(number)
}

/// The number of the backend in one of the frontend's slots: `index` is below its `count`.
#[inline(always)]
fn slot(frontend: &Frontend, index: u32) -> Option<u32> {
    let key = SlotKey {
        service: frontend.service,
        slot: frontend.first + index,
    };
    lookups::count(Table::Services);
    // SAFETY: read at once and not kept across map changes of this program.
    unsafe { SLOTS.get(key) }.map(|slot| slot.backend)
}

/// The backend in one of the frontend's slots.
#[inline(always)]
pub fn at<F: Family>(frontend: &Frontend, index: u32) -> Option<Choice<F::Addr>> {
    let number = slot(frontend, index)?;
    let backend = backend::<F>(number)?;
    Some(Choice {
        address: backend.address,
        port: backend.port,
        backend: number,
    })
}

/// The backend of this number.
#[inline(always)]
pub fn backend<F: Family>(number: u32) -> Option<&'static Backend<F::Addr>> {
    lookups::count(Table::Services);
    // SAFETY: read at once and not kept across map changes of this program.
    unsafe { F::backends().get(number) }
}

/// Whether the backend of a flow's translation still serves its service; `backend_tuple` is the
/// flow as the backend sees it, client to backend.
#[inline(always)]
pub fn still_serves<F: Family>(flow: &Flow<F::Addr>, backend_tuple: &Tuple<F::Addr>) -> bool {
    match backend::<F>(flow.backend) {
        Some(backend) => {
            backend.service == flow.service
                && backend.address == backend_tuple.destination
                && backend.port == backend_tuple.destination_port
        }
        None => false,
    }
}
