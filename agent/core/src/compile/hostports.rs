//! hostPorts: ports of this node's addresses that lead to one of its pods.
//!
//! What the runtime asked for when it added a pod's interface is what counts, for as long as the
//! interface is there: also while the pod terminates, and while nothing is known of its object. Only
//! a pod that is known to be over has no ports any more, because its successor may want them before
//! its sandbox goes.
//!
//! A hostPort takes addresses of this node and no others. If it took any address that it was asked
//! to, whoever may create a pod could have what this node's pods and processes send to that address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use weft_abi::{
    addr::{Addr4, Addr6},
    service::{FrontendKey, SCOPE_EXTERNAL, SCOPE_INTERNAL},
};

use super::frontends::{Candidate, Candidates, Port, PortKey, Writer};
use crate::{
    family::Address,
    model::{ClusterState, HostPort, LocalEndpoint, Warning, canonical},
};

/// How many addresses a warning names.
const NAMED: usize = 3;

/// Writes the hostPorts. Of two that want the same port of an address the first has it: that of the
/// pod that is more surely alive, then by name.
pub fn write(state: &ClusterState, writer: &mut Writer<'_>, warnings: &mut Vec<Warning>) {
    let mut endpoints: Vec<_> = state
        .endpoints
        .values()
        .filter(|endpoint| !endpoint.host_ports.is_empty())
        .filter(|endpoint| state.pod_of(endpoint).is_none_or(|pod| !pod.terminal))
        .collect();
    if endpoints.is_empty() {
        return;
    }
    endpoints.sort_by_key(|endpoint| {
        let life = Reverse(life(state, endpoint));
        (life, &endpoint.pod, &endpoint.container_id)
    });
    let own = own_addresses(state);
    for endpoint in endpoints {
        // As with sockets, a port of one address goes before the port of every address.
        let mut ports: Vec<_> = endpoint.host_ports.iter().map(Wanted::new).collect();
        ports.sort_unstable();
        ports.dedup();
        for port in ports.iter().filter(|port| port.port > 0) {
            let mut job = Job {
                endpoint,
                port,
                own: &own,
                writer: &mut *writer,
                warnings: &mut *warnings,
            };
            job.write();
        }
    }
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

/// A hostPort, to be sorted: what is asked for one address first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    everywhere: bool,
    address: Option<IpAddr>,
    port: u16,
    protocol: crate::model::Protocol,
    target: u16,
}

impl Wanted {
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
}

/// One hostPort, on its way into the maps.
struct Job<'a, 'b> {
    endpoint: &'a LocalEndpoint,
    port: &'a Wanted,
    own: &'a BTreeSet<IpAddr>,
    writer: &'a mut Writer<'b>,
    warnings: &'a mut Vec<Warning>,
}

impl Job<'_, '_> {
    fn write(&mut self) {
        let addresses = match self.port.address {
            None => self.own.clone(),
            Some(address) => {
                if !address.is_loopback() && !self.own.contains(&address) {
                    self.warn(&format!(
                        "this node has no address {address}; the port is not served until it has"
                    ));
                    return;
                }
                let mut ips = self.endpoint.ips.iter();
                if !ips.any(|ip| ip.is_ipv4() == address.is_ipv4()) {
                    self.warn(&format!(
                        "the pod has no address of the family of {address}; the port is not served"
                    ));
                    return;
                }
                [address].into()
            }
        };
        self.write_family::<Addr4>(&addresses, Ipv4Addr::UNSPECIFIED.into());
        self.write_family::<Addr6>(&addresses, Ipv6Addr::UNSPECIFIED.into());
    }

    /// Writes the port at those of the addresses that are of one family; `any` is the address by
    /// which that family says "every address".
    fn write_family<A: Address>(&mut self, addresses: &BTreeSet<IpAddr>, any: IpAddr) {
        let Self { endpoint, port, .. } = *self;
        let mut ips = endpoint.ips.iter();
        let Some(target) = ips.find(|ip| A::from_ip(**ip).is_some()) else {
            return;
        };
        let mut keys = Vec::new();
        let mut lost = BTreeMap::<String, Vec<IpAddr>>::new();
        for (ip, address) in addresses
            .iter()
            .filter_map(|ip| Some((ip, A::from_ip(*ip)?)))
        {
            // Nothing from outside can be meant for a loopback address.
            let scopes = if ip.is_loopback() {
                &[SCOPE_INTERNAL][..]
            } else {
                &[SCOPE_INTERNAL, SCOPE_EXTERNAL]
            };
            let wanted = scopes.iter().map(|scope| FrontendKey {
                address,
                port: port.port,
                protocol: port.protocol.number(),
                scope: *scope,
            });
            let holder = wanted.clone().find_map(|key| self.writer.holder(&key));
            match holder {
                None => keys.extend(wanted),
                Some(holder) => lost.entry(holder.to_owned()).or_default().push(*ip),
            }
        }
        for (holder, addresses) in lost {
            self.warn(&format!(
                "at {} it is already in use, by {holder}; there it does not lead to this pod",
                listed(&addresses)
            ));
        }
        let candidate = Candidate {
            local: true,
            ready: true,
            serving: true,
            terminating: false,
        };
        let candidates = Candidates::from([((*target, port.target), candidate)]);
        let socket = SocketAddr::new(port.address.unwrap_or(any), port.port);
        let port = Port {
            key: PortKey::HostPort {
                pod: endpoint.pod.clone(),
                address: port.address,
                port: port.port,
                protocol: port.protocol,
                ipv4: A::BITS == 32,
            },
            name: format!("hostPort {} {socket}/{}", endpoint.pod, port.protocol),
            candidates: &candidates,
            local_only: false,
            affinity_seconds: 0,
        };
        self.writer.write(&port, &keys);
    }

    fn warn(&mut self, message: &str) {
        let Wanted { port, protocol, .. } = self.port;
        self.warnings.push(Warning {
            object: format!("Pod {}", self.endpoint.pod),
            message: format!("hostPort {port}/{protocol}: {message}"),
        });
    }
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
    use super::*;
    use crate::{
        compile::{
            Compiler, Desired,
            tests::{ip, mk_pod, mk_state, pod_mut, warned},
        },
        contents::Contents,
        model::{ObjectKey, Protocol, Service, ServicePort},
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
    fn frontends(contents: &Contents) -> Vec<String> {
        fn family<A: Address>(contents: &Contents) -> Vec<String> {
            let tables = A::tables(contents);
            let one = |(key, frontend): (&FrontendKey<A>, &weft_abi::service::Frontend)| {
                assert_eq!((frontend.first, frontend.count), (0, 1), "{key:?}");
                let slot = weft_abi::service::SlotKey {
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

    fn compile(state: &ClusterState) -> Desired {
        Compiler::new().compile(state)
    }

    /// Where a port of the node's first address leads.
    fn target(state: &ClusterState) -> Option<String> {
        let found = frontends(&compile(state).contents);
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
            frontends(&desired.contents),
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
        let mut names: Vec<_> = desired.services.values().collect();
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
        assert_eq!(frontends(&desired.contents).len(), 3);
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
            frontends(&desired.contents),
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
        let found = frontends(&desired.contents);
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
        assert_eq!(frontends(&desired.contents), [""; 0]);
        assert_eq!(desired.warnings.len(), 2, "{:?}", warned(&desired));
        assert!(
            !desired
                .contents
                .v4
                .backends
                .values()
                .any(|backend| backend.port == 8080)
        );

        state.own_addresses.insert(ip("203.0.113.9"));
        assert_eq!(frontends(&compile(&state).contents).len(), 2);

        // What the pod has no address for leads nowhere.
        let mut state = mk_cluster();
        state.endpoints.get_mut("web").expect("a pod").ips.pop();
        mk_port(&mut state, "web", "[::1]:80/TCP", 8080);
        let desired = compile(&state);
        assert_eq!(frontends(&desired.contents), [""; 0]);
        assert_eq!(desired.warnings.len(), 1, "{:?}", warned(&desired));
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
        let keys = desired.contents.v4.frontends.keys();
        let outside =
            keys.filter(|key| key.address == ip4("192.0.2.1") && key.scope == SCOPE_EXTERNAL);
        assert_eq!(outside.count(), 0, "one address is of one or the other");
        assert_eq!(
            warned(&desired),
            [
                "Pod shop/web: hostPort 80/TCP: at 192.0.2.1 it is already in use, by \
              shop/front:80; there it does not lead to this pod"
            ]
        );
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
        let mut restarted = Compiler::new();
        restarted.adopt(&before.contents);
        let after = restarted.compile(&state);
        assert_eq!(after.services, before.services);
        assert_eq!(after.contents.v4.backends, before.contents.v4.backends);
        assert_eq!(after.contents.slots, before.contents.slots);
        assert_ne!(after.contents.v4.frontends, before.contents.v4.frontends);
    }
}
