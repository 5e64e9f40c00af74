//! Services: frontends, slots and backends.
//!
//! A selection is three lookups: the frontend, one of its slots, the slot's backend. What a frontend
//! asks for besides costs one more each: the sources that it lets in, the backend that the client had
//! before, the place in a Maglev table instead of a random slot.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`FrontendKey::scope`]: the frontend as traffic from inside the cluster sees it.
pub const SCOPE_INTERNAL: u8 = 0;
/// [`FrontendKey::scope`]: as traffic from outside sees it (NodePort, load balancer).
pub const SCOPE_EXTERNAL: u8 = 1;
/// [`FrontendKey::scope`]: as what another node forwards for a client from outside sees it
/// ([`FRONTEND_DIRECT_RETURN`]). Only this node's backends count then; address zero is every address
/// of other nodes.
pub const SCOPE_FORWARDED: u8 = 2;

/// [`FrontendKey::address`] zero is every address at which this node has its NodePorts: those with
/// [`crate::ipcache::IPCACHE_NODEPORT`]. An entry with the address itself goes before it.
///
/// [`FrontendKey::port`] and [`FrontendKey::protocol`] zero is a cluster IP as such: what goes to a
/// port of it that no entry names is rejected.
pub const ANY_PORT: u16 = 0;

/// [`Frontend::flags`]: its slots are those of the node's own backends (the traffic policy `Local`).
pub const FRONTEND_LOCAL_ONLY: u8 = 1;
/// [`Frontend::flags`]: the same client gets the same backend for `affinity_seconds`.
pub const FRONTEND_AFFINITY: u8 = 2;
/// [`Frontend::flags`]: without a slot, the client is told (TCP RST, ICMP port unreachable); else it
/// gets silence.
pub const FRONTEND_REJECT: u8 = 4;
/// [`Frontend::flags`]: only sources that `source_ranges4` or `source_ranges6` has for this service
/// are let in.
pub const FRONTEND_SOURCE_RANGES: u8 = 8;
/// [`Frontend::flags`]: the node's own processes are not let in: none of its addresses is in the
/// source ranges.
pub const FRONTEND_REFUSES_NODE: u8 = 16;
/// [`Frontend::flags`]: a remote backend answers clients from outside by itself, with the service's
/// address (direct server return); else it answers this node, whose address it sees.
pub const FRONTEND_DIRECT_RETURN: u8 = 32;

/// The slots of the backends on this node begin here, those of all usable backends at 0. Two lists,
/// because neither contains the other: topology hints restrict the one and not the other, and each
/// falls back to its own terminating backends.
pub const LOCAL_SLOTS: u32 = 1 << 31;

/// [`Backend::flags`]: new flows of the cluster-wide list may get it.
pub const BACKEND_CLUSTER: u16 = 1;
/// [`Backend::flags`]: new flows of the node's own list may get it.
pub const BACKEND_LOCAL: u16 = 2;

/// Backends in one entry of the Maglev table.
pub const MAGLEV_BLOCK: usize = 64;

/// Key of `frontends4` and `frontends6`; `A` is the family's address.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    Immutable,
    KnownLayout,
)]
pub struct FrontendKey<A> {
    /// The service's address; zero: see [`ANY_PORT`].
    pub address: A,
    /// The service's port.
    pub port: u16,
    /// IP protocol number. A protocol that a service port does not list has no entry.
    pub protocol: u8,
    /// One of the `SCOPE_` constants.
    pub scope: u8,
}

/// Value of `frontends4` and `frontends6`.
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
pub struct Frontend {
    /// The service port's number: the first half of a [`SlotKey`].
    pub service: u32,
    /// Its first slot: 0 or [`LOCAL_SLOTS`].
    pub first: u32,
    /// How many slots it has, from there on; 0: no usable backend.
    pub count: u32,
    /// How many entries its Maglev table has; 0: a slot is chosen at random.
    pub table: u32,
    /// Duration of the session affinity, in seconds; 0 without.
    pub affinity_seconds: u32,
    /// `FRONTEND_` bits.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Key of `slots`.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct SlotKey {
    /// [`Frontend::service`].
    pub service: u32,
    /// From 0 on, or from [`LOCAL_SLOTS`] on.
    pub slot: u32,
}

/// Value of `slots`.
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
pub struct Slot {
    /// Key of the backend.
    pub backend: u32,
}

/// Value of `backends4` and `backends6`; the key is the backend's number, which it keeps for life
/// and which belongs to one service port, so that "does this flow's backend still serve its
/// service" is one lookup.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, FromBytes, Immutable, KnownLayout,
)]
pub struct Backend<A> {
    /// The backend's address.
    pub address: A,
    /// The service port it serves.
    pub service: u32,
    /// The backend's port.
    pub port: u16,
    /// `BACKEND_` bits. None: it serves the connections that it has, and gets no new ones.
    pub flags: u16,
}

/// Key of `maglev`: the table of a service port, in blocks.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct MaglevKey {
    /// [`Frontend::service`].
    pub service: u32,
    /// The number of an entry, divided by [`MAGLEV_BLOCK`].
    pub block: u32,
}

/// Value of `maglev`: the keys of the backends of [`MAGLEV_BLOCK`] consecutive entries; 0 beyond the
/// last one.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct MaglevBlock {
    /// Keys of backends.
    pub backends: [u32; MAGLEV_BLOCK],
}

/// Data of the keys of `source_ranges4` and `source_ranges6`: who may use a service port, as prefixes.
/// The service always matches in full; a match lets in, whatever its value.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    Immutable,
    KnownLayout,
)]
pub struct SourceRange<A> {
    /// [`Frontend::service`].
    pub service: u32,
    /// The source's address.
    pub address: A,
}

/// Bits of a [`SourceRange`] before the address.
pub const SOURCE_RANGE_PREFIX: u32 = 32;

/// Key of `affinity4` and `affinity6`.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    Immutable,
    KnownLayout,
)]
pub struct AffinityKey<A> {
    /// The client's address; zero: the node's own processes.
    pub client: A,
    /// [`Frontend::service`]: whatever address of it the client used.
    pub service: u32,
}

/// Value of `affinity4` and `affinity6`; written by the programs.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Affinity {
    /// Key of the backend.
    pub backend: u32,
    /// When the client last opened a flow, in kernel ticks.
    pub used: u32,
}
