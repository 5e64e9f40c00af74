//! Programs that a test runs in pods and on nodes.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Playground;
use super::process::{self, Limit};
use crate::netns;

impl Playground {
    /// Runs `weft-testpod` in a pod and waits for its end. See its `--help` for what it can do.
    ///
    /// # Errors
    ///
    /// When there is no such pod, or the program does not end. How it ended is no error here.
    pub fn exec(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<Output> {
        process::run(&mut self.in_pod(namespace, pod, args)?, b"", Limit::CLIENT)
            .with_context(|| format!("running {args:?} in pod {namespace}/{pod}"))
    }

    /// Runs `weft-testpod` in a node's own namespace, as a process of the host: its cgroup is below
    /// the node's, so that socket programs attached to that see it.
    ///
    /// # Errors
    ///
    /// As for [`Playground::exec`].
    pub fn exec_host(&self, node: &str, args: &[&str]) -> Result<Output> {
        process::run(&mut self.on_host(node, args)?, b"", Limit::CLIENT)
            .with_context(|| format!("running {args:?} on {node}"))
    }

    /// Starts `weft-testpod` in a pod, and returns once it has printed its first line.
    ///
    /// # Errors
    ///
    /// When there is no such pod, or the program ends before it prints.
    pub fn spawn(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<Background> {
        Background::start(self.in_pod(namespace, pod, args)?)
            .with_context(|| format!("running {args:?} in pod {namespace}/{pod}"))
    }

    /// Starts `weft-testpod` on a node, and returns once it has printed its first line.
    ///
    /// # Errors
    ///
    /// As for [`Playground::spawn`].
    pub fn spawn_host(&self, node: &str, args: &[&str]) -> Result<Background> {
        Background::start(self.on_host(node, args)?)
            .with_context(|| format!("running {args:?} on {node}"))
    }

    fn in_pod(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<Command> {
        let sandbox = self
            .nodes
            .iter()
            .find_map(|node| node.sandboxes.get(namespace, pod))
            .with_context(|| format!("pod {namespace}/{pod} does not run on any node"))?;
        let mut command = self.testpod(args);
        netns::enter(&mut command, &sandbox.netns, Some(&sandbox.cgroup))?;
        Ok(command)
    }

    fn on_host(&self, node: &str, args: &[&str]) -> Result<Command> {
        let node = self.node(node)?;
        let mut command = self.testpod(args);
        netns::enter(&mut command, &node.netns, Some(&node.cgroup.join("host")))?;
        Ok(command)
    }

    pub(super) fn testpod(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.testpod);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// A process that runs while the test goes on; killed when dropped.
pub struct Background {
    child: Option<Child>,
    stdout: Option<BufReader<ChildStdout>>,
    /// The first line that it printed.
    pub first_line: String,
}

impl Background {
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("the output is not a pipe")?;
        let mut background = Background {
            child: Some(child),
            stdout: Some(BufReader::new(stdout)),
            first_line: String::new(),
        };
        // The programs bound their own time, so this ends.
        if let Some(stdout) = &mut background.stdout {
            stdout.read_line(&mut background.first_line)?;
        }
        if background.first_line.is_empty() {
            let output = background.finish()?;
            bail!(
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(background)
    }

    /// Waits for the next line that it prints. Waits as long as the program takes: for one that may
    /// say nothing, the program's own bound is the test's.
    ///
    /// # Errors
    ///
    /// When it ends without another line.
    pub fn next_line(&mut self) -> Result<String> {
        let mut line = String::new();
        if let Some(stdout) = &mut self.stdout {
            stdout.read_line(&mut line)?;
        }
        if line.is_empty() {
            bail!("the program said no more");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Asks it to end, as SIGTERM does, waits for that, and returns what it printed meanwhile.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn stop(self) -> Result<Output> {
        if let Some(child) = &self.child {
            // Its child is not buried yet, so the number is still its own.
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        }
        self.finish()
    }

    /// Waits for the end, and returns what was printed after the first line.
    ///
    /// # Errors
    ///
    /// When the program does not end.
    pub fn finish(mut self) -> Result<Output> {
        let child = self.child.take().context("the process has ended")?;
        let mut rest = Vec::new();
        if let Some(mut stdout) = self.stdout.take() {
            std::io::Read::read_to_end(&mut stdout, &mut rest)?;
        }
        let mut output = process::finish(child, b"", Limit::CLIENT)?;
        output.stdout = rest;
        Ok(output)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
