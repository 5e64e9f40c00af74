//! Attaching: programs on interfaces, by pinned links.
//!
//! With tcx (kernel 6.6 and newer) each attachment is a link, pinned as
//! `<link dir>/<interface>-<program>`. A new agent swaps its program into the pinned link, which is
//! one pointer in the kernel. Older kernels get a clsact qdisc and a filter with a fixed handle, at a
//! fixed priority or the first one that others leave free, which the new agent replaces in place.
//!
//! The BPF file system takes no dots in names, which VLAN interfaces have: in pins they are `%2e`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, Link, LinkError, PinnedLink};
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

/// Priority of our clsact filters on interfaces of our own: fixed, so that the next agent finds them.
const PRIORITIES: RangeInclusive<u16> = 1..=1;
/// Priorities of our clsact filters on uplinks: the first that somebody's filter of another kind or
/// protocol does not have for itself.
const UPLINK_PRIORITIES: RangeInclusive<u16> = 1..=8;
/// Handle of our clsact filters on interfaces of our own.
const HANDLE: TcHandle = TcHandle::new(0, 1);
/// Handle of our clsact filters on uplinks, which others may have filters on.
const UPLINK_HANDLE: TcHandle = TcHandle::new(0, 0x5745);

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

/// An uplink.
const UPLINK: Plan = [
    (programs::FROM_NETDEV, TcAttachType::Ingress),
    (programs::TO_NETDEV, TcAttachType::Egress),
];

/// Why a program could not be attached.
#[derive(Debug, Error)]
#[error("cannot attach {program} to {target}: {error}")]
pub struct AttachError {
    pub(super) program: &'static str,
    /// Interface or cgroup.
    pub(super) target: String,
    pub(super) error: String,
}

/// Attaches the datapath's programs.
#[derive(Debug)]
pub struct Attacher {
    pub(super) loaded: Loaded,
    pub(super) link_dir: PathBuf,
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

    /// Finishes with maps that got another capacity, when every program of an earlier agent is gone.
    pub fn catch_up(&mut self) {
        self.loaded.catch_up();
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

    /// Attaches to an uplink, or swaps the programs there.
    ///
    /// # Errors
    ///
    /// As [`Self::attach_pod`].
    pub fn attach_uplink(&mut self, interface: &str) -> Result<(), AttachError> {
        self.attach(interface, UPLINK)
    }

    /// Detaches from an interface that is no uplink any more, or never was.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. An interface that is gone is fine.
    pub fn detach_uplink(&mut self, interface: &str) -> Result<(), AttachError> {
        for (program, direction) in UPLINK {
            // The pin holds the link: without it the kernel ends the attachment.
            self.unpin(&self.pin(interface, program));
            if self.tcx {
                continue;
            }
            for priority in UPLINK_PRIORITIES {
                let result = detach_clsact(interface, direction, priority, UPLINK_HANDLE);
                if let Err(error) = result
                    && if_nametoindex(interface).is_ok()
                {
                    return Err(AttachError {
                        program,
                        target: format!("interface {interface}"),
                        error: format!("detaching: {error}"),
                    });
                }
            }
        }
        Ok(())
    }

    /// Interfaces that the programs of an uplink are pinned to, by this agent or an earlier one.
    pub fn pinned_uplinks(&self) -> BTreeSet<String> {
        let uplinks = self.pins().filter_map(|name| {
            let (interface, program) = parse_pin(&name)?;
            UPLINK
                .iter()
                .any(|(of_uplinks, _)| *of_uplinks == program)
                .then_some(interface)
        });
        uplinks.collect()
    }

    /// Forgets an interface that is being removed. The programs go with the interface.
    pub fn forget(&self, interface: &str) {
        for (program, _) in POD {
            self.unpin(&self.pin(interface, program));
        }
    }

    /// Forgets the overlay device, which is being removed.
    pub fn forget_overlay(&self) {
        for (program, _) in OVERLAY {
            self.unpin(&self.pin(overlay::DEVICE, program));
        }
    }

    /// Removes the pins of interfaces that are gone. An interface that exists keeps its programs
    /// even when it is not among these: it may be a pod's that is just being added, and a pod
    /// without programs is a pod without policy.
    pub fn sweep(&self, interfaces: &BTreeSet<String>) {
        let gone =
            |interface: &str| !interfaces.contains(interface) && if_nametoindex(interface).is_err();
        for name in self.pins() {
            if parse_pin(&name).is_some_and(|(interface, _)| gone(&interface)) {
                debug!(
                    link = name,
                    "removing the pin of a link whose interface is gone"
                );
                self.unpin(&self.link_dir.join(name));
            }
        }
    }

    /// The names of the pinned links.
    pub(super) fn pins(&self) -> impl Iterator<Item = String> + use<> {
        let entries = fs::read_dir(&self.link_dir)
            .inspect_err(|error| {
                warn!(dir = %self.link_dir.display(), %error, "cannot list the pinned links");
            })
            .into_iter()
            .flatten()
            .flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
    }

    fn attach(&mut self, interface: &str, plan: Plan) -> Result<(), AttachError> {
        for (program, direction) in plan {
            let failed = |error: String| AttachError {
                program,
                target: format!("interface {interface}"),
                error,
            };
            let pin = self.pin(interface, program);
            let tcx = self.tcx;
            let classifier = classifier(&mut self.loaded.ebpf, program)
                .map_err(|error| failed(error.to_string()))?;
            let result = if tcx {
                attach_tcx(classifier, interface, direction, &pin)
            } else {
                let (priorities, handle) = if plan == UPLINK {
                    (UPLINK_PRIORITIES, UPLINK_HANDLE)
                } else {
                    (PRIORITIES, HANDLE)
                };
                attach_clsact(classifier, interface, direction, priorities, handle)
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
        self.link_dir.join(pin_name(interface, program))
    }

    pub(super) fn unpin(&self, pin: &Path) {
        if let Err(error) = fs::remove_file(pin)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(pin = %pin.display(), %error, "cannot remove a pinned link");
        }
    }
}

/// The name of a pin.
fn pin_name(interface: &str, program: &str) -> String {
    let interface = interface.replace('%', "%25").replace('.', "%2e");
    format!("{interface}-{program}")
}

/// The interface and the program of a pin's name, if it is such a pin.
fn parse_pin(name: &str) -> Option<(String, &'static str)> {
    programs::ALL.iter().find_map(|program| {
        let interface = name.strip_suffix(program)?.strip_suffix('-')?;
        let interface = interface.replace("%2e", ".").replace("%25", "%");
        Some((interface, *program))
    })
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
    priorities: RangeInclusive<u16>,
    handle: TcHandle,
) -> Result<(), String> {
    if let Err(error) = tc::qdisc_add_clsact(interface)
        && !is(&error, libc::EEXIST)
    {
        return Err(chain(&error));
    }
    let mut refused = String::new();
    for priority in priorities.clone() {
        match attach_filter(program, interface, direction, priority, handle) {
            Ok(()) => {
                // An earlier agent's, of when other priorities were free.
                for other in priorities.filter(|other| *other != priority) {
                    detach_clsact(interface, direction, other, handle)?;
                }
                return Ok(());
            }
            // Filters of one priority have one kind and one protocol, and somebody's are there.
            Err(error) if is(&error, libc::EINVAL) => refused = chain(&error),
            Err(error) => return Err(chain(&error)),
        }
    }
    Err(refused)
}

/// Makes the filter, or swaps the program in the one that is there.
fn attach_filter(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
    priority: u16,
    handle: TcHandle,
) -> Result<(), ProgramError> {
    let options = TcAttachOptions::Netlink(NlOptions {
        priority,
        handle,
        classid: None,
    });
    let id = match program.attach_with_options(interface, direction, options) {
        Err(error) if is(&error, libc::EEXIST) => {
            let there = SchedClassifierLink::attached(interface, direction, priority, handle, None)
                .map_err(TcError::from)?;
            program.attach_to_link(there)
        }
        result => result,
    }?;
    let link = program.take_link(id)?;
    // Dropping it would detach; the filter is to outlive the agent.
    std::mem::forget(link);
    Ok(())
}

/// Removes a filter of ours; none is fine.
fn detach_clsact(
    interface: &str,
    direction: TcAttachType,
    priority: u16,
    handle: TcHandle,
) -> Result<(), String> {
    let there = SchedClassifierLink::attached(interface, direction, priority, handle, None);
    match there.map(Link::detach) {
        // No filter, or no qdisc for any, or somebody's filters.
        Ok(Err(error)) if is(&error, libc::ENOENT) || is(&error, libc::EINVAL) => Ok(()),
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the kernel's answer was this error number.
fn is(error: &(dyn std::error::Error + 'static), errno: i32) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.raw_os_error() == Some(errno)
        {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_tells_interface_and_program() {
        for interface in ["eth0", "bond0.100", "a-b", "50%", "%2e.", "weft_vxlan"] {
            let name = pin_name(interface, programs::FROM_NETDEV);
            assert!(!name.contains('.'), "{name}");
            let parsed = parse_pin(&name);
            assert_eq!(parsed, Some((interface.to_owned(), programs::FROM_NETDEV)));
        }
        assert_eq!(parse_pin("cgroup-connect4"), None);
    }
}
