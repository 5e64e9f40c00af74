//! Services of every kind, asked from everywhere: pods of the servers' nodes and of others, processes of
//! the nodes, the world outside; both families.
//!
//! Each test has a cluster and takes it through many states. It goes through all its checks before it
//! fails, and names each that did.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod agents;
mod cluster_ip;
mod kinds;
mod load_balancer;
mod node_port;
mod places;
mod rejects;
mod scene;
mod sctp;
mod slices;
mod sockets;
mod source_ranges;
