//! The node agent: everything with effects. What the maps should hold is decided by `weft-core`.
//!
//! ```text
//!   Kubernetes API --[watch]--> typed state --.
//!                                             |-- [reconcile]: compile, diff, apply --> [bpf] maps
//!   weft-cni --[cni]--> [ipam], [netlink], [endpoints] --'
//!                                             |
//!   weft-agent status ... --[status]----------'
//! ```
//!
//! Invariants:
//! - The datapath does not need the agent: maps and links are pinned, state is on disk, and the
//!   agent can be killed at any instruction.
//! - Only [`bpf`] and [`netlink`] talk to the kernel about packets.

pub mod backoff;
pub mod bpf;
pub mod cleanup;
pub mod cli;
pub mod cni;
pub mod config;
pub mod endpoints;
pub mod errors;
pub mod health;
pub mod ipam;
pub mod metrics;
pub mod netlink;
pub mod node;
pub mod persist;
pub mod reconcile;
pub mod run;
pub mod status;
pub mod watch;
