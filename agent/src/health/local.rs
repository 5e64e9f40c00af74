//! What the cluster says of the endpoints on this node: for load balancers, and for the metrics.

use std::collections::BTreeMap;

use tokio::sync::watch;
use weft_core::model::{ClusterState, NodePortAddresses};
use weft_core::services::{ServiceCompiler, WithoutLocal};

use super::{Addresses, Family, HealthChecks, Observation, ProxyHealth, ServiceHealth};

/// Services that prefer, or ask for, endpoints on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalServices {
    /// What load balancers may ask this node about.
    pub checks: HealthChecks,
    /// Ports of services that have endpoints, but none here, by the policy that keeps them from the
    /// others.
    pub without: BTreeMap<Family, WithoutLocal>,
}

impl LocalServices {
    /// Of what was compiled of services, for the node as it is.
    pub fn of(services: &ServiceCompiler, state: &ClusterState) -> Self {
        let mut checks = HealthChecks::default();
        for (service, check) in services.health_checks() {
            for (family, endpoints) in [(Family::V4, check.v4), (Family::V6, check.v6)] {
                checks
                    .services
                    .extend(endpoints.map(|local_endpoints| ServiceHealth {
                        service: service.clone(),
                        family,
                        port: check.port,
                        local_endpoints,
                    }));
            }
        }
        if !checks.services.is_empty() {
            checks.addresses = addresses(state);
        }
        let [v4, v6] = services.without_local();
        Self {
            checks,
            without: [(Family::V4, v4), (Family::V6, v6)].into(),
        }
    }

    /// Tells it: it is in the maps.
    pub fn tell(&self, health: &ProxyHealth, checks: &watch::Sender<HealthChecks>) {
        for family in Family::ALL {
            let without = self.without.get(&family).copied().unwrap_or_default();
            let WithoutLocal { internal, external } = without;
            health.observe(Observation::NoLocalEndpoints {
                family,
                internal,
                external,
            });
        }
        checks.send_if_modified(|checks| {
            let changed = *checks != self.checks;
            if changed {
                checks.clone_from(&self.checks);
            }
            changed
        });
    }
}

/// Where this node has NodePorts.
fn addresses(state: &ClusterState) -> Addresses {
    let nodeports = &state.settings.nodeport_addresses;
    if *nodeports == NodePortAddresses::All {
        return Addresses::All;
    }
    let own = state.nodes.get(&state.node_name);
    let addresses = state.own_addresses.iter().copied();
    Addresses::Only(
        addresses
            .filter(|address| nodeports.contain(*address, own))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use weft_core::model::{
        EndpointSlice, Node, ObjectKey, Protocol, Service, ServicePort, SliceEndpoint, SlicePort,
    };
    use weft_core::services::Dirty;

    use super::*;

    fn of(state: &ClusterState) -> LocalServices {
        let mut services = ServiceCompiler::new();
        services.update(state, &Dirty::everything());
        LocalServices::of(&services, state)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn state() -> ClusterState {
        let mut state = ClusterState {
            node_name: "a".to_owned(),
            ..ClusterState::default()
        };
        let service = |name: &str, ips: &[&str], port| Service {
            key: ObjectKey::new("default", name),
            cluster_ips: ips.iter().map(|text| ip(text)).collect(),
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: if port == 0 { 0 } else { 30_080 },
            }],
            external_local: port != 0,
            health_check_node_port: port,
            ..Service::default()
        };
        for service in [
            service("web", &["10.96.0.1", "fd00::1"], 30_000),
            service("other", &["10.96.0.2"], 0),
        ] {
            state.services.insert(service.key.clone(), service);
        }
        let endpoint = |address: &str, node: &str, ready| SliceEndpoint {
            ready,
            node: Some(node.into()),
            ..SliceEndpoint::new(ip(address))
        };
        let slice = |name: &str, service: &str, endpoints| EndpointSlice {
            key: ObjectKey::new("default", name),
            service: Some(service.to_owned()),
            ports: vec![SlicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
            endpoints,
            ..EndpointSlice::default()
        };
        for slice in [
            slice(
                "web-1",
                "web",
                vec![
                    endpoint("10.0.0.1", "a", true),
                    endpoint("10.0.0.2", "a", false),
                    endpoint("10.0.1.1", "b", true),
                ],
            ),
            // The same endpoint with other ports.
            slice("web-2", "web", vec![endpoint("10.0.0.1", "a", true)]),
            slice("web-3", "web", vec![endpoint("fd01::2", "a", false)]),
            slice("other-1", "other", vec![endpoint("10.0.0.3", "a", true)]),
        ] {
            state.slices.insert(slice.key.clone(), slice);
        }
        state
    }

    #[test]
    fn ready_endpoints_of_this_node_are_counted_once_per_address() {
        let checks = of(&state()).checks;
        let web = |family, local_endpoints| ServiceHealth {
            service: ObjectKey::new("default", "web"),
            family,
            port: 30_000,
            local_endpoints,
        };
        assert_eq!(checks.services, [web(Family::V4, 1), web(Family::V6, 0)]);
        assert_eq!(checks.addresses, Addresses::All);
    }

    #[test]
    fn node_ports_have_the_addresses_that_were_asked_for() {
        let mut state = state();
        state.own_addresses = ["192.0.2.1", "198.51.100.1", "2001:db8::1"].map(ip).into();
        let node = Node {
            name: "a".to_owned(),
            internal_ips: vec![ip("192.0.2.1")],
            ..Node::default()
        };
        state.nodes.insert(node.name.clone(), node);
        state.settings.nodeport_addresses = NodePortAddresses::Primary;
        let only = |texts: &[&str]| Addresses::Only(texts.iter().map(|text| ip(text)).collect());
        assert_eq!(of(&state).checks.addresses, only(&["192.0.2.1"]));
        let cidrs = vec!["198.51.100.0/24".parse().expect("a network")];
        state.settings.nodeport_addresses = NodePortAddresses::Cidrs(cidrs);
        assert_eq!(
            of(&state).checks.addresses,
            only(&["198.51.100.1", "2001:db8::1"])
        );
        // Nobody listens anywhere: addresses are no matter.
        state.services.clear();
        assert_eq!(of(&state).checks, HealthChecks::default());
    }

    #[test]
    fn services_whose_endpoints_are_all_elsewhere_are_counted() {
        let mut state = state();
        let counts = |state: &ClusterState| {
            let local = of(state);
            let of = |family| {
                let without = local.without.get(&family).copied().unwrap_or_default();
                (without.internal, without.external)
            };
            Family::ALL.map(of)
        };
        assert_eq!(counts(&state), [(0, 0), (0, 0)]);
        let key = ObjectKey::new("default", "other");
        let other = state.services.get_mut(&key).expect("there");
        other.internal_local = true;
        assert_eq!(counts(&state), [(0, 0), (0, 0)]);
        // Seen from a node that has none of them; of IPv6 nobody has any that is usable.
        state.node_name = "c".to_owned();
        assert_eq!(counts(&state), [(1, 1), (0, 0)]);
    }

    #[test]
    fn what_did_not_change_wakes_nobody() {
        use crate::health::TIMEOUT;
        use crate::health::clock::tests::ManualClock;

        let health = ProxyHealth::new(ManualClock::new(), TIMEOUT);
        let (sender, mut receiver) = watch::channel(HealthChecks::default());
        let local = of(&state());
        local.tell(&health, &sender);
        assert_eq!(*receiver.borrow_and_update(), local.checks);
        local.tell(&health, &sender);
        assert!(!receiver.has_changed().expect("open"));
    }
}
