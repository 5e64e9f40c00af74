//! `weft-agent cleanup`: removes everything that Weft ever made on a node, of this release and of
//! earlier ones.
//!
//! The order keeps what the datapath promises to its last moment: first the runtime is told that
//! there is no network, then pods lose their interfaces, and only then are programs and maps
//! removed, so that no pod ever passes traffic without them.
//!
//! It does nothing while an agent runs, which would make things anew. Each thing is tried whatever
//! became of the others, and what is gone already is fine, so it can be repeated. Ports that the agent
//! added to the kernel's reserved ones are taken out again. Other settings that it changed (forwarding,
//! reverse-path checks) stay: by now others may rely on them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::programs::tc::{self, TcAttachType};
use futures::TryStreamExt as _;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteMessage;
use serde::Serialize;
use weft_abi::maps::programs;
use weft_cni::PLUGIN_TYPE;

use crate::cli::{CleanupArgs, Output};
use crate::cni::install::CONFLIST;
use crate::netlink::filters::{self, Side};
use crate::netlink::{Link, Netlink, ours, overlay, reserved, veth};
use crate::persist::TEMPORARY;

/// What the agent keeps in its state directory. Anything else there is somebody else's.
const STATE: [&str; 6] = [
    "cni-queue",
    "endpoints",
    "ipam",
    "node.json",
    reserved::FILE,
    "lock",
];
/// What the agent has in its run directory.
const RUN: [&str; 4] = ["cni.sock", "cni.new", "weft.sock", "weft.new"];

/// What was done, or would be.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether nothing was touched.
    pub dry_run: bool,
    /// What was removed.
    pub removed: Vec<Thing>,
    /// What is left, and why.
    pub left: Vec<Left>,
}

/// Something that Weft made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thing {
    /// What kind of thing.
    pub kind: &'static str,
    /// Which one.
    pub name: String,
}

/// Something that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// What.
    #[serde(flatten)]
    pub thing: Thing,
    /// Why.
    pub error: String,
}

/// Cleans up and says what it did.
///
/// # Errors
///
/// When an agent runs, or something is left.
pub fn run(args: &CleanupArgs) -> Result<()> {
    let _lock = lock(&args.state_dir.join("lock"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let report = runtime.block_on(clean(args));
    let text = match args.output {
        Output::Json => format!("{:#}\n", serde_json::to_value(&report)?),
        Output::Text => text(&report),
    };
    // A reader that went away (`| head`) is no failure of ours.
    let _ = io::stdout().write_all(text.as_bytes());
    match report.left.len() {
        0 => Ok(()),
        left => bail!("{left} things are left; run it again once what is in the way is gone"),
    }
}

/// The agent's own lock: nobody starts while this cleans up. Without a state directory there is
/// nothing to lock, and no agent.
fn lock(path: &Path) -> Result<Option<Flock<File>>> {
    let context = || format!("cannot lock {}", path.display());
    let file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(context),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "an agent is running (it holds {}): end it first, or it makes everything anew",
            path.display()
        ),
        Err((_, error)) => Err(error).with_context(context),
    }
}

fn text(report: &Report) -> String {
    let done = if report.dry_run {
        "would remove"
    } else {
        "removed"
    };
    let mut text = String::new();
    for Thing { kind, name } in &report.removed {
        text.push_str(&format!("{done} {kind} {name}\n"));
    }
    for Left { thing, error } in &report.left {
        text.push_str(&format!("left {} {}: {error}\n", thing.kind, thing.name));
    }
    if text.is_empty() {
        text.push_str("nothing of Weft is here\n");
    }
    text
}

async fn clean(args: &CleanupArgs) -> Report {
    let mut report = Report {
        dry_run: args.dry_run,
        ..Report::default()
    };
    files_of_runtimes(args, &mut report);
    match Netlink::host() {
        Ok(netlink) => network(&netlink, &mut report).await,
        Err(error) => report.leave("network", "of this node", &error),
    }
    pins(&args.bpf_root, &mut report);
    let kept = match reserved_ports(&args.state_dir, &mut report) {
        true => None,
        false => Some(reserved::FILE),
    };
    directory(&args.run_dir, &RUN, None, &mut report);
    directory(&args.state_dir, &STATE, kept, &mut report);
    report
}

/// The configuration first: without it the runtime asks for nothing more.
fn files_of_runtimes(args: &CleanupArgs, report: &mut Report) {
    let unfinished = |name: &str| format!("{TEMPORARY}{name}~");
    for (kind, dir, name) in [
        ("CNI configuration", &args.cni_conf_dir, CONFLIST),
        ("CNI plugin", &args.cni_bin_dir, PLUGIN_TYPE),
    ] {
        for name in [name.to_owned(), unfinished(name)] {
            report.file(kind, &dir.join(name));
        }
    }
}

async fn network(netlink: &Netlink, report: &mut Report) {
    let links = match netlink.links().await {
        Ok(links) => links,
        Err(error) => return report.leave("interfaces", "of this node", &error),
    };
    // The peers in pods go with them, and so do filters, routes and neighbours.
    let (mine, others): (Vec<Link>, Vec<Link>) = links
        .into_iter()
        .partition(|link| veth::is_host_end(link) || link.name == overlay::DEVICE);
    for link in mine {
        let kind = if link.name == overlay::DEVICE {
            "overlay"
        } else {
            "pod interface"
        };
        let result = match report.dry_run {
            true => Ok(()),
            false => netlink.delete_link(&link).await,
        };
        report.note(kind, &link.name, result);
    }
    for link in others {
        uplink(netlink, &link, report).await;
    }
    routes(netlink, report).await;
}

/// The filters of an interface that is not Weft's own.
async fn uplink(netlink: &Netlink, link: &Link, report: &mut Report) {
    let mut found = false;
    for side in Side::ALL {
        let there = match filters::on(netlink, link.index, side).await {
            Ok(there) => there,
            Err(error) => {
                report.leave("filters", &link.name, &error);
                continue;
            }
        };
        let direction = match side {
            Side::Ingress => TcAttachType::Ingress,
            Side::Egress => TcAttachType::Egress,
        };
        let mut names: Vec<String> = there.into_iter().map(|filter| filter.name).collect();
        names.dedup();
        for name in names {
            if !programs::ALL.contains(&name.as_str()) {
                continue;
            }
            found = true;
            let result = match report.dry_run {
                true => Ok(()),
                false => tc::qdisc_detach_program(&link.name, direction, &name),
            };
            report.note("filter", &format!("{name} on {}", link.name), result);
        }
    }
    if !found {
        return;
    }
    // One that others have filters on stays; an empty one was made by Weft, or is of no use.
    if !report.dry_run {
        match filters::remove_empty_clsact(netlink, link.index).await {
            Ok(true) => report.note("clsact discipline", &link.name, Ok::<_, io::Error>(())),
            Ok(false) => {}
            Err(error) => report.leave("clsact discipline", &link.name, &error),
        }
    }
}

/// Routes of Weft's protocol number, in every table.
async fn routes(netlink: &Netlink, report: &mut Report) {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let listed: Result<Vec<RouteMessage>, _> =
            ours::routes(netlink, family).try_collect().await;
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => {
                report.leave("routes", &format!("{family:?}"), &error);
                continue;
            }
        };
        for route in listed {
            let name = ours::text(&route);
            let result = match report.dry_run {
                true => Ok(()),
                false => ours::remove(netlink, route).await,
            };
            report.note("route", &name, result);
        }
    }
}

/// Maps and links of every ABI version: links of interfaces and cgroups end with their pins.
fn pins(bpf_root: &Path, report: &mut Report) {
    let dir = bpf_root.join("weft");
    if !dir.exists() {
        return;
    }
    if !statfs(&dir).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC) {
        return report.leave(
            "pins",
            &dir.display().to_string(),
            &"it is no BPF file system",
        );
    }
    let mut paths = Vec::new();
    if let Err(error) = walk(&dir, &mut paths) {
        report.leave("pins", &dir.display().to_string(), &error);
    }
    // Links before the maps that their programs use, so that the listing reads well; what the kernel
    // frees follows from the references alone.
    paths.sort_by_key(|(path, is_dir)| (*is_dir, !path.starts_with(dir.join("links"))));
    let (pins, mut dirs): (Vec<_>, Vec<_>) = paths.into_iter().partition(|(_, is_dir)| !is_dir);
    for (path, _) in pins {
        report.file("pin", &path);
    }
    dirs.sort_by(|(a, _), (b, _)| b.cmp(a));
    for (path, _) in dirs.into_iter().chain([(dir, true)]) {
        report.empty_dir(&path);
    }
}

fn walk(dir: &Path, paths: &mut Vec<(PathBuf, bool)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_dir = entry.file_type()?.is_dir();
        if is_dir {
            walk(&entry.path(), paths)?;
        }
        paths.push((entry.path(), is_dir));
    }
    Ok(())
}

/// Ports that only the datapath needed; false when they could not be given back.
fn reserved_ports(state: &Path, report: &mut Report) -> bool {
    let Some(ports) = reserved::to_give_back(state) else {
        return true;
    };
    let result = match report.dry_run {
        true => Ok(()),
        false => reserved::give_back(state),
    };
    let done = result.is_ok();
    report.note("reserved ports", &ports, result);
    done
}

/// The known parts of a directory, and the directory once nothing else is in it. One part may have to
/// be `kept` for the next attempt.
fn directory(dir: &Path, parts: &[&str], kept: Option<&str>, report: &mut Report) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if kept == Some(name.as_str()) {
            continue;
        }
        if !parts.contains(&name.as_str()) && !name.starts_with(TEMPORARY) {
            report.leave(
                "file",
                &entry.path().display().to_string(),
                &"it is not Weft's",
            );
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let result = match report.dry_run {
                true => Ok(()),
                false => fs::remove_dir_all(entry.path()),
            };
            report.note("directory", &entry.path().display().to_string(), result);
        } else {
            report.file("file", &entry.path());
        }
    }
    report.empty_dir(dir);
}

impl Report {
    /// Removes a file that may be there.
    fn file(&mut self, kind: &'static str, path: &Path) {
        if fs::symlink_metadata(path).is_err() {
            return;
        }
        let result = match self.dry_run {
            true => Ok(()),
            false => fs::remove_file(path),
        };
        self.note(kind, &path.display().to_string(), result);
    }

    /// Removes a directory if nothing is in it; what is, has been told already.
    fn empty_dir(&mut self, path: &Path) {
        let result = match self.dry_run {
            true => Ok(()),
            false => fs::remove_dir(path),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            result => self.note("directory", &path.display().to_string(), result),
        }
    }

    fn note(&mut self, kind: &'static str, name: &str, result: Result<(), impl ToString>) {
        match result {
            Ok(()) => self.removed.push(Thing {
                kind,
                name: name.to_owned(),
            }),
            Err(error) => self.leave(kind, name, &error),
        }
    }

    fn leave(&mut self, kind: &'static str, name: &str, error: &impl ToString) {
        self.left.push(Left {
            thing: Thing {
                kind,
                name: name.to_owned(),
            },
            error: error.to_string(),
        });
    }
}
