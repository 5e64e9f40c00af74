//! Where an address is: a local endpoint, another node, this node, the outside.

use aya_ebpf::{
    btf_maps::{HashMap, lpm_trie::Key},
    macros::btf_map,
};
use weft_abi::{
    addr::Addr6,
    config::{Config, Uplink},
    endpoint::Endpoint,
    flow::{HOP_ENDPOINT, HOP_HOST, HOP_TUNNEL, HOP_UPLINK, MTU_ANY, Side},
    ipcache::{IDENTITY_NONE, IpcacheEntry, KIND_REMOTE_NODE, KIND_REMOTE_POD, KIND_WORLD},
    maps,
};

use crate::{
    family::{Family, ON_DEMAND, V4, V6},
    lookups::{self, Table},
};

/// The node's uplinks, by interface index.
#[btf_map(name = "uplinks")]
static UPLINKS: HashMap<u32, Uplink, { maps::UPLINKS }, ON_DEMAND> = HashMap::new();

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
    /// The ipcache's `IPCACHE_` bits.
    pub flags: u8,
}

impl End {
    /// Makes it a local endpoint.
    #[inline(always)]
    pub fn set_endpoint(&mut self, endpoint: &Endpoint) {
        self.side = Side {
            hop: HOP_ENDPOINT,
            ifindex: endpoint.ifindex,
            mac: endpoint.mac,
            mtu: MTU_ANY,
            limits: endpoint.limits,
            ..Side::default()
        };
        self.policy_set = endpoint.policy_set;
        self.identity = endpoint.identity;
        self.kind = KIND_WORLD;
        self.enforce = endpoint.enforce;
        self.flags = 0;
    }

    /// Makes it what the ipcache knows of an address that is no local endpoint's; the host stack
    /// reaches whatever is not behind the overlay, unless it turns out to be behind an uplink.
    #[inline(always)]
    pub fn set_elsewhere<F: Family>(&mut self, address: F::Addr, config: &Config) {
        self.set_host();
        self.policy_set = 0;
        self.identity = IDENTITY_NONE;
        self.kind = KIND_WORLD;
        self.enforce = 0;
        self.flags = 0;
        if let Some(entry) = ipcache::<F>(address) {
            self.identity = entry.identity;
            self.kind = entry.kind;
            self.flags = entry.flags;
            if leads_through_overlay(entry) {
                self.side.hop = HOP_TUNNEL;
                self.side.tunnel = entry.tunnel;
                self.side.mtu = mtu(config.overlay_mtu);
            }
        }
    }

    /// Makes it whatever has this address.
    #[inline(always)]
    pub fn locate<F: Family>(&mut self, address: F::Addr, config: &Config) {
        match endpoint::<F>(address) {
            Some(endpoint) => self.set_endpoint(endpoint),
            None => self.set_elsewhere::<F>(address, config),
        }
    }

    /// Makes the host stack the way to it.
    #[inline(always)]
    pub fn set_host(&mut self) {
        self.side = Side {
            hop: HOP_HOST,
            mtu: MTU_ANY,
            ..Side::default()
        };
    }

    /// Makes an uplink the way to it.
    #[inline(always)]
    pub fn set_uplink(&mut self, ifindex: u32, uplink: &Uplink) {
        self.side = Side {
            hop: HOP_UPLINK,
            ifindex,
            mtu: mtu(uplink.mtu),
            ..Side::default()
        };
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

/// Whether another node has this underlay address.
#[inline(always)]
pub fn is_node(address: &Addr6) -> bool {
    let entry = match address.as_mapped() {
        Some(v4) => ipcache::<V4>(v4),
        None => ipcache::<V6>(*address),
    };
    match entry {
        Some(entry) => entry.kind == KIND_REMOTE_NODE && entry.tunnel == *address,
        None => false,
    }
}

/// Whether the overlay leads to an address with this entry; else the node's own routes do.
#[inline(always)]
pub fn leads_through_overlay(entry: &IpcacheEntry) -> bool {
    (entry.kind == KIND_REMOTE_POD || entry.kind == KIND_REMOTE_NODE)
        && entry.tunnel != Addr6::new([0; 16])
}

/// The uplink of this interface index.
#[inline(always)]
pub fn uplink(ifindex: u32) -> Option<&'static Uplink> {
    // SAFETY: read at once and not kept across map changes of this program.
    unsafe { UPLINKS.get(ifindex) }
}

/// An MTU as a flow holds it.
#[inline(always)]
fn mtu(bytes: u32) -> u16 {
    if bytes < u32::from(MTU_ANY) {
        bytes as u16
    } else {
        MTU_ANY
    }
}

/// The ipcache entry of the longest prefix that covers this address.
#[inline(always)]
pub fn ipcache<F: Family>(address: F::Addr) -> Option<&'static IpcacheEntry> {
    lookups::count(Table::Ipcache);
    F::ipcache().get(&Key::new(F::BITS, address))
}
