//! `vm`: loads every program and runs packet tests on other kernels, under QEMU.
//!
//! ```text
//!   kernel ─ Debian's package, unpacked ──┐
//!   modules ─ those Weft needs, in order ─┼─> initramfs ──> qemu ──> report
//!   guest ─ static programs, the ELF ─────┘   (cpio)        (console) (table)
//! ```
//!
//! Nothing is installed into the system but QEMU itself, and a machine has neither disk nor
//! network: what it runs is in the initramfs, and what it finds out is on its console.

mod cpio;
mod guest;
mod kernel;
mod modules;
mod qemu;
mod report;
mod selection;

pub use guest::path as guest_path;
pub use report::{FINISHED, PROGRAM};
pub use selection::Selection;

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{debian::Archive, ebpf, process, setup, workspace::Workspace};

/// The oldest supported kernel, and the long-term ones that clusters run.
pub const DEFAULT_KERNELS: [&str; 3] = ["5.10", "6.1", "6.12"];

/// Boots each of `kernels`, and fails unless every program loads and every chosen test passes on all.
pub fn run(workspace: &Workspace, kernels: &[String], tests: &Selection) -> Result<()> {
    qemu::ensure()?;
    let elf = ebpf::build(workspace, &setup::toolchain(workspace)?)?;
    let directory = workspace.vm();
    let archive = Archive::open(&directory.join("archive"), &kernel::SUITES)?;
    let available = kernel::available(&archive)?;
    let chosen = kernels
        .iter()
        .map(|wanted| kernel::choose(&available, wanted))
        .collect::<Result<Vec<_>>>()?;
    let guest = guest::build(workspace, &elf)?;
    let test_args = tests.arguments(guest.packet_tests())?;

    let mut reports = Vec::new();
    for release in chosen {
        let kernel = kernel::fetch(&archive, release, &directory.join("kernels"))?;
        let modules = modules::needed(&kernel.modules)
            .with_context(|| format!("kernel {release} lacks what Weft needs"))?;
        let initramfs = directory.join(format!("initramfs-{release}.cpio"));
        fs::write(&initramfs, guest::initramfs(&guest, &modules, &test_args)?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        process::step(format!("booting {release}"));
        let log = directory.join(format!("{release}.log"));
        let outcome = qemu::boot(&kernel.image, &initramfs, &log);
        let console = fs::read_to_string(&log)
            .with_context(|| format!("cannot read the console in {}", log.display()))?;
        let report = report::read(release, &console, outcome.err());
        println!("{}", report.verdict());
        if !report.is_success() {
            println!(
                "{}\n(whole console: {})",
                report::tail(&console),
                log.display()
            );
        }
        reports.push(report);
    }
    print!("\n{}", report::table(&reports));
    match reports.iter().filter(|report| !report.is_success()).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} kernels failed", reports.len()),
    }
}
