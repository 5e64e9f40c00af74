//! Packet tests: the shipped ELF, run by the kernel on packets of ours.
//!
//! There are two kinds of lab, both one node in network namespaces of their own, with maps filled by
//! the real compiler from Kubernetes objects:
//!
//! - a [`Lab`] pushes a packet through one program (`BPF_PROG_TEST_RUN`) and sees what it became.
//!   Redirects are answered with their code and not carried out, and packets have no tunnel metadata;
//! - a [`Wire`] has the programs attached, and real frames on real interfaces: what leaves a pod is
//!   seen where it arrives, in another pod or outside, and the overlay is a VXLAN device.
//!
//! They need no tools and no names in the file system, so that the same tests run on any machine and
//! in `cargo xtask vm`.

pub mod bytes;
mod cgroup;
mod ends;
mod family;
mod flows;
pub mod frames;
mod interfaces;
mod lab;
pub mod scene;
pub mod services;
mod tap;
mod wire;
mod world;

pub use cgroup::Sockets;
pub use ends::Ends;
pub use family::{FAMILIES, Family, Place, Somewhere};
pub use flows::FlowEntry;
pub use interfaces::{OVERLAY_MTU, OVERLAY_PORT, ROUTER_MAC, UPLINK_MAC, UPLINK_MTU};
pub use lab::{Context, Lab, MASQUERADE_FIRST, MASQUERADE_PORTS, Setup, Verdict};
pub use wire::{Overlay, Wire};
pub use world::{Cluster, LocalPod};
