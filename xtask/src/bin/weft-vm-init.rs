//! The first and only process of the machines that `cargo xtask vm` boots.
//!
//! Mounts what the programs need, loads the kernel's modules, reports what loading the datapath
//! costs, runs the packet tests, says `vm: success` or `vm: failure`, and switches off.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};
use xtask::{
    netlink::Route,
    vm::{FINISHED, PROGRAM, guest_path as path},
};

fn main() -> Result<()> {
    let outcome = prepare().and_then(|()| {
        // The tests' result counts even where a program does not load, and the other way round.
        let (loaded, tested) = (load_programs(), run_tests());
        loaded.and(tested)
    });
    match outcome {
        Ok(()) => println!("{FINISHED}success"),
        Err(error) => {
            println!("weft-vm-init: {error:#}");
            println!("{FINISHED}failure");
        }
    }
    reboot(RebootMode::RB_POWER_OFF).context("the machine does not switch off")?;
    Ok(())
}

fn prepare() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    let list = fs::read_to_string(path::MODULE_LIST).context("no list of modules")?;
    for module in list.lines() {
        load_module(Path::new(module))?;
    }
    Route::open()?
        .raise_loopback()
        .context("cannot bring up the loopback device")?;
    // Programs are compiled, as on nodes; kernels without an interpreter refuse the write.
    let _ = fs::write("/proc/sys/net/core/bpf_jit_enable", "1");
    Ok(())
}

fn load_module(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot load {}", path.display())),
    }
}

fn load_programs() -> Result<()> {
    let output = Command::new(path::LOAD_REPORT)
        .arg(path::ELF)
        .output()
        .context("cannot run the load report")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        println!("{PROGRAM}{line}");
    }
    // The verifier's log is long; it is what one needs.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.success(),
        "the datapath does not load on this kernel"
    );
    Ok(())
}

fn run_tests() -> Result<()> {
    let arguments = fs::read_to_string(path::TEST_ARGS).context("no arguments for the tests")?;
    let status = Command::new(path::PACKET_TESTS)
        .arg("--test-threads=1")
        .args(arguments.lines())
        .current_dir("/tmp")
        .status()
        .context("cannot run the packet tests")?;
    ensure!(status.success(), "packet tests failed: {status}");
    Ok(())
}
