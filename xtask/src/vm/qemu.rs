//! Boots a kernel under QEMU with software emulation, and keeps what its console says.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::report::FINISHED;
use crate::{process, setup};

const QEMU: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// How long QEMU's installation may take.
const INSTALLATION: Duration = Duration::from_secs(15 * 60);

/// How long a machine may say nothing; emulated, a packet test takes seconds, some a minute.
const SILENCE: Duration = Duration::from_secs(5 * 60);

/// How long it may take to switch itself off.
const SWITCH_OFF: Duration = Duration::from_secs(20);

/// What a machine that will not recover says.
const LOST: [&str; 4] = [
    "Kernel panic",
    "Oops:",
    "self-detected stall",
    "soft lockup",
];

/// Installs QEMU from Debian when it is missing.
pub fn ensure() -> Result<()> {
    if process::on_path(QEMU) {
        return Ok(());
    }
    let hint = format!("{QEMU} is missing: `apt-get install {PACKAGE}` brings it");
    ensure!(setup::is_root() && process::on_path("apt-get"), hint);
    process::step(format!(
        "{QEMU} is missing: installing {PACKAGE} from Debian"
    ));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        process::run_within(command.stdout(Stdio::null()), INSTALLATION)
    };
    let install = [
        "--quiet=2",
        "--yes",
        "--no-install-recommends",
        "install",
        PACKAGE,
    ];
    // Package lists may be absent or old; fetch them only when they do not do.
    apt(&install)
        .or_else(|_| apt(&["--quiet=2", "update"]).and_then(|()| apt(&install)))
        .context(hint)
}

/// Boots `image`, writing the console to `log`, until the machine switches itself off.
///
/// Fails when it panics or hangs; what its programs found is in the log.
pub fn boot(image: &Path, initramfs: &Path, log: &Path) -> Result<()> {
    let mut file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let child = Command::new(QEMU)
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            // QEMU 7.2 leaves rubbish in the upper flags after cmpxchg16b (a console showed
            // `EFLAGS: 8ef2b7c2`), and the next interrupt is a double fault. Without the
            // instruction kernels allocate another way.
            "max,-cx16",
            "-smp",
            "2",
            "-m",
            "3072",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .args(["-nic", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        // A machine that fails must end: panic on every oops, and reboot (which QEMU takes as the
        // end) at once on every panic.
        .args([
            "-append",
            "console=ttyS0 loglevel=4 oops=panic panic=-1 mitigations=off",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {QEMU}"))?;
    let mut machine = Machine { child };
    let console = machine
        .child
        .stdout
        .take()
        .context("the machine has no console")?;
    let lines = read_lines(console);

    let mut deadline = Instant::now() + SILENCE;
    let (mut lost, mut finished) = (None, false);
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(file, "{line}")
                    .with_context(|| format!("cannot write {}", log.display()))?;
                if lost.is_none() && LOST.iter().any(|sign| line.contains(sign)) {
                    // The lines that follow say where.
                    deadline = Instant::now() + SWITCH_OFF;
                    lost = Some(line);
                } else if line.starts_with(FINISHED) {
                    deadline = Instant::now() + SWITCH_OFF;
                    finished = true;
                } else if lost.is_none() && !finished {
                    deadline = Instant::now() + SILENCE;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => match lost {
                Some(_) => break,
                None => bail!("the machine went silent, or did not end, and was switched off"),
            },
        }
    }
    match lost {
        Some(line) => bail!("the kernel gave up: {}", line.trim()),
        None => Ok(()),
    }
}

/// A running machine; none outlives xtask's interest in it.
struct Machine {
    child: Child,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when the machine has ended and was reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The console's lines, without the terminal's carriage returns.
fn read_lines(console: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line)
                .trim_end_matches('\r')
                .to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
