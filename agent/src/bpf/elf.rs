//! The datapath's ELF, embedded at build time (`build.rs` finds it).
//!
//! The agent is one file: what it loads into the kernel is what it was built and tested with.

/// The ELF with every program and map of the datapath, as `cargo xtask build-ebpf` left it.
///
/// Aligned, because the ELF parser reads its structures in place.
pub static DATAPATH: &[u8] = aya::include_bytes_aligned!(env!("WEFT_DATAPATH_ELF_PATH"));
