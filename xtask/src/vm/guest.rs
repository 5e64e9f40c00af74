//! What runs inside a machine: static programs, the ELF, and the initramfs around them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{cpio::Archive, modules::Module};
use crate::{process, workspace::Workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where things are inside; `weft-vm-init` reads them there.
pub mod path {
    /// The ELF that is loaded.
    pub const ELF: &str = "/weft-datapath";
    /// The program that loads it and reports.
    pub const LOAD_REPORT: &str = "/bin/weft-load-report";
    /// The packet tests.
    pub const PACKET_TESTS: &str = "/bin/packet-tests";
    /// Arguments for the packet tests, one per line.
    pub const TEST_ARGS: &str = "/packet-tests.args";
    /// The kernel's modules.
    pub const MODULES: &str = "/modules";
    /// Their files, one per line, in the order of loading.
    pub const MODULE_LIST: &str = "/modules/list";
}

/// Programs for the machine.
pub struct Guest {
    init: PathBuf,
    load_report: PathBuf,
    packet_tests: PathBuf,
    elf: PathBuf,
}

impl Guest {
    /// The packet tests; they run here as well.
    pub fn packet_tests(&self) -> &Path {
        &self.packet_tests
    }
}

/// Builds the programs, statically linked: the machine has no libraries.
pub fn build(workspace: &Workspace, elf: &Path) -> Result<Guest> {
    process::step("building static programs for the machines (minutes when cold)");
    let mut tools = cargo(workspace, "build");
    tools.args([
        "--package=xtask",
        "--bin=weft-vm-init",
        "--bin=weft-load-report",
    ]);
    let tools = executables(&process::output(&mut tools)?);
    let mut tests = cargo(workspace, "test");
    tests.args(["--no-run", "--package=weft-tests", "--test=packet"]);
    let tests = executables(&process::output(&mut tests)?);
    let find = |executables: &[(String, PathBuf)], name: &str| {
        let found = executables.iter().find(|(target, _)| target == name);
        found
            .map(|(_, path)| path.clone())
            .with_context(|| format!("cargo built no `{name}`"))
    };
    Ok(Guest {
        init: find(&tools, "weft-vm-init")?,
        load_report: find(&tools, "weft-load-report")?,
        packet_tests: find(&tests, "packet")?,
        elf: elf.to_owned(),
    })
}

fn cargo(workspace: &Workspace, subcommand: &str) -> Command {
    let mut command = workspace.cargo(subcommand);
    command
        .args([
            "--quiet",
            "--message-format=json-render-diagnostics",
            "--target",
            TARGET,
        ])
        // Without symbols the initramfs is a fraction of the size, and so is the time to unpack it.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\x1f-Cstrip=symbols",
        )
        .env_remove("RUSTFLAGS");
    command
}

/// Name and path of every executable in cargo's messages.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let path = message["executable"].as_str()?.into();
            Some((message["target"]["name"].as_str()?.to_owned(), path))
        })
        .collect()
}

/// The first root of the machine.
pub fn initramfs(guest: &Guest, modules: &[Module], test_args: &[String]) -> Result<Vec<u8>> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::default();
    for directory in [
        "/bin",
        "/dev",
        "/proc",
        "/sys",
        "/tmp",
        "/run",
        path::MODULES,
    ] {
        archive.directory(directory);
    }
    // The kernel opens it for init before anything is mounted.
    archive.device("/dev/console", 5, 1);
    archive.program("/init", &read(&guest.init)?);
    archive.program(path::LOAD_REPORT, &read(&guest.load_report)?);
    archive.program(path::PACKET_TESTS, &read(&guest.packet_tests)?);
    archive.file(path::ELF, &read(&guest.elf)?);
    archive.file(path::TEST_ARGS, test_args.join("\n").as_bytes());
    let mut list = String::new();
    for Module { name, elf } in modules {
        let file = format!("{}/{name}.ko", path::MODULES);
        archive.file(&file, elf);
        list.push_str(&file);
        list.push('\n');
    }
    archive.file(path::MODULE_LIST, list.as_bytes());
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"aya"},"executable":null}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"packet"},"executable":"/t/packet-1"}"#,
            "\n",
        );
        assert_eq!(
            executables(messages),
            [("packet".to_owned(), PathBuf::from("/t/packet-1"))]
        );
    }
}
