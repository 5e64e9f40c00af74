//! Local endpoints: the pods of this node, keyed by their address.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`Endpoint::enforce`]: the endpoint's ingress is decided by its policy set.
pub const ENFORCE_INGRESS: u8 = 1;
/// [`Endpoint::enforce`]: the endpoint's egress is decided by its policy set.
pub const ENFORCE_EGRESS: u8 = 2;

/// [`Endpoint::limits`]: `bandwidth` has a limit on what the endpoint sends.
pub const LIMIT_EGRESS: u8 = 1;
/// [`Endpoint::limits`]: `bandwidth` has a limit on what the endpoint receives.
pub const LIMIT_INGRESS: u8 = 2;

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
    /// [`LIMIT_EGRESS`] and [`LIMIT_INGRESS`].
    pub limits: u8,
}

/// A token bucket: what may pass is `bytes_per_second` in the long run, and `burst` bytes at once.
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
pub struct Bucket {
    /// Bytes per second, Ethernet header included; 0: no limit.
    pub bytes_per_second: u64,
    /// Bytes that may pass at once after a pause. Where packets are dropped and not delayed, less than
    /// the rate of 250 ms counts as that: TCP would stay far below the rate otherwise.
    pub burst: u64,
    /// Kernel monotonic time in nanoseconds at which the bucket will be full again. Written by the
    /// programs; the agent writes 0.
    pub full_at: u64,
}

/// Value of `bandwidth`; the key is [`Endpoint::ifindex`].
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
pub struct Bandwidth {
    /// What the endpoint sends.
    pub egress: Bucket,
    /// What it receives.
    pub ingress: Bucket,
}
