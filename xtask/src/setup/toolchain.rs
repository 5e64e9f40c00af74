//! The compiler in use: its release, its LLVM and where it is.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// The compiler that `rust-toolchain.toml` selects.
#[derive(Debug, PartialEq, Eq)]
pub struct Compiler {
    /// For example `1.95.0`.
    pub release: String,
    /// LLVM's major version.
    pub llvm: u32,
    /// The toolchain's directory.
    pub sysroot: PathBuf,
}

impl Compiler {
    /// Asks `rustc`, in the workspace's root, so that its toolchain file counts.
    pub fn ask(root: &Path) -> Result<Self> {
        let rustc = |arguments: &[&str]| {
            let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            process::output(Command::new(program).args(arguments).current_dir(root))
        };
        Self::parse(&rustc(&["-vV"])?, &rustc(&["--print", "sysroot"])?)
    }

    fn parse(version: &str, sysroot: &str) -> Result<Self> {
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("`rustc -vV` has no line `{name}`"))
        };
        Ok(Self {
            release: field("release")?.to_owned(),
            llvm: major(field("LLVM version")?)
                .context("`rustc -vV` has a strange LLVM version")?,
            sysroot: sysroot.trim_end().into(),
        })
    }

    /// Where the standard library's source belongs.
    pub fn library_source(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }
}

/// The major of a version such as `22.1.2-rust-1.95.0-stable`.
pub fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_describes_itself() {
        let version =
            "rustc 1.95.0 (59807616e 2026-04-14)\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        let compiler = Compiler::parse(version, "/toolchain\n").expect("a complete description");
        assert_eq!(
            compiler,
            Compiler {
                release: "1.95.0".into(),
                llvm: 22,
                sysroot: "/toolchain".into()
            }
        );
        assert!(Compiler::parse("release: 1.95.0\n", "/toolchain").is_err());
    }
}
