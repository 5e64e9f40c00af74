//! The agent's side of CNI: pods' interfaces come and go here.
//!
//! ```text
//!   weft-cni --unix socket--> [server] --> [attachments]: ADD, DEL
//!                                              |-- ipam, netlink, bpf::attach, endpoints
//!                                              `-- waits for the reconcile loop: policy first
//!   [restore]   at start: what is there against what was written down
//!   [install]   the plugin and its configuration, for the container runtime
//! ```

pub mod attachments;
pub mod install;
pub mod locks;
pub mod restore;
pub mod server;
