//! Packet tests: the shipped ELF, run by the kernel on packets of ours.
//!
//! A [`Lab`] is one node without a network: the programs loaded unpinned, their maps filled by the
//! real compiler from Kubernetes objects, and `BPF_PROG_TEST_RUN` to push a packet through a program
//! and see what it became. It needs no tools and no names in the file system, so that the same tests
//! run on any machine and in `cargo xtask vm`.
//!
//! What `BPF_PROG_TEST_RUN` cannot show is left to the end-to-end tests: redirects are answered with
//! their code and not carried out, and packets have no tunnel metadata, so `from_overlay` takes none.

pub mod bytes;
mod lab;
pub mod scene;
mod world;

pub use lab::{Context, Lab, Verdict};
pub use world::{Cluster, LocalPod};
