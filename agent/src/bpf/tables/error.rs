//! What goes wrong with maps.

use std::fmt::Debug;

use aya::maps::MapError;
use thiserror::Error;

use crate::errors::chain;

/// A map operation that failed.
#[derive(Debug, Error)]
pub enum TableError {
    /// There would be more entries than the map takes. Nothing was written to it, nor to those that
    /// belong to it.
    #[error(
        "map {map} would need {wanted} entries and has room for {capacity}; what it is for stays as it \
            was. Restart the agent with a larger capacity: --map-capacity {map}=<entries>"
    )]
    Overflow {
        /// The map.
        map: &'static str,
        /// Entries that there would be, at the fullest moment of the change.
        wanted: usize,
        /// Entries it can take.
        capacity: u32,
    },
    /// The map has no room.
    #[error(
        "map {map} is full ({capacity} entries): {key} is missing in it. Restart the agent with a \
            larger capacity: --map-capacity {map}=<entries>"
    )]
    Full {
        /// The map.
        map: &'static str,
        /// Its capacity.
        capacity: u32,
        /// The first key that found no room.
        key: String,
    },
    /// The kernel refused.
    #[error("cannot {what} map {map}: {error}")]
    Kernel {
        /// Write to, delete from, read; with the key.
        what: String,
        /// The map.
        map: &'static str,
        /// What the kernel said.
        error: String,
    },
    /// The ELF lacks the map, or it is of another type.
    #[error("the datapath's map {map}: {error}")]
    Open {
        /// The map.
        map: &'static str,
        /// What is wrong.
        error: String,
    },
}

pub(super) fn put_failed(
    map: &'static str,
    capacity: u32,
    key: &impl Debug,
    error: &MapError,
) -> TableError {
    // A hash map says E2BIG, a trie ENOSPC.
    match errno(error) {
        Some(libc::E2BIG | libc::ENOSPC) => TableError::Full {
            map,
            capacity,
            key: format!("{key:?}"),
        },
        _ => kernel(map, &format!("write {key:?} to"), error),
    }
}

pub(super) fn delete_failed(map: &'static str, key: &impl Debug, error: &MapError) -> TableError {
    kernel(map, &format!("delete {key:?} from"), error)
}

pub(super) fn kernel(map: &'static str, what: &str, error: &MapError) -> TableError {
    TableError::Kernel {
        what: what.to_owned(),
        map,
        error: chain(error),
    }
}

pub(super) fn open_failed(map: &'static str, error: &MapError) -> TableError {
    TableError::Open {
        map,
        error: chain(error),
    }
}

pub(super) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        MapError::KeyNotFound => Some(libc::ENOENT),
        _ => None,
    }
}
