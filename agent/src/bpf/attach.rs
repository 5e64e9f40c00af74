//! Attaching: programs on interfaces, by pinned links.
//!
//! With tcx (kernel 6.6 and newer) each attachment is a link, pinned as
//! `<link dir>/<interface>-<program>`. A new agent swaps its program into the pinned link, which is
//! one pointer in the kernel. Older kernels get a clsact qdisc and a filter with a fixed priority
//! and handle, which the new agent replaces in place.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcError, TcHandle,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use aya::sys::SyscallError;
use aya::util::KernelVersion;
use nix::net::if_::if_nametoindex;
use thiserror::Error;
use tracing::{debug, info, warn};
use weft_abi::maps::programs;

use super::load::{Loaded, classifier};
use crate::cli::AttachMode;
use crate::errors::chain;
use crate::netlink::overlay;

/// Priority of our clsact filters: fixed, so that the next agent finds them.
const PRIORITY: u16 = 1;
/// Handle of our clsact filters.
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// What belongs on which side of an interface: program and direction.
type Plan = [(&'static str, TcAttachType); 2];

/// The host's end of a pod's interface.
const POD: Plan = [
    (programs::FROM_CONTAINER, TcAttachType::Ingress),
    (programs::TO_CONTAINER, TcAttachType::Egress),
];
/// The overlay device.
const OVERLAY: Plan = [
    (programs::FROM_OVERLAY, TcAttachType::Ingress),
    (programs::TO_OVERLAY, TcAttachType::Egress),
];

/// Why a program could not be attached.
#[derive(Debug, Error)]
#[error("cannot attach {program} to interface {interface}: {error}")]
pub struct AttachError {
    program: &'static str,
    interface: String,
    error: String,
}

/// Attaches the datapath's programs.
#[derive(Debug)]
pub struct Attacher {
    loaded: Loaded,
    link_dir: PathBuf,
    tcx: bool,
}

impl Attacher {
    /// Uses these programs from now on. `link_dir` is made when missing.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn new(loaded: Loaded, link_dir: PathBuf, mode: AttachMode) -> io::Result<Self> {
        fs::create_dir_all(&link_dir)?;
        let tcx = match mode {
            AttachMode::Auto => {
                KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0))
            }
            AttachMode::Tcx => true,
            AttachMode::Clsact => false,
        };
        if !tcx {
            info!(
                "programs are attached as clsact filters: the kernel has no tcx, or clsact was \
                    asked for"
            );
        }
        Ok(Self {
            loaded,
            link_dir,
            tcx,
        })
    }

    /// The loaded programs.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// How programs are attached, for status.
    pub fn mode(&self) -> &'static str {
        if self.tcx { "tcx" } else { "clsact" }
    }

    /// Attaches to the host's end of a pod's interface, or swaps the programs there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; programs attached before stay.
    pub fn attach_pod(&mut self, interface: &str) -> Result<(), AttachError> {
        self.attach(interface, POD)
    }

    /// Attaches to the overlay device, or swaps the programs there.
    ///
    /// # Errors
    ///
    /// As [`Self::attach_pod`].
    pub fn attach_overlay(&mut self) -> Result<(), AttachError> {
        self.attach(overlay::DEVICE, OVERLAY)
    }

    /// Forgets an interface that is being removed. The programs go with the interface.
    pub fn forget(&self, interface: &str) {
        for (program, _) in POD {
            self.unpin(&self.pin(interface, program));
        }
    }

    /// Removes the pins of interfaces that are gone. An interface that exists keeps its programs
    /// even when it is not among these: it may be a pod's that is just being added, and a pod
    /// without programs is a pod without policy.
    pub fn sweep(&self, interfaces: &BTreeSet<String>) {
        let entries = match fs::read_dir(&self.link_dir) {
            Ok(entries) => entries,
            Err(error) => {
                warn!(dir = %self.link_dir.display(), %error, "cannot list the pinned links");
                return;
            }
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let interface = programs::ALL
                .iter()
                .find_map(|program| name.strip_suffix(program)?.strip_suffix('-'));
            let gone = |interface: &str| {
                !interfaces.contains(interface) && if_nametoindex(interface).is_err()
            };
            if interface.is_some_and(gone) {
                debug!(
                    link = name,
                    "removing the pin of a link whose interface is gone"
                );
                self.unpin(&entry.path());
            }
        }
    }

    fn attach(&mut self, interface: &str, plan: Plan) -> Result<(), AttachError> {
        for (program, direction) in plan {
            let failed = |error: String| AttachError {
                program,
                interface: interface.to_owned(),
                error,
            };
            let pin = self.pin(interface, program);
            let tcx = self.tcx;
            let classifier = classifier(&mut self.loaded.ebpf, program)
                .map_err(|error| failed(error.to_string()))?;
            let result = if tcx {
                attach_tcx(classifier, interface, direction, &pin)
            } else {
                attach_clsact(classifier, interface, direction)
            };
            result.map_err(failed)?;
            if !tcx {
                // A link of an agent that used tcx would go before the filter.
                self.unpin(&pin);
            }
            debug!(interface, program, "attached");
        }
        Ok(())
    }

    fn pin(&self, interface: &str, program: &str) -> PathBuf {
        self.link_dir.join(format!("{interface}-{program}"))
    }

    fn unpin(&self, pin: &Path) {
        if let Err(error) = fs::remove_file(pin)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(pin = %pin.display(), %error, "cannot remove a pinned link");
        }
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
    pin: &Path,
) -> Result<(), String> {
    let replaces = match PinnedLink::from_pin(pin) {
        Ok(pinned) => match swap(program, pinned) {
            Ok(()) => return Ok(()),
            // The link's interface is gone, and this is another one of its name; or the pin holds
            // something else.
            Err(error) => {
                info!(interface, pin = %pin.display(), error, "replacing a dead link");
                true
            }
        },
        Err(LinkError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::NotFound =>
        {
            false
        }
        Err(error) => return Err(format!("opening {}: {}", pin.display(), chain(&error))),
    };
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program
        .attach_with_options(interface, direction, options)
        .map_err(|error| chain(&error))?;
    let link = program.take_link(id).map_err(|error| chain(&error))?;
    let link: FdLink = link.try_into().map_err(|error: LinkError| chain(&error))?;
    if replaces {
        // Only now: were the old link alive after all, its interface must not be without a program.
        fs::remove_file(pin).map_err(|error| format!("removing {}: {error}", pin.display()))?;
    }
    link.pin(pin)
        .map_err(|error| format!("pinning {}: {}", pin.display(), chain(&error)))?;
    Ok(())
}

/// Swaps the program in a pinned link. The pin keeps the link.
fn swap(program: &mut SchedClassifier, pinned: PinnedLink) -> Result<(), String> {
    let link: SchedClassifierLink = FdLink::from(pinned)
        .try_into()
        .map_err(|error: LinkError| chain(&error))?;
    let id = program
        .attach_to_link(link)
        .map_err(|error| chain(&error))?;
    let link = program.take_link(id).map_err(|error| chain(&error))?;
    // Dropping closes our descriptor; the pin holds the link.
    drop(link);
    Ok(())
}

fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
) -> Result<(), String> {
    if let Err(error) = tc::qdisc_add_clsact(interface)
        && !exists(&error)
    {
        return Err(chain(&error));
    }
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        classid: None,
    });
    let id = match program.attach_with_options(interface, direction, options) {
        Err(ProgramError::TcError(error)) if exists(&error) => {
            let there = SchedClassifierLink::attached(interface, direction, PRIORITY, HANDLE, None)
                .map_err(|error| error.to_string())?;
            program.attach_to_link(there)
        }
        result => result,
    }
    .map_err(|error| chain(&error))?;
    let link = program.take_link(id).map_err(|error| chain(&error))?;
    // Dropping it would detach; the filter is to outlive the agent.
    std::mem::forget(link);
    Ok(())
}

fn exists(error: &TcError) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.raw_os_error() == Some(libc::EEXIST)
        {
            return true;
        }
        source = error.source();
    }
    false
}
