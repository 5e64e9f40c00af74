//! A cluster that stays: the background process that hosts it, and its removal.
//!
//! The background process has the foreground's terminal until the story is told, and says so over a
//! socket that it has as its standard input; then it writes to its log only. While it hosts a
//! cluster, the file `kept` in the playground's directory says that it was meant to stay.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, setsid};

use super::inventory::Inventory;
use super::story::Story;
use super::terminal::Terminal;
use super::{INTERRUPTED, inside, interrupted, make, verdict};
use crate::interrupt::Interrupt;
use crate::playground::{Binaries, PATIENCE, Playground, cleanup, wait};

/// What the background process says when the cluster is there to stay.
const DONE_WELL: u8 = b'+';
/// The same, when checks have failed.
const DONE_BADLY: u8 = b'-';

/// Starts the background process and waits until it has told the story.
///
/// # Errors
///
/// When it cannot be started.
pub fn start(id: &str) -> Result<ExitCode> {
    let (mut ours, theirs) = UnixStream::pair().context("making a socket pair")?;
    let program = std::env::current_exe().context("finding the running program")?;
    let mut command = Command::new(program);
    command
        .args(["demo", "--hosted", "--id", id])
        .stdin(OwnedFd::from(theirs));
    let mut background = command.spawn().context("starting the background process")?;
    // Its end of the socket must be the only one, or its death would go unnoticed.
    drop(command);
    let pid = Pid::from_raw(background.id().cast_signed());
    let interrupt = Interrupt::catch(move || {
        // It removes everything and ends.
        let _ = kill(pid, Signal::SIGTERM);
    })?;
    let mut said = Vec::new();
    let mut byte = [0];
    if ours
        .read(&mut byte)
        .context("listening to the background process")?
        == 1
    {
        said.extend(byte);
    }
    match said.first() {
        Some(&DONE_WELL) => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => {
            background.wait()?;
            let code = if interrupt.came() { INTERRUPTED } else { 1 };
            Ok(ExitCode::from(code))
        }
    }
}

/// The background process: tells the story, and hosts the cluster until a signal.
///
/// # Errors
///
/// When the cluster cannot be made, or the story not told; the cluster is removed then.
pub fn host(id: &str, terminal: Terminal) -> Result<ExitCode> {
    // Only the leader of a process group cannot, and then it was started by hand.
    let _ = setsid();
    let foreground = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut foreground = UnixStream::from(foreground);
    let interrupt = Interrupt::of_playground(id)?;
    let told = make(id, terminal).and_then(|mut playground| {
        let failures = Story::tell(&mut playground, &interrupt, terminal)?;
        Ok((playground, failures))
    });
    if interrupt.came() {
        drop(told);
        return interrupted(id);
    }
    let (playground, failures) = told?;
    fs::write(kept_file(id), std::process::id().to_string()).context("marking it as kept")?;
    explain(&playground, terminal)?;
    verdict(failures, terminal);

    let log = playground.dir().join("host.log");
    let log = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    dup2_stdout(&log)?;
    dup2_stderr(&log)?;
    let said = if failures == 0 { DONE_WELL } else { DONE_BADLY };
    // Nobody may be listening any more; the cluster stays all the same.
    let _ = foreground.write_all(&[said]);
    drop(foreground);
    interrupt.wait();
    Ok(ExitCode::SUCCESS)
}

/// Fails when a demonstration runs or was kept, and says what to do.
///
/// # Errors
///
/// When there is one.
pub fn refuse_second(id: &str) -> Result<()> {
    if !cleanup::dir(id).exists() || cleanup::claim(id).is_ok() {
        return Ok(());
    }
    if kept_file(id).exists() {
        bail!(
            "a demonstration was kept, and is running: use it with KUBECONFIG={}, or remove it with \
             `cargo xtask demo --clean`",
            cleanup::dir(id).join("kubeconfig").display()
        );
    }
    bail!("a demonstration is running; wait for its end, or end it with `cargo xtask demo --clean`")
}

/// Removes the demonstration, running or not, and what other playgrounds have left after a crash.
///
/// # Errors
///
/// When something cannot be removed.
pub fn clean(id: &str, terminal: Terminal) -> Result<()> {
    let before: BTreeMap<String, Inventory> = cleanup::ids()?
        .into_iter()
        .map(|id| Ok((id.clone(), Inventory::take(&id)?)))
        .collect::<Result<_>>()?;
    let host = fs::read_to_string(kept_file(id)).unwrap_or_default();
    let removed = Playground::clean(id).and_then(|()| Playground::clean_all());
    if removed.is_ok() && !host.is_empty() {
        wait("the background process has ended", PATIENCE, || {
            still_hosts(&host)
        })?;
    }
    let mut any = false;
    for (id, inventory) in before {
        // Those in use by others stay.
        if !cleanup::dir(&id).exists() {
            any = true;
            terminal.check(true, &format!("removed {id}: {inventory}"));
        }
    }
    if !any && removed.is_ok() {
        terminal.say("there is nothing to remove");
    }
    removed
}

/// Fails while the background process is there. One that waits to be buried has no words any more.
fn still_hosts(pid: &str) -> Result<()> {
    let words = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    let hosts = words
        .split(|byte| *byte == 0)
        .any(|word| word == b"--hosted");
    ensure!(!hosts, "process {pid} is still there");
    Ok(())
}

fn kept_file(id: &str) -> PathBuf {
    cleanup::dir(id).join("kept")
}

fn explain(playground: &Playground, terminal: Terminal) -> Result<()> {
    let agent = Binaries::find(true)?.agent;
    terminal.heading("The cluster stays");
    terminal.say("for kubectl, and for everything else that talks to Kubernetes:");
    terminal.say(&format!(
        "  export KUBECONFIG={}",
        playground.kubeconfig().display()
    ));
    terminal.say("  kubectl get pods --all-namespaces --output wide");
    terminal.say("  kubectl delete --filename tests/demo/40-policies.yaml");
    terminal.say("the agents, and what they have pinned:");
    for node in playground.nodes() {
        let run_dir = node.run_dir();
        terminal.say(&format!(
            "  {} status --run-dir {}",
            agent.display(),
            run_dir.display()
        ));
        terminal.say(&format!("  {}", inside::dump_command(node)));
        terminal.note(&format!("  pins: {}", inside::pin_dir(node).display()));
    }
    terminal.say("inside a node (pods have namespaces of their own, see `ip netns`):");
    for node in playground.nodes().iter().take(1) {
        terminal.say(&format!("  ip netns exec {} ip address", node.netns.name()));
    }
    terminal.say("to remove it:");
    terminal.say("  cargo xtask demo --clean");
    Ok(())
}
