//! How to look inside: the pinned maps, and `bpftool` on one of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use weft_abi::ABI_VERSION;

use super::terminal::Terminal;
use crate::playground::{Limit, Node, process};

/// The map that is shown.
const MAP: &str = "flows4";

/// How many fields of the entry's value are shown.
const FIELDS: usize = 6;

/// Where a node's agent pins its maps.
pub fn pin_dir(node: &Node) -> PathBuf {
    node.bpf_dir().join("weft").join(format!("v{ABI_VERSION}"))
}

/// The command that dumps the flow table of a node.
pub fn dump_command(node: &Node) -> String {
    format!(
        "bpftool map dump pinned {}",
        pin_dir(node).join(MAP).display()
    )
}

/// Says what a node has pinned, and shows an entry of its flow table. Fails when the map has no
/// entries or no named fields; a missing `bpftool` is no failure.
///
/// # Errors
///
/// When the map cannot be read.
pub fn show(terminal: Terminal, node: &Node) -> Result<()> {
    terminal.say(&format!("$ {}", dump_command(node)));
    let Some(entries) = dump(&pin_dir(node).join(MAP))? else {
        terminal.note("bpftool is not installed here: `apt-get install bpftool` brings it");
        return Ok(());
    };
    let entry = entries
        .iter()
        .find(|entry| entry["key"]["protocol"] == 6)
        .or(entries.first());
    let entry = entry.context("the flow table is empty")?;
    let (key, value) = (entry["key"].as_object(), entry["value"].as_object());
    let (Some(key), Some(value)) = (key, value) else {
        bail!("bpftool shows the flow table without named fields: {entry}");
    };
    for (part, fields, limit) in [("key", key, usize::MAX), ("value", value, FIELDS)] {
        for (name, field) in fields.iter().take(limit) {
            terminal.note(&format!("{part:<6} {name:<10} {field}"));
        }
    }
    terminal.note(&format!(
        "...    one of {} flows; fields left out",
        entries.len()
    ));
    Ok(())
}

/// The map's entries with named fields; `None` without `bpftool`.
fn dump(map: &Path) -> Result<Option<Vec<Value>>> {
    let mut command = Command::new("bpftool");
    command.args(["-j", "map", "dump", "pinned"]).arg(map);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let limit = Limit(Duration::from_secs(20));
    let output = match process::run(&mut command, b"", limit) {
        Err(error) if is_missing(&error) => return Ok(None),
        output => output.context("running bpftool")?,
    };
    if !output.status.success() {
        bail!(
            "bpftool: {}",
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    let entries: Vec<Value> =
        serde_json::from_slice(&output.stdout).context("reading what bpftool says")?;
    // With type information the named form stands beside the bytes.
    let named = |mut entry: Value| match entry.get_mut("formatted") {
        Some(formatted) => formatted.take(),
        None => entry,
    };
    Ok(Some(entries.into_iter().map(named).collect()))
}

fn is_missing(error: &anyhow::Error) -> bool {
    let source = error.downcast_ref::<std::io::Error>();
    source.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
