//! ServiceCIDRs and IPAddresses.

use std::net::IpAddr;

use serde_json::Value;

use super::super::object::{self, items, text};
use super::super::status::Cause;
use super::network::cidr;

/// One range, or one of each family, each written as the network that it is.
pub fn service_cidr(range: &Value, causes: &mut Vec<Cause>) {
    let all = items(range, "/spec/cidrs");
    if all.is_empty() {
        let why = "at least one CIDR required";
        causes.push(Cause::required("spec.cidrs", why));
    }
    if all.len() > 2 {
        let why = "may only hold up to 2 values";
        causes.push(Cause::invalid("spec.cidrs", &range["spec"]["cidrs"], why));
        return;
    }
    let mut families = Vec::new();
    for (n, text) in all.iter().enumerate() {
        let path = format!("spec.cidrs[{n}]");
        let Some(parsed) = cidr(text, path.clone(), causes) else {
            continue;
        };
        if parsed.trunc() != parsed {
            let why = format!("must be in canonical form (\"{}\")", parsed.trunc());
            causes.push(Cause::invalid(path, text, &why));
        }
        families.push(parsed.addr().is_ipv4());
    }
    if let [one, other] = families[..]
        && one == other
    {
        let why = "may specify no more than one IP for each IP family";
        causes.push(Cause::invalid("spec.cidrs", &range["spec"]["cidrs"], why));
    }
}

/// What is given away cannot become another range's; the second family may come later.
pub fn service_cidr_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let (before, now) = (items(old, "/spec/cidrs"), items(new, "/spec/cidrs"));
    let is_extended = before.len() == 1 && now.len() == 2 && before[0] == now[0];
    if before != now && !is_extended {
        let why = "field is immutable";
        causes.push(Cause::invalid("spec.cidrs", &new["spec"]["cidrs"], why));
    }
}

/// The name is the address, and somebody has it.
pub fn ip_address(address: &Value, causes: &mut Vec<Cause>) {
    let name = object::name(address);
    let is_canonical = name
        .parse::<IpAddr>()
        .is_ok_and(|ip| ip.to_string() == name);
    if !is_canonical {
        let why = "must be a valid IP address in canonical form";
        causes.push(Cause::invalid("metadata.name", &name.into(), why));
    }
    if address["spec"]["parentRef"].is_null() {
        causes.push(Cause::required("spec.parentRef", ""));
        return;
    }
    for field in ["resource", "name"] {
        if text(address, &format!("/spec/parentRef/{field}")).is_empty() {
            causes.push(Cause::required(format!("spec.parentRef.{field}"), ""));
        }
    }
}

/// An address does not change hands.
pub fn ip_address_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["spec"]["parentRef"] != new["spec"]["parentRef"] {
        let now = &new["spec"]["parentRef"];
        causes.push(Cause::invalid("spec.parentRef", now, "field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ranges_are_networks_one_of_each_family() {
        for (cidrs, expected) in [
            (json!(["203.0.113.0/24"]), None),
            (json!(["203.0.113.0/24", "2001:db8::/64"]), None),
            (json!([]), Some("spec.cidrs")),
            (json!(["203.0.113.1/24"]), Some("spec.cidrs[0]")),
            (json!(["10.0.0.0/8", "11.0.0.0/8"]), Some("spec.cidrs")),
            (json!(["ten"]), Some("spec.cidrs[0]")),
        ] {
            let mut causes = Vec::new();
            service_cidr(&json!({ "spec": { "cidrs": cidrs } }), &mut causes);
            let found = causes.first().map(|cause| cause.field.as_str());
            assert_eq!(found, expected, "{cidrs}");
        }
    }

    #[test]
    fn only_a_second_family_is_added() {
        let refused = |old: Value, new: Value| {
            let mut causes = Vec::new();
            let range = |cidrs: Value| json!({ "spec": { "cidrs": cidrs } });
            service_cidr_update(&range(old), &range(new), &mut causes);
            !causes.is_empty()
        };
        let one = json!(["10.0.0.0/24"]);
        assert!(refused(one.clone(), json!(["10.1.0.0/24"])));
        assert!(!refused(one, json!(["10.0.0.0/24", "fd00::/112"])));
    }
}
