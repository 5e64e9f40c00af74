//! Attaching the socket programs to the node's root cgroup.
//!
//! Each attachment is a BPF link, pinned as `<link dir>/cgroup-<program>`. A new agent attaches its
//! program beside the old one and then puts its own pin in the place of the old pin, in one rename:
//! at every moment at least one of them decides. Both deciding for a moment does no harm, the second
//! finds nothing left to translate.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tracing::{debug, info};
use weft_abi::maps::sockets;

use super::attach::{AttachError, Attacher};
use crate::errors::chain;

/// What the names of the pins begin with.
const PREFIX: &str = "cgroup-";
/// What the names of pins end with that have not taken their place yet.
const UNFINISHED: &str = "-new";

/// The cgroup of every process of the node: the first mount of the cgroup2 file system.
pub fn find_root() -> io::Result<Option<PathBuf>> {
    Ok(first_cgroup2(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Whether this is a directory of the cgroup2 file system.
pub fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

fn first_cgroup2(mounts: &str) -> Option<PathBuf> {
    // proc_pid_mountinfo(5): ... mount point (5th) ... " - " type ...
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup2 = after.split(' ').next() == Some("cgroup2");
        let path = before.split(' ').nth(4).filter(|_| is_cgroup2)?;
        Some(PathBuf::from(unescaped(path)))
    })
}

/// Spaces, tabs, newlines and backslashes come as three octal digits.
fn unescaped(path: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(path.to_owned(), |path, (escaped, plain)| {
        path.replace(escaped, plain)
    })
}

impl Attacher {
    /// Attaches the socket programs to a cgroup, or takes the place of those that are. Programs that
    /// the ELF does not have are left out.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; programs attached before stay.
    pub fn attach_sockets(&mut self, root: &Path) -> Result<(), AttachError> {
        for program in sockets::ALL {
            let failed = |error: String| AttachError {
                program,
                target: format!("cgroup {}", root.display()),
                error,
            };
            let pin = self.socket_pin(program);
            let Some(loaded) = self.loaded.ebpf.program_mut(program) else {
                continue;
            };
            let result = loaded
                .try_into()
                .map_err(|error: ProgramError| chain(&error))
                .and_then(|loaded| attach(loaded, root, &pin));
            result.map_err(failed)?;
            debug!(program, cgroup = %root.display(), "attached");
        }
        info!(programs = ?self.attached_sockets(), cgroup = %root.display(), "sockets of the node's \
            processes are looked after");
        Ok(())
    }

    /// The socket programs that are attached, by this agent or an earlier one.
    pub fn attached_sockets(&self) -> Vec<&'static str> {
        let there = |program: &&&str| self.socket_pin(program).exists();
        sockets::ALL.iter().filter(there).copied().collect()
    }

    fn socket_pin(&self, program: &str) -> PathBuf {
        self.link_dir.join(format!("{PREFIX}{program}"))
    }
}

fn attach(program: &mut CgroupSockAddr, root: &Path, pin: &Path) -> Result<(), String> {
    let cgroup = File::open(root).map_err(|error| format!("opening the cgroup: {error}"))?;
    // Links take no flags: others may have programs there as well (`cgroup_bpf_link_attach` in the
    // kernel), which this mode only says for attachments without links.
    let id = program
        .attach(cgroup, CgroupAttachMode::Single)
        .map_err(|error| chain(&error))?;
    let link = program.take_link(id).map_err(|error| chain(&error))?;
    let link: FdLink = link.try_into().map_err(|error: LinkError| chain(&error))?;

    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = pin.with_file_name(format!("{name}{UNFINISHED}"));
    match fs::remove_file(&unfinished) {
        // Of an agent that ended just there.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("removing {}: {error}", unfinished.display())),
    }
    link.pin(&unfinished)
        .map_err(|error| format!("pinning {}: {}", unfinished.display(), chain(&error)))?;
    // What the name led to before goes, and with it its link.
    fs::rename(&unfinished, pin).map_err(|error| format!("renaming to {}: {error}", pin.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cgroup2_mount_is_the_root() {
        let mounts = "\
            31 22 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
            35 31 0:30 / /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu\n\
            36 31 0:31 / /sys/fs/cgroup/un\\040ified rw shared:11 - cgroup2 cgroup2 rw\n\
            37 31 0:32 / /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            first_cgroup2(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/un ified"))
        );
        assert_eq!(first_cgroup2(""), None);
    }
}
