//! What a fresh machine lacks: brings the toolchain's parts, and checks the kernel.

mod bpf_linker;
mod kernel;
mod rust_src;
mod toolchain;

pub use kernel::{check as kernel, is_root};

use std::path::PathBuf;

use anyhow::Result;

use crate::workspace::Workspace;

/// What building for the BPF target needs beside cargo.
pub struct Toolchain {
    /// A bpf-linker that understands this compiler's bitcode.
    pub bpf_linker: PathBuf,
}

/// Brings `rust-src` and `bpf-linker`, unless they are there.
pub fn toolchain(workspace: &Workspace) -> Result<Toolchain> {
    let compiler = toolchain::Compiler::ask(workspace.root())?;
    rust_src::ensure(workspace, &compiler)?;
    Ok(Toolchain {
        bpf_linker: bpf_linker::ensure(workspace, &compiler)?,
    })
}
