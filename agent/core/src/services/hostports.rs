//! hostPorts: ports of this node's addresses that lead to one of its pods.
//!
//! What the runtime asked for when it added a pod's interface is what counts, for as long as the
//! interface is there: also while the pod terminates, and while nothing is known of its object. Only
//! a pod that is known to be over has no ports any more, because its successor may want them before
//! its sandbox goes.
//!
//! A hostPort takes addresses of this node and no others. If it took any address that it was asked
//! to, whoever may create a pod could have what this node's pods and processes send to that address.
//! Nor does it take an address and port that a service has, a NodePort included.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    claims::{Claim, Claims, Class, Unit, Wish},
    endpoints::Endpoint,
    writer::{Exposure, Port, PortKey, Record, View, Writer},
};
use crate::model::{ClusterState, HostPort, LocalEndpoint, Protocol, Warning, canonical};

/// How many addresses a warning names.
const NAMED: usize = 3;

/// One hostPort of one family, with the addresses at which it is wanted.
pub struct Wanted<'a> {
    endpoint: &'a LocalEndpoint,
    port: Asked,
    /// The pod's address.
    target: IpAddr,
    /// The node's addresses; sorted.
    addresses: Vec<IpAddr>,
}

/// A hostPort, to be sorted: what is asked for one address first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    everywhere: bool,
    address: Option<IpAddr>,
    port: u16,
    protocol: Protocol,
    target: u16,
}

impl Asked {
    fn new(port: &HostPort) -> Self {
        let address = port.host_ip.map(canonical);
        let address = address.filter(|address| !address.is_unspecified());
        Self {
            everywhere: address.is_none(),
            address,
            port: port.host_port,
            protocol: port.protocol,
            target: port.container_port,
        }
    }

    fn warning(&self, endpoint: &LocalEndpoint, message: &str) -> Warning {
        Warning {
            object: format!("Pod {}", endpoint.pod),
            message: format!("hostPort {}/{}: {message}", self.port, self.protocol),
        }
    }
}

/// All that pods of this node want. Of two that want the same port of an address the first has it:
/// that of the pod that is more surely alive, then by name.
pub fn wanted<'a>(state: &'a ClusterState, warnings: &mut Vec<Warning>) -> Vec<Wanted<'a>> {
    let mut endpoints: Vec<_> = state
        .endpoints
        .values()
        .filter(|endpoint| !endpoint.host_ports.is_empty())
        .filter(|endpoint| state.pod_of(endpoint).is_none_or(|pod| !pod.terminal))
        .collect();
    if endpoints.is_empty() {
        return Vec::new();
    }
    endpoints.sort_by_key(|endpoint| {
        let life = Reverse(life(state, endpoint));
        (life, &endpoint.pod, &endpoint.container_id)
    });
    let own = own_addresses(state);
    let mut wanted = Vec::new();
    for endpoint in endpoints {
        // As with sockets, a port of one address goes before the port of every address.
        let mut ports: Vec<_> = endpoint.host_ports.iter().map(Asked::new).collect();
        ports.sort_unstable();
        ports.dedup();
        for port in ports.into_iter().filter(|port| port.port > 0) {
            let addresses = match addresses(endpoint, &port, &own) {
                Ok(addresses) => addresses,
                Err(why) => {
                    warnings.push(port.warning(endpoint, &why));
                    continue;
                }
            };
            for ipv4 in [true, false] {
                let family = |ip: &&IpAddr| ip.is_ipv4() == ipv4;
                let Some(target) = endpoint.ips.iter().find(family) else {
                    continue;
                };
                wanted.push(Wanted {
                    endpoint,
                    port: port.clone(),
                    target: *target,
                    addresses: addresses.iter().filter(family).copied().collect(),
                });
            }
        }
    }
    wanted
}

/// The addresses of this node at which a port is asked for, or why there is none.
fn addresses(
    endpoint: &LocalEndpoint,
    port: &Asked,
    own: &BTreeSet<IpAddr>,
) -> Result<BTreeSet<IpAddr>, String> {
    let Some(address) = port.address else {
        return Ok(own.clone());
    };
    if !address.is_loopback() && !own.contains(&address) {
        return Err(format!(
            "this node has no address {address}; the port is not served until it has"
        ));
    }
    let mut ips = endpoint.ips.iter();
    if !ips.any(|ip| ip.is_ipv4() == address.is_ipv4()) {
        return Err(format!(
            "the pod has no address of the family of {address}; the port is not served"
        ));
    }
    Ok([address].into())
}

/// How surely an interface is that of a living pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    /// Nothing is known of its pod: it may be an old one's of the same name.
    Unknown,
    /// Its pod is being deleted.
    Terminating,
    /// It may be an earlier sandbox of its pod.
    Running,
    /// Its pod's object says that it has the interface's address.
    Confirmed,
}

fn life(state: &ClusterState, endpoint: &LocalEndpoint) -> Life {
    match state.pod_of(endpoint) {
        None => Life::Unknown,
        Some(pod) if pod.terminating => Life::Terminating,
        Some(pod) if endpoint.ips.iter().any(|ip| pod.ips.contains(ip)) => Life::Confirmed,
        Some(_) => Life::Running,
    }
}

/// The addresses at which this node has ports: those of its interfaces and of its Node object, and
/// the two that every node has. What a pod has is the pod's.
fn own_addresses(state: &ClusterState) -> BTreeSet<IpAddr> {
    let pods: BTreeSet<_> = state
        .endpoints
        .values()
        .flat_map(|endpoint| &endpoint.ips)
        .collect();
    let told = state
        .own_node()
        .into_iter()
        .flat_map(|own| &own.internal_ips);
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    state
        .own_addresses
        .iter()
        .chain(told)
        .filter(|ip| !pods.contains(ip))
        .copied()
        .chain(loopback)
        .collect()
}

impl Wanted<'_> {
    fn claim(&self, address: IpAddr) -> Claim {
        Claim {
            address,
            port: self.port.port,
            protocol: self.port.protocol.number(),
        }
    }

    fn key(&self) -> PortKey {
        PortKey::HostPort {
            pod: self.endpoint.pod.clone(),
            address: self.port.address,
            port: self.port.port,
            protocol: self.port.protocol,
            ipv4: self.target.is_ipv4(),
        }
    }

    fn name(&self) -> String {
        let any: IpAddr = if self.target.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = SocketAddr::new(self.port.address.unwrap_or(any), self.port.port);
        format!(
            "hostPort {} {socket}/{}",
            self.endpoint.pod, self.port.protocol
        )
    }
}

/// The same as wishes; sorted.
pub fn wishes(wanted: &[Wanted<'_>]) -> Vec<Wish> {
    let claims = wanted.iter().flat_map(|wanted| {
        let addresses = wanted.addresses.iter();
        addresses.map(|address| wanted.claim(*address))
    });
    let wish = |claim| Wish {
        claim,
        class: Class::HostPort,
        since: 0,
    };
    let mut wishes: Vec<_> = claims.map(wish).collect();
    wishes.sort_unstable();
    wishes.dedup();
    wishes
}

/// Writes the hostPorts, each where nobody has its address and port before it.
pub fn write(
    state: &ClusterState,
    wanted: &[Wanted<'_>],
    previous: &[Record],
    claims: &Claims,
    writer: &mut Writer<'_>,
    warnings: &mut Vec<Warning>,
) -> Vec<Record> {
    let mut records = Vec::new();
    let mut taken = BTreeMap::<Claim, String>::new();
    for wanted in wanted {
        let name = wanted.name();
        let mut exposures = Vec::new();
        let mut lost = BTreeMap::<String, Vec<IpAddr>>::new();
        for address in &wanted.addresses {
            let claim = wanted.claim(*address);
            let holder = service_at(state, claims, claim).map(ToString::to_string);
            match holder.or_else(|| taken.get(&claim).cloned()) {
                Some(holder) => lost.entry(holder).or_default().push(*address),
                None => {
                    taken.insert(claim, name.clone());
                    exposures.push(Exposure {
                        claim,
                        internal: View::default(),
                        // Nothing from outside can be meant for a loopback address.
                        external: (!address.is_loopback()).then(View::default),
                    });
                }
            }
        }
        for (holder, addresses) in lost {
            let message = format!(
                "at {} it is already in use, by {holder}; there it does not lead to this pod",
                listed(&addresses)
            );
            warnings.push(wanted.port.warning(wanted.endpoint, &message));
        }
        if exposures.is_empty() {
            continue;
        }
        let port = Port {
            key: wanted.key(),
            name: &name,
            endpoints: &[Endpoint::of_host_port(wanted.target, wanted.port.target)],
            exposures: &exposures,
            is_external: true,
            affinity_seconds: 0,
            maglev: false,
            ranges: &[],
            lets_node_in: false,
        };
        let mut previous = previous.iter();
        let previous = previous.find(|record| record.key == port.key);
        records.push(writer.write(port, previous));
    }
    records
}

/// The service that has an address and port of this node, by itself or with a NodePort.
fn service_at<'a>(state: &ClusterState, claims: &'a Claims, claim: Claim) -> Option<&'a Unit> {
    let exact = claims.holder(claim);
    let node_port = || {
        let any: IpAddr = if claim.address.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let addresses = &state.settings.nodeport_addresses;
        let has_them = addresses.contain(claim.address, state.own_node());
        let claim = Claim {
            address: any,
            ..claim
        };
        has_them.then(|| claims.holder(claim)).flatten()
    };
    exact
        .filter(|unit| **unit != Unit::HostPorts)
        .or_else(node_port)
}

/// The first few of many addresses.
fn listed(addresses: &[IpAddr]) -> String {
    let named: Vec<_> = addresses
        .iter()
        .take(NAMED)
        .map(IpAddr::to_string)
        .collect();
    let named = named.join(", ");
    match addresses.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use weft_abi::{
        addr::{Addr4, Addr6},
        service::{Frontend, FrontendKey, SCOPE_EXTERNAL, SlotKey},
    };

    use super::*;
    use crate::{
        compile::tests::{ip, mk_pod, mk_state, pod_mut},
        contents::ServiceContents,
        family::Address,
        model::{NodePortAddresses, ObjectKey, Service, ServicePort},
        services::{Dirty, ServiceCompiler},
    };

    /// A hostPort as a manifest writes it: `address:port/protocol`, without an address for all.
    fn mk_port(state: &mut ClusterState, pod: &str, port: &str, container_port: u16) {
        let (socket, protocol) = port.split_once('/').expect("a protocol");
        let (address, number) = socket.rsplit_once(':').expect("a port");
        let port = HostPort {
            host_ip: (!address.is_empty()).then(|| ip(address.trim_matches(['[', ']']))),
            host_port: number.parse().expect("a port number"),
            protocol: Protocol::from_name(protocol).expect("a protocol"),
            container_port,
        };
        let endpoint = state.endpoints.get_mut(pod).expect("a pod of this node");
        endpoint.host_ports.push(port);
    }

    /// A cluster with the pods `web` and `api` on this node, of both families.
    fn mk_cluster() -> ClusterState {
        let mut state = mk_state();
        mk_pod(&mut state, "api", "here", "10.0.0.3");
        for (pod, v6) in [("web", "fd00::2"), ("api", "fd00::3")] {
            let endpoint = state.endpoints.get_mut(pod).expect("a pod of this node");
            endpoint.ips.push(ip(v6));
            pod_mut(&mut state, pod).ips.push(ip(v6));
        }
        state.own_addresses = ["192.0.2.1", "198.51.100.1", "2001:db8::1"].map(ip).into();
        state
    }

    /// Every frontend with the backends behind it, as text.
    fn frontends(contents: &ServiceContents) -> Vec<String> {
        fn family<A: Address>(contents: &ServiceContents) -> Vec<String> {
            let tables = A::services(contents);
            let one = |(key, frontend): (&FrontendKey<A>, &Frontend)| {
                assert_eq!((frontend.first, frontend.count), (0, 1), "{key:?}");
                let slot = SlotKey {
                    service: frontend.service,
                    slot: 0,
                };
                let backend = tables.backends[&contents.slots[&slot].backend];
                let scope = if key.scope == SCOPE_EXTERNAL {
                    " outside"
                } else {
                    ""
                };
                let protocol = Protocol::from_number(key.protocol).expect("a protocol");
                let from = SocketAddr::new(key.address.to_ip(), key.port);
                let to = SocketAddr::new(backend.address.to_ip(), backend.port);
                format!("{from}/{protocol}{scope} {to}")
            };
            tables.frontends.iter().map(one).collect()
        }
        [family::<Addr4>(contents), family::<Addr6>(contents)].concat()
    }

    fn compile(state: &ClusterState) -> ServiceCompiler {
        let mut compiler = ServiceCompiler::new();
        compiler.update(state, &Dirty::everything());
        compiler
    }

    fn warned(compiler: &ServiceCompiler) -> Vec<String> {
        compiler.warnings().map(ToString::to_string).collect()
    }

    /// Where a port of the node's first address leads.
    fn target(state: &ClusterState) -> Option<String> {
        let found = frontends(compile(state).contents());
        found
            .iter()
            .find_map(|text| text.strip_prefix("192.0.2.1:80/TCP outside "))
            .map(str::to_owned)
    }

    #[test]
    fn a_port_of_every_address() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", ":80/TCP", 8080);
        let desired = compile(&state);
        assert_eq!(
            frontends(desired.contents()),
            [
                "127.0.0.1:80/TCP 10.0.0.2:8080",
                "192.0.2.1:80/TCP 10.0.0.2:8080",
                "192.0.2.1:80/TCP outside 10.0.0.2:8080",
                "198.51.100.1:80/TCP 10.0.0.2:8080",
                "198.51.100.1:80/TCP outside 10.0.0.2:8080",
                "[::1]:80/TCP [fd00::2]:8080",
                "[2001:db8::1]:80/TCP [fd00::2]:8080",
                "[2001:db8::1]:80/TCP outside [fd00::2]:8080",
            ]
        );
        let mut names: Vec<_> = desired.names().map(|(_, name)| name).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "hostPort shop/web 0.0.0.0:80/TCP",
                "hostPort shop/web [::]:80/TCP"
            ]
        );
        assert_eq!(warned(&desired), [""; 0]);

        // A pod without IPv4 has none of its ports; `0.0.0.0` and `::` mean all.
        let mut state = mk_cluster();
        mk_port(&mut state, "web", "0.0.0.0:80/TCP", 8080);
        let endpoint = state.endpoints.get_mut("web").expect("a pod");
        endpoint.ips.remove(0);
        let desired = compile(&state);
        assert_eq!(frontends(desired.contents()).len(), 3);
        assert_eq!(warned(&desired), [""; 0]);
    }

    #[test]
    fn one_port_for_each_address_and_protocol() {
        // As the conformance test has it: one port, three pods.
        let mut state = mk_cluster();
        mk_pod(&mut state, "dns", "here", "10.0.0.4");
        mk_port(&mut state, "api", "127.0.0.1:54323/TCP", 8080);
        mk_port(&mut state, "web", "192.0.2.1:54323/TCP", 8080);
        mk_port(&mut state, "dns", "192.0.2.1:54323/UDP", 8080);
        mk_port(&mut state, "web", "[2001:db8::1]:54323/TCP", 8081);
        let desired = compile(&state);
        assert_eq!(
            frontends(desired.contents()),
            [
                "127.0.0.1:54323/TCP 10.0.0.3:8080",
                "192.0.2.1:54323/TCP 10.0.0.2:8080",
                "192.0.2.1:54323/TCP outside 10.0.0.2:8080",
                "192.0.2.1:54323/UDP 10.0.0.4:8080",
                "192.0.2.1:54323/UDP outside 10.0.0.4:8080",
                "[2001:db8::1]:54323/TCP [fd00::2]:8081",
                "[2001:db8::1]:54323/TCP outside [fd00::2]:8081",
            ]
        );
        assert_eq!(warned(&desired), [""; 0]);
    }

    #[test]
    fn a_port_of_one_address_goes_before_that_of_all() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", ":80/TCP", 8080);
        mk_port(&mut state, "web", ":80/TCP", 8080);
        mk_port(&mut state, "web", "192.0.2.1:80/TCP", 8081);
        let desired = compile(&state);
        let found = frontends(desired.contents());
        assert!(
            found.contains(&"192.0.2.1:80/TCP 10.0.0.2:8081".to_owned()),
            "{found:?}"
        );
        assert!(
            found.contains(&"127.0.0.1:80/TCP 10.0.0.2:8080".to_owned()),
            "{found:?}"
        );
        assert_eq!(
            warned(&desired),
            [
                "Pod shop/web: hostPort 80/TCP: at 192.0.2.1 it is already in use, by hostPort \
              shop/web 192.0.2.1:80/TCP; there it does not lead to this pod"
            ]
        );
    }

    #[test]
    fn only_addresses_of_the_node_are_taken() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", "203.0.113.9:80/TCP", 8080);
        // A pod's address is the pod's.
        mk_port(&mut state, "web", "10.0.0.3:80/TCP", 8080);
        state.own_addresses.insert(ip("10.0.0.3"));
        let desired = compile(&state);
        assert_eq!(frontends(desired.contents()), [""; 0]);
        assert_eq!(warned(&desired).len(), 2, "{:?}", warned(&desired));
        assert!(
            !desired
                .contents()
                .v4
                .backends
                .values()
                .any(|backend| backend.port == 8080)
        );

        state.own_addresses.insert(ip("203.0.113.9"));
        assert_eq!(frontends(compile(&state).contents()).len(), 2);

        // What the pod has no address for leads nowhere.
        let mut state = mk_cluster();
        state.endpoints.get_mut("web").expect("a pod").ips.pop();
        mk_port(&mut state, "web", "[::1]:80/TCP", 8080);
        let desired = compile(&state);
        assert_eq!(frontends(desired.contents()), [""; 0]);
        assert_eq!(warned(&desired).len(), 1, "{:?}", warned(&desired));
    }

    #[test]
    fn the_first_one_has_a_port_and_the_other_is_told() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", "192.0.2.1:80/TCP", 8080);
        mk_port(&mut state, "api", "192.0.2.1:80/TCP", 8080);
        let desired = compile(&state);
        assert_eq!(target(&state).as_deref(), Some("10.0.0.3:8080"), "by name");
        assert_eq!(
            warned(&desired),
            [
                "Pod shop/web: hostPort 80/TCP: at 192.0.2.1 it is already in use, by hostPort \
              shop/api 192.0.2.1:80/TCP; there it does not lead to this pod"
            ]
        );

        // Whoever lives goes before whoever leaves, and that one before whoever is unknown.
        pod_mut(&mut state, "api").terminating = true;
        assert_eq!(target(&state).as_deref(), Some("10.0.0.2:8080"));
        state.pods.remove(&ObjectKey::new("shop", "web"));
        assert_eq!(target(&state).as_deref(), Some("10.0.0.3:8080"));
    }

    #[test]
    fn the_sandbox_that_its_pod_tells_has_the_port() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", ":80/TCP", 8080);
        let mut again = state.endpoints["web"].clone();
        again.container_id = "another".to_owned();
        again.ips = vec![ip("10.0.0.9")];
        state.endpoints.insert("another".to_owned(), again);
        assert_eq!(target(&state).as_deref(), Some("10.0.0.2:8080"));
        pod_mut(&mut state, "web").ips = vec![ip("10.0.0.9")];
        assert_eq!(target(&state).as_deref(), Some("10.0.0.9:8080"));
    }

    #[test]
    fn ports_go_with_the_interface_unless_the_pod_is_over() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", ":80/TCP", 8080);
        let there = Some("10.0.0.2:8080".to_owned());
        let with = |change: &dyn Fn(&mut ClusterState)| {
            let mut state = state.clone();
            change(&mut state);
            target(&state)
        };
        assert_eq!(
            with(&|state| pod_mut(state, "web").terminating = true),
            there
        );
        assert_eq!(with(&|state| state.pods.clear()), there);
        assert_eq!(
            with(&|state| pod_mut(state, "web").uid = "new".to_owned()),
            there
        );
        assert_eq!(with(&|state| pod_mut(state, "web").terminal = true), None);
        assert_eq!(with(&|state| state.endpoints.clear()), None);
        let successor = |state: &mut ClusterState| {
            pod_mut(state, "web").terminal = true;
            mk_port(state, "api", ":80/TCP", 8080);
        };
        assert_eq!(with(&successor), Some("10.0.0.3:8080".to_owned()));
    }

    #[test]
    fn services_go_before_host_ports() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", ":80/TCP", 8080);
        let service = Service {
            key: ObjectKey::new("shop", "front"),
            cluster_ips: vec![ip("192.0.2.1")],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: 0,
            }],
            ..Service::default()
        };
        state.services.insert(service.key.clone(), service);
        let desired = compile(&state);
        let lead_to_the_pod = |compiler: &ServiceCompiler, address: &str| {
            let pods = |(key, frontend): (&FrontendKey<Addr4>, &Frontend)| {
                let name = compiler.name(frontend.service).expect("a name");
                (key.address == ip4(address)).then(|| name.starts_with("hostPort"))
            };
            let frontends = compiler.contents().v4.frontends.iter();
            frontends.filter_map(pods).collect::<Vec<_>>()
        };
        // With the address as such, from inside and outside.
        assert_eq!(lead_to_the_pod(&desired, "192.0.2.1"), [false; 4]);
        assert_eq!(lead_to_the_pod(&desired, "198.51.100.1"), [true; 2]);
        assert_eq!(
            warned(&desired),
            [
                "Pod shop/web: hostPort 80/TCP: at 192.0.2.1 it is already in use, by \
              Service shop/front; there it does not lead to this pod"
            ]
        );
    }

    #[test]
    fn node_ports_go_before_host_ports_where_they_are() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", ":30080/TCP", 8080);
        let addresses = |state: &ClusterState| {
            let compiler = compile(state);
            let exact = compiler.contents().v4.frontends.keys();
            let exact = exact.filter(|key| key.port == 30080 && key.address != Addr4::default());
            let addresses: BTreeSet<_> = exact.map(|key| key.address.to_ip().to_string()).collect();
            (
                addresses.into_iter().collect::<Vec<_>>(),
                warned(&compiler).len(),
            )
        };
        let all = ["127.0.0.1", "192.0.2.1", "198.51.100.1"].map(str::to_owned);
        assert_eq!(addresses(&state), (all.to_vec(), 0));

        let mut compiler = ServiceCompiler::new();
        compiler.update(&state, &Dirty::everything());
        let service = Service {
            key: ObjectKey::new("shop", "front"),
            cluster_ips: vec![ip("10.96.0.1")],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: 30080,
            }],
            ..Service::default()
        };
        state.services.insert(service.key.clone(), service);
        assert_eq!(addresses(&state), (vec!["127.0.0.1".to_owned()], 1));
        let mut dirty = Dirty::default();
        dirty.service(ObjectKey::new("shop", "front"));
        compiler.update(&state, &dirty);
        assert_eq!(compiler.contents(), compile(&state).contents());

        state.settings.nodeport_addresses = NodePortAddresses::Primary;
        let others = ["127.0.0.1", "198.51.100.1"].map(str::to_owned);
        assert_eq!(addresses(&state), (others.to_vec(), 1));
        compiler.update(&state, &Dirty::default());
        assert_eq!(compiler.contents(), compile(&state).contents());
    }

    fn ip4(text: &str) -> Addr4 {
        Addr4::from_ip(ip(text)).expect("an IPv4 address")
    }

    #[test]
    fn numbers_survive_a_restart_and_other_addresses() {
        let mut state = mk_cluster();
        mk_port(&mut state, "web", ":80/TCP", 8080);
        let before = compile(&state);
        state.own_addresses.remove(&ip("192.0.2.1"));
        state.own_addresses.insert(ip("192.0.2.99"));
        let mut after = ServiceCompiler::new();
        after.adopt(before.contents());
        after.update(&state, &Dirty::everything());
        assert!(after.names().eq(before.names()));
        let (after, before) = (after.contents(), before.contents());
        assert_eq!(after.v4.backends, before.v4.backends);
        assert_eq!(after.slots, before.slots);
        assert_ne!(after.v4.frontends, before.v4.frontends);
    }
}
