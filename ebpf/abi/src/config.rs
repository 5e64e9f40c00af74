//! What the agent tells every program: the epoch and the node's own facts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Addr6;

/// The one value of the `config` map.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Config {
    /// The number of the current decisions. The agent writes a new one after any change that can
    /// alter a decision; a flow of another epoch is decided again by its next packet. 0 is never
    /// current: it marks flows that must always be decided again.
    pub epoch: u32,
    /// Interface index of the VXLAN device; 0 until the agent made it.
    pub overlay_ifindex: u32,
    /// This node's underlay address, the outer source of overlay packets.
    pub node_address: Addr6,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Kernel ticks (jiffies) per second: the unit of every `last_seen`.
    pub ticks_per_second: u32,
}
