//! A pod's interface pair.
//!
//! The pod's end is made directly in the pod's namespace; no interface ever exists under a wrong
//! name or in a wrong namespace. The host's end is set up last, after the caller attached the
//! datapath to it: no packet of a pod passes unseen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use weft_abi::{GATEWAY_MAC, GATEWAY_V4};

use super::netns::NetNs;
use super::routes::{self, Route, Via};
use super::socket::{Link, Netlink, NetlinkError, failed};
use super::sysctl;

/// What host ends of pods' interfaces begin with.
pub const HOST_PREFIX: &str = "weft";

/// One pod's interface pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Name of the host's end.
    pub host: String,
    /// Name of the pod's end.
    pub pod: String,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

impl Pair {
    /// The pair of a container's interface: names and MAC address follow from the container, so
    /// that a second attempt finds what the first one left.
    pub fn new(container_id: &str, ifname: &str, mtu: u32) -> Self {
        let hash = hash(container_id, ifname);
        let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
        Self {
            // 4 + 11 characters: the longest name that the kernel takes.
            host: format!("{HOST_PREFIX}{:011x}", hash & 0xfff_ffff_ffff),
            pod: ifname.to_owned(),
            // Locally administered, unicast.
            mac: [(a & 0xfc) | 0x02, b, c, d, e, f],
            mtu,
        }
    }
}

/// The address that a pod's routes lead to: link-local and the same for every pod, so no pod
/// address is lost to it.
pub fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::from(GATEWAY_V4).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Makes the pair, the pod's end in its namespace. Neither end is set up.
///
/// A host end of the same name is of an attempt that failed before its pod's end got into use, or
/// of a container whose DEL never came; it is removed first.
///
/// # Errors
///
/// When the kernel refuses; `EEXIST` if the pod has an interface of this name.
pub async fn create(host: &Netlink, netns: &NetNs, pair: &Pair) -> Result<Link, NetlinkError> {
    if let Some(stale) = host.find_link(&pair.host).await? {
        host.delete_link(&stale).await?;
    }
    let what = format!("interface {} in {}", pair.pod, netns.path().display());
    host.add_link(&what, message(netns, pair)).await?;
    let link = host.link(&pair.host).await?;
    host.no_automatic_ipv6(&link).await;
    sysctl::relax_reverse_path(&pair.host);
    Ok(link)
}

fn message(netns: &NetNs, pair: &Pair) -> LinkMessage {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(pair.pod.clone())
        .address(pair.mac.to_vec())
        .mtu(pair.mtu)
        .setns_by_fd(netns.raw_fd())
        .build();
    LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .name(pair.host.clone())
        .address(GATEWAY_MAC.to_vec())
        .mtu(pair.mtu)
        .build()
}

/// Configures the pod's end: loopback, addresses, permanent neighbour, routes.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn configure_pod(
    netns: &NetNs,
    pair: &Pair,
    addresses: &[IpAddr],
) -> Result<(), NetlinkError> {
    let pod = Netlink::inside(netns)?;
    pod.set_up(&pod.link("lo").await?).await?;
    let link = pod.link(&pair.pod).await?;
    if !addresses.iter().any(IpAddr::is_ipv6) {
        pod.no_automatic_ipv6(&link).await;
    }
    for address in addresses {
        let request =
            pod.handle()
                .address()
                .add(link.index, *address, IpNet::from(*address).prefix_len());
        let result = request.replace().execute().await;
        result.map_err(|error| failed(format!("add address {address} to {}", pair.pod), error))?;
    }
    pod.set_up(&link).await?;
    for address in addresses {
        let gateway = gateway(*address);
        pod.set_neighbour(&link, gateway, GATEWAY_MAC).await?;
        add_pod_routes(&pod, &link, gateway).await?;
    }
    Ok(())
}

async fn add_pod_routes(pod: &Netlink, link: &Link, gateway: IpAddr) -> Result<(), NetlinkError> {
    let refused = |what: &str, error: &dyn std::fmt::Display| NetlinkError::Request {
        what: what.to_owned(),
        error: std::io::Error::other(error.to_string()),
    };
    let to_gateway = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(gateway, IpNet::from(gateway).prefix_len())
        .map_err(|error| refused("route to the gateway", &error))?
        .output_interface(link.index)
        .scope(RouteScope::Link)
        .build();
    let any = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let default = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(any, 0)
        .and_then(|builder| builder.gateway(gateway))
        .map_err(|error| refused("default route", &error))?
        .output_interface(link.index)
        .build();
    for (what, route) in [
        ("add the route to the gateway", to_gateway),
        ("add the default route", default),
    ] {
        let result = pod.handle().route().add(route).replace().execute().await;
        result.map_err(|error| failed(format!("{what} in the pod"), error))?;
    }
    Ok(())
}

/// Sets the host's end up and makes it the way to the pod. Call it with the datapath attached.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn activate_host(
    host: &Netlink,
    link: &Link,
    mac: [u8; 6],
    addresses: &[IpAddr],
    node: IpAddr,
) -> Result<(), NetlinkError> {
    host.set_up(link).await?;
    for address in addresses
        .iter()
        .filter(|address| address.is_ipv4() == node.is_ipv4())
    {
        host.set_neighbour(link, *address, mac).await?;
        routes::add(host, &pod_route(link.index, *address, node)).await?;
    }
    Ok(())
}

/// The route to a pod of this node.
pub fn pod_route(index: u32, address: IpAddr, node: IpAddr) -> Route {
    Route {
        to: IpNet::from(address),
        via: Via::Interface {
            index,
            source: node,
        },
    }
}

/// FNV-1a: names must stay the same across releases, which the standard library's hash does not
/// promise.
fn hash(container_id: &str, ifname: &str) -> u64 {
    let bytes = container_id.bytes().chain([0]).chain(ifname.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_macs_follow_from_the_container() {
        let pair = Pair::new("c1", "eth0", 1450);
        assert_eq!(pair, Pair::new("c1", "eth0", 1450));
        assert_eq!(pair.host.len(), 15);
        assert!(pair.host.starts_with(HOST_PREFIX));
        assert_eq!(pair.mac[0] & 3, 2, "locally administered unicast");
        assert_ne!(pair.host, Pair::new("c2", "eth0", 1450).host);
        assert_ne!(pair.host, Pair::new("c1", "eth1", 1450).host);
    }
}
