//! The standard library's source, from which `core` is built for the BPF target.
//!
//! rustup has it; where rustup cannot download, Debian carries the same releases.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::toolchain::Compiler;
use crate::{debian::Archive, process, workspace::Workspace};

/// The suite of Debian that carries current compilers.
const SUITE: &str = "trixie-backports";

/// How long rustup may try before Debian is asked.
const RUSTUP_PATIENCE: Duration = Duration::from_secs(180);

/// Brings the source, unless it is there.
pub fn ensure(workspace: &Workspace, compiler: &Compiler) -> Result<()> {
    let library = compiler.library_source();
    if is_complete(&library) {
        return Ok(());
    }
    process::step(format!(
        "rust-src {} is missing: asking rustup",
        compiler.release
    ));
    let rustup = process::run_within(
        Command::new("rustup")
            .args(["component", "add", "rust-src"])
            .current_dir(workspace.root()),
        RUSTUP_PATIENCE,
    );
    if rustup.is_ok() && is_complete(&library) {
        return Ok(());
    }
    if let Err(error) = rustup {
        eprintln!("xtask: {error:#}");
    }
    process::step(format!("rustup did not bring it: asking Debian ({SUITE})"));
    from_debian(workspace, compiler, &library).with_context(|| {
        format!(
            "rust-src {} is missing and could not be fetched; with the network, `rustup component \
             add rust-src` brings it (to {})",
            compiler.release,
            library.display()
        )
    })
}

/// The lock file is what `build-std` reads first, and what an interrupted copy would lack.
fn is_complete(library: &Path) -> bool {
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}

fn from_debian(workspace: &Workspace, compiler: &Compiler, library: &Path) -> Result<()> {
    let archive = Archive::open(&workspace.downloads().join("rust-src"), &[SUITE])?;
    let versions = archive.versions("rust-src")?;
    // Debian's `1.95.0+dfsg1-1~bpo13+1` is the compiler's `1.95.0`.
    let version = versions
        .iter()
        .find(|version| version.split(['+', '-', '~']).next() == Some(compiler.release.as_str()))
        .with_context(|| {
            format!(
                "{SUITE} has rust-src {versions:?}, not {}",
                compiler.release
            )
        })?;
    process::step(format!("fetching rust-src {version}"));
    let unpacked = workspace.downloads().join("rust-src/unpacked");
    archive.unpack("rust-src", version, &unpacked)?;
    let source = unpacked.join(format!("usr/src/rustc-{}/library", compiler.release));
    ensure!(
        is_complete(&source),
        "the package has no library in {}",
        source.display()
    );
    install(&source, library)?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
}

/// Copies beside the destination and renames, so that a half-made copy is never taken for whole.
fn install(source: &Path, library: &Path) -> Result<()> {
    let staging = PathBuf::from(format!("{}.{}", library.display(), std::process::id()));
    let parent = library.parent().context("the sysroot has no parent")?;
    fs::create_dir_all(parent)
        .with_context(|| format!("cannot create {} (is it writable?)", parent.display()))?;
    process::run(Command::new("cp").arg("-a").arg(source).arg(&staging))?;
    if library.exists() {
        fs::remove_dir_all(library)
            .with_context(|| format!("cannot replace {}", library.display()))?;
    }
    fs::rename(&staging, library).with_context(|| format!("cannot place {}", library.display()))
}
