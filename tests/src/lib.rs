//! What Weft is tested with: the playground (a cluster of network namespaces with an embedded
//! Kubernetes API), the packet lab, the demonstration and the benchmarks.

pub mod api;
pub mod bench;
pub mod controllers;
pub mod demo;
mod interrupt;
pub mod netns;
pub mod packet;
pub mod playground;
