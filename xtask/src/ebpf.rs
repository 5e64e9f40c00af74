//! Builds the datapath for the BPF target and says what came out.
//!
//! The stable compiler does it, with `RUSTC_BOOTSTRAP` for `build-std`: the target has no
//! precompiled `core`. The result is copied to a place of its own, which changes only when its
//! contents do, so that the agent is not rebuilt for nothing. DWARF is left behind: it is in the
//! original, below `target/bpf-build`, for who disassembles.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    elf,
    load::{self, Loaded},
    process,
    setup::{self, Toolchain},
    stack::{self, Chain},
    table::{self, cell},
    workspace::{DATAPATH, Workspace},
};

const TARGET: &str = "bpfel-unknown-none";

/// The instruction set: 32-bit comparisons, known to every kernel from 5.1 on. Atomics that return
/// a value are in it too; those need 5.12, so the datapath must not use them.
const CPU: &str = "v3";

/// Builds the ELF and prints it with its programs and what they cost the verifier.
pub fn build_and_report(workspace: &Workspace) -> Result<()> {
    let elf = build(workspace, &setup::toolchain(workspace)?)?;
    let costs = if setup::is_root() {
        load::report(&fs::read(&elf)?)?
    } else {
        println!("verifier: not asked, because loading programs needs root");
        Vec::new()
    };
    print!("{}", describe(&elf, &costs)?);
    check_stack(&fs::read(&elf)?)
}

/// Prints the deepest chain of calls, and fails if old kernels would refuse it.
fn check_stack(elf: &[u8]) -> Result<()> {
    let chains = stack::chains(elf)?;
    let Some(deepest) = chains.first() else {
        return Ok(());
    };
    println!(
        "stack on kernels before 6.8: {} of {} bytes, by {}",
        deepest.bytes,
        stack::LIMIT,
        calls(deepest)
    );
    let mut too_deep = chains.iter().filter(|chain| chain.bytes > stack::LIMIT);
    match too_deep.next() {
        None => Ok(()),
        Some(chain) => bail!(
            "kernels before 6.8 refuse {} and {} more: the stack would have {} bytes",
            calls(chain),
            too_deep.count(),
            chain.bytes
        ),
    }
}

/// The functions of a chain and the bytes of their frames.
fn calls(chain: &Chain) -> String {
    let frames = chain.frames.iter();
    let frames = frames.map(|(name, bytes)| format!("{name} ({bytes})"));
    frames.collect::<Vec<_>>().join(" > ")
}

/// Builds the ELF and returns where it is.
pub fn build(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    process::step("building the datapath for the BPF target");
    process::run(cargo(workspace, toolchain, "build").args(["--release", "--bin", DATAPATH]))?;
    let built = workspace
        .bpf_target()
        .join(TARGET)
        .join("release")
        .join(DATAPATH);
    let elf = workspace.datapath_elf();
    ship(&built, &elf)?;
    Ok(elf)
}

/// `cargo <subcommand>` for the datapath's crate and the BPF target.
pub fn cargo(workspace: &Workspace, toolchain: &Toolchain, subcommand: &str) -> Command {
    let flags = [
        format!("-Clinker={}", toolchain.bpf_linker.display()),
        format!("-Ctarget-cpu={CPU}"),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let mut command = workspace.cargo(subcommand);
    command
        .args([
            "--quiet",
            "--package",
            DATAPATH,
            "--target",
            TARGET,
            "-Zbuild-std=core",
        ])
        .arg("--target-dir")
        .arg(workspace.bpf_target())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS");
    command
}

/// Places the built ELF, without DWARF, for the agent to embed.
fn ship(built: &Path, elf: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let bytes = elf::without_dwarf(&bytes).with_context(|| built.display().to_string())?;
    publish(&bytes, elf)
}

/// Writes by renaming, so that a reader sees the old ELF or the new one; leaves an equal one alone.
fn publish(bytes: &[u8], elf: &Path) -> Result<()> {
    if fs::read(elf).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    let directory = elf.parent().context("the ELF's path has no parent")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let staging = directory.join(format!("{DATAPATH}.{}", std::process::id()));
    fs::write(&staging, bytes).with_context(|| format!("cannot write {}", staging.display()))?;
    fs::rename(&staging, elf).with_context(|| format!("cannot replace {}", elf.display()))
}

fn describe(elf: &Path, costs: &[Loaded]) -> Result<String> {
    let (programs, shared) = elf::programs(elf)?;
    let bytes = fs::metadata(elf)?.len();
    let rows: Vec<Vec<String>> = programs
        .iter()
        .map(|program| {
            let cost = costs.iter().find(|cost| cost.name == program.name);
            let stack = cost.and_then(|cost| cost.stack.as_ref());
            vec![
                program.name.clone(),
                program.section.clone(),
                program.instructions.to_string(),
                cell(cost.and_then(|cost| cost.translated)),
                cell(cost.map(|cost| cost.jited)),
                cell(cost.and_then(|cost| cost.verified)),
                stack.map_or_else(|| "-".to_owned(), |depths| frames(depths)),
            ]
        })
        .collect();
    let header = [
        "program",
        "section",
        "insns",
        "translated",
        "jited bytes",
        "verifier insns",
        "stack",
    ];
    Ok(format!(
        "{}: {} KiB, {} programs, {shared} instructions in shared functions\n{}",
        elf.display(),
        bytes.div_ceil(1024),
        programs.len(),
        table::render(&header, &rows)
    ))
}

/// The stack of a program and of the functions that it calls, without those that need none.
fn frames(depths: &[u64]) -> String {
    let depths = depths
        .iter()
        .filter(|&&depth| depth > 0)
        .map(u64::to_string);
    depths.collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_without_stack_are_left_out() {
        assert_eq!(frames(&[240, 0, 144]), "240+144");
        assert_eq!(frames(&[0]), "");
    }

    #[test]
    fn an_equal_elf_is_left_alone() {
        let directory = std::env::temp_dir().join(format!("weft-publish-{}", std::process::id()));
        let elf = directory.join("out/elf");
        publish(b"one", &elf).expect("publish");
        let first = fs::metadata(&elf)
            .and_then(|metadata| metadata.modified())
            .expect("time");
        publish(b"one", &elf).expect("publish again");
        let second = fs::metadata(&elf)
            .and_then(|metadata| metadata.modified())
            .expect("time");
        assert_eq!(first, second);
        publish(b"two", &elf).expect("publish a change");
        assert_eq!(fs::read_to_string(&elf).expect("read"), "two");
        fs::remove_dir_all(&directory).expect("clean up");
    }
}
