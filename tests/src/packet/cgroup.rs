//! A cgroup of some threads, for the socket programs: what they see is that group's sockets.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use nix::unistd::gettid;
use weft_abi::maps::sockets;
use weft_agent::bpf::cgroup;

use super::Lab;

/// A cgroup with the socket programs, for threads of the process that made it.
#[derive(Debug)]
pub struct Sockets {
    directory: PathBuf,
}

impl Sockets {
    /// Moves the calling thread in; it must end before this is dropped. Sockets that it has already
    /// stay outside.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        let threads = self.directory.join("cgroup.threads");
        fs::write(&threads, gettid().to_string())
            .with_context(|| format!("cannot enter {}", self.directory.display()))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // Fails only while threads are in it.
        let _ = fs::remove_dir(&self.directory);
    }
}

impl Lab {
    /// Attaches the socket programs to a cgroup of its own.
    ///
    /// # Errors
    ///
    /// When there is no cgroup2 file system, or the kernel refuses.
    pub fn attach_sockets(&mut self) -> Result<Sockets> {
        // Threads stay within the process's part of the tree.
        let root = cgroup::find_root()?.context("no cgroup2 file system is mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let name = format!("weft-packet-{}", gettid());
        let directory = root.join(own.unwrap_or_default()).join(name);
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let made = Sockets { directory };
        fs::write(made.directory.join("cgroup.type"), "threaded")?;
        for name in sockets::ALL {
            let program: &mut CgroupSockAddr = self.any_program(name)?.try_into()?;
            program.load().with_context(|| format!("program {name}"))?;
            program
                .attach(fs::File::open(&made.directory)?, CgroupAttachMode::Single)
                .with_context(|| format!("cannot attach {name}"))?;
        }
        Ok(made)
    }
}
