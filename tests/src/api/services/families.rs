//! Which families a Service has: what the API documents for `ipFamilies` and `ipFamilyPolicy`, in the
//! order in which the real API server applies it.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::super::object::{items, text};
use super::super::status::Cause;
use super::field;

const POLICIES: [&str; 3] = ["SingleStack", "PreferDualStack", "RequireDualStack"];
const NAMES: [&str; 2] = ["IPv4", "IPv6"];

/// Fills in families and their policy, and drops the second address of a Service that is to have one
/// family only. What `spec` leaves out, it already has from `old`. The result says for each family
/// whether it is IPv4; `None` when there are causes to refuse.
pub(super) fn settle(
    spec: &mut Map<String, Value>,
    old: Option<&Value>,
    cluster: &[bool],
    causes: &mut Vec<Cause>,
) -> Option<Vec<bool>> {
    let before = causes.len();
    let is_headless = *field(spec, "clusterIP") == "None";
    let has_selector = field(spec, "selector")
        .as_object()
        .is_some_and(|selector| !selector.is_empty());
    let policy = match field(spec, "ipFamilyPolicy").as_str() {
        Some(policy) if !policy.is_empty() => policy.to_owned(),
        _ if is_headless && !has_selector => "RequireDualStack".to_owned(),
        _ => "SingleStack".to_owned(),
    };
    check(spec, &policy, causes);
    if causes.len() > before {
        return None;
    }
    let is_single = policy == "SingleStack";
    for (name, what) in [
        ("clusterIPs", "secondary cluster IP"),
        ("ipFamilies", "secondary IP family"),
    ] {
        shrink(spec, old, name, what, is_single, causes);
    }
    if let Some(old) = old
        && let Some(first) = items(old, "/spec/ipFamilies").first()
        && field(spec, "ipFamilies")[0] != *first
    {
        let now = field(spec, "ipFamilies")[0].clone();
        causes.push(Cause::invalid(
            "spec.ipFamilies[0]",
            &now,
            "may not change once set",
        ));
    }
    let mut families: Vec<bool> = list(spec, "ipFamilies").iter().map(is_v4).collect();
    for address in list(spec, "clusterIPs").iter().skip(families.len()) {
        if let Some(address) = parse(address) {
            families.push(address.is_ipv4());
        }
    }
    let is_lonely = is_headless && !has_selector;
    if !is_lonely {
        if policy == "RequireDualStack" && cluster.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            causes.push(Cause::invalid(
                "spec.ipFamilyPolicy",
                &policy.as_str().into(),
                why,
            ));
        }
        for (n, family) in families.iter().enumerate() {
            if !cluster.contains(family) {
                let path = format!("spec.ipFamilies[{n}]");
                let why = "not configured on this cluster";
                causes.push(Cause::invalid(path, &name(*family).into(), why));
            }
        }
    }
    if causes.len() > before {
        return None;
    }
    if families.is_empty() {
        families.extend(cluster.first());
    }
    if let [first] = families[..]
        && !is_single
        && (is_lonely || cluster.len() == 2)
    {
        families.push(!first);
    }
    let names: Vec<_> = families.iter().copied().map(name).collect();
    spec.insert("ipFamilies".to_owned(), json!(names));
    spec.insert("ipFamilyPolicy".to_owned(), policy.into());
    Some(families)
}

/// Checks the fields by themselves and against each other.
fn check(spec: &Map<String, Value>, policy: &str, causes: &mut Vec<Cause>) {
    if !POLICIES.contains(&policy) {
        let path = "spec.ipFamilyPolicy";
        causes.push(Cause::unsupported(path, &policy.into(), &POLICIES));
    }
    let (families, addresses) = (list(spec, "ipFamilies"), list(spec, "clusterIPs"));
    for (n, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{n}]");
        if !NAMES.iter().any(|name| family == name) {
            causes.push(Cause::unsupported(path, family, &NAMES));
        } else if families[..n].contains(family) {
            causes.push(Cause::duplicate(path, family));
        }
    }
    if addresses.len() > 2 {
        let why = "may only hold up to 2 values";
        causes.push(Cause::invalid("spec.clusterIPs", &json!(addresses), why));
    }
    let parsed: Vec<_> = addresses.iter().filter_map(parse).collect();
    if let [one, other, ..] = parsed[..]
        && one.is_ipv4() == other.is_ipv4()
    {
        let why = "may specify no more than one IP for each IP family";
        causes.push(Cause::invalid("spec.clusterIPs", &json!(addresses), why));
    }
    for (n, (address, family)) in parsed.iter().zip(&families).enumerate() {
        if address.is_ipv4() != is_v4(family) {
            let family = family.as_str().unwrap_or_default().trim_start_matches("IP");
            let why = format!("expected an IP{family} value as indicated by `ipFamilies[{n}]`");
            let path = format!("spec.clusterIPs[{n}]");
            causes.push(Cause::invalid(path, &address.to_string().into(), &why));
        }
    }
}

/// Setting the policy to one family is enough to give the second up, and nothing else is.
fn shrink(
    spec: &mut Map<String, Value>,
    old: Option<&Value>,
    name: &str,
    what: &str,
    is_single: bool,
    causes: &mut Vec<Cause>,
) {
    let (mut now, policy) = (list(spec, name), field(spec, "ipFamilyPolicy").clone());
    let path = "spec.ipFamilyPolicy";
    let had = old.map(|old| items(old, &format!("/spec/{name}")));
    match had {
        Some(had) if is_single && *had == now[..] && now.len() > 1 => {
            now.truncate(1);
            spec.insert(name.to_owned(), now.into());
        }
        Some(had) if !is_single && !now.is_empty() && now.len() < had.len() => {
            let why = format!("must be 'SingleStack' to release the {what}");
            causes.push(Cause::invalid(path, &policy, &why));
        }
        _ if is_single && now.len() > 1 => {
            let several = if name == "clusterIPs" {
                "cluster IPs"
            } else {
                "IP families"
            };
            let why = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {several} are \
                 specified"
            );
            causes.push(Cause::invalid(path, &policy, &why));
        }
        _ => {}
    }
}

fn list(spec: &Map<String, Value>, name: &str) -> Vec<Value> {
    items(field(spec, name), "").to_vec()
}

fn parse(address: &Value) -> Option<IpAddr> {
    text(address, "").parse().ok()
}

fn is_v4(family: &Value) -> bool {
    family == "IPv4"
}

fn name(is_v4: bool) -> &'static str {
    if is_v4 { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The families and addresses of a Service, or the field that is refused.
    fn settled(spec: &Value, old: Option<&Value>, cluster: &[bool]) -> Result<Value, String> {
        let mut spec = spec.as_object().unwrap().clone();
        let old = old.map(|spec| json!({ "spec": spec }));
        let mut causes = Vec::new();
        match settle(&mut spec, old.as_ref(), cluster, &mut causes) {
            Some(_) => Ok(Value::Object(spec)),
            None => Err(causes.remove(0).field),
        }
    }

    const DUAL: [bool; 2] = [true, false];

    #[test]
    fn families_follow_the_policy_and_the_cluster() {
        let both = json!(["IPv4", "IPv6"]);
        for (spec, cluster, families, policy) in [
            (json!({}), &DUAL[..], json!(["IPv4"]), "SingleStack"),
            (json!({}), &[false, true], json!(["IPv6"]), "SingleStack"),
            (
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                &[true],
                json!(["IPv4"]),
                "PreferDualStack",
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                &DUAL,
                json!(["IPv6", "IPv4"]),
                "RequireDualStack",
            ),
            (
                json!({"clusterIPs": ["fd00::1"], "clusterIP": "fd00::1"}),
                &DUAL,
                json!(["IPv6"]),
                "SingleStack",
            ),
            (
                json!({"clusterIP": "None"}),
                &[true],
                both.clone(),
                "RequireDualStack",
            ),
            (
                json!({"clusterIP": "None", "selector": {"a": "b"}}),
                &DUAL,
                json!(["IPv4"]),
                "SingleStack",
            ),
        ] {
            let settled = settled(&spec, None, cluster).unwrap();
            assert_eq!(settled["ipFamilies"], families, "{spec}");
            assert_eq!(settled["ipFamilyPolicy"], policy, "{spec}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (spec, cluster, field) in [
            (
                json!({"ipFamilies": ["IPv4", "IPv6"]}),
                &DUAL[..],
                "spec.ipFamilyPolicy",
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                &[true],
                "spec.ipFamilyPolicy",
            ),
            (
                json!({"ipFamilyPolicy": "Both"}),
                &DUAL,
                "spec.ipFamilyPolicy",
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                &[true],
                "spec.ipFamilies[0]",
            ),
            (json!({"ipFamilies": ["IPX"]}), &DUAL, "spec.ipFamilies[0]"),
            (
                json!({"ipFamilies": ["IPv4", "IPv4"]}),
                &DUAL,
                "spec.ipFamilies[1]",
            ),
            (
                json!({"ipFamilies": ["IPv6"], "clusterIPs": ["10.0.0.1"]}),
                &DUAL,
                "spec.clusterIPs[0]",
            ),
            (
                json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
                &DUAL,
                "spec.clusterIPs",
            ),
        ] {
            assert_eq!(settled(&spec, None, cluster).unwrap_err(), field, "{spec}");
        }
    }

    #[test]
    fn a_service_gains_and_loses_its_second_family_by_its_policy() {
        let two = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                         "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]});
        let mut one = two.clone();
        one["ipFamilyPolicy"] = "SingleStack".into();
        let settled_one = settled(&one, Some(&two), &DUAL).unwrap();
        assert_eq!(settled_one["ipFamilies"], json!(["IPv4"]));
        assert_eq!(settled_one["clusterIPs"], json!(["10.0.0.1"]));

        let mut again = settled_one.clone();
        again["ipFamilyPolicy"] = "PreferDualStack".into();
        let settled_two = settled(&again, Some(&settled_one), &DUAL).unwrap();
        assert_eq!(settled_two["ipFamilies"], json!(["IPv4", "IPv6"]));

        let mut silent = two.clone();
        silent["clusterIPs"] = json!(["10.0.0.1"]);
        assert_eq!(
            settled(&silent, Some(&two), &DUAL).unwrap_err(),
            "spec.ipFamilyPolicy"
        );
        let mut other = two.clone();
        other["ipFamilies"] = json!(["IPv6", "IPv4"]);
        other["clusterIPs"] = json!(["fd00::1", "10.0.0.1"]);
        assert_eq!(
            settled(&other, Some(&two), &DUAL).unwrap_err(),
            "spec.ipFamilies[0]"
        );
    }
}
