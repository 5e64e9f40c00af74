//! The agent's side of CNI: pods' interfaces come and go here.
//!
//! ```text
//!   weft-cni --unix socket--> [server] --> [attachments]: ADD, DEL, STATUS
//!                                |             |-- [requested]: what runtimeConfig asks for
//!                                |             |-- ipam, netlink, bpf::attach, endpoints
//!                                |             |-- waits for the reconcile loop: policy first
//!                                |             `-- [answer]: the result
//!                                |-- [check]: CHECK, with [programs]: what the kernel has attached
//!                                `-- [gc]: GC, with [adding]: what it must leave alone
//!   [restore]   at start: what is there against what was written down
//!   [install]   the plugin and its configuration, for the container runtime
//! ```

pub mod adding;
pub mod answer;
pub mod attachments;
pub mod check;
pub mod gc;
pub mod install;
pub mod locks;
pub mod programs;
pub mod requested;
pub mod restore;
pub mod server;
