//! What a playground leaves on the machine, and how it is found and removed.
//!
//! Everything is derived from the id: the directory `/run/weft-playground/<id>` with its mounts, the
//! namespaces `weft-<id>-*`, the cgroup `weft-<id>` with every process. The directory is made first
//! and removed last, so whatever exists belongs to a directory that exists. A lock in it tells the
//! playgrounds in use from those that a crash left behind.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup;
use crate::netns;

/// The directory of all playgrounds.
pub const DIR: &str = "/run/weft-playground";

/// How long the owner of a playground has to remove it when it is asked to.
const OWNER_TIMEOUT: Duration = Duration::from_secs(30);

/// Attempts to remove a directory that others look into.
const REMOVALS: u32 = 20;

/// A playground's claim on its id; released when it is dropped, or with the process.
#[derive(Debug)]
pub struct Claim {
    _lock: Flock<File>,
}

/// A playground's directory.
pub fn dir(id: &str) -> PathBuf {
    Path::new(DIR).join(id)
}

/// A playground's cgroup.
pub fn cgroup_dir(id: &str) -> Result<PathBuf> {
    Ok(cgroup::root()?.join(format!("weft-{id}")))
}

/// The name of one of a playground's namespaces.
pub fn netns_name(id: &str, what: &str) -> String {
    format!("weft-{id}-{what}")
}

/// Whether a text can be an id: letters and digits only, so that no id is the beginning of another
/// one's names.
pub fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Takes an id.
///
/// # Errors
///
/// When a running playground has it.
pub fn claim(id: &str) -> Result<Claim> {
    let dir = dir(id);
    // Between its making and its lock it looks like an abandoned one.
    let _registry = registry()?;
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    match lock(id)? {
        Some(mut lock) => {
            lock.set_len(0)?;
            write!(*lock, "{}", std::process::id())?;
            Ok(Claim { _lock: lock })
        }
        None => bail!("the playground {id:?} is in use"),
    }
}

/// Removes what crashed playgrounds left behind. Those in use are not touched.
pub fn remove_abandoned() -> Result<()> {
    let mut abandoned = Vec::new();
    {
        let _registry = registry()?;
        for id in ids()? {
            abandoned.extend(lock(&id)?.map(|lock| (id, lock)));
        }
    }
    // The locks are held while removing: another process may be at it as well.
    for (id, _lock) in abandoned {
        remove(&id).with_context(|| format!("removing the abandoned playground {id}"))?;
    }
    Ok(())
}

/// The lock of all playgrounds: who makes one, or looks which are abandoned, has it for that moment.
fn registry() -> Result<Flock<File>> {
    loop {
        fs::create_dir_all(DIR).with_context(|| format!("making {DIR}"))?;
        let all = match File::open(DIR) {
            Ok(all) => all,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("opening {DIR}")),
        };
        let lock = match Flock::lock(all, FlockArg::LockExclusive) {
            Ok(lock) => lock,
            Err((_, Errno::EINTR)) => continue,
            Err((_, error)) => return Err(error).with_context(|| format!("locking {DIR}")),
        };
        // It may have been removed between opening and locking.
        if same_file(&lock, Path::new(DIR))? {
            return Ok(lock);
        }
    }
}

/// Removes a playground, also one in use: its owner is asked to end first.
pub fn remove_by_id(id: &str) -> Result<()> {
    if !is_id(id) {
        bail!("{id:?} is not the id of a playground");
    }
    if !dir(id).exists() {
        return Ok(());
    }
    let deadline = Instant::now() + OWNER_TIMEOUT;
    let mut asked = false;
    loop {
        if let Some(_lock) = lock(id)? {
            return remove(id);
        }
        if !dir(id).exists() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the owner of playground {id} does not end; kill it and try again");
        }
        if !asked && let Some(owner) = owner(id)? {
            kill(owner, Signal::SIGTERM).with_context(|| format!("ending process {owner}"))?;
            asked = true;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The ids of all playgrounds, in use or not.
pub fn ids() -> Result<Vec<String>> {
    let listing = match fs::read_dir(DIR) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {DIR}")),
    };
    let mut ids = Vec::new();
    for entry in listing {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if is_id(&name) {
            ids.push(name);
        }
    }
    Ok(ids)
}

/// Removes everything that carries the id. Goes on after a failure and reports the first.
pub fn remove(id: &str) -> Result<()> {
    let mut outcome = cgroup_dir(id).and_then(|dir| cgroup::remove(&dir));
    outcome = outcome.and(remove_namespaces(id));
    outcome = outcome.and(unmount_below(&dir(id)));
    // With a mount still there, removing would go into it.
    outcome?;
    for _ in 0..REMOVALS {
        match fs::remove_dir_all(dir(id)) {
            // Another process that looks for abandoned playgrounds has just tried the lock.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", dir(id).display()));
            }
            _ => return Ok(()),
        }
    }
    bail!("{} is being filled while it is removed", dir(id).display())
}

fn remove_namespaces(id: &str) -> Result<()> {
    let prefix = netns_name(id, "");
    let mut outcome = Ok(());
    for name in netns::names()? {
        if name.starts_with(&prefix) {
            let done = netns::delete(&name)
                .with_context(|| format!("removing the network namespace {name}"));
            outcome = outcome.and(done);
        }
    }
    outcome
}

fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let targets = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(Path::new);
    // Later mounts first: they may be on top of earlier ones.
    let targets: Vec<_> = targets.filter(|target| target.starts_with(dir)).collect();
    for target in targets.into_iter().rev() {
        umount2(target, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {}", target.display()))?;
    }
    Ok(())
}

/// The lock of an existing playground; `None` when another process holds it, or when the playground
/// is gone.
fn lock(id: &str) -> Result<Option<Flock<File>>> {
    let path = dir(id).join("lock");
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            // The file may have been removed between opening and locking.
            let still_there = path.exists() && same_file(&lock, &path)?;
            Ok(still_there.then_some(lock))
        }
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

fn same_file(file: &File, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let held = nix::sys::stat::fstat(file.as_fd())?;
    Ok(fs::metadata(path).is_ok_and(|named| named.ino() == held.st_ino))
}

fn owner(id: &str) -> Result<Option<Pid>> {
    let mut text = String::new();
    File::open(dir(id).join("lock"))?.read_to_string(&mut text)?;
    Ok(text.trim().parse().ok().map(Pid::from_raw))
}
