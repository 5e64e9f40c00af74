//! Local endpoints: the pods of this node, keyed by their address.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`Endpoint::enforce`]: the endpoint's ingress is decided by its policy set.
pub const ENFORCE_INGRESS: u8 = 1;
/// [`Endpoint::enforce`]: the endpoint's egress is decided by its policy set.
pub const ENFORCE_EGRESS: u8 = 2;

/// Value of `endpoints4` and `endpoints6`; the key is the pod's address.
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
pub struct Endpoint {
    /// Interface index of the host side of the pod's veth.
    pub ifindex: u32,
    /// The policy set that decides this endpoint's traffic; 0: not programmed yet, nothing passes
    /// but the own node's traffic.
    pub policy_set: u32,
    /// The address's identity, as in the ipcache, to save the lookup.
    pub identity: u32,
    /// MAC address of the pod's interface.
    pub mac: [u8; 6],
    /// [`ENFORCE_INGRESS`] and [`ENFORCE_EGRESS`]; a direction without its bit is not isolated.
    pub enforce: u8,
    /// Zero.
    pub reserved: u8,
}
