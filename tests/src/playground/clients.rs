//! Clients of every kind, wherever they are: what tests of Services ask from pods, nodes and outside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Output;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{Background, Playground};

/// Where a client runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// In a pod, of this namespace and name.
    Pod(&'a str, &'a str),
    /// On a node, as a process of the host.
    Host(&'a str),
    /// Outside.
    Outside,
}

/// How one connection went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Went {
    /// A server answered this.
    Answered(String),
    /// Somebody said no: a TCP reset or an ICMP port unreachable.
    Refused,
    /// Nobody said anything.
    TimedOut,
    /// The network said that there is no way.
    Unreachable,
    /// Anything else.
    Failed(String),
}

impl Went {
    /// Reads the end of `weft-testpod connect`.
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        match output.status.code() {
            Some(0) => Went::Answered(text(&output.stdout)),
            Some(10) => Went::Refused,
            Some(11) => Went::TimedOut,
            Some(12) => Went::Unreachable,
            _ => Went::Failed(text(&output.stderr)),
        }
    }

    /// What was answered.
    ///
    /// # Errors
    ///
    /// When nothing was.
    pub fn answer(self) -> Result<String> {
        match self {
            Went::Answered(answer) => Ok(answer),
            other => bail!("{other:?}"),
        }
    }
}

/// What became of connections that were made one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counted {
    /// How many were answered.
    pub answered: usize,
    /// How many of them each server answered.
    pub servers: BTreeMap<String, usize>,
    /// Who answered, in order.
    pub order: Vec<String>,
    /// The addresses that servers saw; none over HTTP.
    pub clients: BTreeSet<IpAddr>,
    /// How the others failed: `Refused`, `TimedOut`, `Unreachable`, `Failed`.
    pub failed: BTreeMap<String, usize>,
}

impl Counted {
    /// The names of the servers that answered.
    pub fn names(&self) -> Vec<&str> {
        self.servers.keys().map(String::as_str).collect()
    }
}

impl Playground {
    /// Runs `weft-testpod` somewhere and waits for its end.
    ///
    /// # Errors
    ///
    /// When there is no such place, or the program does not end. How it ended is no error here.
    pub fn run_at(&self, place: Place<'_>, args: &[&str]) -> Result<Output> {
        match place {
            Place::Pod(namespace, pod) => self.exec(namespace, pod, args),
            Place::Host(node) => self.exec_host(node, args),
            Place::Outside => self.outside().exec(args),
        }
    }

    /// Starts `weft-testpod` somewhere, and returns once it has printed its first line.
    ///
    /// # Errors
    ///
    /// When there is no such place, or the program ends before it prints.
    pub fn spawn_at(&self, place: Place<'_>, args: &[&str]) -> Result<Background> {
        match place {
            Place::Pod(namespace, pod) => self.spawn(namespace, pod, args),
            Place::Host(node) => self.spawn_host(node, args),
            Place::Outside => self.outside().spawn(args),
        }
    }

    /// Makes one connection: `weft-testpod connect` with more arguments, if any. The protocol is
    /// `tcp`, `udp` or `http`.
    ///
    /// # Errors
    ///
    /// As for [`Playground::run_at`].
    pub fn connect(
        &self,
        from: Place<'_>,
        protocol: &str,
        target: SocketAddr,
        more: &[&str],
    ) -> Result<Went> {
        let target = target.to_string();
        let args = [&["connect", protocol, &target], more].concat();
        Ok(Went::of(&self.run_at(from, &args)?))
    }

    /// Makes so many connections, one after the other, and counts who answers them: `weft-testpod
    /// count` with more arguments, if any.
    ///
    /// # Errors
    ///
    /// As for [`Playground::run_at`], and when the program has nothing to say.
    pub fn count(
        &self,
        from: Place<'_>,
        protocol: &str,
        target: SocketAddr,
        connections: usize,
        more: &[&str],
    ) -> Result<Counted> {
        let (target, connections) = (target.to_string(), connections.to_string());
        let args = ["count", protocol, &target, "--count", &connections];
        let output = self.run_at(from, &[&args, more].concat())?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
