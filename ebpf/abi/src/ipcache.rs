//! What is known about an address that is not a local endpoint: its identity and the way there.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Addr6;

/// [`IpcacheEntry::kind`]: outside the cluster, or nothing known; the host stack routes it.
pub const KIND_WORLD: u8 = 0;
/// [`IpcacheEntry::kind`]: a pod network or pod of another node, reached through `tunnel` or
/// by the node's routes.
pub const KIND_REMOTE_POD: u8 = 1;
/// [`IpcacheEntry::kind`]: another node's own address, reached through `tunnel` or by
/// the node's routes.
pub const KIND_REMOTE_NODE: u8 = 2;
/// [`IpcacheEntry::kind`]: an address of this node itself; the host stack takes it.
pub const KIND_HOST: u8 = 3;
/// [`IpcacheEntry::kind`]: this node's pod network; an address in it without an endpoint is no pod.
/// Also a pod network that nothing leads to: no packet may go there, or claim to come from there.
pub const KIND_LOCAL_POD: u8 = 4;

/// [`IpcacheEntry::kind`]: a network of cluster IPs (a ServiceCIDR). What is no service's there leads
/// nowhere.
pub const KIND_SERVICE: u8 = 5;

/// [`IpcacheEntry::flags`]: pods talk to it with their own addresses, although it is outside.
pub const IPCACHE_NO_MASQUERADE: u8 = 1;
/// [`IpcacheEntry::flags`]: this node has its NodePorts at this address of its own.
pub const IPCACHE_NODEPORT: u8 = 2;

/// The identity of an address that no local policy's peer selector matches.
pub const IDENTITY_NONE: u32 = 0;

/// Value of `ipcache4` and `ipcache6`; the key is an address prefix, the longest match counts.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct IpcacheEntry {
    /// The set of local policies' peer selectors that match the address, as a number;
    /// [`IDENTITY_NONE`] if none does.
    pub identity: u32,
    /// One of the `KIND_` constants.
    pub kind: u8,
    /// `IPCACHE_` bits.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Underlay address of the node that has it, for the remote kinds, where the overlay leads
    /// there; zero where the node's own routes do, as always in native routing.
    pub tunnel: Addr6,
}
