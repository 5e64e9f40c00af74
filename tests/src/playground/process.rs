//! Child processes with bounds on time: nothing that the playground starts can hang it.

use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a process may run.
#[derive(Clone, Copy, Debug)]
pub struct Limit(pub Duration);

impl Limit {
    /// A CNI plugin; kubelet gives a sandbox two minutes.
    pub const PLUGIN: Limit = Limit(Duration::from_secs(120));
    /// A client in a pod, unless the test says otherwise.
    pub const CLIENT: Limit = Limit(Duration::from_secs(60));
}

/// Runs a process with piped stdin, stdout and stderr to its end, and kills it at the limit.
pub fn run(command: &mut Command, stdin: &[u8], limit: Limit) -> Result<Output> {
    finish(spawn(command)?, stdin, limit)
}

/// Starts a process. A program that has just been installed may be busy for a moment: a child that
/// another thread forks holds the installer's descriptor until its exec.
fn spawn(command: &mut Command) -> io::Result<Child> {
    for _ in 0..50 {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
    command.spawn()
}

/// Feeds a running process and collects what it prints; kills it at the limit.
pub fn finish(mut child: Child, stdin: &[u8], limit: Limit) -> Result<Output> {
    let deadline = Instant::now() + limit.0;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut input) = input {
                // A process may end without reading all of it.
                let _ = input.write_all(stdin);
            }
        });
        let output = scope.spawn(move || read_all(output));
        let errors = scope.spawn(move || read_all(errors));
        let status = wait_until(&mut child, deadline)?;
        let joined = |thread: thread::ScopedJoinHandle<'_, io::Result<Vec<u8>>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
        };
        let (stdout, stderr) = (joined(output)?, joined(errors)?);
        match status {
            Some(status) => Ok(Output {
                status,
                stdout,
                stderr,
            }),
            None => bail!(
                "killed after {:?} without an end; it had printed {:?} and {:?}",
                limit.0,
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            ),
        }
    })
}

/// Waits for a process; one that is still there at the deadline is killed, and has no status.
fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<std::process::ExitStatus>> {
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        // There is no wait with a timeout in the standard library.
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn read_all(source: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut source) = source {
        source.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Finds one of the workspace's binaries: where the variable says, else beside the running one.
pub fn find_binary(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!(
                "{variable} says {}, and there is no such file",
                path.display()
            );
        }
        return Ok(path);
    }
    let own = std::env::current_exe().context("finding the running program")?;
    // Tests are in `deps`, below the directory of the binaries.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir: &Path| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "there is no {name} beside {}; build it with `cargo build -p weft-agent -p \
                 weft-cni -p weft-tests --bins`, or set {variable}",
                own.display()
            )
        })
}
