//! Whether the datapath is on an interface: what the kernel says, not what the agent remembers.

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use nix::net::if_::if_nametoindex;
use weft_abi::maps::programs;

use crate::netlink::filters::{self, Side};
use crate::netlink::{Netlink, overlay};

/// What belongs on the host's end of a pod's interface.
const POD: [(&str, Side); 2] = [
    (programs::FROM_CONTAINER, Side::Ingress),
    (programs::TO_CONTAINER, Side::Egress),
];
/// What belongs on the overlay device.
const OVERLAY: [(&str, Side); 2] = [
    (programs::FROM_OVERLAY, Side::Ingress),
    (programs::TO_OVERLAY, Side::Egress),
];

/// The programs that the host's end of a pod's interface should have and has not.
///
/// # Errors
///
/// When the kernel does not say.
pub async fn missing_on_pod(netlink: &Netlink, interface: &str) -> Result<Vec<&'static str>> {
    missing(netlink, interface, POD).await
}

/// The programs that the overlay device should have and has not.
///
/// # Errors
///
/// When the kernel does not say; also when there is no such device.
pub async fn missing_on_overlay(netlink: &Netlink) -> Result<Vec<&'static str>> {
    missing(netlink, overlay::DEVICE, OVERLAY).await
}

async fn missing(
    netlink: &Netlink,
    interface: &str,
    plan: [(&'static str, Side); 2],
) -> Result<Vec<&'static str>> {
    let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let mut missing = Vec::new();
    for (program, side) in plan {
        if has_link(interface, side, program) {
            continue;
        }
        let filters = filters::on(netlink, index, side).await?;
        if !filters.iter().any(|filter| filter.name == program) {
            missing.push(program);
        }
    }
    Ok(missing)
}

/// Whether a tcx link has the program there. A kernel without tcx has none.
fn has_link(interface: &str, side: Side, program: &str) -> bool {
    let direction = match side {
        Side::Ingress => TcAttachType::Ingress,
        Side::Egress => TcAttachType::Egress,
    };
    SchedClassifier::query_tcx(interface, direction).is_ok_and(|(_, attached)| {
        let mut names = attached.iter().filter_map(|info| info.name_as_str());
        names.any(|name| name == program)
    })
}
