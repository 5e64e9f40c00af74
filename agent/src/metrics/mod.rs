//! Metrics: kube-proxy's by its names ([`proxy`]), and Weft's own ([`node`]).
//!
//! Invariant: telling costs the datapath nothing. Counters of packets are read out of the maps when
//! they are asked for.

pub mod configz;
pub mod node;
pub mod proxy;
pub mod server;
pub mod text;

pub use self::server::Metrics;
