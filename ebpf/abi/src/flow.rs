//! The flow table: the one lookup that a packet of a known flow costs.
//!
//! A flow is keyed by its tuple as one packet of it carries it, order-normalised, so that both
//! directions find the same entry. A flow through a service has two entries: one under the tuple
//! that the client sends (towards the service address), one under the tuple that the backend sees.
//! Each is complete in itself: whatever packet arrives, one lookup yields the rewrite and the way.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Addr6;

/// [`Side::hop`]: unknown; a packet that needs it is decided again.
pub const HOP_NONE: u8 = 0;
/// [`Side::hop`]: a pod of this node, behind `ifindex` with `mac`.
pub const HOP_ENDPOINT: u8 = 1;
/// [`Side::hop`]: through the overlay, to `tunnel`.
pub const HOP_TUNNEL: u8 = 2;
/// [`Side::hop`]: this node's own stack (its processes, or what only it can route).
pub const HOP_HOST: u8 = 3;
/// [`Side::hop`]: out of the uplink `ifindex`, to the neighbour that the node's routes name.
pub const HOP_UPLINK: u8 = 4;

/// [`Side::limits`] has the bits of [`crate::endpoint::Endpoint::limits`].
pub use crate::endpoint::{LIMIT_EGRESS, LIMIT_INGRESS};

/// [`Side::mtu`]: no bound.
pub const MTU_ANY: u16 = u16::MAX;

/// Index of [`Flow::sides`] for the end that sorts first.
pub const LOW: usize = 0;
/// Index of [`Flow::sides`] for the end that sorts second.
pub const HIGH: usize = 1;

/// [`Side::seen`]: this end has sent.
pub const SEEN_ANY: u8 = 1;
/// [`Side::seen`]: this end has sent a TCP packet other than the opening one.
pub const SEEN_DATA: u8 = 2;
/// [`Side::seen`]: this end has sent FIN.
pub const SEEN_FIN: u8 = 4;
/// [`Side::seen`]: this end has sent RST.
pub const SEEN_RST: u8 = 8;
/// [`Side::seen`]: this end has sent an opening packet (TCP SYN, ICMP echo request). A TCP flow whose
/// initiator has not was joined midway: who opened it is a guess.
pub const SEEN_OPEN: u8 = 16;

/// [`Flow::flags`]: the entry under the client's tuple of a translated flow (to a service, or
/// masqueraded); packets of its initiator are rewritten to [`Flow::xlat`].
pub const FLOW_FRONT: u8 = 1;
/// [`Flow::flags`]: the entry under the other end's tuple of a translated flow; replies are rewritten
/// to [`Flow::xlat`].
pub const FLOW_BACK: u8 = 2;
/// [`Flow::flags`]: opened by a process of this node, whose traffic no ingress policy can stop.
pub const FLOW_OWN_NODE: u8 = 4;
/// [`Flow::flags`]: with the node's address towards the outside, instead of the pod's.
pub const FLOW_MASQUERADE: u8 = 8;

/// [`Flow::flags`]: its backend answers the client by itself: the node that the client knows forwards
/// the packets as they come, and the backend's node translates them.
pub const FLOW_DIRECT_RETURN: u8 = 16;

/// Key of `flows4` and `flows6`; `A` is the family's address.
///
/// `low` is the end with the smaller address, ports break ties. ICMP echo has the identifier as the
/// port of the end that asks and 0 as the other's, so that two pings that cross stay apart.
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
pub struct FlowKey<A> {
    /// Address of the end that sorts first.
    pub low: A,
    /// Address of the other end.
    pub high: A,
    /// Port of the end that sorts first.
    pub low_port: u16,
    /// Port of the other end.
    pub high_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Addresses and ports in the order of a packet.
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
pub struct Tuple<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// One end of a flow: how to get there from this node, and what it has sent.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Side {
    /// Bytes this end has sent, Ethernet header included.
    pub bytes: u64,
    /// Packets this end has sent (a GSO packet counts once).
    pub packets: u32,
    /// Interface of the pod's veth for `HOP_ENDPOINT`; packets of this end must come from it. The
    /// uplink for `HOP_UPLINK`; packets of this end may come from any.
    pub ifindex: u32,
    /// MAC address of the pod's interface for `HOP_ENDPOINT`; packets of this end must carry it.
    pub mac: [u8; 6],
    /// One of the `HOP_` constants.
    pub hop: u8,
    /// `SEEN_` bits.
    pub seen: u8,
    /// The largest packet that fits on the way to this end, IP header included, in bytes; [`MTU_ANY`]
    /// where nothing is in its way.
    pub mtu: u16,
    /// [`LIMIT_EGRESS`] and [`LIMIT_INGRESS`] of the pod, for `HOP_ENDPOINT`.
    pub limits: u8,
    /// Zero.
    pub reserved: [u8; 5],
    /// Underlay address for `HOP_TUNNEL`; packets of this end must come from it. For a client of
    /// [`FLOW_DIRECT_RETURN`], at the backend's node: the node that forwards its packets.
    pub tunnel: Addr6,
}

/// Value of `flows4` and `flows6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, Immutable, KnownLayout)]
pub struct Flow<A> {
    /// Both ends, [`LOW`] and [`HIGH`] as in the key.
    pub sides: [Side; 2],
    /// The epoch at which this was decided (see [`crate::config::Config::epoch`]).
    pub epoch: u32,
    /// When the last packet passed, in kernel ticks (low 32 bits of jiffies).
    pub last_seen: u32,
    /// The rule that allowed it at the sender; 0: not isolated, or not decided here.
    pub egress_rule: u32,
    /// The rule that allowed it at the receiver; 0 as above.
    pub ingress_rule: u32,
    /// The service port and backend of the translation; 0 without one.
    pub service: u32,
    /// See `service`.
    pub backend: u32,
    /// What a packet is rewritten to: for [`FLOW_FRONT`] the backend's tuple (client to backend),
    /// for [`FLOW_BACK`] the client's, reversed (service to client).
    pub xlat: Tuple<A>,
    /// The end that opened the flow: [`LOW`] or [`HIGH`].
    pub initiator: u8,
    /// `FLOW_` bits.
    pub flags: u8,
    /// The lower half of [`crate::config::Config::backends_epoch`] when this was decided.
    pub backends_epoch: u16,
}
