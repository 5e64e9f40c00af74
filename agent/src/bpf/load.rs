//! Loading: open or create the pinned maps, load the new programs over them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapInfo};
use aya::programs::{CgroupSockAddr, Program, SchedClassifier};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;
use tracing::{debug, info};
use weft_abi::maps::{self, programs, sockets};

use super::elf::DATAPATH;
use super::resize::{self, Replaced};
use crate::errors::chain;

/// The ELF's own global that says which debug traces are compiled in: the verifier removes the code
/// of those that are not.
const TRACE_LEVEL: &str = "AYA_LOG_LEVEL";

/// Constants of the ELF that say which helpers the kernel has, and since when kernels have them:
/// `bpf_set_retval` for socket programs, `bpf_skb_set_tstamp`.
const HELPERS: [(&str, KernelVersion); 2] = [
    ("HAVE_SET_RETVAL", KernelVersion::new(6, 1, 0)),
    ("HAVE_SKB_SET_TSTAMP", KernelVersion::new(5, 18, 0)),
];

/// What to load and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the pinned maps, on a BPF file system.
    pub map_dir: PathBuf,
    /// Capacities that differ from the ELF's, by map name.
    pub capacities: BTreeMap<&'static str, u32>,
    /// Whether packets are traced.
    pub trace: bool,
}

/// Why the datapath could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The directory for pins is on no BPF file system.
    #[error("{dir} is not on a BPF file system: mount one there (mount -t bpf bpf <dir>), or \
        give another --bpf-root", dir = .0.display())]
    NotBpffs(PathBuf),
    /// The directory for pins cannot be made.
    #[error("cannot make the pin directory {path}: {error}", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The kernel refused a map or a program, or the ELF is broken.
    #[error("cannot load the datapath: {0}")]
    Ebpf(String),
    /// The ELF lacks something.
    #[error("the datapath ELF has no {kind} {name}: it is not of this agent's release")]
    Missing {
        /// Program or map.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A pinned map has another layout.
    #[error("the pinned map {path} has another layout ({found}) than this agent's ({wanted}), \
        under the same ABI version; it is of another build. Drain the node and remove \
        {path}", path = path.display())]
    Layout {
        /// The pin.
        path: PathBuf,
        /// Key and value size and type there.
        found: String,
        /// The ELF's.
        wanted: String,
    },
    /// The verifier refused a program.
    #[error("the kernel refuses program {name}: {error}")]
    Verifier {
        /// The program.
        name: &'static str,
        /// The verifier's log.
        error: String,
    },
}

/// A loaded datapath.
#[derive(Debug)]
pub struct Loaded {
    pub(super) ebpf: Ebpf,
    replaced: Replaced,
}

/// What a loaded program or map is, for status.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProgramFacts {
    /// Its name.
    pub name: String,
    /// Its id, as in `bpftool prog show id`.
    pub id: u32,
    /// Instructions that the verifier walked.
    pub verified: Option<u32>,
}

/// The ELF's constants about helpers, as they are for this kernel: 1 where it has them.
#[must_use]
pub fn helpers() -> [(&'static str, u8); HELPERS.len()] {
    let kernel = KernelVersion::current().unwrap_or(KernelVersion::new(0, 0, 0));
    HELPERS.map(|(constant, since)| (constant, u8::from(kernel >= since)))
}

/// Opens or creates the pins and loads every program. Nothing is attached yet.
///
/// # Errors
///
/// Without effect on a running datapath, whatever fails.
pub fn load(options: &Options) -> Result<Loaded, LoadError> {
    let dir = &options.map_dir;
    prepare_directory(dir)?;
    let failed = |error| LoadError::Directory {
        path: dir.clone(),
        error,
    };
    resize::recover(dir).map_err(failed)?;
    let mut capacities = check_layouts(dir)?;
    capacities.extend(&options.capacities);
    let aside = resize::set_aside(dir, &capacities).map_err(failed)?;
    let ebpf = load_over(options).inspect_err(|_| resize::put_back(&aside))?;
    // What fails here is put back by the next start.
    let replaced = resize::carry_over(&aside).map_err(|error| LoadError::Ebpf(chain(&error)))?;
    Ok(Loaded { ebpf, replaced })
}

/// Opens or creates the pins and loads every program.
fn load_over(options: &Options) -> Result<Ebpf, LoadError> {
    let trace_level = if options.trace { u8::MAX } else { 0 };
    let mut loader = EbpfLoader::new();
    loader.override_global(TRACE_LEVEL, &trace_level, false);
    let known = helpers();
    for (constant, is_known) in &known {
        loader.override_global(constant, is_known, true);
    }
    for name in maps::PINNED {
        loader.map_pin_path(name, options.map_dir.join(name));
    }
    for (name, entries) in &options.capacities {
        loader.map_max_entries(name, *entries);
    }
    let mut ebpf = loader
        .load(DATAPATH)
        .map_err(|error| LoadError::Ebpf(chain(&error)))?;

    for name in programs::ALL {
        let program = classifier(&mut ebpf, name)?;
        program.load().map_err(|error| LoadError::Verifier {
            name,
            error: chain(&error),
        })?;
        debug!(program = name, "loaded");
    }
    let mut socket_programs = 0;
    for name in sockets::ALL {
        let Some(program) = ebpf.program_mut(name) else {
            debug!(program = name, "the datapath does not have this program");
            continue;
        };
        let program: &mut CgroupSockAddr = program.try_into().map_err(|_| LoadError::Missing {
            kind: "socket program",
            name,
        })?;
        program.load().map_err(|error| LoadError::Verifier {
            name,
            error: chain(&error),
        })?;
        socket_programs += 1;
    }
    for name in maps::PINNED {
        if ebpf.map(name).is_none() {
            debug!(map = name, "the datapath does not use this map");
        }
    }
    info!(pins = %options.map_dir.display(), programs = programs::ALL.len(), socket_programs,
        "datapath loaded");
    Ok(ebpf)
}

impl Loaded {
    /// A datapath that was loaded otherwise: tests and benchmarks load the same ELF without pins.
    #[must_use]
    pub fn new(ebpf: Ebpf) -> Self {
        Self {
            ebpf,
            replaced: Replaced::default(),
        }
    }

    /// Finishes with maps that got another capacity, when every program of an earlier agent is gone.
    pub fn catch_up(&mut self) {
        self.replaced.catch_up();
    }

    /// The loaded object, for what only tests and benchmarks do with it.
    pub const fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Whether there are programs for sockets.
    pub fn has_socket_programs(&self) -> bool {
        let there = |name: &&str| self.ebpf.program(name).is_some();
        sockets::ALL.iter().any(there)
    }

    /// The loaded programs.
    pub fn programs(&self) -> Vec<ProgramFacts> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| {
                let info = match program {
                    Program::SchedClassifier(classifier) => classifier.info(),
                    Program::CgroupSockAddr(socket) => socket.info(),
                    _ => return None,
                };
                let info = info.ok()?;
                Some(ProgramFacts {
                    name: name.to_owned(),
                    id: info.id(),
                    verified: info.verified_instruction_count(),
                })
            })
            .collect()
    }

    /// Takes a map out, to be used beside the programs.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Map> {
        self.ebpf.take_map(name)
    }
}

pub(super) fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, LoadError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing {
            kind: "program",
            name,
        })
}

fn prepare_directory(dir: &Path) -> Result<(), LoadError> {
    // The directory itself may not be there yet; its nearest ancestor is on the same file system.
    let there = dir
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    let stat = statfs(there).map_err(|error| LoadError::Directory {
        path: there.to_owned(),
        error: error.into(),
    })?;
    if stat.filesystem_type() != BPF_FS_MAGIC {
        return Err(LoadError::NotBpffs(dir.to_owned()));
    }
    fs::create_dir_all(dir).map_err(|error| LoadError::Directory {
        path: dir.to_owned(),
        error,
    })
}

/// Compares each pin with the ELF: opening a pin takes whatever is there. The ELF's capacities.
fn check_layouts(dir: &Path) -> Result<BTreeMap<&'static str, u32>, LoadError> {
    let mut capacities = BTreeMap::new();
    let object =
        aya_obj::Object::parse(DATAPATH).map_err(|error| LoadError::Ebpf(chain(&error)))?;
    for name in maps::PINNED {
        let path = dir.join(name);
        let Some(wanted) = object.maps.get(*name).filter(|_| path.exists()) else {
            continue;
        };
        capacities.insert(*name, wanted.max_entries());
        let info = MapInfo::from_pin(&path).map_err(|error| LoadError::Ebpf(chain(&error)))?;
        let wanted = (wanted.map_type(), wanted.key_size(), wanted.value_size());
        let map_type = info.map_type().map(|t| t as u32).unwrap_or_default();
        let found = (map_type, info.key_size(), info.value_size());
        if found != wanted {
            let show =
                |(map_type, key, value)| format!("type {map_type}, key {key}, value {value} bytes");
            return Err(LoadError::Layout {
                path,
                found: show(found),
                wanted: show(wanted),
            });
        }
    }
    Ok(capacities)
}

/// Capacity of a map.
pub(super) fn capacity(map: &MapData) -> u32 {
    map.info()
        .map(|info| info.max_entries())
        .unwrap_or_default()
}
