//! What a CNI plugin and Weft's agent say to each other, and what a CNI plugin says to its runtime.
//!
//! ```text
//!   runtime --env + stdin--> weft-cni --one JSON line--> agent
//!                            (invoke)     (protocol)
//!   runtime <----stdout----- weft-cni <--one JSON line-- agent
//!             (result, error)
//! ```
//!
//! The plugin binary is thin: it checks what it was given ([`invoke`], [`config`]), asks the agent
//! over a unix socket ([`client`]), and prints the answer in the version that the runtime asked for
//! ([`result`], [`error`]). The agent owns all state. The one thing that the plugin does by itself is
//! to keep a DEL for later when there is no agent to take it ([`queue`]): a pod must be able to go
//! while its node's agent is down.
//!
//! Invariants:
//! - Nothing that arrives from outside (environment, stdin, socket, queue file) panics or is believed
//!   without a bound on its size.
//! - Inside Weft a result always has the shape of CNI 1.1.0; older shapes exist only at the edge.
#![forbid(unsafe_code)]

pub mod client;
pub mod config;
pub mod error;
pub mod invoke;
pub mod protocol;
pub mod queue;
pub mod result;
pub mod version;

pub use config::NetConf;
pub use error::CniError;
pub use protocol::{Command, Request, Response};
pub use result::CniResult;
pub use version::Version;

/// The name of the plugin's binary, and so the `type` in the network configuration.
pub const PLUGIN_TYPE: &str = "weft-cni";
