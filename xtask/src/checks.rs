//! `lint` and `test`.

use std::process::Command;

use anyhow::Result;

use crate::{ebpf, process, run, setup, workspace::Workspace};

/// End-to-end tests each start a cluster; more at a time than this only makes all of them slow.
const TEST_THREADS: &str = "2";

/// Formatting and clippy, with warnings denied, on every crate.
pub fn lint(workspace: &Workspace) -> Result<()> {
    let toolchain = setup::toolchain(workspace)?;
    format(workspace)?;
    process::step("clippy for the BPF target");
    let mut clippy = ebpf::cargo(workspace, &toolchain, "clippy");
    process::run(clippy.args(["--release", "--", "-Dwarnings"]))?;
    // The agent embeds the ELF at compile time.
    ebpf::build(workspace, &toolchain)?;
    process::step("clippy for the host, all targets");
    let mut clippy = workspace.cargo("clippy");
    clippy.args(["--workspace", "--all-targets"]);
    process::run(clippy.args(["--", "-Dwarnings"]))
}

/// Formatting, then every test; `arguments` go to `cargo test`.
pub fn test(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::kernel(false)?;
    ebpf::build(workspace, &setup::toolchain(workspace)?)?;
    // A space too many must not hide what the tests say.
    let formatted = format(workspace);
    let binaries = run::build(workspace, run::Profile::Dev)?;
    process::step("testing the workspace");
    let mut test = workspace.cargo("test");
    if !selects_packages(arguments) {
        test.args(["--workspace", "--no-fail-fast"]);
    }
    test.args(arguments);
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        test.env("RUST_TEST_THREADS", TEST_THREADS);
    }
    process::run(binaries.export(&mut test))?;
    formatted
}

/// Whether the developer chose packages, so that the whole workspace is not meant.
fn selects_packages(arguments: &[String]) -> bool {
    arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| argument.starts_with("-p") || argument.starts_with("--package"))
}

fn format(workspace: &Workspace) -> Result<()> {
    process::step("checking formatting");
    let mut fmt: Command = workspace.cargo("fmt");
    process::run(fmt.args(["--all", "--", "--check"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_chosen_before_the_separator() {
        let arguments = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(selects_packages(&arguments("-p weft-core diff")));
        assert!(selects_packages(&arguments("--package=weft-core")));
        assert!(!selects_packages(&arguments("hairpin -- --nocapture -p")));
    }
}
