//! Interfaces, addresses, routes and neighbours, on the node and in pods.
//!
//! ```text
//!  [socket]    one netlink socket per network namespace, and the few requests that Weft makes
//!    |-- [overlay]   the VXLAN device
//!    |-- [routes]    routes to the other nodes' pods: dump, diff, apply
//!    |-- [veth]      a pod's interface pair, both ends
//!    |-- [uplinks]   by which interfaces packets leave the node, their MTUs and addresses
//!    |-- [qdisc]     whether an uplink sends packets at their departure times
//!    `-- [monitor]   tells when somebody changes any of it
//!  [filters], [look], [ours]   what there is, for checks and cleanup
//!  [diag]      sockets of the node's own processes; [raw], netlink for what rtnetlink does not speak
//!  [leftovers] what kube-proxy left
//!  [sysctl]    the kernel settings that forwarding needs
//!  [reserved]  the ports that the node's own sockets must not pick
//! ```
//!
//! Everything here is idempotent: each function looks at what is there and changes what differs, so
//! that it can run at every start and after every failure.

pub mod diag;
pub mod filters;
pub mod leftovers;
pub mod look;
pub mod monitor;
pub mod netns;
pub mod ours;
pub mod overlay;
pub mod qdisc;
mod raw;
pub mod reserved;
pub mod routes;
pub mod socket;
pub mod sysctl;
pub mod uplinks;
pub mod veth;

pub use netns::NetNs;
pub use socket::{Link, Netlink, NetlinkError};

/// The route protocol number of Weft's routes: what `ip route show proto 87` lists, and what tells
/// our routes from everybody else's.
pub const ROUTE_PROTOCOL: u8 = 87;
