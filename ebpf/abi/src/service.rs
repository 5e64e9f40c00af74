//! Services: frontends, slots and backends.
//!
//! A selection is three lookups: the frontend, one of its slots, the slot's backend.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`FrontendKey::scope`]: the frontend as traffic from inside the cluster sees it.
pub const SCOPE_INTERNAL: u8 = 0;
/// [`FrontendKey::scope`]: as traffic from outside sees it (NodePort, load balancer).
pub const SCOPE_EXTERNAL: u8 = 1;

/// [`Frontend::flags`]: only local backends are used (the traffic policy `Local`).
pub const FRONTEND_LOCAL_ONLY: u8 = 1;
/// [`Frontend::flags`]: the same client gets the same backend for `affinity_seconds`.
pub const FRONTEND_AFFINITY: u8 = 2;

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
    /// The service's address.
    pub address: A,
    /// The service's port.
    pub port: u16,
    /// IP protocol number. A protocol that a service port does not list has no entry.
    pub protocol: u8,
    /// [`SCOPE_INTERNAL`] or [`SCOPE_EXTERNAL`].
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
    /// Usable backends: slots 0 to count-1.
    pub count: u32,
    /// How many of them are on this node; they are the first slots.
    pub local: u32,
    /// Duration of the session affinity; 0 without.
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
    /// 0 to count-1, local backends first.
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
    /// Zero.
    pub reserved: u16,
}
