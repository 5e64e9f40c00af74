//! The allocations on disk.
//!
//! One file per allocation, named by the address, holds its owner. A freed allocation's file is
//! renamed to `freed-<address>`, with the time of it as its modification time.
//!
//! Invariants, at whatever instruction the agent dies:
//! - An allocation's file is whole, or not there. It says more than a note beside it that the address
//!   was freed.
//! - Being freed is one rename.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tracing::warn;

use super::{IpamError, Owner};
use crate::persist;

/// What the names of the notes about freed addresses begin with.
const FREED: &str = "freed-";

/// The directory of the allocations.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What the directory said.
#[derive(Debug, Default)]
pub struct Stored {
    /// Every allocation; without an owner where the file has none that can be read.
    pub allocated: BTreeMap<IpAddr, Option<Owner>>,
    /// Addresses that were freed, the first one first.
    pub freed: Vec<(SystemTime, IpAddr)>,
}

impl Store {
    /// Opens the directory, which is made when missing, and reads it.
    ///
    /// A file that is no allocation is reported and kept out of use: if its name is an address, the
    /// address counts as taken, because somebody may be using it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path) -> Result<(Self, Stored), IpamError> {
        let store = Self {
            dir: dir.to_owned(),
        };
        let failed = |what| move |error| store_failed(what, dir, error);
        persist::open_dir(dir).map_err(failed("cannot open the address directory"))?;
        let names = persist::names(dir).map_err(failed("cannot read the address directory"))?;
        let mut stored = Stored::default();
        for name in names {
            let path = dir.join(&name);
            if let Some(address) = name.strip_prefix(FREED).and_then(|name| name.parse().ok()) {
                let modified = std::fs::metadata(&path).and_then(|file| file.modified());
                // Without a time: it may have been freed just now.
                let at = modified.unwrap_or_else(|_| SystemTime::now());
                stored.freed.push((at, address));
                continue;
            }
            let Ok(address) = name.parse::<IpAddr>() else {
                warn!(file = %path.display(), "file in the address directory is no allocation; \
                    ignored");
                continue;
            };
            let content = std::fs::read(&path)
                .map_err(failed("cannot read an allocation in the address directory"))?;
            let owner = serde_json::from_slice(&content)
                .inspect_err(|error| {
                    warn!(file = %path.display(), %error, "allocation has no readable owner; its \
                        address stays taken until the file is removed");
                })
                .ok();
            stored.allocated.insert(address, owner);
        }
        let Stored { allocated, freed } = &mut stored;
        freed.retain(|(_, address)| {
            let free = !allocated.contains_key(address);
            if !free {
                // A crash between the allocation and the removal of the note.
                let _ = store.remove_note(*address);
            }
            free
        });
        freed.sort_unstable();
        Ok((store, stored))
    }

    /// Writes allocations down.
    ///
    /// # Errors
    ///
    /// When the disk fails; then none is on disk, as far as the disk lets.
    pub fn allocate(&self, addresses: &[IpAddr], owner: &Owner) -> Result<(), IpamError> {
        if addresses.is_empty() {
            return Ok(());
        }
        let failed = |error| store_failed("cannot write allocations in", &self.dir, error);
        let content = serde_json::to_vec(owner).map_err(|error| failed(error.into()))?;
        let files: Vec<_> = addresses
            .iter()
            .map(|address| (address.to_string(), content.as_slice()))
            .collect();
        if let Err(error) = persist::write_many(&self.dir, &files, 0o600) {
            for (name, _) in &files {
                // Restored as an orphan at the next start if it stays.
                let _ = std::fs::remove_file(self.dir.join(name));
            }
            return Err(failed(error));
        }
        for address in addresses {
            // Should it stay: an allocation beside it says more.
            let _ = self.remove_note(*address);
        }
        Ok(())
    }

    /// Notes that addresses are free.
    ///
    /// # Errors
    ///
    /// When the disk fails; what is noted already may be noted again.
    pub fn free(&self, addresses: &[IpAddr]) -> Result<(), IpamError> {
        if addresses.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = addresses
            .iter()
            .map(|address| (address.to_string(), note(*address)))
            .collect();
        persist::rename_many(&self.dir, &names).map_err(|error| {
            store_failed("cannot note that addresses are free in", &self.dir, error)
        })
    }

    /// Removes the note that an address was freed. A note that stays says it again at the next start,
    /// which only makes the address wait.
    pub fn forget(&self, address: IpAddr) {
        if let Err(error) = self.remove_note(address)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(%address, %error, "cannot remove the note that an address was freed");
        }
    }

    fn remove_note(&self, address: IpAddr) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(note(address)))
    }
}

/// The name of the note that an address was freed.
fn note(address: IpAddr) -> String {
    format!("{FREED}{address}")
}

fn store_failed(what: &'static str, path: &Path, error: io::Error) -> IpamError {
    IpamError::Io {
        what,
        path: path.to_owned(),
        error,
    }
}
