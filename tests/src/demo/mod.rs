//! The demonstration: a shop on two nodes, told step by step, and checked while it is told.
//!
//! ```text
//!   demo          playground -> story -> removed
//!   demo --keep   foreground                      background (a session of its own)
//!                 starts it, waits  <---------->  playground -> story -> hosts until SIGTERM
//!   demo --clean  SIGTERM to the background process, then removes what is left
//! ```
//!
//! Invariants: one demonstration at a time, under the fixed id [`ID`]; whatever way it ends, nothing
//! of it is left, unless `--keep` was given and it got as far as its application.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use nix::unistd::geteuid;

use self::inventory::Inventory;
use self::story::Story;
use self::terminal::Terminal;
use crate::interrupt::Interrupt;
use crate::playground::{Playground, cleanup};

mod app;
mod balance;
mod drops;
mod inside;
mod inventory;
mod keep;
mod matrix;
mod outage;
mod story;
mod table;
mod terminal;

/// The id of the demonstration's playground.
const ID: &str = "demo";

/// How many nodes it has.
const NODES: u8 = 2;

/// The exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// What the demonstration is asked to do.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Leave the cluster running in the background, and say how to use it.
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove a cluster that was kept, and what crashed runs have left.
    #[arg(long)]
    clean: bool,
    /// The playground's id, so that tests can run beside a demonstration.
    #[arg(long, hide = true, default_value = ID)]
    id: String,
    /// The background part of `--keep`.
    #[arg(long, hide = true)]
    hosted: bool,
}

/// Runs the demonstration; the exit code says whether everything was as expected.
///
/// # Errors
///
/// When it cannot be run, or another one runs.
pub fn run(options: &Options) -> Result<ExitCode> {
    let terminal = Terminal::detect();
    if !geteuid().is_root() {
        bail!("the demonstration makes network namespaces and loads BPF programs: run it as root");
    }
    if !cleanup::is_id(&options.id) {
        bail!(
            "{:?} is no id: lower-case letters and digits only",
            options.id
        );
    }
    if options.clean {
        keep::clean(&options.id, terminal)?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.hosted {
        return keep::host(&options.id, terminal);
    }
    keep::refuse_second(&options.id)?;
    if options.keep {
        return keep::start(&options.id);
    }
    once(&options.id, terminal)
}

fn once(id: &str, terminal: Terminal) -> Result<ExitCode> {
    let interrupt = Interrupt::of_playground(id)?;
    let told = make(id, terminal).and_then(|mut playground| {
        let told = Story::tell(&mut playground, &interrupt, terminal);
        terminal.heading("Removing the cluster");
        told
    });
    if interrupt.came() {
        return interrupted(id);
    }
    let mut failures = told?;
    let left = Inventory::take(id)?;
    if left.is_empty() {
        terminal.check(true, "nothing is left");
    } else {
        terminal.check(false, &format!("this is left: {left}"));
        failures += 1;
    }
    verdict(failures, terminal);
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The end after a signal, with the playground dropped.
fn interrupted(id: &str) -> Result<ExitCode> {
    let left = Inventory::take(id)?;
    if !left.is_empty() {
        bail!("interrupted, but this is left: {left}; `cargo xtask demo --clean` removes it");
    }
    eprintln!("interrupted: everything is removed");
    Ok(ExitCode::from(INTERRUPTED))
}

fn make(id: &str, terminal: Terminal) -> Result<Playground> {
    terminal.heading("Two nodes, each a network namespace with an agent of its own");
    let playground = Playground::builder().id(id).nodes(NODES).start()?;
    for node in playground.nodes() {
        terminal.say(&format!(
            "{}  {}  {}",
            node.name,
            node.address(),
            node.dir.display()
        ));
    }
    Ok(playground)
}

fn verdict(failures: usize, terminal: Terminal) {
    match failures {
        0 => terminal.check(true, "everything was as expected"),
        1 => terminal.check(false, "1 check failed, see above"),
        _ => terminal.check(false, &format!("{failures} checks failed, see above")),
    }
}
