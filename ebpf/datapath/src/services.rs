//! Services: which backend serves a new flow.

use aya_ebpf::{btf_maps::HashMap, helpers::bpf_get_prandom_u32, macros::btf_map};
use weft_abi::{
    drop::DropReason,
    flow::{Flow, Tuple},
    maps,
    service::{Frontend, FrontendKey, Slot, SlotKey},
};

use crate::{
    drops::Drop,
    family::{Family, ON_DEMAND},
    lookups::{self, Table},
};

#[btf_map(name = "slots")]
static SLOTS: HashMap<SlotKey, Slot, { maps::SLOTS }, ON_DEMAND> = HashMap::new();

/// A backend chosen for a flow.
#[derive(Clone, Copy)]
pub struct Choice<A> {
    /// The backend's address.
    pub address: A,
    /// The backend's port.
    pub port: u16,
    /// The service port.
    pub service: u32,
    /// The backend's number.
    pub backend: u32,
}

/// Whether a service has this destination.
#[inline(always)]
pub fn has<F: Family>(tuple: &Tuple<F::Addr>, protocol: u8, scope: u8) -> bool {
    frontend::<F>(tuple.destination, tuple.destination_port, protocol, scope).is_some()
}

/// The backend for a new flow to this destination, as traffic of this `SCOPE_` sees it; `None` if it
/// is no service.
#[inline(always)]
pub fn select<F: Family>(
    tuple: &Tuple<F::Addr>,
    protocol: u8,
    scope: u8,
) -> Result<Option<Choice<F::Addr>>, Drop> {
    match frontend::<F>(tuple.destination, tuple.destination_port, protocol, scope) {
        Some(frontend) => choose::<F>(frontend).map(Some),
        None => Ok(None),
    }
}

/// The service port at this address, as traffic of this `SCOPE_` sees it.
#[inline(always)]
pub fn frontend<F: Family>(
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

/// One of the usable backends of a service port, at random.
#[inline(always)]
pub fn choose<F: Family>(frontend: &Frontend) -> Result<Choice<F::Addr>, Drop> {
    if frontend.count == 0 {
        return Err(Drop::because(DropReason::NoBackend));
    }
    // SAFETY: the helper takes nothing and returns a number.
    let index = unsafe { bpf_get_prandom_u32() } % frontend.count;
    backend_at::<F>(frontend, index)
}

/// The backend in one of the slots of a service port: `index` is below its `count`.
#[inline(always)]
pub fn backend_at<F: Family>(frontend: &Frontend, index: u32) -> Result<Choice<F::Addr>, Drop> {
    let (service, slot) = (frontend.service, frontend.first + index);
    lookups::count(Table::Services);
    // SAFETY: read at once and not kept across map changes of this program.
    let Some(slot) = (unsafe { SLOTS.get(SlotKey { service, slot }) }) else {
        return Err(Drop::because(DropReason::NoBackend));
    };
    lookups::count(Table::Services);
    // SAFETY: as above.
    let Some(backend) = (unsafe { F::backends().get(slot.backend) }) else {
        return Err(Drop::because(DropReason::NoBackend));
    };
    Ok(Choice {
        address: backend.address,
        port: backend.port,
        service,
        backend: slot.backend,
    })
}

/// Whether the backend of a flow's translation still serves its service; `backend_tuple` is the
/// flow as the backend sees it, client to backend.
#[inline(always)]
pub fn still_serves<F: Family>(flow: &Flow<F::Addr>, backend_tuple: &Tuple<F::Addr>) -> bool {
    lookups::count(Table::Services);
    // SAFETY: read at once and not kept across map changes of this program.
    match unsafe { F::backends().get(flow.backend) } {
        Some(backend) => {
            backend.service == flow.service
                && backend.address == backend_tuple.destination
                && backend.port == backend_tuple.destination_port
        }
        None => false,
    }
}
