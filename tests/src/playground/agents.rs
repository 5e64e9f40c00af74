//! The life of a playground's agents.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};

use super::process::{self, Limit};
use super::wait::{Fatal, PATIENCE, wait};
use super::{Playground, cni};
use crate::netns;

impl Playground {
    /// Starts a node's agent. It serves once [`Playground::wait_agent_ready`] says so.
    ///
    /// # Errors
    ///
    /// When it runs already or cannot be started.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        let (binaries, flags) = (self.binaries.clone(), self.plan.flags());
        self.node_mut(node)?.start_agent(&binaries, &flags)
    }

    /// Kills a node's agent with SIGKILL.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill_agent(&mut self, node: &str) -> Result<()> {
        self.node_mut(node)?.kill_agent()
    }

    /// Waits until the CNI plugin that a node's agent installed says that pods can be attached.
    ///
    /// # Errors
    ///
    /// When the agent ends or takes too long; the error has the end of its log.
    pub fn wait_agent_ready(&mut self, name: &str) -> Result<()> {
        let node = self.node_mut(name)?;
        let ready = wait(&format!("the agent of {name} is ready"), PATIENCE, || {
            if node.agent_pid()?.is_none() {
                return Err(Fatal("the agent does not run".to_owned()).into());
            }
            let cni = node.cni();
            let network = cni
                .network()?
                .with_context(|| cni::no_network(&cni.conf_dir))?;
            cni.status(&node.netns, &network)
        });
        ready.with_context(|| format!("the agent's log ends:\n{}", node.agent_log_tail(20)))
    }

    /// Asks a node's running agent, as an operator does: `status`, `endpoints`, ...
    ///
    /// # Errors
    ///
    /// When the program cannot be run.
    pub fn ask_agent(&self, node: &str, args: &[&str]) -> Result<Output> {
        let node = self.node(node)?;
        let mut command = Command::new(&self.binaries.agent);
        command.args(args).arg("--run-dir").arg(node.run_dir());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        netns::enter(&mut command, &node.netns, Some(&node.cgroup.join("host")))?;
        process::run(&mut command, b"", Limit::CLIENT)
            .with_context(|| format!("asking the agent of {}: {args:?}", node.name))
    }
}
