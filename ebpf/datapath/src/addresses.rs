//! Where an address is: a local endpoint, another node, this node, the outside.

use aya_ebpf::btf_maps::lpm_trie::Key;
use weft_abi::{
    endpoint::Endpoint,
    flow::{HOP_ENDPOINT, HOP_HOST, HOP_TUNNEL, Side},
    ipcache::{IDENTITY_NONE, IpcacheEntry, KIND_REMOTE_NODE, KIND_REMOTE_POD, KIND_WORLD},
};

use crate::{
    family::Family,
    lookups::{self, Table},
};

/// One end of a flow while it is decided: how to reach it, and what policy knows of it.
#[derive(Clone, Copy)]
pub struct End {
    /// How to reach it; what it has sent so far is filled in later.
    pub side: Side,
    /// The policy set, for a local endpoint; 0: not programmed.
    pub policy_set: u32,
    /// The identity that the other end's policy sees.
    pub identity: u32,
    /// The ipcache's kind, for what is not a local endpoint.
    pub kind: u8,
    /// The endpoint's `ENFORCE_` bits.
    pub enforce: u8,
}

impl End {
    /// Makes it a local endpoint.
    #[inline(always)]
    pub fn set_endpoint(&mut self, endpoint: &Endpoint) {
        self.side = Side {
            hop: HOP_ENDPOINT,
            ifindex: endpoint.ifindex,
            mac: endpoint.mac,
            ..Side::default()
        };
        self.policy_set = endpoint.policy_set;
        self.identity = endpoint.identity;
        self.kind = KIND_WORLD;
        self.enforce = endpoint.enforce;
    }

    /// Makes it what the ipcache knows of an address that is no local endpoint's; the host stack
    /// reaches whatever is not behind the overlay.
    #[inline(always)]
    pub fn set_elsewhere<F: Family>(&mut self, address: F::Addr) {
        self.side = Side {
            hop: HOP_HOST,
            ..Side::default()
        };
        self.policy_set = 0;
        self.identity = IDENTITY_NONE;
        self.kind = KIND_WORLD;
        self.enforce = 0;
        if let Some(entry) = ipcache::<F>(address) {
            self.identity = entry.identity;
            self.kind = entry.kind;
            if entry.kind == KIND_REMOTE_POD || entry.kind == KIND_REMOTE_NODE {
                self.side.hop = HOP_TUNNEL;
                self.side.tunnel = entry.tunnel;
            }
        }
    }

    /// Makes it whatever has this address.
    #[inline(always)]
    pub fn locate<F: Family>(&mut self, address: F::Addr) {
        match endpoint::<F>(address) {
            Some(endpoint) => self.set_endpoint(endpoint),
            None => self.set_elsewhere::<F>(address),
        }
    }

    /// Whether it is a local endpoint.
    #[inline(always)]
    pub fn is_endpoint(&self) -> bool {
        self.side.hop == HOP_ENDPOINT
    }
}

/// The local endpoint with this address.
#[inline(always)]
pub fn endpoint<F: Family>(address: F::Addr) -> Option<&'static Endpoint> {
    lookups::count(Table::Endpoints);
    // SAFETY: read at once and not kept across map changes of this program.
    unsafe { F::endpoints().get(address) }
}

/// The ipcache entry of the longest prefix that covers this address.
#[inline(always)]
pub fn ipcache<F: Family>(address: F::Addr) -> Option<&'static IpcacheEntry> {
    lookups::count(Table::Ipcache);
    F::ipcache().get(&Key::new(F::BITS, address))
}
