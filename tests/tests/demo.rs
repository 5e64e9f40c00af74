//! The demonstration as a user runs it, without a terminal: it must succeed, show what it promises,
//! and leave nothing behind. So must a kept one, once it is removed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use weft_tests::netns;
use weft_tests::playground::{Limit, cleanup, process};

/// How long a demonstration may take on a slow machine.
const LIMIT: Limit = Limit(Duration::from_secs(240));

/// The demonstration under an id of its own; removed if the test fails half-way.
struct Demo {
    id: String,
}

impl Demo {
    fn new(what: &str) -> Self {
        Demo {
            id: format!("demotest{what}{}", std::process::id()),
        }
    }

    fn run(&self, flags: &[&str]) -> (Output, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-playground"));
        command.arg("demo").args(["--id", &self.id]).args(flags);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = process::run(&mut command, b"", LIMIT).expect("the demonstration ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        println!("$ demo {flags:?}\n{text}{errors}");
        (output, text)
    }

    /// What is there of it: by name, by path and by the processes that work for it.
    fn leftovers(&self) -> Vec<String> {
        let dir = cleanup::dir(&self.id);
        let below = dir.to_string_lossy();
        let mut found = Vec::new();
        let prefix = cleanup::netns_name(&self.id, "");
        found.extend(
            netns::names()
                .expect("namespaces")
                .into_iter()
                .filter(|name| name.starts_with(&prefix)),
        );
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let of_it = |line: &&str| line.contains(&*below) || line.contains(&prefix);
        found.extend(mounts.lines().filter(of_it).map(ToOwned::to_owned));
        for path in [&dir, &cleanup::cgroup_dir(&self.id).expect("cgroup2")] {
            if path.exists() {
                found.push(path.display().to_string());
            }
        }
        for entry in fs::read_dir("/proc").expect("processes").flatten() {
            // What ends while it is being looked at is no leftover.
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            if words.contains(&*below) || words.contains(&self.id) {
                found.push(format!("process {words}"));
            }
        }
        found
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Err(error) = cleanup::remove_by_id(&self.id) {
            eprintln!("removing {}: {error:#}", self.id);
        }
    }
}

/// The links of the root namespace that Weft or a playground may have made.
fn links() -> Vec<String> {
    let names = fs::read_dir("/sys/class/net").expect("links").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.starts_with("weft") || name == "fabric")
        .collect()
}

/// The signs of each client's cells, as the matrix with this heading shows them.
fn matrix(text: &str, heading: &str) -> Vec<(String, String)> {
    let part = text.split("━━ ").find(|part| part.starts_with(heading));
    let part = part.unwrap_or_else(|| panic!("there is no part {heading:?}"));
    let rows = part.lines().filter_map(|line| {
        let line = line.trim().strip_prefix('│')?;
        let (client, cells) = line.split_once('│')?;
        let cells: String = cells.chars().filter(|sign| "✔✘·".contains(*sign)).collect();
        (!cells.is_empty()).then(|| (client.trim().to_owned(), cells))
    });
    rows.collect()
}

fn rows(expected: [(&str, &str); 5]) -> Vec<(String, String)> {
    expected
        .map(|(client, cells)| (client.to_owned(), cells.to_owned()))
        .to_vec()
}

/// A demonstration counts what is lost while it kills agents: two at once would take the processors
/// from each other.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn the_demonstration_shows_what_it_promises_and_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let demo = Demo::new("once");
    let (output, text) = demo.run(&[]);
    assert!(output.status.success(), "{}", output.status);
    assert!(!text.contains('\u{1b}'), "colours without a terminal");

    // frontend:80, api:80, api:9090, database, nameserver; then api and database by pod.
    let open = rows([
        ("shop/frontend", "·✔✔✔✔✔✔"),
        ("shop/api", "✔··✔✔·✔"),
        ("shop/database", "✔✔✔·✔✔·"),
        ("monitoring/prometheus", "✔✔✔✔✔✔✔"),
        ("guests/visitor", "✔✔✔✔✔✔✔"),
    ]);
    assert_eq!(matrix(&text, "Who reaches whom, without policies"), open);
    let walled = rows([
        ("shop/frontend", "·✔✘✘✔✔✘"),
        ("shop/api", "✘··✔✔·✔"),
        ("shop/database", "✘✘✘·✔✘·"),
        ("monitoring/prometheus", "✔✘✔✘✔✘✘"),
        ("guests/visitor", "✔✘✘✘✔✘✘"),
    ]);
    assert_eq!(matrix(&text, "Who reaches whom, with policies"), walled);
    for promised in [
        "120 connections, every pod got some",
        "policy-egress",
        "policy-ingress",
        "shop/api, shop/default-deny",
        "every message was answered once",
        "bpftool map dump pinned",
        "nothing is left",
    ] {
        assert!(text.contains(promised), "{promised:?} is not shown");
    }
    assert_eq!(demo.leftovers(), Vec::<String>::new());
    assert_eq!(links(), Vec::<String>::new());
}

#[test]
fn a_kept_demonstration_stays_until_it_is_removed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let demo = Demo::new("keep");
    let (output, text) = demo.run(&["--keep"]);
    assert!(output.status.success(), "{}", output.status);
    let kubeconfig = cleanup::dir(&demo.id).join("kubeconfig");
    assert!(text.contains(&format!("export KUBECONFIG={}", kubeconfig.display())));
    assert!(kubeconfig.is_file());
    for node in ["node1", "node2"] {
        let pins = cleanup::dir(&demo.id)
            .join(node)
            .join(format!("bpf/weft/v{}", weft_abi::ABI_VERSION));
        assert!(text.contains(&format!("pins: {}", pins.display())));
        assert!(Path::new(&pins).join("flows4").exists());
    }

    let (second, _) = demo.run(&[]);
    assert!(!second.status.success());
    let errors = String::from_utf8_lossy(&second.stderr);
    assert!(errors.contains("cargo xtask demo --clean"), "{errors}");
    assert!(
        kubeconfig.is_file(),
        "the second one must not touch the first"
    );

    let (removed, text) = demo.run(&["--clean"]);
    assert!(removed.status.success(), "{}", removed.status);
    assert!(text.contains(&format!("removed {}", demo.id)), "{text}");
    assert_eq!(demo.leftovers(), Vec::<String>::new());
}
