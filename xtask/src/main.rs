//! `cargo xtask <task>`: reads the command line and calls the task's module.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use xtask::{checks, ebpf, run, setup, vm, workspace::Workspace};

/// Weft's developer tasks. Each does all the setup it needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring what the build needs (rust-src, bpf-linker) and check what the kernel offers.
    Setup,
    /// Build the datapath's ELF; print its programs, their sizes and the verifier's cost.
    BuildEbpf,
    /// Check formatting, and run clippy on the host and BPF crates with warnings denied.
    Lint,
    /// Check formatting and run every test (as root; arguments go to `cargo test`).
    Test(PassedOn),
    /// Run the demonstration cluster (as root): `--keep` leaves it, `--clean` removes it.
    Demo(PassedOn),
    /// Run a benchmark (as root): `bench datapath`, `bench cni` or `bench services`.
    Bench(PassedOn),
    /// Load the datapath and run packet tests, one of each concept, on other kernels under QEMU.
    Vm(VmArgs),
}

/// Arguments that the started program understands, and xtask does not.
#[derive(Args)]
struct PassedOn {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl PassedOn {
    /// What follows the task's name. Clap checked it, but drops a leading `--`, which means
    /// something to `cargo test`.
    fn verbatim(self) -> Vec<String> {
        let verbatim: Vec<String> = std::env::args().skip(2).collect();
        debug_assert!(verbatim.ends_with(&self.args));
        verbatim
    }
}

#[derive(Args)]
struct VmArgs {
    /// Kernel lines of Debian, such as 6.1, or exact releases.
    #[arg(value_name = "KERNEL", default_values = vm::DEFAULT_KERNELS)]
    kernels: Vec<String>,
    /// Run all packet tests, not one of each concept: a quarter of an hour per kernel.
    #[arg(long, conflicts_with = "test_args")]
    all: bool,
    /// Arguments for the packet tests, after `--`, instead of one of each concept: filters,
    /// `--nocapture`.
    #[arg(last = true)]
    test_args: Vec<String>,
}

impl VmArgs {
    fn selection(&self) -> vm::Selection {
        if self.all {
            vm::Selection::All
        } else if self.test_args.is_empty() {
            vm::Selection::Concepts
        } else {
            vm::Selection::Harness(self.test_args.clone())
        }
    }
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => {
            setup::toolchain(&workspace)?;
            setup::kernel(true)
        }
        Task::BuildEbpf => ebpf::build_and_report(&workspace),
        Task::Lint => checks::lint(&workspace),
        Task::Test(passed_on) => checks::test(&workspace, &passed_on.verbatim()),
        Task::Demo(passed_on) => run::demo(&workspace, &passed_on.verbatim()),
        Task::Bench(passed_on) => run::bench(&workspace, &passed_on.verbatim()),
        Task::Vm(args) => vm::run(&workspace, &args.kernels, &args.selection()),
    }
}
