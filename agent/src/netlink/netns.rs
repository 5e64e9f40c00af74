//! A network namespace, by an open file, so that it stays the same one whatever happens to the
//! path.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

/// Why a path is no usable network namespace.
#[derive(Debug, Error)]
pub enum NetNsError {
    /// It cannot be opened.
    #[error("cannot open the network namespace {path}: {error}", path = path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is another kind of file.
    #[error("{path} is not a network namespace: {error}", path = path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What entering it says.
        error: io::Error,
    },
    /// It is the agent's own, where a pod's interface would take the node's place.
    #[error("{path} is the node's own network namespace", path = path.display())]
    Own {
        /// The path.
        path: PathBuf,
    },
}

impl NetNs {
    /// Opens a pod's namespace.
    ///
    /// # Errors
    ///
    /// When the path is not a network namespace, or is the agent's own.
    pub fn open_pod(path: &Path) -> Result<Self, NetNsError> {
        let failed = |error| NetNsError::Open {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(failed)?;
        let (own, this) = (
            std::fs::metadata("/proc/thread-self/ns/net").map_err(failed)?,
            file.metadata().map_err(failed)?,
        );
        if (own.st_dev(), own.st_ino()) == (this.st_dev(), this.st_ino()) {
            return Err(NetNsError::Own {
                path: path.to_owned(),
            });
        }
        let netns = Self {
            file,
            path: path.to_owned(),
        };
        netns.run(|| ()).map_err(|error| NetNsError::Kind {
            path: path.to_owned(),
            error,
        })?;
        Ok(netns)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor, for netlink messages that name a namespace. Valid while `self` lives.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs something short inside the namespace, on a thread of its own that ends with it, so that
    /// no other code ever sees the changed namespace.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                    Ok(inside())
                })?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_network_namespaces_are_taken() {
        assert!(matches!(
            NetNs::open_pod(Path::new("/proc/self/ns/net")),
            Err(NetNsError::Own { .. })
        ));
        assert!(matches!(
            NetNs::open_pod(Path::new("/no/such")),
            Err(NetNsError::Open { .. })
        ));
        assert!(matches!(
            NetNs::open_pod(Path::new("/proc/self/ns/uts")),
            Err(NetNsError::Kind { .. })
        ));
        assert!(matches!(
            NetNs::open_pod(Path::new("/etc/hostname")),
            Err(NetNsError::Kind { .. })
        ));
    }
}
