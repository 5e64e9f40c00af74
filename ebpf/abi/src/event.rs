//! Records of the `events` ring buffer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Addr6;

/// One dropped packet, as it came: what goes to a service shows the service's address, because a
/// packet is judged before it is rewritten.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DropEvent {
    /// Kernel monotonic time, nanoseconds.
    pub time: u64,
    /// Source address (IPv4 in mapped form).
    pub source: Addr6,
    /// Destination address (IPv4 in mapped form).
    pub destination: Addr6,
    /// Source port, host order; for ICMP echo the identifier.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// The rule that decided, for policy drops; else 0.
    pub rule: u32,
    /// Interface at which the program ran.
    pub ifindex: u32,
    /// Length of the packet in bytes, Ethernet header included.
    pub length: u32,
    /// Number of the [`crate::drop::DropReason`].
    pub reason: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// The program that dropped it: one of the `POINT_` constants.
    pub point: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// [`DropEvent::point`]: `from_container`.
pub const POINT_FROM_CONTAINER: u8 = 1;
/// [`DropEvent::point`]: `to_container`.
pub const POINT_TO_CONTAINER: u8 = 2;
/// [`DropEvent::point`]: `from_overlay`.
pub const POINT_FROM_OVERLAY: u8 = 3;
/// [`DropEvent::point`]: `to_overlay`.
pub const POINT_TO_OVERLAY: u8 = 4;

/// [`DropEvent::point`]: `from_netdev`.
pub const POINT_FROM_NETDEV: u8 = 5;
/// [`DropEvent::point`]: `to_netdev`.
pub const POINT_TO_NETDEV: u8 = 6;

/// The program's name for a `POINT_` constant.
#[must_use]
pub const fn point_name(point: u8) -> &'static str {
    match point {
        POINT_FROM_CONTAINER => "from_container",
        POINT_TO_CONTAINER => "to_container",
        POINT_FROM_OVERLAY => "from_overlay",
        POINT_TO_OVERLAY => "to_overlay",
        POINT_FROM_NETDEV => "from_netdev",
        POINT_TO_NETDEV => "to_netdev",
        _ => "unknown",
    }
}
