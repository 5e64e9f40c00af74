//! Where things are: the workspace's root, cargo's target directory, and what xtask makes.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;

/// The crate with the BPF programs, and its ELF.
pub const DATAPATH: &str = "weft-datapath";

/// The workspace, as `cargo metadata` describes it.
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Asks cargo where the workspace is.
    pub fn find() -> Result<Self> {
        let json = process::output(
            Command::new(cargo())
                .args(["metadata", "--format-version=1", "--no-deps"])
                .arg("--manifest-path")
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")),
        )?;
        Self::from_metadata(&json).context("cannot understand `cargo metadata`")
    }

    fn from_metadata(json: &str) -> Result<Self> {
        let metadata: Value = serde_json::from_str(json)?;
        let path = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .with_context(|| format!("no `{key}` in it"))
        };
        Ok(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
        })
    }

    /// The directory of the workspace's `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo puts host builds; `CARGO_TARGET_DIR` may have moved it out of the workspace.
    pub fn host_target(&self) -> &Path {
        &self.target
    }

    /// Tools that xtask built, as `bin/<tool>` below it.
    pub fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// Cargo's target directory for BPF builds: host builds never invalidate it.
    pub fn bpf_target(&self) -> PathBuf {
        self.root.join("target/bpf-build")
    }

    /// The datapath's ELF, where the agent's build script looks for it.
    pub fn datapath_elf(&self) -> PathBuf {
        self.root.join("target/bpf").join(DATAPATH)
    }

    /// Downloads and unpacked packages for setup.
    pub fn downloads(&self) -> PathBuf {
        self.root.join("target/downloads")
    }

    /// Kernels of virtual machines, and what they printed.
    pub fn vm(&self) -> PathBuf {
        self.root.join("target/vm")
    }

    /// `cargo <subcommand>` at the workspace's root.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(cargo());
        command.arg(subcommand).current_dir(&self.root);
        // What the cargo that runs this task says of xtask. Build scripts of some packages look at
        // it, and would run again, with all that depends on them, after every change of hands.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }
}

/// The cargo that runs this task, so that a nested one is of the same toolchain.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read() {
        let workspace = Workspace::from_metadata(
            r#"{"workspace_root": "/w", "target_directory": "/elsewhere", "packages": []}"#,
        )
        .expect("valid metadata");
        assert_eq!(workspace.host_target(), Path::new("/elsewhere"));
        assert_eq!(
            workspace.datapath_elf(),
            Path::new("/w/target/bpf/weft-datapath")
        );
    }

    #[test]
    fn metadata_without_a_root_is_an_error() {
        assert!(Workspace::from_metadata(r#"{"packages": []}"#).is_err());
    }
}
