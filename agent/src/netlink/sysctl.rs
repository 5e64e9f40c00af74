//! The kernel settings that forwarding needs. Each is written only where it differs, and a failure
//! is reported and not fatal: on a read-only `/proc/sys` the node's owner has to set it.

use std::fs;
use std::path::PathBuf;

use tracing::{info, warn};

/// Lets the node forward: what the datapath hands to the host stack (packets out of the cluster,
/// packets that are too big or whose time is up) passes through `ip_forward`.
pub fn enable_forwarding() {
    set("net/ipv4/ip_forward", "1");
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
    set(&format!("net/ipv4/conf/{interface}/rp_filter"), value);
}

fn set(name: &str, value: &str) {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(current) if current.trim() == value => {}
        Ok(current) => match fs::write(&path, value) {
            Ok(()) => info!(
                setting = name,
                value,
                was = current.trim(),
                "changed a kernel setting"
            ),
            Err(error) => {
                warn!(setting = name, value, %error, "cannot change a kernel setting; set it by \
                    hand");
            }
        },
        Err(error) => warn!(setting = name, %error, "cannot read a kernel setting"),
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
