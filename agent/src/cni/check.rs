//! CHECK: whether an attachment still is as ADD made it.
//!
//! What is ours must be there: the record, the addresses' reservation, both ends of the interface,
//! the programs, the addresses, neighbours and routes of both ends, the entry in the maps. What
//! plugins after this one changed is theirs: more addresses, routes and interfaces, another MTU, and
//! addresses or routes of ours that the final result (`prevResult`) no longer has. The MAC address is
//! no such thing: the datapath sends to the one that it knows.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::timeout;
use weft_abi::GATEWAY_MAC;
use weft_abi::addr::{Addr4, Addr6};
use weft_cni::CniResult;
use weft_cni::error::{CniError, code};
use weft_cni::protocol::{Request, Response};
use weft_core::family::Address as _;

use super::answer::{default_route, mac_text};
use super::attachments::{Attachments, interface_of, netns_error, owner};
use super::programs;
use crate::endpoints::Record;
use crate::netlink::look::{self, End};
use crate::netlink::veth;
use crate::netlink::{NetNs, Netlink, NetlinkError};

/// How long the entry in the maps may take: it follows ADD within milliseconds, but only then.
const CONVERGENCE: Duration = Duration::from_secs(2);

impl Attachments {
    /// CHECK.
    ///
    /// # Errors
    ///
    /// Code 3 when nothing is known of the container, code 100 with everything that is missing.
    pub async fn check(&self, request: &Request) -> Response {
        let owner = owner(request);
        let _one_at_a_time = self.locks.lock(&owner.container_id).await;
        let previous = request
            .config
            .previous()?
            .ok_or_else(|| CniError::new(code::INVALID_CONFIG, "CHECK needs a \"prevResult\""))?;
        let interface = interface_of(&owner);
        let reserved = self.shared.ipam().addresses_of(&owner);
        let Some(record) = self.shared.endpoints.get(&interface) else {
            let link = self.netlink.find_link(&interface).await;
            if reserved.is_empty() && matches!(link, Ok(None)) {
                return Err(CniError::new(
                    code::UNKNOWN_CONTAINER,
                    format!("nothing is known of {owner}"),
                ));
            }
            return Err(damaged(
                &owner.to_string(),
                &["there is no record of it".to_owned()],
            ));
        };
        let netns_path = request.netns.as_deref().unwrap_or_default();
        let netns = NetNs::open_pod(Path::new(netns_path)).map_err(|error| netns_error(&error))?;

        let mut faults = Vec::new();
        for address in &record.addresses {
            if !reserved.contains(address) {
                faults.push(format!("address {address} is not reserved for it"));
            }
        }
        let ours = record
            .addresses
            .iter()
            .filter(|a| has_address(&previous, **a));
        if ours.count() == 0 {
            faults.push(format!(
                "\"prevResult\" has none of its addresses ({})",
                texts(&record.addresses)
            ));
        }
        self.check_host(&record, &mut faults).await;
        check_pod(&netns, &record, &previous, &mut faults).await;
        if !self.is_programmed(&record).await {
            faults.push("the datapath's maps do not have it".to_owned());
        }
        if faults.is_empty() {
            Ok(None)
        } else {
            Err(damaged(&owner.to_string(), &faults))
        }
    }

    async fn check_host(&self, record: &Record, faults: &mut Vec<String>) {
        let link = match self.netlink.find_link(&record.interface).await {
            Ok(Some(link)) => link,
            Ok(None) => {
                faults.push(format!("the node has no interface {}", record.interface));
                return;
            }
            Err(error) => {
                faults.push(error.to_string());
                return;
            }
        };
        if link.index != record.ifindex {
            faults.push(format!(
                "interface {} is another one: its index is {}, not {}",
                link.name, link.index, record.ifindex
            ));
        }
        if !link.up {
            faults.push(format!("interface {} is down", link.name));
        }
        // A socket answers one listing at a time, so each CHECK has its own.
        let netlink = match Netlink::host() {
            Ok(netlink) => netlink,
            Err(error) => {
                faults.push(error.to_string());
                return;
            }
        };
        match programs::missing_on_pod(&netlink, &record.interface).await {
            Ok(missing) => faults.extend(missing.into_iter().map(|program| {
                format!(
                    "interface {} is without program {program}",
                    record.interface
                )
            })),
            Err(error) => faults.push(format!("{error:#}")),
        }
        match look::at(&netlink, link.index).await {
            Ok(end) => {
                for address in &record.addresses {
                    if !end.has_route(IpNet::from(*address), None) {
                        faults.push(format!("the node has no route to {address}"));
                    }
                    if !end.has_neighbour(*address, record.mac) {
                        faults.push(format!("the node has no neighbour {address}"));
                    }
                }
            }
            Err(error) => faults.push(error.to_string()),
        }
    }

    /// Whether the maps have the endpoint, now or within moments.
    async fn is_programmed(&self, record: &Record) -> bool {
        let there = || {
            let maps = self.shared.maps();
            record.addresses.iter().all(|address| {
                let v4 = Addr4::from_ip(*address);
                let v4 = v4.and_then(|address| maps.mirror.policy.v4.endpoints.get(&address));
                let v6 = Addr6::from_ip(*address);
                let v6 = v6.and_then(|address| maps.mirror.policy.v6.endpoints.get(&address));
                let entry = v4.or(v6);
                entry.is_some_and(|entry| entry.ifindex == record.ifindex)
            })
        };
        let mut applied = self.shared.applied.subscribe();
        let converged = async {
            while !there() {
                if applied.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        timeout(CONVERGENCE, converged).await.unwrap_or(false)
    }
}

async fn check_pod(netns: &NetNs, record: &Record, previous: &CniResult, faults: &mut Vec<String>) {
    let (link, end) = match inside(netns, &record.owner.ifname).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            faults.push(format!("the pod has no interface {}", record.owner.ifname));
            return;
        }
        Err(error) => {
            faults.push(error.to_string());
            return;
        }
    };
    let name = &record.owner.ifname;
    if !link.up {
        faults.push(format!("the pod's interface {name} is down"));
    }
    if link.mac != record.mac {
        let mac = <[u8; 6]>::try_from(link.mac.as_slice()).unwrap_or_default();
        faults.push(format!(
            "the pod's interface {name} has MAC address {}, and the datapath sends to {} (ask for \
             an address of its own with the capability \"mac\")",
            mac_text(mac),
            mac_text(record.mac)
        ));
    }
    for address in &record.addresses {
        let gateway = veth::gateway(*address);
        if has_address(previous, *address) && !end.addresses.contains(address) {
            faults.push(format!(
                "the pod's interface {name} has no address {address}"
            ));
        }
        let route = default_route(*address);
        let wanted = previous.routes.iter().any(|known| known.dst == route);
        if wanted && !end.has_route(route, Some(gateway)) {
            faults.push(format!("the pod has no default route by {gateway}"));
        }
        if !end.has_neighbour(gateway, GATEWAY_MAC) {
            faults.push(format!("the pod has no neighbour {gateway}"));
        }
    }
}

async fn inside(
    netns: &NetNs,
    name: &str,
) -> Result<Option<(crate::netlink::Link, End)>, NetlinkError> {
    let pod = Netlink::inside(netns)?;
    let Some(link) = pod.find_link(name).await? else {
        return Ok(None);
    };
    let end = look::at(&pod, link.index).await?;
    Ok(Some((link, end)))
}

fn has_address(result: &CniResult, address: IpAddr) -> bool {
    result.ips.iter().any(|ip| ip.address.addr() == address)
}

fn texts(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn damaged(what: &str, faults: &[String]) -> CniError {
    let error = CniError::new(code::DAMAGED, format!("{what} is not as ADD made it"));
    error.with_details(faults.join("; "))
}
