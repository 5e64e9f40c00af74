//! Finds the datapath's ELF and hands its path to `src/bpf/elf.rs`.
//!
//! `cargo xtask build-ebpf` builds it: the BPF target needs another toolchain setup than the agent,
//! and a build script that ran cargo again would hide that from whoever reads a failure.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=WEFT_DATAPATH_ELF");
    println!("cargo::rerun-if-env-changed=CARGO_MANIFEST_DIR");
    let path = match std::env::var_os("WEFT_DATAPATH_ELF") {
        Some(path) => PathBuf::from(path),
        // Always below the workspace's own `target`, wherever CARGO_TARGET_DIR points. The variable
        // is read when this runs: two checkouts that share a target directory share this program.
        None => PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default())
            .join("../target/bpf/weft-datapath"),
    };
    println!("cargo::rerun-if-changed={}", path.display());
    match path.canonicalize() {
        Ok(path) => println!("cargo::rustc-env=WEFT_DATAPATH_ELF_PATH={}", path.display()),
        Err(error) => println!(
            "cargo::error=cannot read the datapath ELF {}: {error}; run `cargo xtask build-ebpf`, \
             or name another ELF in WEFT_DATAPATH_ELF",
            path.display()
        ),
    }
}
