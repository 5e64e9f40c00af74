//! DELs that wait on disk for an agent.
//!
//! A runtime removes pods also while the node's agent is down; a DEL that failed would leave the pod
//! terminating until the agent is back. So the plugin keeps such a DEL as a file and reports success,
//! and the agent replays the files when it starts.
//!
//! Nothing is lost between the two if both keep this order:
//!
//! - the agent listens on its socket, then replays the queue, then accepts connections;
//! - the plugin writes its file, then tries the socket once more ([`crate::client::delete`]).
//!
//! Either the plugin's second attempt finds a listening agent, or the file was there before the agent
//! began to listen and the replay finds it. An ADD that follows a DEL of the same container waits in
//! the socket's backlog until the replay is done.
//!
//! A file appears complete or not at all (written aside, synced, renamed), and repeating a DEL
//! replaces its file instead of adding one. An ADD makes a DEL of the same attachment that still
//! waits a thing of the past: the agent forgets it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::protocol::{self, MAX_LINE, ProtocolError, Request};

const SUFFIX: &str = ".json";

/// The directory with the waiting DELs.
#[derive(Clone, Debug)]
pub struct Queue {
    dir: PathBuf,
}

/// A waiting DEL.
#[derive(Debug)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// The request, or why the file holds none. Such a file will not get better: log it and remove
    /// it.
    pub request: Result<Request, QueueError>,
}

/// Why the queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A file or the directory cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds no request.
    #[error("{}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ProtocolError,
    },
}

impl Queue {
    /// The queue in a directory, which is made when the first DEL is kept.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Queue { dir: dir.into() }
    }

    /// Keeps a request. When this returns, it survives a crash of the machine.
    ///
    /// # Errors
    ///
    /// When the directory or file cannot be written.
    pub fn push(&self, request: &Request) -> Result<PathBuf, QueueError> {
        let path = self.dir.join(file_name(request));
        let line = protocol::encode_request(request).map_err(|source| QueueError::Content {
            path: path.clone(),
            source,
        })?;
        fs::create_dir_all(&self.dir).map_err(io_error("make", &self.dir))?;

        let aside = path.with_extension(format!("tmp{}", std::process::id()));
        let written = write_synced(&aside, &line)
            .map_err(io_error("write", &aside))
            .and_then(|()| fs::rename(&aside, &path).map_err(io_error("rename to", &path)));
        if written.is_err() {
            // Best effort: the error that matters is the first one.
            let _ = fs::remove_file(&aside);
        }
        written?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error("sync", &self.dir))?;
        Ok(path)
    }

    /// All waiting DELs, sorted by file name. A directory that does not exist has none.
    ///
    /// # Errors
    ///
    /// When the directory cannot be listed. Files that cannot be read are entries with an error.
    pub fn entries(&self) -> Result<Vec<Entry>, QueueError> {
        let listing = match fs::read_dir(&self.dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("list", &self.dir)(error)),
        };
        let mut paths = Vec::new();
        for file in listing {
            let path = file.map_err(io_error("list", &self.dir))?.path();
            if path.to_string_lossy().ends_with(SUFFIX) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths
            .into_iter()
            .map(|path| Entry {
                request: read(&path),
                path,
            })
            .collect())
    }

    /// Forgets the waiting DEL of this request's attachment, if there is one.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed.
    pub fn forget(&self, request: &Request) -> Result<(), QueueError> {
        self.remove(&self.dir.join(file_name(request)))
    }

    /// Forgets a DEL that has been done. Already gone is fine.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<(), QueueError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Request, QueueError> {
    let mut line = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_LINE as u64).read_to_end(&mut line))
        .map_err(io_error("read", path))?;
    protocol::decode_request(&line).map_err(|source| QueueError::Content {
        path: path.to_owned(),
        source,
    })
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// One name for one attachment. Ids may be longer than a file name, so the hash decides and the
/// beginning of the id is for the reader.
fn file_name(request: &Request) -> String {
    let shown: String = request.container_id.chars().take(64).collect();
    let attachment = [
        request.container_id.as_bytes(),
        &[0],
        request.ifname.as_bytes(),
    ]
    .concat();
    format!("{shown}-{:016x}{SUFFIX}", fnv1a(&attachment))
}

/// FNV-1a, 64 bits: the name must stay the same across releases, which the standard library's
/// hashers do not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> QueueError {
    let path = path.to_owned();
    move |source| QueueError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetConf;
    use crate::protocol::{CniArgs, Command};

    fn del(id: &str, ifname: &str) -> Request {
        Request {
            command: Command::Del,
            container_id: id.into(),
            netns: None,
            ifname: ifname.into(),
            args: CniArgs::default(),
            config: NetConf {
                name: "weft".into(),
                ..NetConf::default()
            },
        }
    }

    #[test]
    fn what_is_pushed_comes_out_once_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::new(dir.path().join("a/b"));
        assert!(queue.entries().unwrap().is_empty());
        queue.push(&del("c1", "eth0")).unwrap();
        queue.push(&del("c1", "eth0")).unwrap();
        queue.push(&del("c1", "eth1")).unwrap();
        queue.push(&del(&"x".repeat(5000), "eth0")).unwrap();
        let entries = queue.entries().unwrap();
        assert_eq!(entries.len(), 3);
        let mut found: Vec<_> = entries
            .iter()
            .map(|entry| entry.request.as_ref().unwrap())
            .map(|request| (request.container_id.len(), request.ifname.clone()))
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                (2, "eth0".into()),
                (2, "eth1".into()),
                (5000, "eth0".into())
            ]
        );
        for entry in &entries {
            queue.remove(&entry.path).unwrap();
            queue.remove(&entry.path).unwrap();
        }
        assert!(queue.entries().unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 0);
    }

    #[test]
    fn an_add_forgets_the_waiting_del_of_its_attachment_only() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::new(dir.path());
        let add = |id: &str, ifname: &str| Request {
            command: Command::Add,
            netns: Some("/n".into()),
            ..del(id, ifname)
        };
        queue.push(&del("c1", "eth0")).unwrap();
        queue.forget(&add("c1", "eth1")).unwrap();
        queue.forget(&add("c2", "eth0")).unwrap();
        assert_eq!(queue.entries().unwrap().len(), 1);
        queue.forget(&add("c1", "eth0")).unwrap();
        assert!(queue.entries().unwrap().is_empty());
    }

    #[test]
    fn broken_files_are_entries_with_an_error_and_others_are_not_entries() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::new(dir.path());
        fs::write(dir.path().join("half.json"), b"{\"protocol\":1,").unwrap();
        fs::write(dir.path().join("half.tmp77"), b"{").unwrap();
        let entries = queue.entries().unwrap();
        assert_eq!(entries.len(), 1);
        assert!(matches!(
            entries[0].request,
            Err(QueueError::Content { .. })
        ));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let queue = Queue::new(dir.path().join("file/queue"));
        assert!(matches!(
            queue.push(&del("c", "e")),
            Err(QueueError::Io { .. })
        ));
    }
}
