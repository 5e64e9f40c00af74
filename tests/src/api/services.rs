//! Cluster addresses and node ports of Services, given at creation like the real API server does.
//!
//! ```text
//! prepare (transitions) ── validate ── allocate: addresses, ports ── commit: Service, IPAddresses
//! ```
//!
//! Invariants:
//! - An address is in use exactly when there is an IPAddress of its name; those of Services are written
//!   and removed with them, in one transaction.
//! - A node port is in use exactly when a stored Service has it.
//! - New ones are taken in order and not reused before the range has been walked through, so that a
//!   client that is late to hear of a deletion does not reach another Service.

mod addresses;
mod families;
mod ports;
mod transitions;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::object::{self, items, text};
use super::resources::{IPADDRESSES, SERVICECIDRS, SERVICES};
use super::status::Cause;
use super::store::{Key, Transaction};

pub(super) use self::transitions::prepare;

/// Where addresses and node ports come from: what a cluster is set up with.
#[derive(Debug, Clone)]
pub struct ServiceRanges {
    /// One range per family; the first is the cluster's preferred family. They are the default
    /// ServiceCIDR, `kubernetes`; more can be added as objects.
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

/// What is in use, and where to go on.
#[derive(Debug)]
pub struct Allocations {
    /// Whether each family of the cluster is IPv4, the preferred one first.
    families: Vec<bool>,
    node_ports: RangeInclusive<u16>,
    /// Who has each port.
    ports: BTreeMap<u16, String>,
    /// The next address to try in each range, as an offset.
    next_address: BTreeMap<IpNet, u128>,
    next_port: u16,
}

/// The addresses that can be had.
pub struct Ground<'a> {
    /// The ranges that new addresses come from, in the order in which they are used.
    pub ranges: Vec<IpNet>,
    /// Whether somebody has the address.
    pub is_taken: &'a dyn Fn(IpAddr) -> bool,
}

impl Allocations {
    /// Nothing is in use.
    #[must_use]
    pub fn new(ranges: &ServiceRanges) -> Self {
        let families = ranges.cidrs.iter().map(|range| range.addr().is_ipv4());
        Allocations {
            families: families.collect(),
            next_port: *ranges.node_ports.start(),
            node_ports: ranges.node_ports.clone(),
            ports: BTreeMap::new(),
            next_address: BTreeMap::new(),
        }
    }

    /// Completes `service`, which [`prepare`] has seen: allocates what is left out, and gives back the
    /// ports that `old` has and `service` has not.
    ///
    /// # Errors
    ///
    /// When a value asked for is taken, out of range, or nothing is left. Nothing is changed then.
    pub fn allocate(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        ground: &Ground,
    ) -> Result<(), Vec<Cause>> {
        let mut causes = Vec::new();
        let before = service.clone();
        self.addresses_of(service, old, ground, &mut causes);
        if causes.is_empty() {
            self.ports_of(service, old, &mut causes);
        }
        if causes.is_empty() {
            return Ok(());
        }
        *service = before;
        self.release(service);
        if let Some(old) = old {
            self.hold(old);
        }
        Err(causes)
    }

    /// Gives back the ports that the Service has.
    pub fn release(&mut self, service: &Value) {
        let owner = owner(service);
        self.ports.retain(|_, holder| *holder != owner);
    }

    /// Takes the Service's ports, which are free.
    pub fn hold(&mut self, service: &Value) {
        for port in node_ports(service) {
            self.ports.insert(port, owner(service));
        }
    }
}

/// The ranges of the cluster's ServiceCIDRs that give addresses: the default one's first, then in the
/// order of their age. One that is going or said to be unready gives none.
pub fn ranges(transaction: &Transaction) -> Vec<IpNet> {
    let is_ready = |range: &Value| {
        let conditions = items(range, "/status/conditions").iter();
        let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
        !object::is_terminating(range) && ready.all(|condition| condition["status"] == "True")
    };
    let all = transaction.list(&SERVICECIDRS, "").map(|(_, range)| range);
    let mut all: Vec<_> = all.filter(|range| is_ready(range)).collect();
    all.sort_by_key(|range| {
        let is_default = object::name(range) == DEFAULT_RANGE;
        let created = text(range, "/metadata/creationTimestamp");
        (!is_default, created, object::name(range))
    });
    let texts = all.iter().flat_map(|range| items(range, "/spec/cidrs"));
    texts
        .filter_map(|text| text.as_str()?.parse().ok())
        .collect()
}

/// The name of the ServiceCIDR that a cluster begins with.
pub const DEFAULT_RANGE: &str = "kubernetes";

/// Lets the IPAddresses follow a Service: `old` as it was, `new` as it is now.
pub fn follow(transaction: &mut Transaction, old: Option<&Value>, new: Option<&Value>) {
    let of = |service: Option<&Value>| service.map(addresses).unwrap_or_default();
    let (had, has) = (of(old), of(new));
    for address in had.iter().filter(|address| !has.contains(address)) {
        transaction.remove(&address_key(*address));
    }
    let Some(service) = new else { return };
    for address in has.iter().filter(|address| !had.contains(address)) {
        transaction.put(address_key(*address), address_object(*address, service));
    }
}

/// The key of an address.
pub fn address_key(address: IpAddr) -> Key {
    Key::new(&IPADDRESSES, "", &address.to_string())
}

fn address_object(address: IpAddr, service: &Value) -> Value {
    json!({
        "apiVersion": IPADDRESSES.api_version(),
        "kind": IPADDRESSES.kind,
        "metadata": {
            "name": address.to_string(),
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": object::now(),
            "generation": 1,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": if address.is_ipv4() { "IPv4" } else { "IPv6" },
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": { "parentRef": {
            "group": SERVICES.group,
            "resource": SERVICES.plural,
            "namespace": object::namespace(service),
            "name": object::name(service),
        } },
    })
}

/// The field, or `Null`.
fn field<'a>(map: &'a Map<String, Value>, name: &str) -> &'a Value {
    map.get(name).unwrap_or(&Value::Null)
}

/// Whether Go would take the field for one that is not set.
fn is_unset(map: &Map<String, Value>, name: &str) -> bool {
    let value = field(map, name);
    value.is_null() || *value == json!("") || *value == json!([]) || *value == json!(0)
}

fn owner(service: &Value) -> String {
    format!(
        "{}/{}",
        text(service, "/metadata/namespace"),
        text(service, "/metadata/name")
    )
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    let all = items(service, "/spec/clusterIPs").iter();
    all.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// The node ports of a Service, with that of its health check.
fn node_ports(service: &Value) -> impl Iterator<Item = u16> {
    let health = &service["spec"]["healthCheckNodePort"];
    items(service, "/spec/ports")
        .iter()
        .map(|port| &port["nodePort"])
        .chain([health])
        .filter_map(|port| u16::try_from(port.as_u64()?).ok())
        .filter(|port| *port != 0)
}

/// Whether the Service has addresses of the cluster.
fn needs_addresses(service: &Value) -> bool {
    text(service, "/spec/type") != "ExternalName"
}

/// Whether its ports get node ports by themselves.
fn needs_node_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Whether load balancers ask its nodes whether they have endpoints.
fn needs_health_check(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer"
        && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// Whether it can be reached from outside the cluster.
pub(super) fn is_external(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !items(service, "/spec/externalIPs").is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;

    /// Allocations with the addresses that a store would know.
    struct Cluster {
        all: Allocations,
        ranges: Vec<IpNet>,
        addresses: RefCell<BTreeSet<IpAddr>>,
    }

    impl Cluster {
        fn new(cidrs: &[&str], node_ports: RangeInclusive<u16>) -> Self {
            let cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
            let ranges = ServiceRanges {
                cidrs: cidrs.clone(),
                node_ports,
            };
            Cluster {
                all: Allocations::new(&ranges),
                ranges: cidrs,
                addresses: RefCell::default(),
            }
        }

        fn put(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), String> {
            prepare(service, old);
            let ground = Ground {
                ranges: self.ranges.clone(),
                is_taken: &|address| self.addresses.borrow().contains(&address),
            };
            let done = self.all.allocate(service, old, &ground);
            done.map_err(|causes| causes[0].field.clone())?;
            if let Some(old) = old {
                self.forget(old);
            }
            self.addresses.borrow_mut().extend(addresses(service));
            Ok(())
        }

        fn create(&mut self, name: &str, spec: Value) -> Result<Value, String> {
            let mut service = json!({ "metadata": { "namespace": "a", "name": name } });
            service["spec"] = spec;
            self.put(&mut service, None).map(|()| service)
        }

        fn update(&mut self, old: &Value, change: Value) -> Result<Value, String> {
            let mut new = old.clone();
            let patch = Value::Object(Map::from_iter([("spec".to_owned(), change)]));
            json_patch::merge(&mut new, &patch);
            self.put(&mut new, Some(old)).map(|()| new)
        }

        fn forget(&self, service: &Value) {
            let gone = addresses(service);
            self.addresses.borrow_mut().retain(|ip| !gone.contains(ip));
        }

        fn delete(&mut self, service: &Value) {
            self.all.release(service);
            self.forget(service);
        }
    }

    fn dual() -> Cluster {
        Cluster::new(&["10.96.0.0/24", "fd00::/112"], 30000..=30003)
    }

    fn numbers(service: &Value) -> Vec<u64> {
        let ports = items(service, "/spec/ports").iter();
        ports.map(|p| p["nodePort"].as_u64().unwrap_or(0)).collect()
    }

    #[test]
    fn addresses_are_unique_and_come_back() {
        let mut all = Cluster::new(&["10.96.0.0/16"], 30000..=32767);
        let a = all.create("a", json!({ "type": "ClusterIP" })).unwrap();
        let b = all.create("b", json!({ "type": "ClusterIP" })).unwrap();
        assert_ne!(a["spec"]["clusterIP"], b["spec"]["clusterIP"]);
        assert_eq!(a["spec"]["ipFamilies"], json!(["IPv4"]));
        let taken = json!({ "type": "ClusterIP", "clusterIP": a["spec"]["clusterIP"] });
        assert!(all.create("c", taken.clone()).is_err());
        all.delete(&a);
        assert!(all.create("c", taken).is_ok());
        let outside = json!({ "type": "ClusterIP", "clusterIP": "1.2.3.4" });
        assert!(all.create("d", outside).is_err());
    }

    #[test]
    fn a_small_range_is_used_up_and_then_the_next() {
        let mut all = Cluster::new(&["10.0.0.0/29"], 30000..=30000);
        let mut seen = BTreeSet::new();
        for n in 0..6 {
            let s = all.create(&n.to_string(), json!({ "type": "ClusterIP" }));
            assert!(seen.insert(s.unwrap()["spec"]["clusterIP"].to_string()));
        }
        assert!(all.create("x", json!({ "type": "ClusterIP" })).is_err());
        all.ranges.push("203.0.113.0/24".parse().unwrap());
        let further = all.create("x", json!({ "type": "ClusterIP" })).unwrap();
        assert!(text(&further, "/spec/clusterIP").starts_with("203.0.113."));
        let asked = json!({ "type": "ClusterIP", "clusterIP": "203.0.113.7" });
        assert!(all.create("y", asked).is_ok());
    }

    #[test]
    fn headless_and_dual_stack() {
        let mut all = dual();
        let headless = json!({ "type": "ClusterIP", "clusterIP": "None" });
        let headless = all.create("h", headless).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let both = json!({ "type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack" });
        let both = all.create("b", both).unwrap();
        assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(both["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
        let six = json!({ "type": "ClusterIP", "ipFamilies": ["IPv6"] });
        let six = all.create("s", six).unwrap();
        assert!(text(&six, "/spec/clusterIP").starts_with("fd00::"));

        let one = all.update(&both, json!({ "ipFamilyPolicy": "SingleStack" }));
        assert_eq!(
            one.unwrap()["spec"]["clusterIPs"],
            json!([both["spec"]["clusterIPs"][0]])
        );
        // The second address is free again.
        let second = &both["spec"]["clusterIPs"][1];
        let heir = all.create("i", json!({ "type": "ClusterIP", "clusterIP": second }));
        assert_eq!(heir.unwrap()["spec"]["ipFamilies"], json!(["IPv6"]));
    }

    #[test]
    fn node_ports_stay_over_updates_and_come_back() {
        let mut all = dual();
        let ports = json!([{ "port": 80, "protocol": "TCP" }]);
        let a = json!({ "type": "NodePort", "ports": ports });
        let a = all.create("a", a).unwrap();
        let number = numbers(&a)[0];
        let again = all.update(&a, json!({ "ports": ports })).unwrap();
        assert_eq!(numbers(&again), [number]);
        assert_eq!(again["spec"]["clusterIP"], a["spec"]["clusterIP"]);
        let asked = json!([{ "port": 80, "protocol": "UDP", "nodePort": number }]);
        let asked = json!({ "type": "NodePort", "ports": asked });
        assert_eq!(
            all.create("b", asked.clone()).unwrap_err(),
            "spec.ports[0].nodePort"
        );
        let inner = all.update(&again, json!({ "type": "ClusterIP" })).unwrap();
        assert_eq!(numbers(&inner), [0]);
        assert!(all.create("b", asked).is_ok());
    }

    #[test]
    fn a_number_may_serve_two_protocols_of_one_service() {
        let mut all = dual();
        let ports = json!([
            { "name": "t", "port": 80, "protocol": "TCP" },
            { "name": "u", "port": 80, "protocol": "UDP" },
        ]);
        let a = all
            .create("a", json!({ "type": "NodePort", "ports": ports }))
            .unwrap();
        let n = numbers(&a);
        assert_eq!(n[0], n[1], "a new Service's ports share what their port is");
        let ports = json!([
            { "name": "t", "port": 80, "protocol": "TCP", "nodePort": 30003 },
            { "name": "u", "port": 81, "protocol": "UDP", "nodePort": 30003 },
        ]);
        let b = json!({ "type": "NodePort", "ports": ports });
        assert_eq!(numbers(&all.create("b", b).unwrap()), [30003, 30003]);
        let ports = json!([{ "port": 80, "protocol": "TCP", "nodePort": 29999 }]);
        let c = json!({ "type": "NodePort", "ports": ports });
        assert_eq!(all.create("c", c).unwrap_err(), "spec.ports[0].nodePort");
    }

    #[test]
    fn node_ports_of_load_balancers_are_a_choice() {
        let mut all = dual();
        let ports = json!([{ "name": "a", "port": 80, "protocol": "TCP" },
                           { "name": "b", "port": 81, "protocol": "TCP", "nodePort": 30002 }]);
        let spec = json!({ "type": "LoadBalancer", "ports": ports,
                           "allocateLoadBalancerNodePorts": false });
        let without = all.create("a", spec).unwrap();
        assert_eq!(numbers(&without), [0, 30002], "what is asked for is given");
        let with = all
            .update(&without, json!({ "allocateLoadBalancerNodePorts": true }))
            .unwrap();
        assert_ne!(numbers(&with)[0], 0);
    }

    #[test]
    fn health_checks_have_a_port_while_they_are_needed() {
        let mut all = dual();
        let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local",
                           "ports": [{ "port": 80, "protocol": "TCP" }] });
        let local = all.create("a", spec.clone()).unwrap();
        let port = local["spec"]["healthCheckNodePort"].as_u64().unwrap();
        assert_ne!(vec![port], numbers(&local));
        let cluster = json!({ "externalTrafficPolicy": "Cluster" });
        let cluster = all.update(&local, cluster).unwrap();
        assert!(cluster["spec"].get("healthCheckNodePort").is_none());
        let mut asked = spec;
        asked["healthCheckNodePort"] = port.into();
        let heir = all.create("b", asked.clone()).unwrap();
        assert_eq!(heir["spec"]["healthCheckNodePort"], port);
        assert_eq!(
            all.create("c", asked).unwrap_err(),
            "spec.healthCheckNodePort"
        );
    }

    #[test]
    fn a_type_takes_its_fields_along_and_no_others() {
        let mut all = dual();
        let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local",
                           "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "x/y",
                           "ports": [{ "port": 80, "protocol": "TCP" }] });
        let balanced = all.create("a", spec).unwrap();
        let inner = all
            .update(&balanced, json!({ "type": "ClusterIP" }))
            .unwrap();
        assert_eq!(numbers(&inner), [0]);
        for gone in [
            "externalTrafficPolicy",
            "allocateLoadBalancerNodePorts",
            "loadBalancerClass",
            "healthCheckNodePort",
        ] {
            assert!(inner["spec"].get(gone).is_none(), "{gone}");
        }
        assert_eq!(all.all.ports.len(), 0);
        let alias = json!({ "type": "ExternalName", "externalName": "example.org" });
        let alias = all.update(&inner, alias).unwrap();
        for gone in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            assert!(alias["spec"].get(gone).is_none(), "{gone}");
        }
        assert!(all.addresses.borrow().is_empty());
        let back = all.update(&alias, json!({ "type": "NodePort" })).unwrap();
        assert!(text(&back, "/spec/clusterIP").starts_with("10.96."));
        assert_ne!(numbers(&back), [0]);
    }
}
