//! The ports of a service: where clients find them, and what is decided there.
//!
//! As kube-proxy has it:
//!
//! | address | from inside | from outside |
//! |---|---|---|
//! | cluster IP | `internalTrafficPolicy` | the same: a node may be the gateway of their network |
//! | NodePort, load balancer's IP, `externalIP` | every endpoint: as if it went out and came back by a node that has some | `externalTrafficPolicy` |
//!
//! Only load balancers' IPs are for the sources in `loadBalancerSourceRanges` alone.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    HealthCheck,
    claims::{Claim, Claims, Class, Unit, Wish},
    context::Context,
    endpoints::{self, Endpoint},
    writer::{Exposure, Port, PortKey, Record, View, Writer},
};
use crate::model::{
    EndpointSlice, LoadBalancing, LoadBalancingReturn, ObjectKey, Protocol, Service, ServicePort,
    Warning,
};

/// The families of a service.
fn families(service: &Service) -> impl Iterator<Item = bool> {
    [true, false]
        .into_iter()
        .filter(|ipv4| service.cluster_ips.iter().any(|ip| ip.is_ipv4() == *ipv4))
}

/// The addresses of one family.
fn of_family(ips: &[IpAddr], ipv4: bool) -> impl Iterator<Item = IpAddr> {
    ips.iter().copied().filter(move |ip| ip.is_ipv4() == ipv4)
}

/// Where one of a service's ports is wanted, for one family; the best right first.
fn of_port(
    service: &Service,
    port: &ServicePort,
    ipv4: bool,
) -> impl Iterator<Item = (Class, Claim)> {
    let any: IpAddr = if ipv4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let protocol = port.protocol.number();
    let at = move |class, port| {
        move |address| {
            let claim = Claim {
                address,
                port,
                protocol,
            };
            (class, claim)
        }
    };
    let cluster = of_family(&service.cluster_ips, ipv4).map(at(Class::ClusterIp, port.port));
    let node_port = (port.node_port > 0).then_some(any).into_iter();
    let node_port = node_port.map(at(Class::NodePort, port.node_port));
    let balancer = of_family(&service.load_balancer_ips, ipv4);
    let balancer = balancer.map(at(Class::LoadBalancer, port.port));
    let external = of_family(&service.external_ips, ipv4).map(at(Class::ExternalIp, port.port));
    cluster.chain(node_port).chain(balancer).chain(external)
}

/// The cluster IPs of one family as such.
fn of_addresses(service: &Service, ipv4: bool) -> impl Iterator<Item = (Class, Claim)> {
    of_family(&service.cluster_ips, ipv4).map(|address| {
        let claim = Claim {
            address,
            port: weft_abi::service::ANY_PORT,
            protocol: 0,
        };
        (Class::ClusterIp, claim)
    })
}

/// All that a service wants; sorted.
pub fn wishes(service: &Service) -> Vec<Wish> {
    let wish = |(class, claim)| Wish {
        claim,
        class,
        since: service.created,
    };
    let wanted = families(service).flat_map(|ipv4| {
        let ports = service.ports.iter();
        let ports = ports.flat_map(move |port| of_port(service, port, ipv4));
        ports.chain(of_addresses(service, ipv4))
    });
    let mut wishes: Vec<_> = wanted.map(wish).collect();
    wishes.sort_unstable();
    wishes.dedup();
    wishes
}

/// A service that is being written.
pub struct Job<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its name, shared.
    pub key: &'a Arc<ObjectKey>,
    /// Its slices.
    pub slices: &'a [&'a EndpointSlice],
    /// What was written of it before.
    pub previous: &'a [Record],
    /// Who has which addresses.
    pub claims: &'a Claims,
    /// What this node is.
    pub context: &'a Context,
    /// What an operator should know.
    pub warnings: &'a mut Vec<Warning>,
}

impl Job<'_> {
    /// Writes the service.
    pub fn write(&mut self, writer: &mut Writer<'_>) -> Vec<Record> {
        let service = self.service;
        let mut records = Vec::new();
        let mut own = BTreeSet::new();
        for port in &service.ports {
            let all = endpoints::collect(self.slices, &port.name, port.protocol, self.context);
            // IPv4 comes first.
            let (v4, v6) = all.split_at(all.partition_point(|endpoint| endpoint.address.is_ipv4()));
            for ipv4 in families(service) {
                let endpoints = if ipv4 { v4 } else { v6 };
                records.extend(self.write_port(port, ipv4, endpoints, &mut own, writer));
            }
        }
        for ipv4 in families(service) {
            let exposures: Vec<_> = of_addresses(service, ipv4)
                .filter(|(_, claim)| self.has(*claim))
                .map(|(_, claim)| Exposure {
                    claim,
                    internal: View::default(),
                    external: Some(View::default()),
                })
                .collect();
            let port = Port {
                key: PortKey::Addresses {
                    service: Arc::clone(self.key),
                    ipv4,
                },
                name: &service.key.to_string(),
                endpoints: &[],
                exposures: &exposures,
                is_external: false,
                affinity_seconds: 0,
                maglev: false,
                ranges: &[],
                lets_node_in: false,
            };
            records.extend(self.put(port, writer));
        }
        records
    }

    fn write_port(
        &mut self,
        port: &ServicePort,
        ipv4: bool,
        endpoints: &[Endpoint],
        own: &mut BTreeSet<Claim>,
        writer: &mut Writer<'_>,
    ) -> Option<Record> {
        let service = self.service;
        let ranges = ranges(service, ipv4);
        let direct = service.load_balancing_return;
        let direct = direct.unwrap_or(self.context.load_balancing_return);
        let inside = View {
            local: service.internal_local,
            ..View::default()
        };
        let outside = View {
            local: service.external_local,
            direct: direct == LoadBalancingReturn::Direct && !service.external_local,
            filtered: false,
        };
        let mut exposures = Vec::new();
        let mut is_external = false;
        for (class, claim) in of_port(service, port, ipv4) {
            if !self.has(claim) {
                self.lost(claim);
                continue;
            }
            // Two of the service's own addresses may be the same.
            if !own.insert(claim) {
                continue;
            }
            is_external |= class != Class::ClusterIp;
            let filtered = class == Class::LoadBalancer && ranges.is_some();
            let (internal, external) = match class {
                Class::ClusterIp => (inside, inside),
                _ => (View::default(), outside),
            };
            exposures.push(Exposure {
                claim,
                internal: View {
                    filtered,
                    ..internal
                },
                external: Some(View {
                    filtered,
                    ..external
                }),
            });
        }
        let mut ranges = ranges.unwrap_or_default();
        let lets_node_in = self.lets_node_in(ipv4, &mut ranges);
        let name = if port.name.is_empty() {
            format!("{}:{}", service.key, port.port)
        } else {
            format!("{}:{}", service.key, port.name)
        };
        let algorithm = service.load_balancing;
        let algorithm = algorithm.unwrap_or(self.context.load_balancing);
        let port = Port {
            key: PortKey::Service {
                service: Arc::clone(self.key),
                port: port.name.as_str().into(),
                protocol: port.protocol,
                ipv4,
            },
            name: &name,
            endpoints,
            exposures: &exposures,
            is_external,
            affinity_seconds: service.affinity_seconds,
            maglev: algorithm == LoadBalancing::Maglev,
            ranges: &ranges,
            lets_node_in,
        };
        let name = port.name;
        let record = self.put(port, writer);
        if record.as_ref().is_some_and(|record| record.lacks_table) {
            self.warnings.push(Warning {
                object: format!("Service {}", service.key),
                message: format!(
                    "there is no room for the Maglev table of {name}; its backends are chosen at \
                     random until the service changes and there is. Raise the capacity \
                     (--map-capacity maglev=<blocks>)"
                ),
            });
        }
        record
    }

    /// Writes a port, unless clients find it nowhere.
    fn put(&self, port: Port<'_>, writer: &mut Writer<'_>) -> Option<Record> {
        if port.exposures.is_empty() {
            return None;
        }
        let mut previous = self.previous.iter();
        let previous = previous.find(|record| record.key == port.key);
        Some(writer.write(port, previous))
    }

    fn has(&self, claim: Claim) -> bool {
        matches!(self.claims.holder(claim), Some(Unit::Service(key)) if key == self.key)
    }

    fn lost(&mut self, claim: Claim) {
        let Some(holder) = self.claims.holder(claim) else {
            return;
        };
        let protocol = Protocol::from_number(claim.protocol);
        let protocol = protocol.map_or("", Protocol::name);
        let what = if claim.address.is_unspecified() {
            format!("{protocol} node port {}", claim.port)
        } else {
            format!("{} {protocol} port {}", claim.address, claim.port)
        };
        self.warnings.push(Warning {
            object: format!("Service {}", self.service.key),
            message: format!(
                "{what} is already in use, by {holder}; it does not lead to this service"
            ),
        });
    }

    /// Whether this node's own processes are in the ranges. Their packets to a load balancer's IP may
    /// have that very address as source, so then it is let in, too.
    fn lets_node_in(&self, ipv4: bool, ranges: &mut Vec<IpNet>) -> bool {
        let mut own = of_family(&self.context.internal_ips, ipv4);
        let lets_in = own.any(|ip| ranges.iter().any(|range| range.contains(&ip)));
        if lets_in {
            ranges.extend(of_family(&self.service.load_balancer_ips, ipv4).map(IpNet::from));
        }
        lets_in
    }
}

/// Who may use the load balancers' IPs of a family; `None`: everybody.
fn ranges(service: &Service, ipv4: bool) -> Option<Vec<IpNet>> {
    let given = service.source_ranges.as_ref()?;
    let own = given.iter().filter(|range| range.addr().is_ipv4() == ipv4);
    let own: Vec<_> = own.copied().collect();
    let everybody = own.iter().any(|range| range.prefix_len() == 0);
    // Ranges of the other family alone say nothing of this one.
    let silent = own.is_empty() && !given.is_empty();
    (!everybody && !silent).then_some(own)
}

/// What a health check port tells of the service, if it has one: how many addresses of this node's
/// ready endpoints there are. Terminating ones do not count, unless they are published as ready.
pub fn health_check(
    service: &Service,
    slices: &[&EndpointSlice],
    context: &Context,
) -> Option<HealthCheck> {
    let port = service.health_check_node_port;
    if port == 0 {
        return None;
    }
    let with_ports = slices.iter().filter(|slice| !slice.ports.is_empty());
    let endpoints = with_ports.flat_map(|slice| &slice.endpoints);
    let local = endpoints.filter(|endpoint| {
        endpoint.ready && endpoint.node.as_deref() == Some(context.node.as_str())
    });
    let addresses: BTreeSet<_> = local.map(|endpoint| endpoint.address).collect();
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    let has = |ipv4: bool| families(service).any(|family| family == ipv4);
    Some(HealthCheck {
        port,
        v4: has(true).then_some(v4),
        v6: has(false).then_some(addresses.len() - v4),
    })
}
