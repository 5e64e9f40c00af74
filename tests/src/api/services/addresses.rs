//! Cluster addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::super::object::{items, map_mut, text};
use super::super::status::Cause;
use super::{Allocations, Ground, addresses, families, field, is_unset, needs_addresses};

/// Offset of a range's first address that is given away: the ones before are left for those who ask
/// for well-known ones, such as the API's own and DNS.
const FIRST: u128 = 16;

/// Addresses of a range that are tried before it counts as full.
const TRIES: u128 = 1 << 20;

impl Allocations {
    pub(super) fn addresses_of(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        ground: &Ground,
        causes: &mut Vec<Cause>,
    ) {
        if !needs_addresses(service) {
            return;
        }
        let before = old.filter(|old| needs_addresses(old));
        let spec = map_mut(service, "spec");
        if let Some(old) = before {
            let address = text(old, "/spec/clusterIP");
            if !address.is_empty() && field(spec, "clusterIP") != address {
                let why = "may not change once set";
                let now = field(spec, "clusterIP");
                causes.push(Cause::invalid("spec.clusterIPs[0]", now, why));
                return;
            }
            let second = |list: &[Value]| list.get(1).cloned();
            let had = second(items(old, "/spec/clusterIPs"));
            if let Some(now) = second(items(field(spec, "clusterIPs"), ""))
                && had.is_some_and(|had| had != now)
            {
                let why = "may not change once set";
                causes.push(Cause::invalid("spec.clusterIPs[1]", &now, why));
                return;
            }
        }
        if is_unset(spec, "clusterIP") && !is_unset(spec, "clusterIPs") {
            let first = field(spec, "clusterIPs")[0].clone();
            spec.insert("clusterIP".to_owned(), first);
        }
        if !is_unset(spec, "clusterIP") && is_unset(spec, "clusterIPs") {
            let first = field(spec, "clusterIP").clone();
            spec.insert("clusterIPs".to_owned(), json!([first]));
        }
        let first = &field(spec, "clusterIPs")[0];
        if !is_unset(spec, "clusterIPs") && field(spec, "clusterIP") != first {
            let why = "first value must match `clusterIP`";
            causes.push(Cause::invalid("spec.clusterIPs[0]", first, why));
            return;
        }
        let Some(families) = families::settle(spec, before, &self.families, causes) else {
            return;
        };
        if spec.get("clusterIP").is_some_and(|first| *first == "None") {
            return;
        }
        let own = before.map(addresses).unwrap_or_default();
        let is_taken = |address: IpAddr| !own.contains(&address) && (ground.is_taken)(address);
        let mut given: Vec<IpAddr> = Vec::new();
        for (n, address) in items(field(spec, "clusterIPs"), "").iter().enumerate() {
            let path = format!("spec.clusterIPs[{n}]");
            let text = address.as_str().unwrap_or_default();
            let Ok(address) = text.parse::<IpAddr>() else {
                causes.push(Cause::invalid(path, address, "must be a valid IP address"));
                return;
            };
            // An address is the Service's as long as it lives, whatever becomes of its range.
            let inside = own.contains(&address) || can_have(&ground.ranges, address);
            let shown = address.to_string().into();
            if !inside {
                let why = "the provided IP is not in the valid range";
                causes.push(Cause::invalid(path, &shown, why));
            } else if is_taken(address) {
                let why = "provided IP is already allocated";
                causes.push(Cause::invalid(path, &shown, why));
            }
            given.push(address);
        }
        if !causes.is_empty() {
            return;
        }
        for is_v4 in families {
            if !given.iter().any(|ip| ip.is_ipv4() == is_v4) {
                match self.free_address(&ground.ranges, is_v4, is_taken) {
                    Some(address) => given.push(address),
                    None => {
                        let why = "failed to allocate IP: range is full";
                        causes.push(Cause::invalid("spec.clusterIPs", &Value::Null, why));
                        return;
                    }
                }
            }
        }
        let list: Vec<_> = given.iter().map(ToString::to_string).collect();
        let first = list.first().cloned().unwrap_or_default();
        spec.insert("clusterIP".to_owned(), first.into());
        spec.insert("clusterIPs".to_owned(), json!(list));
    }

    fn free_address(
        &mut self,
        ranges: &[IpNet],
        is_v4: bool,
        is_taken: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let ranges = ranges.iter().filter(|r| r.addr().is_ipv4() == is_v4);
        ranges
            .into_iter()
            .find_map(|range| self.free_address_of(range, &is_taken))
    }

    fn free_address_of(
        &mut self,
        range: &IpNet,
        is_taken: &impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let last = last_offset(range);
        let first = if last > FIRST { FIRST } else { 1 };
        let next = self.next_address.entry(*range).or_insert(first);
        for _ in 0..last.min(TRIES) {
            let offset = *next;
            *next = if offset >= last { 1 } else { offset + 1 };
            let address = at_offset(range, offset);
            if !is_taken(address) {
                return Some(address);
            }
        }
        None
    }
}

/// The offset of a range's last address that can be given: neither the network's own nor, for IPv4,
/// the broadcast address.
fn last_offset(range: &IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    size.saturating_sub(if range.addr().is_ipv4() { 2 } else { 1 })
}

fn at_offset(range: &IpNet, offset: u128) -> IpAddr {
    match range.network() {
        // An offset within the range fits.
        IpAddr::V4(base) => {
            IpAddr::V4((u32::from(base).wrapping_add(u32::try_from(offset).unwrap_or(0))).into())
        }
        IpAddr::V6(base) => IpAddr::V6((u128::from(base).wrapping_add(offset)).into()),
    }
}

fn can_have(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| {
        range.contains(&address)
            && address != range.network()
            && (address.is_ipv6() || address != range.broadcast())
    })
}
