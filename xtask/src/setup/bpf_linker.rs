//! bpf-linker: makes one BPF ELF of rustc's bitcode, so its LLVM must not be older than rustc's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::toolchain::{Compiler, major};
use crate::{debian::relink, process, workspace::Workspace};

const VERSION: &str = "0.13.0";

/// A usable bpf-linker: ours, else the one on PATH, else built now.
pub fn ensure(workspace: &Workspace, compiler: &Compiler) -> Result<PathBuf> {
    let ours = workspace.tools().join("bin/bpf-linker");
    for candidate in [ours.clone(), PathBuf::from("bpf-linker")] {
        if llvm_of(&candidate).is_some_and(|llvm| llvm >= compiler.llvm) {
            return Ok(candidate);
        }
    }
    process::step(format!(
        "building bpf-linker {VERSION} against rustc's own LLVM {} (a minute or two)",
        compiler.llvm
    ));
    build(&workspace.tools(), compiler).with_context(|| {
        format!(
            "no bpf-linker with LLVM {} on PATH, and it cannot be built",
            compiler.llvm
        )
    })?;
    ensure!(
        llvm_of(&ours) == Some(compiler.llvm),
        "the built {} does not run with LLVM {}",
        ours.display(),
        compiler.llvm
    );
    Ok(ours)
}

/// The major version of the LLVM in a linker; none when there is no such linker or it does not run.
fn llvm_of(linker: &Path) -> Option<u32> {
    // LLVM's own option parser answers this before any input is read.
    let output = Command::new(linker)
        .args(["--llvm-args=--version", "--output=/dev/null", "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    llvm_version(&String::from_utf8(output.stdout).ok()?)
}

fn llvm_version(text: &str) -> Option<u32> {
    text.lines()
        .find_map(|line| major(line.trim().strip_prefix("LLVM version ")?))
}

fn build(tools: &Path, compiler: &Compiler) -> Result<()> {
    let prefix = tools.join("llvm");
    fs::create_dir_all(prefix.join("lib64"))
        .with_context(|| format!("cannot create {}", prefix.display()))?;
    let lib = compiler.sysroot.join("lib");
    relink(&shared_llvm(&lib)?, &prefix.join("lib64/libLLVM.so"))?;
    let build = tools.join("build");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::run(
        Command::new(cargo)
            .args([
                "install",
                "bpf-linker",
                "--version",
                VERSION,
                "--locked",
                "--force",
                "--quiet",
            ])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{}", compiler.llvm),
            ])
            .arg("--root")
            .arg(tools)
            .arg("--target-dir")
            .arg(&build)
            .env("LLVM_PREFIX", &prefix)
            .env(
                "RUSTFLAGS",
                format!("-C link-arg=-Wl,-rpath,{}", lib.display()),
            )
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

/// The LLVM library that rustc itself uses.
fn shared_llvm(lib: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(lib).with_context(|| format!("cannot read {}", lib.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libLLVM.so"))
        })
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(library), true) => Ok(library),
        (None, _) => bail!(
            "{} has no libLLVM.so.*: install a bpf-linker on PATH instead (its releases have \
             prebuilt ones)",
            lib.display()
        ),
        (Some(_), false) => bail!("{} has more than one libLLVM.so.*", lib.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_tells_its_llvm() {
        let text = "LLVM (http://llvm.org/):\n  LLVM version 22.1.2-rust-1.95.0-stable\n";
        assert_eq!(llvm_version(text), Some(22));
        assert_eq!(llvm_version("error: unexpected argument\n"), None);
    }

    #[test]
    fn a_missing_linker_is_no_linker() {
        assert_eq!(llvm_of(Path::new("/nonexistent/bpf-linker")), None);
    }
}
