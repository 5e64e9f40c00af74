//! What the agent tells every program: the epoch and the node's own facts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Addr4, Addr6};

/// [`Config::flags`]: pods that talk to the outside over IPv4 do so with their node's address.
pub const CONFIG_MASQUERADE_V4: u16 = 1;
/// [`Config::flags`]: the same for IPv6.
pub const CONFIG_MASQUERADE_V6: u16 = 2;
/// [`Config::flags`]: the uplinks' queueing discipline sends packets at their departure time (`fq`),
/// so that limits on what pods send delay packets instead of dropping them.
pub const CONFIG_DEPARTURE_TIME: u16 = 4;

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
    /// The largest packet that the overlay takes, IP header included, in bytes.
    pub overlay_mtu: u32,
    /// UDP port of the overlay.
    pub overlay_port: u16,
    /// `CONFIG_` bits.
    pub flags: u16,
    /// The first source port that masquerading gives out.
    pub masquerade_first: u16,
    /// How many it gives out, from there on.
    pub masquerade_ports: u16,
    /// This node's own address (the first InternalIP of the family), with which clients from outside
    /// reach backends on other nodes through the overlay; zero: none.
    pub node_v4: Addr4,
    /// The cookie of the network namespace that the agent is in: the socket programs change what its
    /// processes do and nobody else's. 0: unknown, then it is the machine's first namespace.
    pub netns_cookie: u64,
    /// The same as `node_v4`, for IPv6.
    pub node_v6: Addr6,
    /// The number of the current backends of services, of which flows hold the lower half. The agent
    /// writes a new one after a backend is gone: then flows to services are decided again, but for
    /// connections under way, which keep theirs for as long as they live. Everything else goes on.
    pub backends_epoch: u32,
    /// Zero.
    pub reserved: u32,
}

/// Value of `uplinks`; the key is the interface's index. What leaves the node for a neighbour leaves
/// by one of these.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Uplink {
    /// What IPv4 packets of pods are masqueraded with; zero: the interface has none, and such packets
    /// do not leave by it.
    pub v4: Addr4,
    /// The same for IPv6.
    pub v6: Addr6,
    /// The largest packet that it takes, IP header included, in bytes.
    pub mtu: u32,
}
