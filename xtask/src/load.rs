//! Loads an ELF into the running kernel, unpinned and unattached, and reports what each program
//! costs the verifier.
//!
//! The kernel tells the verifier's work in two places. `bpf_prog_info` has the verified
//! instructions, from 5.16 on. The verifier's log has them on every kernel, with the stack depth,
//! but aya hands the log over for a failed load only. So a second load is made to fail at its very
//! last step, after verification: without a free file descriptor, the kernel cannot return the
//! program.

use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError, ProgramInfo},
    util::KernelVersion,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, getrlimit, rlim_t, setrlimit},
};
use serde::{Deserialize, Serialize};

/// Where maps that ask to be pinned by name go while the ELF is loaded.
const PINS: &str = "/sys/fs/bpf";

/// What the agent tells the programs of the kernel when it loads them (`agent/src/bpf/load.rs`): which
/// code is verified depends on it.
const HELPERS: [(&str, KernelVersion); 2] = [
    ("HAVE_SET_RETVAL", KernelVersion::new(6, 1, 0)),
    ("HAVE_SKB_SET_TSTAMP", KernelVersion::new(5, 18, 0)),
];

/// What the kernel says of one loaded program. Absent numbers are unknown to this kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// The program's name.
    pub name: String,
    /// Instructions after the verifier rewrote them.
    pub translated: Option<u64>,
    /// Instructions that the verifier walked, over all paths; the kernel's limit is one million.
    pub verified: Option<u64>,
    /// Bytes of machine code; zero when the kernel does not compile it.
    pub jited: u64,
    /// Bytes of stack of the program and of each function that it calls.
    pub stack: Option<Vec<u64>>,
}

/// Loads every program of the ELF and reports on each, sorted by name. Needs root.
///
/// Fails on the first program that the kernel refuses, with the verifier's log.
pub fn report(elf: &[u8]) -> Result<Vec<Loaded>> {
    let isolated = thread::scope(|scope| {
        let reports = scope.spawn(|| {
            isolate_pins()?;
            report_here(elf)
        });
        reports.join()
    });
    isolated.map_err(|_| anyhow!("the thread that loads the programs panicked"))?
}

fn report_here(elf: &[u8]) -> Result<Vec<Loaded>> {
    let mut reports = facts(elf)?;
    let mut ebpf = open(elf, VerifierLogLevel::STATS)?;
    for report in &mut reports {
        let program = ebpf
            .program_mut(&report.name)
            .with_context(|| format!("program {} vanished from the ELF", report.name))?;
        // Absent statistics are no failure: the numbers of `bpf_prog_info` stand.
        if let Some(statistics) = statistics(program)? {
            report.verified = Some(statistics.verified);
            report.stack = statistics.stack;
        }
    }
    Ok(reports)
}

fn facts(elf: &[u8]) -> Result<Vec<Loaded>> {
    let mut ebpf = open(elf, VerifierLogLevel::default())?;
    let mut reports = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        load(program)?.with_context(|| format!("the kernel refuses program {name}"))?;
        reports.push(loaded(name, &info(program)?));
    }
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(reports)
}

fn open(elf: &[u8], log: VerifierLogLevel) -> Result<Ebpf> {
    let kernel = KernelVersion::current().context("cannot find out the kernel's version")?;
    let helpers = HELPERS.map(|(constant, since)| (constant, u8::from(kernel >= since)));
    let mut loader = EbpfLoader::new();
    for (constant, is_known) in &helpers {
        loader.override_global(constant, is_known, true);
    }
    loader
        .default_map_pin_directory(PINS)
        .verifier_log_level(log)
        .load(elf)
        .context("cannot create the maps of the ELF")
}

/// The outer error: xtask cannot load programs of this type; the inner: the kernel refused it.
fn load(program: &mut Program) -> Result<Result<(), ProgramError>> {
    Ok(match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::Xdp(program) => program.load(),
        other => bail!(
            "cannot load programs of type {:?}: teach xtask's load.rs",
            other.prog_type()
        ),
    })
}

fn info(program: &Program) -> Result<ProgramInfo> {
    Ok(match program {
        Program::SchedClassifier(program) => program.info(),
        Program::CgroupSockAddr(program) => program.info(),
        Program::CgroupSkb(program) => program.info(),
        Program::Xdp(program) => program.info(),
        other => bail!("cannot inspect programs of type {:?}", other.prog_type()),
    }?)
}

fn loaded(name: &str, info: &ProgramInfo) -> Loaded {
    Loaded {
        name: name.to_owned(),
        translated: info.size_translated().map(|bytes| u64::from(bytes) / 8),
        verified: info.verified_instruction_count().map(u64::from),
        jited: info.size_jitted().into(),
        stack: None,
    }
}

/// The verifier's closing lines.
#[derive(Debug, PartialEq, Eq)]
struct Statistics {
    verified: u64,
    stack: Option<Vec<u64>>,
}

fn statistics(program: &mut Program) -> Result<Option<Statistics>> {
    let outcome = {
        let _limit = NoNewFiles::set()?;
        load(program)?
    };
    match outcome {
        Err(ProgramError::LoadError { verifier_log, .. }) => {
            Ok(parse_statistics(&verifier_log.to_string()))
        }
        _ => Ok(None),
    }
}

/// Reads `processed N insns ...` and `stack depth A+B ...` of a verifier log.
fn parse_statistics(log: &str) -> Option<Statistics> {
    let verified = log.lines().find_map(|line| {
        line.strip_prefix("processed ")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    })?;
    let stack = log.lines().find_map(|line| {
        line.strip_prefix("stack depth ")?
            .split_whitespace()
            .next()?
            .split('+')
            .map(|depth| depth.parse().ok())
            .collect()
    });
    Some(Statistics { verified, stack })
}

/// While it lives, this process can open no file.
struct NoNewFiles {
    soft: rlim_t,
    hard: rlim_t,
}

impl NoNewFiles {
    fn set() -> Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
        Ok(Self { soft, hard })
    }
}

impl Drop for NoNewFiles {
    fn drop(&mut self) {
        // Raising the soft limit to what it was below the same hard limit is always allowed.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard);
    }
}

/// Gives the calling thread a mount namespace with a bpffs of its own, so that maps which ask to be
/// pinned land nowhere: both vanish with the thread.
fn isolate_pins() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace; loading needs root")?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context("cannot make the mount namespace private")?;
    mount(Some("bpf"), PINS, Some("bpf"), MsFlags::empty(), nothing)
        .with_context(|| format!("cannot mount bpffs on {PINS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_from_the_log() {
        let log = "verification time 123 usec\nstack depth 64+16\nprocessed 5242 insns (limit \
                   1000000) max_states_per_insn 4 total_states 31 peak_states 31 mark_read 9\n";
        assert_eq!(
            parse_statistics(log),
            Some(Statistics {
                verified: 5242,
                stack: Some(vec![64, 16])
            })
        );
    }

    #[test]
    fn a_log_without_statistics_gives_none() {
        assert_eq!(parse_statistics(""), None);
        assert_eq!(parse_statistics("processed many insns"), None);
    }
}
