//! What a playground has on the machine: told when it is removed, and nothing afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::netns;
use crate::playground::cleanup;

/// What a playground has on the machine.
pub struct Inventory {
    processes: usize,
    namespaces: usize,
    mounts: usize,
    directory: Option<PathBuf>,
}

impl Inventory {
    /// Looks for what carries the id.
    ///
    /// # Errors
    ///
    /// When the machine does not say.
    pub fn take(id: &str) -> Result<Self> {
        let prefix = cleanup::netns_name(id, "");
        let namespaces = netns::names()?
            .iter()
            .filter(|name| name.starts_with(&prefix))
            .count();
        let directory = cleanup::dir(id);
        let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
        let targets = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .map(Path::new);
        let mounts = targets
            .filter(|target| target.starts_with(&directory))
            .count();
        let processes = processes(&cleanup::cgroup_dir(id)?);
        let directory = directory.exists().then_some(directory);
        Ok(Inventory {
            processes,
            namespaces,
            mounts,
            directory,
        })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        let Inventory {
            processes,
            namespaces,
            mounts,
            directory,
        } = self;
        processes + namespaces + mounts == 0 && directory.is_none()
    }
}

impl std::fmt::Display for Inventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inventory {
            processes,
            namespaces,
            mounts,
            directory,
        } = self;
        write!(
            f,
            "{processes} processes, {namespaces} network namespaces, {mounts} mounts"
        )?;
        match directory {
            Some(directory) => write!(f, ", {}", directory.display()),
            None => Ok(()),
        }
    }
}

/// How many processes a cgroup and those below it have; what vanishes meanwhile has none.
fn processes(cgroup: &Path) -> usize {
    let own =
        fs::read_to_string(cgroup.join("cgroup.procs")).map_or(0, |list| list.lines().count());
    let children = fs::read_dir(cgroup)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    own + children
        .filter(|path| path.is_dir())
        .map(|path| processes(&path))
        .sum::<usize>()
}
