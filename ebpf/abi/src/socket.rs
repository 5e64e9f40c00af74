//! What the socket programs remember of a socket of the node's own processes: which address the
//! process thinks that it talks to.

use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Key of `sockets4` and `sockets6`; `A` is the family's address. A socket may talk to several
/// addresses at a time (UDP without `connect`).
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
pub struct SocketKey<A> {
    /// The socket's cookie, lower half first: halves need no padding behind an IPv6 key.
    pub cookie: [u32; 2],
    /// The backend's address.
    pub address: A,
    /// The backend's port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// Value of `sockets4` and `sockets6`: what the process asked for.
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
pub struct SocketPeer<A> {
    /// The service's address.
    pub address: A,
    /// The service port's number.
    pub service: u32,
    /// The backend's number.
    pub backend: u32,
    /// The service's port.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}
