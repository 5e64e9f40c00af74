//! Control groups: what a node or pod runs is in one, so that nothing outlives the playground.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the kernel may take to bury killed processes.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);

/// A cgroup tells of its emptiness by an inotify event only, and it takes microseconds.
const POLL: Duration = Duration::from_millis(2);

/// Where the cgroup2 hierarchy is mounted; with version 1 beside it that is not `/sys/fs/cgroup`.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields
        .find_map(|mut line| {
            let (target, kind) = (line.nth(1)?, line.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(target))
        })
        .context(
            "no cgroup2 file system is mounted; mount one: \
             mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
}

/// Makes a cgroup.
pub fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making the cgroup {}", dir.display()))
}

/// Kills everything in a cgroup and below, and removes it. One that does not exist is fine.
pub fn remove(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    loop {
        let processes = processes(dir)?;
        if processes.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!("processes {processes:?} in {} do not die", dir.display());
        }
        for pid in processes {
            // It may be gone by now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(POLL);
    }
    loop {
        match remove_dirs(dir) {
            // A process is no longer listed once it is dying, and holds its cgroup until it is dead.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() <= deadline => {
                thread::sleep(POLL);
            }
            done => {
                return done.with_context(|| format!("removing the cgroup {}", dir.display()));
            }
        }
    }
}

fn processes(dir: &Path) -> Result<Vec<i32>> {
    let read = |error: io::Error| match error.raw_os_error() {
        // The latter when it is removed between opening and reading.
        Some(libc::ENOENT | libc::ENODEV) => Ok(Vec::new()),
        _ => Err(error),
    };
    let own = fs::read_to_string(dir.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .or_else(read)
        .with_context(|| format!("listing the processes of {}", dir.display()))?;
    let mut all: Vec<i32> = own;
    for child in children(dir)? {
        all.extend(processes(&child)?);
    }
    Ok(all)
}

fn remove_dirs(dir: &Path) -> io::Result<()> {
    for child in children(dir)? {
        remove_dirs(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut dirs = Vec::new();
    for entry in listing {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}
