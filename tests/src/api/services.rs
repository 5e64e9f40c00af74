//! Cluster addresses and node ports of Services, given at creation like the real API server does.

mod families;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::object::{as_map, items, items_mut, map_mut, text};
use super::status::Cause;

/// Where addresses and node ports come from.
#[derive(Debug, Clone)]
pub struct ServiceRanges {
    /// One range per family; the first is the cluster's preferred family.
    pub cidrs: Vec<IpNet>,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for ServiceRanges {
    /// `10.96.0.0/16`, node ports 30000 to 32767.
    fn default() -> Self {
        let cidrs = "10.96.0.0/16".parse().into_iter().collect();
        ServiceRanges {
            cidrs,
            node_ports: 30000..=32767,
        }
    }
}

/// What is in use.
///
/// Invariant: an address or port is in use exactly when a stored Service has it. New ones are taken in
/// order and not reused before the range has been walked through, so that a client that is late to
/// hear of a deletion does not reach another Service.
#[derive(Debug)]
pub struct Allocations {
    ranges: ServiceRanges,
    addresses: BTreeSet<IpAddr>,
    ports: BTreeMap<u16, String>,
    next_address: Vec<u128>,
    next_port: u16,
}

impl Allocations {
    /// Nothing is in use.
    #[must_use]
    pub fn new(ranges: ServiceRanges) -> Self {
        // The first addresses are left for well-known ones, such as the API's own and DNS.
        let next_address = ranges.cidrs.iter().map(|_| 16).collect();
        let next_port = *ranges.node_ports.start();
        Allocations {
            ranges,
            addresses: BTreeSet::new(),
            ports: BTreeMap::new(),
            next_address,
            next_port,
        }
    }

    /// Completes `service`: takes over from `old` what is left out and still fits, allocates the rest,
    /// and gives back what `old` has and `service` has not.
    ///
    /// # Errors
    ///
    /// When a value asked for is taken, out of range, or nothing is left. Nothing is changed then.
    pub fn allocate(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Vec<Cause>> {
        if let Some(old) = old {
            self.release(old);
        }
        let mut causes = Vec::new();
        let before = service.clone();
        self.addresses_of(service, old, &mut causes);
        if causes.is_empty() {
            self.ports_of(service, old, &mut causes);
        }
        if causes.is_empty() {
            return Ok(());
        }
        *service = before;
        if let Some(old) = old {
            self.hold(old);
        }
        Err(causes)
    }

    /// Gives back what the Service has.
    pub fn release(&mut self, service: &Value) {
        for address in addresses(service) {
            self.addresses.remove(&address);
        }
        let owner = owner(service);
        self.ports.retain(|_, holder| *holder != owner);
    }

    fn hold(&mut self, service: &Value) {
        self.addresses.extend(addresses(service));
        for port in node_ports(service) {
            self.ports.insert(port, owner(service));
        }
    }

    fn addresses_of(&mut self, service: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
        let kind = text(service, "/spec/type").to_owned();
        let spec = map_mut(service, "spec");
        if kind == "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(field);
            }
            return;
        }
        let unset = |spec: &Map<String, Value>, field: &str| {
            spec.get(field)
                .is_none_or(|v| v.is_null() || *v == json!("") || *v == json!([]))
        };
        if let Some(old) = old.filter(|old| text(old, "/spec/type") != "ExternalName") {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if unset(spec, field)
                    && let Some(value) = old["spec"].get(field)
                {
                    spec.insert(field.to_owned(), value.clone());
                }
            }
            let address = text(old, "/spec/clusterIP");
            if !address.is_empty() && field(spec, "clusterIP") != address {
                let why = "may not change once set";
                causes.push(Cause::invalid(
                    "spec.clusterIPs[0]",
                    field(spec, "clusterIP"),
                    why,
                ));
                return;
            }
        }
        if unset(spec, "clusterIP") && !unset(spec, "clusterIPs") {
            let first = field(spec, "clusterIPs")[0].clone();
            spec.insert("clusterIP".to_owned(), first);
        }
        if !unset(spec, "clusterIP") && unset(spec, "clusterIPs") {
            let first = field(spec, "clusterIP").clone();
            spec.insert("clusterIPs".to_owned(), json!([first]));
        }
        if !unset(spec, "clusterIPs") && *field(spec, "clusterIP") != field(spec, "clusterIPs")[0] {
            let why = "first value must match `clusterIP`";
            causes.push(Cause::invalid(
                "spec.clusterIPs[0]",
                &field(spec, "clusterIPs")[0],
                why,
            ));
            return;
        }
        let cluster = &self.ranges.cidrs;
        let cluster: Vec<bool> = cluster.iter().map(|range| range.addr().is_ipv4()).collect();
        let before = old.filter(|old| text(old, "/spec/type") != "ExternalName");
        let Some(families) = families::settle(spec, before, &cluster, causes) else {
            return;
        };
        if spec.get("clusterIP").is_some_and(|first| *first == "None") {
            return;
        }
        let mut given: Vec<IpAddr> = Vec::new();
        for (n, address) in items(field(spec, "clusterIPs"), "").iter().enumerate() {
            let path = format!("spec.clusterIPs[{n}]");
            let Some(address) = address
                .as_str()
                .and_then(|text| text.parse::<IpAddr>().ok())
            else {
                causes.push(Cause::invalid(path, address, "must be a valid IP address"));
                return;
            };
            let inside = self
                .ranges
                .cidrs
                .iter()
                .any(|range| range.contains(&address));
            if !inside {
                let why = "the provided IP is not in the valid range";
                causes.push(Cause::invalid(path, &address.to_string().into(), why));
            } else if self.addresses.contains(&address) {
                let why = "provided IP is already allocated";
                causes.push(Cause::invalid(path, &address.to_string().into(), why));
            }
            given.push(address);
        }
        if !causes.is_empty() {
            return;
        }
        for is_v4 in families {
            if !given.iter().any(|ip| ip.is_ipv4() == is_v4) {
                match self.free_address(is_v4) {
                    Some(address) => given.push(address),
                    None => {
                        let why = "failed to allocate IP: range is full";
                        causes.push(Cause::invalid("spec.clusterIPs", &Value::Null, why));
                        return;
                    }
                }
            }
        }
        self.addresses.extend(&given);
        let list: Vec<_> = given.iter().map(ToString::to_string).collect();
        spec.insert(
            "clusterIP".to_owned(),
            list.first().cloned().unwrap_or_default().into(),
        );
        spec.insert("clusterIPs".to_owned(), json!(list));
    }

    fn free_address(&mut self, is_v4: bool) -> Option<IpAddr> {
        let index = self
            .ranges
            .cidrs
            .iter()
            .position(|r| r.addr().is_ipv4() == is_v4)?;
        let range = self.ranges.cidrs[index];
        let bits = u32::from(range.max_prefix_len() - range.prefix_len());
        // Neither the network's address nor, for IPv4, its broadcast address.
        let last = 1u128
            .checked_shl(bits.min(20))
            .unwrap_or(u128::MAX)
            .saturating_sub(2);
        for _ in 0..last {
            let offset = self.next_address[index];
            self.next_address[index] = if offset >= last { 1 } else { offset + 1 };
            let address = match range.network() {
                IpAddr::V4(base) => {
                    IpAddr::V4((u32::from(base) + u32::try_from(offset.min(last)).ok()?).into())
                }
                IpAddr::V6(base) => IpAddr::V6((u128::from(base) + offset.min(last)).into()),
            };
            if !self.addresses.contains(&address) {
                return Some(address);
            }
        }
        None
    }

    fn ports_of(&mut self, service: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
        let kind = text(service, "/spec/type").to_owned();
        let owner = owner(service);
        let wants = match kind.as_str() {
            "NodePort" => true,
            "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
            _ => false,
        };
        let had = |port: &Map<String, Value>| -> Option<u64> {
            items(old?, "/spec/ports").iter().find(|p| {
                Some(&p["port"]) == port.get("port") && Some(&p["protocol"]) == port.get("protocol")
            })?["nodePort"]
                .as_u64()
        };
        // What is asked for comes first, so that no allocation takes it away.
        for (n, port) in items_mut(service, "/spec/ports").iter_mut().enumerate() {
            let port = as_map(port);
            let asked = port
                .get("nodePort")
                .and_then(Value::as_u64)
                .filter(|n| *n != 0);
            let Some(asked) = asked.or_else(|| if wants { had(port) } else { None }) else {
                port.remove("nodePort");
                continue;
            };
            let path = format!("spec.ports[{n}].nodePort");
            let number = u16::try_from(asked)
                .ok()
                .filter(|n| self.ranges.node_ports.contains(n));
            match number {
                // Left over from when the Service had another type.
                _ if kind == "ClusterIP" && had(port) == Some(asked) => {
                    port.remove("nodePort");
                }
                _ if kind == "ClusterIP" => {
                    causes.push(Cause::forbidden(
                        path,
                        "may not be used when `type` is 'ClusterIP'",
                    ));
                }
                None => {
                    let range = &self.ranges.node_ports;
                    let why = format!(
                        "provided port is not in the valid range. The range of valid ports is {}-{}",
                        range.start(),
                        range.end()
                    );
                    causes.push(Cause::invalid(path, &asked.into(), &why));
                }
                Some(number)
                    if self
                        .ports
                        .get(&number)
                        .is_some_and(|holder| *holder != owner) =>
                {
                    causes.push(Cause::invalid(
                        path,
                        &asked.into(),
                        "provided port is already allocated",
                    ));
                }
                Some(number) => {
                    self.ports.insert(number, owner.clone());
                    port.insert("nodePort".to_owned(), number.into());
                }
            }
        }
        for port in items_mut(service, "/spec/ports") {
            if wants && port["nodePort"].is_null() {
                match self.free_port() {
                    Some(number) => {
                        self.ports.insert(number, owner.clone());
                        port["nodePort"] = number.into();
                    }
                    None => {
                        let why = "failed to allocate a nodePort: range is full";
                        causes.push(Cause::invalid("spec.ports", &Value::Null, why));
                    }
                }
            }
        }
        let spec = map_mut(service, "spec");
        let checked = kind == "LoadBalancer"
            && spec
                .get("externalTrafficPolicy")
                .is_some_and(|p| *p == "Local");
        if !checked {
            spec.remove("healthCheckNodePort");
        } else if spec
            .get("healthCheckNodePort")
            .and_then(Value::as_u64)
            .unwrap_or(0)
            == 0
        {
            let before = old.and_then(|old| old["spec"]["healthCheckNodePort"].as_u64());
            let before = before.and_then(|port| u16::try_from(port).ok());
            if let Some(number) = before.or_else(|| self.free_port()) {
                self.ports.insert(number, owner.clone());
                spec.insert("healthCheckNodePort".to_owned(), number.into());
            }
        }
        if !causes.is_empty() {
            self.release(service);
            self.ports.retain(|_, holder| *holder != owner);
        }
    }

    fn free_port(&mut self) -> Option<u16> {
        let range = self.ranges.node_ports.clone();
        for _ in range.clone() {
            let port = self.next_port;
            self.next_port = if port >= *range.end() {
                *range.start()
            } else {
                port + 1
            };
            if !self.ports.contains_key(&port) {
                return Some(port);
            }
        }
        None
    }
}

/// The field, or `Null`.
fn field<'a>(map: &'a Map<String, Value>, name: &str) -> &'a Value {
    map.get(name).unwrap_or(&Value::Null)
}

fn owner(service: &Value) -> String {
    format!(
        "{}/{}",
        text(service, "/metadata/namespace"),
        text(service, "/metadata/name")
    )
}

fn addresses(service: &Value) -> impl Iterator<Item = IpAddr> {
    items(service, "/spec/clusterIPs")
        .iter()
        .filter_map(|ip| ip.as_str()?.parse().ok())
}

fn node_ports(service: &Value) -> impl Iterator<Item = u16> {
    let health = &service["spec"]["healthCheckNodePort"];
    items(service, "/spec/ports")
        .iter()
        .map(|port| &port["nodePort"])
        .chain([health])
        .filter_map(|port| u16::try_from(port.as_u64()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, spec: &Value) -> Value {
        json!({ "metadata": { "namespace": "a", "name": name }, "spec": spec })
    }

    fn dual() -> Allocations {
        let cidrs = vec![
            "10.96.0.0/24".parse().unwrap(),
            "fd00::/112".parse().unwrap(),
        ];
        Allocations::new(ServiceRanges {
            cidrs,
            node_ports: 30000..=30002,
        })
    }

    #[test]
    fn addresses_are_unique_and_come_back() {
        let mut all = Allocations::new(ServiceRanges::default());
        let mut a = service("a", &json!({ "type": "ClusterIP" }));
        let mut b = service("b", &json!({ "type": "ClusterIP" }));
        all.allocate(&mut a, None).unwrap();
        all.allocate(&mut b, None).unwrap();
        assert_ne!(a["spec"]["clusterIP"], b["spec"]["clusterIP"]);
        assert_eq!(a["spec"]["ipFamilies"], json!(["IPv4"]));
        let mut taken = service(
            "c",
            &json!({ "type": "ClusterIP", "clusterIP": a["spec"]["clusterIP"] }),
        );
        assert!(all.allocate(&mut taken, None).is_err());
        all.release(&a);
        assert!(all.allocate(&mut taken, None).is_ok());
        let mut outside = service("d", &json!({ "type": "ClusterIP", "clusterIP": "1.2.3.4" }));
        assert!(all.allocate(&mut outside, None).is_err());
    }

    #[test]
    fn a_small_range_is_used_up_and_not_beyond() {
        let cidrs = vec!["10.0.0.0/29".parse().unwrap()];
        let mut all = Allocations::new(ServiceRanges {
            cidrs,
            node_ports: 30000..=30000,
        });
        let mut seen = BTreeSet::new();
        for n in 0..6 {
            let mut s = service(&n.to_string(), &json!({ "type": "ClusterIP" }));
            all.allocate(&mut s, None).unwrap();
            assert!(seen.insert(s["spec"]["clusterIP"].to_string()));
        }
        assert!(
            all.allocate(&mut service("x", &json!({ "type": "ClusterIP" })), None)
                .is_err()
        );
    }

    #[test]
    fn headless_and_dual_stack() {
        let mut all = dual();
        let mut headless = service("h", &json!({ "type": "ClusterIP", "clusterIP": "None" }));
        all.allocate(&mut headless, None).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let mut both = service(
            "b",
            &json!({ "type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack" }),
        );
        all.allocate(&mut both, None).unwrap();
        assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(both["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
        let mut six = service("s", &json!({ "type": "ClusterIP", "ipFamilies": ["IPv6"] }));
        all.allocate(&mut six, None).unwrap();
        assert!(text(&six, "/spec/clusterIP").starts_with("fd00::"));

        let mut one = both.clone();
        one["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        all.allocate(&mut one, Some(&both)).unwrap();
        assert_eq!(
            one["spec"]["clusterIPs"],
            json!([both["spec"]["clusterIPs"][0]])
        );
        // The second address is free again.
        let second = &both["spec"]["clusterIPs"][1];
        let mut heir = service("i", &json!({ "type": "ClusterIP", "clusterIP": second }));
        all.allocate(&mut heir, None).unwrap();
        assert_eq!(heir["spec"]["ipFamilies"], json!(["IPv6"]));
    }

    #[test]
    fn node_ports_stay_over_updates_and_come_back() {
        let mut all = dual();
        let ports = json!([{ "port": 80, "protocol": "TCP" }]);
        let mut a = service("a", &json!({ "type": "NodePort", "ports": ports }));
        all.allocate(&mut a, None).unwrap();
        let number = a["spec"]["ports"][0]["nodePort"].clone();
        assert!(number.is_u64());
        let mut again = service("a", &json!({ "type": "NodePort", "ports": ports }));
        all.allocate(&mut again, Some(&a)).unwrap();
        assert_eq!(again["spec"]["ports"][0]["nodePort"], number);
        assert_eq!(again["spec"]["clusterIP"], a["spec"]["clusterIP"]);
        let mut asked = service(
            "b",
            &json!({ "type": "NodePort", "ports": [{ "port": 80, "protocol": "TCP", "nodePort": number }] }),
        );
        assert!(all.allocate(&mut asked, None).is_err());
        let mut inner = service("a", &json!({ "type": "ClusterIP", "ports": ports }));
        all.allocate(&mut inner, Some(&again)).unwrap();
        assert!(all.allocate(&mut asked, None).is_ok());
    }
}
