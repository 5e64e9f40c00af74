//! The shipped ELF on single packets: what each program does with them, and what it remembers.
//!
//! Maps are filled by the real compiler from the manifests of `weft_tests::packet::scene`. Every
//! packet that goes on has its checksums proven by `Verdict::packet`. `cargo xtask vm` runs this same
//! program on other kernels.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod affinity;
mod departure;
mod direct;
mod endpoints;
mod eviction;
mod exposed;
mod fragments;
mod fuzz;
mod hostile;
mod hostile_services;
mod hostile_uplink;
mod hostport;
mod icmp;
mod input;
mod maglev;
mod mtu;
mod paths;
mod policy;
mod reject;
mod replies;
mod services;
mod sockets;
mod support;
mod uplink;
mod v6;
mod verdicts;
mod wire;
