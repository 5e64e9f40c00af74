//! What the running kernel must offer for the agent and the playground.
//!
//! Each requirement is tried, not looked up in a configuration file, in a network namespace that
//! vanishes with the thread that made it.

use std::{fs, thread};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{programs::ProgramType, sys::is_program_supported, util::KernelVersion};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

use crate::netlink::Route;

/// The first kernel with tcx; older ones get clsact.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// One requirement: what it is, what was found, and where to get it.
struct Requirement {
    what: &'static str,
    found: Result<()>,
    remedy: &'static str,
}

/// Whether this process may load programs and make namespaces.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Tries every requirement, and fails with a list of what is missing and how to get it. Prints
/// what was found when `verbose`.
pub fn check(verbose: bool) -> Result<()> {
    if !is_root() {
        bail!("this needs root: network namespaces, and loading BPF programs (try `sudo -E`)");
    }
    let version = KernelVersion::current().context("cannot read the kernel's version")?;
    let requirements = requirements(version)?;
    let mut missing = String::new();
    for Requirement {
        what,
        found,
        remedy,
    } in requirements
    {
        match found {
            Ok(()) if verbose => println!("  {what:<44} yes"),
            Ok(()) => {}
            Err(error) => {
                if verbose {
                    println!("  {what:<44} missing");
                }
                missing.push_str(&format!("\n  {what}: {error:#}; {remedy}"));
            }
        }
    }
    if !missing.is_empty() {
        bail!("this kernel or machine lacks what Weft needs:{missing}");
    }
    Ok(())
}

fn requirements(version: KernelVersion) -> Result<Vec<Requirement>> {
    // The namespace belongs to the thread alone, and goes with it.
    let devices = thread::spawn(move || in_new_namespace(version))
        .join()
        .map_err(|_| anyhow!("the thread that tries network devices panicked"))?;
    let mut requirements = vec![
        Requirement {
            what: "BPF classifier programs",
            found: bpf(),
            remedy: "needs CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF",
        },
        Requirement {
            what: "bpffs",
            found: known_filesystem("bpf"),
            remedy: "needs CONFIG_BPF_SYSCALL",
        },
        Requirement {
            what: "cgroup2, mounted",
            found: cgroup2_mounted(),
            remedy: "mount it: `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 \
                     /sys/fs/cgroup/unified`",
        },
    ];
    requirements.extend(devices);
    Ok(requirements)
}

fn in_new_namespace(version: KernelVersion) -> Vec<Requirement> {
    let route = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(Into::into)
        .and_then(|()| Route::open());
    let requirement = |what, remedy, attempt: &dyn Fn(&Route) -> Result<()>| Requirement {
        what,
        found: match &route {
            Ok(route) => attempt(route),
            Err(error) => Err(anyhow!("no network namespace to try it in: {error:#}")),
        },
        remedy,
    };
    vec![
        requirement(
            "network namespaces",
            "needs CONFIG_NET_NS and the capability CAP_SYS_ADMIN (in a container: --privileged)",
            &|_| Ok(()),
        ),
        requirement(
            "veth devices",
            "needs CONFIG_VETH (`modprobe veth`)",
            &|route| route.create_link("veth"),
        ),
        requirement(
            "VXLAN devices",
            "needs CONFIG_VXLAN (`modprobe vxlan`)",
            &|route| route.create_link("vxlan"),
        ),
        requirement(
            "bridge devices (the playground's fabric)",
            "needs CONFIG_BRIDGE (`modprobe bridge`)",
            &|route| route.create_link("bridge"),
        ),
        requirement(
            "a hook for classifiers (tcx or clsact)",
            "needs a kernel from 6.6 on, or CONFIG_NET_SCH_INGRESS (`modprobe sch_ingress`)",
            &|route| {
                if version >= TCX {
                    Ok(())
                } else {
                    route.attach_clsact()
                }
            },
        ),
    ]
}

fn bpf() -> Result<()> {
    match is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("the kernel does not know them"),
        Err(error) => Err(error).context("the kernel does not let this process load one"),
    }
}

fn known_filesystem(name: &str) -> Result<()> {
    let known = fs::read_to_string("/proc/filesystems").context("cannot read /proc/filesystems")?;
    match known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name))
    {
        true => Ok(()),
        false => bail!("the kernel does not know this file system"),
    }
}

fn cgroup2_mounted() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    match mounts
        .lines()
        .any(|line| line.split_whitespace().nth(2) == Some("cgroup2"))
    {
        true => Ok(()),
        false => bail!("no cgroup2 hierarchy is mounted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_whole_name() {
        known_filesystem("proc").expect("/proc is being read");
        known_filesystem("pro").expect_err("no file system is called `pro`");
    }

    #[test]
    fn without_a_namespace_every_device_is_missing() {
        if is_root() {
            return;
        }
        let requirements = in_new_namespace(TCX);
        assert!(
            requirements
                .iter()
                .all(|requirement| requirement.found.is_err())
        );
    }
}
