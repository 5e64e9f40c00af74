//! The kernel settings that forwarding needs. Each is written only where it differs, and a failure
//! is reported and not fatal: on a read-only `/proc/sys` the node's owner has to set it.
//!
//! The reverse-path check of uplinks is not touched. What the datapath rewrites, replies of
//! masqueraded connections and packets to host ports, it takes before the host stack sees it; what
//! the stack does see has the source that came with it and the way back that the node's routes say,
//! so the check means there what its owner meant.

use std::fs;
use std::path::PathBuf;

use tracing::{info, warn};

/// Lets the node forward: what the datapath hands to the host stack (packets out of the cluster,
/// packets that are too big or whose time is up) passes through `ip_forward`.
pub fn enable_forwarding() {
    set("net/ipv4/ip_forward", "1");
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
            set(&setting("accept_ra"), "2");
        }
    }
    set("net/ipv6/conf/all/forwarding", "1");
}

/// Keeps the node's own sockets from picking these source ports by themselves. What others reserved
/// stays reserved.
pub fn reserve_ports(first: u16, last: u16) {
    const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
    let picked = read("net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut picked = picked
        .split_whitespace()
        .filter_map(|port| port.parse().ok());
    let (Some(low), Some(high)) = (picked.next(), picked.next()) else {
        return;
    };
    let (first, last) = (first.max(low), last.min(high));
    if first > last {
        return;
    }
    let current = read(RESERVED).unwrap_or_default();
    if let Some(wanted) = with_reserved(&current, first, last) {
        set(RESERVED, &wanted);
    }
}

/// A list of ports and ranges with one more range; `None` if it is in it already.
fn with_reserved(list: &str, first: u16, last: u16) -> Option<String> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.trim().parse::<u16>().ok()?, last.trim().parse().ok()?))
    };
    let mut ranges: Vec<(u16, u16)> = list.split(',').filter_map(range).collect();
    ranges.sort_unstable();
    let is_in = |port| {
        ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&port))
    };
    if (first..=last).all(is_in) {
        return None;
    }
    ranges.push((first, last));
    ranges.sort_unstable();
    let texts = ranges.iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    Some(texts.collect::<Vec<_>>().join(","))
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

fn read(name: &str) -> Option<String> {
    let content = fs::read_to_string(path(name)).ok()?;
    Some(content.trim().to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_others_reserved_stay() {
        assert_eq!(with_reserved("", 5, 9).as_deref(), Some("5-9"));
        assert_eq!(
            with_reserved("8080,9000-9010", 32_768, 40_000).as_deref(),
            Some("8080,9000-9010,32768-40000")
        );
        assert_eq!(
            with_reserved("50,1-3", 2, 7).as_deref(),
            Some("1-3,2-7,50"),
            "the kernel merges them"
        );
        assert_eq!(with_reserved("1-100,101-200", 50, 150), None);
    }
}
