//! The kernel settings that forwarding needs. Each is written only where it differs, and a failure
//! is reported and not fatal: on a read-only `/proc/sys` the node's owner has to set it.
//!
//! The reverse-path check of uplinks is not touched. What the datapath rewrites, replies of
//! masqueraded connections and packets to host ports, it takes before the host stack sees it; what
//! the stack does see has the source that came with it and the way back that the node's routes say,
//! so the check means there what its owner meant.

use std::fs;
use std::io;
use std::path::PathBuf;

use tracing::{info, warn};

/// Lets the node forward: what the datapath hands to the host stack (packets out of the cluster,
/// packets that are too big or whose time is up) passes through `ip_forward`.
pub fn enable_forwarding() {
    let _ = set("net/ipv4/ip_forward", "1");
}

/// Lets the node forward IPv6. That makes the node a router, and routers take no advertisements of
/// other routers unless told to: without this, the uplinks would lose the addresses and default
/// routes that they have from them.
pub fn enable_ipv6_forwarding<'a>(uplinks: impl IntoIterator<Item = &'a str>) {
    if read("net/ipv6/conf/all/forwarding").as_deref() == Some("1") {
        return;
    }
    for uplink in uplinks {
        let setting = |name: &str| format!("net/ipv6/conf/{uplink}/{name}");
        let takes = read(&setting("accept_ra")).as_deref() == Some("1");
        if takes && read(&setting("forwarding")).as_deref() == Some("0") {
            let _ = set(&setting("accept_ra"), "2");
        }
    }
    let _ = set("net/ipv6/conf/all/forwarding", "1");
}

/// Takes the reverse-path check off an interface. The datapath checks sources exactly, and it
/// rewrites replies of services before the host stack sees them: their source is then a service
/// address, whose route leads elsewhere, and a strict check would drop them.
///
/// The kernel uses the larger value of `all` and the interface, and the largest is the loose one:
/// where `all` is on, the interface is made loose (2), elsewhere the check is taken off (0).
pub fn relax_reverse_path(interface: &str) {
    let all = fs::read_to_string(path("net/ipv4/conf/all/rp_filter")).unwrap_or_default();
    let value = if all.trim() == "0" { "0" } else { "2" };
    let _ = set(&format!("net/ipv4/conf/{interface}/rp_filter"), value);
}

/// What a setting is; `None` where the kernel does not have it.
pub(super) fn read(name: &str) -> Option<String> {
    let content = fs::read_to_string(path(name)).ok()?;
    Some(content.trim().to_owned())
}

/// Changes a setting that is another one. A failure is logged as well.
///
/// # Errors
///
/// When it cannot be read or written.
pub(super) fn set(name: &str, value: &str) -> io::Result<()> {
    let path = path(name);
    let current = fs::read_to_string(&path).inspect_err(|error| {
        warn!(setting = name, %error, "cannot read a kernel setting");
    })?;
    if current.trim() == value {
        return Ok(());
    }
    // The kernel ignores an empty write.
    fs::write(&path, format!("{value}\n")).inspect_err(|error| {
        warn!(setting = name, value, %error, "cannot change a kernel setting; set it by hand");
    })?;
    info!(
        setting = name,
        value,
        was = current.trim(),
        "changed a kernel setting"
    );
    Ok(())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
