//! The answers: what is told, gathered from the agent's memory and the maps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Value, json};
use weft_abi::ABI_VERSION;
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::endpoint::{ENFORCE_EGRESS, ENFORCE_INGRESS, Endpoint};
use weft_abi::policy::{
    ALLOW, IDENTITY_ANY, INGRESS, POLICY_PREFIX_PEER, POLICY_PREFIX_PORT, POLICY_PREFIX_PROTOCOL,
    PolicyKey,
};
use weft_abi::service::FRONTEND_LOCAL_ONLY;
use weft_core::compile::Desired;
use weft_core::contents::{LpmKey, PolicyContents, ServiceContents};
use weft_core::family::Address;
use weft_core::model::{ClusterState, Routing};
use weft_core::services::ServiceCompiler;

use super::Query;
use crate::bpf::events::{DropLog, DroppedPacket};
use crate::netlink::leftovers;
use crate::node::NodeNetwork;
use crate::reconcile::{Maps, Shared};

/// How many of the last drops are told.
const LAST_DROPS: usize = 200;

/// The answer to a query.
pub fn answer(query: Query, shared: &Shared, drops: &DropLog) -> Value {
    match query {
        Query::Status => status(shared),
        Query::Endpoints => json!({ "endpoints": endpoints(shared) }),
        Query::Services => json!({ "services": services(shared) }),
        Query::Policy => json!({ "policy_sets": policy(shared) }),
        Query::Drops => drop_report(shared, drops),
    }
}

fn status(shared: &Shared) -> Value {
    let network = shared.node.borrow().clone();
    let applied = shared.applied.borrow().clone();
    let watches = shared.cluster.watches();
    let (programs, mode, sockets) = {
        let attacher = shared.attacher();
        (
            attacher.loaded().programs(),
            attacher.mode(),
            attacher.attached_sockets(),
        )
    };
    let (pools, addresses, outside) = {
        let ipam = shared.ipam();
        (ipam.usage(), ipam.allocations().len(), ipam.outside())
    };
    let mut warnings: Vec<String> = shared
        .cluster
        .warnings()
        .iter()
        .map(ToString::to_string)
        .collect();
    warnings.extend(leftovers::find().iter().map(ToString::to_string));
    let maps = shared.maps();
    warnings.extend(maps.desired.warnings.iter().map(ToString::to_string));
    warnings.extend(maps.services.warnings().map(ToString::to_string));
    let fill = maps.tables.fill(&maps.mirror);
    let near = fill.iter().filter(|fill| fill.is_near_full());
    warnings.extend(near.map(ToString::to_string));
    warnings.extend(network.iter().flat_map(|network| network.problems.clone()));
    let endpoints = shared.endpoints.all();
    let ready = endpoints
        .iter()
        .filter(|record| applied.is_ready(record))
        .count();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi": ABI_VERSION,
        "node": shared.config.node_name,
        "healthy": applied.complete && applied.clean,
        "address": network.as_ref().map(|network| network.facts.address),
        "mtu": network.as_ref().map(|network| network.mtu),
        "network": network.as_ref().map(|network| network_report(shared, network)),
        "sockets": sockets,
        "pod_networks": pools.iter().map(|usage| usage.pool).collect::<Vec<_>>(),
        "addresses": pools,
        "addresses_in_use": addresses,
        "addresses_outside": outside,
        "endpoints": { "total": endpoints.len(), "ready": ready },
        "api": {
            "connected": watches.values().all(|watch| watch.connected),
            "synced": shared.cluster.synced(),
            "watches": watches,
        },
        "applied": applied,
        "epoch": maps.config.epoch,
        "attachment": mode,
        "programs": programs,
        "pins": shared.config.map_dir(),
        "maps": fill,
        "warnings": warnings,
    })
}

fn network_report(shared: &Shared, network: &NodeNetwork) -> Value {
    let masquerade = shared.config.masquerade;
    let families = [(masquerade.v4, "ipv4"), (masquerade.v6, "ipv6")];
    let families = families.into_iter().filter(|(on, _)| *on);
    let underlay = network.facts.address;
    let first = if underlay.is_ipv4() { "ipv4" } else { "ipv6" };
    let second = (underlay.is_ipv4() && network.ipv6_tunnels).then_some("ipv6");
    let underlay: Vec<_> = [first].into_iter().chain(second).collect();
    let native = network.routing == Routing::Native;
    json!({
        "routing": if native { "native" } else { "vxlan" },
        "addresses": network.facts.addresses(),
        "underlay": underlay,
        "uplinks": network.uplinks,
        "overlay_mtu": (!native).then_some(network.overlay_mtu),
        "masquerade": {
            "families": families.map(|(_, family)| family).collect::<Vec<_>>(),
            "ports": format!("{}-{}", masquerade.first_port, masquerade.last_port),
            "except": shared.config.settings.non_masquerade,
        },
        "bandwidth": if network.departure_times { "departure times" } else { "bucket" },
    })
}

/// A pod of this node.
#[derive(Serialize)]
struct EndpointReport {
    pod: String,
    addresses: Vec<IpAddr>,
    interface: String,
    ifindex: u32,
    mac: String,
    container: String,
    ready: bool,
    policy_set: u32,
    identity: u32,
    ingress: &'static str,
    egress: &'static str,
}

fn endpoints(shared: &Shared) -> Vec<EndpointReport> {
    let applied = shared.applied.borrow().clone();
    let maps = shared.maps();
    let reports = shared.endpoints.all().into_iter().map(|record| {
        let entry = record
            .addresses
            .iter()
            .find_map(|address| endpoint_of(&maps.mirror.policy, *address))
            .unwrap_or_default();
        EndpointReport {
            pod: record.endpoint().pod.to_string(),
            ready: applied.is_ready(&record),
            mac: record.mac.map(|byte| format!("{byte:02x}")).join(":"),
            addresses: record.addresses,
            interface: record.interface,
            ifindex: record.ifindex,
            container: record.owner.container_id,
            policy_set: entry.policy_set,
            identity: entry.identity,
            ingress: enforcement(&entry, ENFORCE_INGRESS),
            egress: enforcement(&entry, ENFORCE_EGRESS),
        }
    });
    let mut reports: Vec<_> = reports.collect();
    reports.sort_by(|a, b| a.pod.cmp(&b.pod));
    reports
}

fn endpoint_of(contents: &PolicyContents, address: IpAddr) -> Option<Endpoint> {
    let v4 = Addr4::from_ip(address).and_then(|address| contents.v4.endpoints.get(&address));
    let v6 = || Addr6::from_ip(address).and_then(|address| contents.v6.endpoints.get(&address));
    v4.or_else(v6).copied()
}

fn enforcement(entry: &Endpoint, direction: u8) -> &'static str {
    if entry.policy_set == 0 {
        "closed"
    } else if entry.enforce & direction == 0 {
        "open"
    } else {
        "policy"
    }
}

/// A service port.
#[derive(Serialize)]
struct ServiceReport {
    service: String,
    frontend: String,
    protocol: u8,
    scope: u8,
    affinity_seconds: u32,
    local_only: bool,
    backends: Vec<String>,
}

fn services(shared: &Shared) -> Vec<ServiceReport> {
    let maps = shared.maps();
    let mut reports = Vec::new();
    let contents = &maps.mirror.services;
    family_services::<Addr4>(contents, &maps.services, &mut reports);
    family_services::<Addr6>(contents, &maps.services, &mut reports);
    reports.sort_by(|a, b| {
        (&a.service, &a.frontend, a.scope).cmp(&(&b.service, &b.frontend, b.scope))
    });
    reports
}

fn family_services<A: Address>(
    contents: &ServiceContents,
    services: &ServiceCompiler,
    reports: &mut Vec<ServiceReport>,
) {
    let tables = A::services(contents);
    for (key, frontend) in &tables.frontends {
        let backends = (0..frontend.count).filter_map(|slot| {
            let key = weft_abi::service::SlotKey {
                service: frontend.service,
                slot: frontend.first + slot,
            };
            let backend = tables.backends.get(&contents.slots.get(&key)?.backend)?;
            Some(endpoint_text(backend.address.to_ip(), backend.port))
        });
        reports.push(ServiceReport {
            service: services
                .name(frontend.service)
                .map(str::to_owned)
                .unwrap_or_else(|| format!("service {}", frontend.service)),
            frontend: endpoint_text(key.address.to_ip(), key.port),
            protocol: key.protocol,
            scope: key.scope,
            affinity_seconds: frontend.affinity_seconds,
            local_only: frontend.flags & FRONTEND_LOCAL_ONLY != 0,
            backends: backends.collect(),
        });
    }
}

fn endpoint_text(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// A policy set.
#[derive(Serialize)]
struct PolicySetReport {
    set: u32,
    pods: Vec<String>,
    rules: Vec<RuleReport>,
}

/// An entry of a policy set.
#[derive(Serialize)]
struct RuleReport {
    direction: &'static str,
    peers: Vec<String>,
    identity: Option<u32>,
    ports: String,
    verdict: &'static str,
    rule: String,
}

fn policy(shared: &Shared) -> Vec<PolicySetReport> {
    let records = shared.endpoints.all();
    let maps = shared.maps();
    let mut sets: BTreeMap<u32, PolicySetReport> = BTreeMap::new();
    for record in records {
        let entry = record
            .addresses
            .iter()
            .find_map(|a| endpoint_of(&maps.mirror.policy, *a));
        let set = entry.unwrap_or_default().policy_set;
        let report = sets.entry(set).or_insert_with(|| PolicySetReport {
            set,
            pods: Vec::new(),
            rules: Vec::new(),
        });
        report.pods.push(record.endpoint().pod.to_string());
    }
    for (key, verdict) in &maps.mirror.policy.verdicts {
        let PolicyKey {
            policy_set,
            identity,
            direction,
            ..
        } = key.data;
        let report = sets.entry(policy_set).or_insert_with(|| PolicySetReport {
            set: policy_set,
            pods: Vec::new(),
            rules: Vec::new(),
        });
        let any = identity == IDENTITY_ANY;
        let peers = maps.desired.identities.get(&identity).filter(|_| !any);
        report.rules.push(RuleReport {
            direction: if direction == INGRESS {
                "ingress"
            } else {
                "egress"
            },
            peers: peers.cloned().unwrap_or_else(|| {
                vec![if any {
                    "any".to_owned()
                } else {
                    format!("identity {identity}")
                }]
            }),
            identity: (!any).then_some(identity),
            ports: ports_text(key),
            verdict: if verdict.verdict == ALLOW {
                "allow"
            } else {
                "deny"
            },
            rule: rule_text(&maps.desired, verdict.rule).unwrap_or_default(),
        });
    }
    sets.into_values().collect()
}

/// The protocol and the ports of an entry, in words.
fn ports_text(key: &LpmKey<PolicyKey>) -> String {
    if key.prefix_len <= POLICY_PREFIX_PEER {
        return "any".to_owned();
    }
    let PolicyKey { protocol, port, .. } = key.data;
    let protocol = protocol_text(protocol);
    if key.prefix_len <= POLICY_PREFIX_PROTOCOL {
        return protocol;
    }
    let first = u32::from(u16::from_be_bytes(port));
    let last = first + (1 << (POLICY_PREFIX_PORT - key.prefix_len.min(POLICY_PREFIX_PORT))) - 1;
    if first == last {
        format!("{protocol} {first}")
    } else {
        format!("{protocol} {first}-{last}")
    }
}

/// The name of an IP protocol.
pub fn protocol_text(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        _ => weft_core::model::Protocol::from_number(number).map_or_else(
            || format!("protocol {number}"),
            |protocol| protocol.name().to_owned(),
        ),
    }
}

/// A rule number in words.
pub fn rule_text(desired: &Desired, rule: u32) -> Option<String> {
    desired.rules.get(rule).map(ToString::to_string)
}

/// A drop, with the pods that have its addresses now.
#[derive(Serialize)]
struct DropReport {
    #[serde(flatten)]
    packet: DroppedPacket,
    protocol_name: String,
    source_pod: Option<String>,
    destination_pod: Option<String>,
    /// For a packet that was dropped before its translation was written.
    destination_service: Option<String>,
}

fn drop_report(shared: &Shared, drops: &DropLog) -> Value {
    let (counts, services) = {
        let maps = shared.maps();
        (maps.tables.drops(), services_by_address(&maps))
    };
    let (counts, error) = match counts {
        Ok(counts) => (counts, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let counts: Vec<Value> = counts
        .into_iter()
        .map(|(reason, count)| {
            json!({
                "reason": reason.name(),
                "packets": count.packets,
                "bytes": count.bytes,
                "description": reason.description().trim(),
            })
        })
        .collect();
    let last = drops.last(LAST_DROPS);
    let pods = shared.cluster.with(pods_by_address);
    let last: Vec<DropReport> = last
        .into_iter()
        .map(|packet| DropReport {
            protocol_name: protocol_text(packet.protocol),
            source_pod: pods.get(&packet.source).cloned(),
            destination_pod: pods.get(&packet.destination).cloned(),
            destination_service: services
                .get(&(packet.destination, packet.destination_port, packet.protocol))
                .cloned(),
            packet,
        })
        .collect();
    json!({ "counts": counts, "last": last, "error": error })
}

fn pods_by_address(state: &ClusterState) -> BTreeMap<IpAddr, String> {
    let pods = state
        .pods
        .values()
        .filter(|pod| !pod.host_network && !pod.terminal);
    pods.flat_map(|pod| pod.ips.iter().map(|ip| (*ip, pod.key.to_string())))
        .collect()
}

/// Service ports by address, port and protocol.
fn services_by_address(maps: &Maps) -> BTreeMap<(IpAddr, u16, u8), String> {
    let v4 = maps
        .mirror
        .services
        .v4
        .frontends
        .iter()
        .map(|(key, frontend)| {
            (
                (key.address.to_ip(), key.port, key.protocol),
                frontend.service,
            )
        });
    let v6 = maps
        .mirror
        .services
        .v6
        .frontends
        .iter()
        .map(|(key, frontend)| {
            (
                (key.address.to_ip(), key.port, key.protocol),
                frontend.service,
            )
        });
    let named = |(key, service)| Some((key, maps.services.name(service)?.to_owned()));
    v4.chain(v6).filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(prefix_len: u32, port: u16) -> LpmKey<PolicyKey> {
        let data = PolicyKey {
            policy_set: 1,
            identity: 2,
            direction: INGRESS,
            protocol: 6,
            port: port.to_be_bytes(),
        };
        LpmKey::policy(data, prefix_len)
    }

    #[test]
    fn ports_read_as_ranges() {
        assert_eq!(ports_text(&key(POLICY_PREFIX_PEER, 0)), "any");
        assert_eq!(ports_text(&key(POLICY_PREFIX_PROTOCOL, 0)), "TCP");
        assert_eq!(ports_text(&key(POLICY_PREFIX_PORT, 8080)), "TCP 8080");
        assert_eq!(
            ports_text(&key(POLICY_PREFIX_PORT - 4, 8080)),
            "TCP 8080-8095"
        );
        assert_eq!(
            ports_text(&key(POLICY_PREFIX_PROTOCOL + 1, 0)),
            "TCP 0-32767"
        );
    }
}
