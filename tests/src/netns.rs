//! Network namespaces, and processes inside them.
//!
//! A namespace has a name below `/run/netns`, as `ip netns` keeps them, so that an operator can look
//! inside with `ip netns exec`. Everything that must happen inside one either runs on a thread of its
//! own ([`Netns::run`]) or is a child process ([`enter`]); no thread of the caller ever changes its
//! namespace.
//!
//! The only `unsafe` of the test library is here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{panic, thread};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where named namespaces live. `/var/run/netns` is the same directory.
pub const DIR: &str = "/run/netns";

/// A named network namespace. It stays until [`Netns::delete`].
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a new namespace with its loopback interface down.
    ///
    /// # Errors
    ///
    /// When the name is taken, or without the right to make one.
    pub fn create(name: &str) -> io::Result<Self> {
        fs::create_dir_all(DIR)?;
        let path = path_of(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        let made = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none: Option<&str> = None;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                none,
                MsFlags::MS_BIND,
                none,
            )?;
            Ok(())
        });
        match made.and_then(|()| Netns::open(name)) {
            Ok(netns) => Ok(netns),
            Err(error) => {
                let _ = delete(name);
                Err(error)
            }
        }
    }

    /// Opens an existing namespace.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn open(name: &str) -> io::Result<Self> {
        Ok(Netns {
            name: name.to_owned(),
            file: File::open(path_of(name))?,
        })
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's path, as a container runtime would give it.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Removes the name. The namespace goes when the last process and socket in it does.
    ///
    /// # Errors
    ///
    /// When it cannot be unmounted or removed.
    pub fn delete(self) -> io::Result<()> {
        delete(&self.name)
    }

    /// Runs work on a thread inside the namespace and waits for it. Sockets that it makes belong to
    /// the namespace for good.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }

    /// Like [`Netns::run`], for asynchronous work that needs I/O and time.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn run_async<T: Send, F: Future<Output = T>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> io::Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(async { work().await }))
        })?
    }

    /// Sets a kernel parameter of the namespace: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// When the kernel does not have it or does not take the value.
    pub fn sysctl(&self, key: &str, value: &str) -> io::Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys").join(key), value))?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Removes a namespace's name; a name that does not exist is fine.
///
/// # Errors
///
/// When it cannot be unmounted or removed.
pub fn delete(name: &str) -> io::Result<()> {
    let path = path_of(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there, but nothing is mounted on it.
        Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The names of all namespaces.
///
/// # Errors
///
/// When they cannot be listed.
pub fn names() -> io::Result<Vec<String>> {
    let listing = match fs::read_dir(DIR) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    listing
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Makes the command's process start in a namespace, in a cgroup (its directory) if one is given,
/// and in a process group of its own, so that the terminal's Ctrl-C is left to the playground.
///
/// # Errors
///
/// When the namespace or cgroup cannot be opened.
pub fn enter(command: &mut Command, netns: &Netns, cgroup: Option<&Path>) -> io::Result<()> {
    let netns = netns.file.try_clone()?;
    let procs = match cgroup {
        Some(dir) => Some(
            OpenOptions::new()
                .write(true)
                .open(dir.join("cgroup.procs"))?,
        ),
        None => None,
    };
    command.process_group(0);
    let hook = move || {
        if let Some(procs) = &procs {
            // "0" means the writing process.
            (&*procs).write_all(b"0")?;
        }
        setns(&netns, CloneFlags::CLONE_NEWNET)?;
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes only the system calls write and setns on files
    // that were opened before, allocates nothing and takes no lock.
    unsafe { command.pre_exec(hook) };
    Ok(())
}

/// The descriptor as netlink messages carry it. It must stay open until the message is sent.
pub(crate) fn raw(netns: &Netns) -> RawFd {
    netns.file.as_raw_fd()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn own() -> u64 {
        fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let name = format!("weft-test-netns-{}", std::process::id());
        let outside = own();
        let netns = Netns::create(&name).unwrap();
        let expected = fs::metadata(netns.path()).unwrap().ino();
        assert_eq!(netns.run(own).unwrap(), expected);
        assert_eq!(own(), outside);
        assert_ne!(expected, outside);

        let mut command = Command::new("/proc/self/exe");
        enter(&mut command, &netns, None).unwrap();
        assert!(Netns::create(&name).is_err(), "the name is taken");
        netns.delete().unwrap();
        delete(&name).unwrap();
        assert!(!names().unwrap().contains(&name));
    }
}
