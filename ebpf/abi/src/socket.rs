//! What the socket programs remember of a socket of the node's own processes: which address the
//! process thinks that it talks to.

use zerocopy::{FromBytes, Immutable, KnownLayout};

/// [`SocketKey::kind`]: the key has the backend that the socket talks to, the value the service that
/// the process asked for.
pub const SOCKET_BACK: u8 = 0;
/// [`SocketKey::kind`]: the key has the service that the process asks for, the value the backend that
/// this socket's datagrams to it go to. A kind of its own, because a backend of one service may have
/// the address and port of another.
pub const SOCKET_FRONT: u8 = 1;

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
    /// The address of the backend, or of the service: see `kind`.
    pub address: A,
    /// The port of the same.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`SOCKET_BACK`] or [`SOCKET_FRONT`].
    pub kind: u8,
}

/// Value of `sockets4` and `sockets6`: the other end of the translation that the key begins.
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
    /// The address of the service, or of the backend: see [`SocketKey::kind`].
    pub address: A,
    /// The service port's number.
    pub service: u32,
    /// The backend's number.
    pub backend: u32,
    /// The port of the same.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}
