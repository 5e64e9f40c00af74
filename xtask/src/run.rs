//! Starts the playground's programs: builds what they start in turn, and tells them where it is.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{ebpf, process, setup, workspace::Workspace};

/// Programs that tests, demo and benchmarks start, by the variable that holds their path.
const STARTED: [(&str, &str); 3] = [
    ("WEFT_AGENT_BIN", "weft-agent"),
    ("WEFT_CNI_BIN", "weft-cni"),
    ("WEFT_TESTPOD_BIN", "weft-testpod"),
];

/// How the programs are compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Shared with the tests, and quick to build.
    Dev,
    /// What is shipped, for benchmarks.
    Release,
}

/// Built programs of the workspace.
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// The path of one program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Tells `command` where the programs are.
    pub fn export<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(STARTED.map(|(variable, name)| (variable, self.path(name))))
    }
}

/// Runs the demonstration; `arguments` are the playground's.
pub fn demo(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut words = vec!["demo".to_owned()];
    words.extend_from_slice(arguments);
    exec(workspace, Profile::Dev, "weft-playground", &words)
}

/// Runs a benchmark; `arguments` are those of `weft-bench`.
pub fn bench(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    exec(workspace, Profile::Release, "weft-bench", arguments)
}

/// Builds the agent, the CNI plugin and the programs of the tests crate.
pub fn build(workspace: &Workspace, profile: Profile) -> Result<Binaries> {
    process::step("building the agent, the CNI plugin and the playground (minutes when cold)");
    let mut build = workspace.cargo("build");
    build.args([
        "--package=weft-agent",
        "--package=weft-cni",
        "--package=weft-tests",
        "--bins",
    ]);
    let directory = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            build.arg("--release");
            "release"
        }
    };
    process::run(&mut build)?;
    Ok(Binaries {
        directory: workspace.host_target().join(directory),
    })
}

fn exec(
    workspace: &Workspace,
    profile: Profile,
    program: &str,
    arguments: &[String],
) -> Result<()> {
    setup::kernel(false)?;
    ebpf::build(workspace, &setup::toolchain(workspace)?)?;
    let binaries = build(workspace, profile)?;
    let mut command = Command::new(binaries.path(program));
    // Signals, and the terminal, are the started program's own from here.
    let error = binaries.export(command.args(arguments)).exec();
    Err(error).with_context(|| format!("cannot start {}", binaries.path(program).display()))
}
