//! Names and capacities of the maps, and which are pinned.
//!
//! Capacities are the defaults in the ELF; the agent may override them at load
//! (`EbpfLoader::map_max_entries`) before the maps are first created.

/// Flow table entries, per family. A flow through a service takes two. About 220,000 TCP
/// connections, of which some go through services, fit.
pub const FLOWS: usize = 262_144;
/// Local endpoints, per family.
pub const ENDPOINTS: usize = 4_096;
/// Address prefixes, per family.
pub const IPCACHE: usize = 262_144;
/// Policy entries, all sets together.
pub const POLICY: usize = 262_144;
/// Service frontends, per family.
pub const FRONTENDS: usize = 65_536;
/// Service slots, both families together.
pub const SLOTS: usize = 524_288;
/// Service backends, per family.
pub const BACKENDS: usize = 524_288;
/// Blocks of Maglev tables, both families together.
pub const MAGLEV: usize = 262_144;
/// Sources that services let in, per family.
pub const SOURCE_RANGES: usize = 65_536;
/// Clients whose backend is remembered, per family.
pub const AFFINITY: usize = 65_536;
/// Uplinks of the node.
pub const UPLINKS: usize = 64;
/// Destinations that sockets of the node's own processes were led to, per family.
pub const SOCKETS: usize = 65_536;
/// Datagrams whose first fragment passed, per family.
pub const FRAGMENTS: usize = 8_192;
/// Bytes of the event ring; a power of two and a multiple of the page size.
pub const EVENTS_BYTES: usize = 256 * 1024;

/// The maps that are pinned, by the name they have in the ELF and under the pin directory.
///
/// The event ring is not: its reader is the agent that created it, and while no agent runs the
/// `drops` counters go on.
pub const PINNED: &[&str] = &[
    "config",
    "flows4",
    "flows6",
    "endpoints4",
    "endpoints6",
    "ipcache4",
    "ipcache6",
    "policy",
    "frontends4",
    "frontends6",
    "slots",
    "backends4",
    "backends6",
    "maglev",
    "source_ranges4",
    "source_ranges6",
    "affinity4",
    "affinity6",
    "uplinks",
    "bandwidth",
    "sockets4",
    "sockets6",
    "drops",
];

/// Name of the event ring.
pub const EVENTS: &str = "events";

/// The names of the programs in the ELF.
pub mod programs {
    /// Everything a pod sends: tcx ingress of the host side of its veth.
    pub const FROM_CONTAINER: &str = "from_container";
    /// What the host stack sends to a pod: tcx egress of the host side of its veth.
    pub const TO_CONTAINER: &str = "to_container";
    /// What arrives by the overlay: tcx ingress of the VXLAN device.
    pub const FROM_OVERLAY: &str = "from_overlay";
    /// What leaves by the overlay: tcx egress of the VXLAN device.
    pub const TO_OVERLAY: &str = "to_overlay";
    /// What arrives at an uplink: tcx ingress.
    pub const FROM_NETDEV: &str = "from_netdev";
    /// What leaves by an uplink: tcx egress.
    pub const TO_NETDEV: &str = "to_netdev";
    /// All of them.
    pub const ALL: &[&str] = &[
        FROM_CONTAINER,
        TO_CONTAINER,
        FROM_OVERLAY,
        TO_OVERLAY,
        FROM_NETDEV,
        TO_NETDEV,
    ];
}

/// The names of the socket programs in the ELF, which are attached to the node's root cgroup.
pub mod sockets {
    /// IPv4 `connect`.
    pub const CONNECT4: &str = "connect4";
    /// IPv6 `connect`.
    pub const CONNECT6: &str = "connect6";
    /// IPv4 `sendto` and `sendmsg` of UDP sockets.
    pub const SENDMSG4: &str = "sendmsg4";
    /// IPv6 `sendto` and `sendmsg` of UDP sockets.
    pub const SENDMSG6: &str = "sendmsg6";
    /// IPv4 `recvfrom` and `recvmsg` of UDP sockets.
    pub const RECVMSG4: &str = "recvmsg4";
    /// IPv6 `recvfrom` and `recvmsg` of UDP sockets.
    pub const RECVMSG6: &str = "recvmsg6";
    /// IPv4 `getpeername`.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// IPv6 `getpeername`.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// All of them.
    pub const ALL: &[&str] = &[
        CONNECT4,
        CONNECT6,
        SENDMSG4,
        SENDMSG6,
        RECVMSG4,
        RECVMSG6,
        GETPEERNAME4,
        GETPEERNAME6,
    ];
}
