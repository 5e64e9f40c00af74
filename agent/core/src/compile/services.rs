//! Services: the ports at cluster addresses, with the endpoints of their slices.
//!
//! Of a service port's endpoints, new connections get the ready ones; if there is none, those that
//! still serve while they terminate.

use std::collections::BTreeMap;

use weft_abi::{
    addr::{Addr4, Addr6},
    service::{FrontendKey, SCOPE_INTERNAL},
};

use super::frontends::{Candidate, Candidates, Port, PortKey, Writer};
use crate::{
    family::Address,
    model::{ClusterState, EndpointSlice, ObjectKey, Service, ServicePort, SliceEndpoint, Warning},
};

/// Writes the services.
pub fn write(state: &ClusterState, writer: &mut Writer<'_>, warnings: &mut Vec<Warning>) {
    let slices = slices_by_service(state);
    for service in state
        .services
        .values()
        .filter(|service| !service.cluster_ips.is_empty())
    {
        let slices = slices.get(&service.key).map_or(&[][..], Vec::as_slice);
        for port in &service.ports {
            let candidates = candidates(state, slices, port);
            write_port::<Addr4>(service, port, &candidates, writer, warnings);
            write_port::<Addr6>(service, port, &candidates, writer, warnings);
        }
    }
}

fn slices_by_service(state: &ClusterState) -> BTreeMap<ObjectKey, Vec<&EndpointSlice>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for slice in state.slices.values() {
        if let Some(service) = &slice.service {
            let key = ObjectKey::new(&slice.key.namespace, service);
            found.entry(key).or_default().push(slice);
        }
    }
    found
}

fn candidates(state: &ClusterState, slices: &[&EndpointSlice], port: &ServicePort) -> Candidates {
    let mut found = Candidates::new();
    for slice in slices {
        let ports = slice
            .ports
            .iter()
            .filter(|slice| slice.name == port.name && slice.protocol == port.protocol);
        for slice_port in ports {
            for endpoint in &slice.endpoints {
                let candidate = candidate(endpoint, state);
                let known = found
                    .entry((endpoint.address, slice_port.port))
                    .or_insert(candidate);
                if candidate.rank() > known.rank() {
                    *known = candidate;
                }
            }
        }
    }
    found
}

fn candidate(endpoint: &SliceEndpoint, state: &ClusterState) -> Candidate {
    Candidate {
        local: endpoint.node.as_deref() == Some(&state.node_name),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
    }
}

/// Writes a service port at the service's addresses of one family.
fn write_port<A: Address>(
    service: &Service,
    port: &ServicePort,
    candidates: &Candidates,
    writer: &mut Writer<'_>,
    warnings: &mut Vec<Warning>,
) {
    let mut keys = Vec::new();
    for address in service.cluster_ips.iter().filter_map(|ip| A::from_ip(*ip)) {
        let key = FrontendKey {
            address,
            port: port.port,
            protocol: port.protocol.number(),
            scope: SCOPE_INTERNAL,
        };
        match writer.holder(&key) {
            None => keys.push(key),
            Some(holder) => warnings.push(Warning {
                object: format!("Service {}", service.key),
                message: format!(
                    "{} {} port {} is already in use, by {holder}; this port is ignored",
                    address.to_ip(),
                    port.protocol,
                    port.port
                ),
            }),
        }
    }
    let name = if port.name.is_empty() {
        port.port.to_string()
    } else {
        port.name.clone()
    };
    let port = Port {
        key: PortKey::Service {
            service: service.key.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            ipv4: A::BITS == 32,
        },
        name: format!("{}:{name}", service.key),
        candidates,
        local_only: service.internal_local,
        affinity_seconds: service.affinity_seconds,
    };
    writer.write(&port, &keys);
}
