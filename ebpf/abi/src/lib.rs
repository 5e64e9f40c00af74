//! What both sides of the kernel line agree on.
//!
//! The only crate that the datapath (`ebpf/datapath`, in the kernel) and the agent (in user space)
//! share. It owns the layout of every map key and value, the names and capacities of the maps, the
//! drop reasons, the event records, and the version of it all.
//!
//! ```text
//!   weft-core  --compiles-->  keys and values of weft-abi  <--reads/writes--  weft-datapath
//! ```
//!
//! Invariants:
//! - Every type is `repr(C)` without implicit padding and without invalid bit patterns (checked by
//!   zerocopy's derives): a hash key with uninitialised padding would silently never match.
//! - Addresses are octets in network order. Ports, ids and counters are in host order, so that
//!   `bpftool map dump` prints `8080` and not `0x901f`; the one exception is [`policy::PolicyKey`],
//!   whose port is a longest-prefix match and therefore big-endian octets.
//! - A change of any layout changes `layout.txt` and bumps [`ABI_VERSION`]: maps are pinned in a
//!   directory of that name, and an agent never opens pins of another version.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod addr;
pub mod config;
pub mod drop;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod ipcache;
pub mod maps;
pub mod policy;
pub mod service;
pub mod socket;
#[cfg(feature = "user")]
mod user;

/// Version of every layout in this crate; maps are pinned under `<bpffs>/weft/v<ABI_VERSION>/`.
pub const ABI_VERSION: u32 = 3;

/// The MAC address of the host side of every pod's veth, and so of every pod's gateway.
///
/// One constant for all pods: each veth is a network of its own, and a constant needs no map.
pub const GATEWAY_MAC: [u8; 6] = [0x0e, 0x57, 0x45, 0x46, 0x54, 0x01];

/// The MAC address of every node's VXLAN device: the inner destination of overlay frames, so that
/// the receiving stack takes them as its own.
pub const OVERLAY_MAC: [u8; 6] = [0x0e, 0x57, 0x45, 0x46, 0x54, 0x02];

/// The inner source MAC address of overlay frames. It differs from [`OVERLAY_MAC`] because the
/// kernel drops VXLAN frames whose inner source is the receiving device's own address
/// (`vxlan_set_mac` in `drivers/net/vxlan/vxlan_core.c`).
pub const OVERLAY_PEER_MAC: [u8; 6] = [0x0e, 0x57, 0x45, 0x46, 0x54, 0x03];

/// The packet mark that says to `to_overlay` that the tunnel key is already set. All 32 bits are
/// compared, and `to_overlay` clears it, so it never reaches the underlay.
pub const MARK_ENCAPSULATED: u32 = 0x5745_4654;

/// The source address that a pod sees when it reaches itself through a service (IPv4): link-local,
/// so that the reply leaves the pod and passes the datapath. Also the pod's gateway.
pub const GATEWAY_V4: addr::Addr4 = addr::Addr4::new([169, 254, 1, 1]);

/// The gateway of every pod (IPv6): link-local.
pub const GATEWAY_V6: addr::Addr6 =
    addr::Addr6::new([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// The source address that a pod sees when it reaches itself through a service (IPv6). Not the
/// gateway's: sockets take link-local addresses only together with an interface.
pub const HAIRPIN_V6: addr::Addr6 = addr::Addr6::new([
    0xfd, 0x57, 0x65, 0x66, 0x74, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
]);

/// The packet mark that says to `to_netdev` that the packet is one that Weft itself sends out of the
/// uplink. All 32 bits are compared, and `to_netdev` clears it.
pub const MARK_FORWARDED: u32 = 0x5745_4655;

/// The packet mark of a fragment that waited for its datagram's first one, and now comes again at the
/// interface where it had come in. All 32 bits are compared.
pub const MARK_RESUMED: u32 = 0x5745_4656;
