//! The shipped ELF on single packets: what each program does with them, and what it remembers.
//!
//! Maps are filled by the real compiler from the manifests of `weft_tests::packet::scene`. Every
//! packet that goes on has its checksums proven by `Verdict::packet`. `cargo xtask vm` runs this same
//! program on other kernels.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod departure;
mod eviction;
mod fragments;
mod fuzz;
mod hostile;
mod hostile_uplink;
mod hostport;
mod icmp;
mod input;
mod mtu;
mod paths;
mod policy;
mod services;
mod sockets;
mod support;
mod uplink;
mod v6;
mod wire;
