//! A pod's interface pair.
//!
//! The pod's end is made directly in the pod's namespace; no interface ever exists under a wrong
//! name or in a wrong namespace. The host's end is set up last, after the caller attached the
//! datapath to it: no packet of a pod passes unseen.
//!
//! Nothing is resolved, announced or detected on the link between the two, in either family: the
//! pod's gateway is a permanent neighbour, and so is each address of the pod on the node. The pod's
//! end has no IPv6 address but the one it is given, in particular no link-local one: the kernel would
//! solicit routers and report multicast groups from it, to nobody. Programs that need one (mDNS, say)
//! find no peer on this link anyway; the default route works without, because its next hop is a
//! permanent neighbour.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tracing::warn;
use weft_abi::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};

use super::ROUTE_PROTOCOL;
use super::netns::NetNs;
use super::socket::{Link, Netlink, NetlinkError, failed};
use super::sysctl;

/// What host ends of pods' interfaces begin with.
const HOST_PREFIX: &str = "weft";

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

/// Whether an interface is the host's end of a pod's: one of a name that only Weft gives.
pub fn is_host_end(link: &Link) -> bool {
    link.kind == "veth"
        && link.name.strip_prefix(HOST_PREFIX).is_some_and(|hash| {
            hash.len() == 11 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

/// The address that a pod's routes lead to: link-local and the same for every pod, so no pod
/// address is lost to it.
pub fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::from(GATEWAY_V4).into(),
        IpAddr::V6(_) => Ipv6Addr::from(GATEWAY_V6).into(),
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
    let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    netns
        .run(|| {
            set_ipv6_up(&pair.pod, ipv6);
            if ipv6 {
                // What a pod sends to its own address passes through its loopback.
                enable_ipv6("lo");
            }
        })
        .map_err(NetlinkError::Socket)?;
    let pod = Netlink::inside(netns)?;
    pod.set_up(&pod.link("lo").await?).await?;
    let link = pod.link(&pair.pod).await?;
    pod.no_automatic_ipv6(&link).await;
    for address in addresses {
        let mut request =
            pod.handle()
                .address()
                .add(link.index, *address, IpNet::from(*address).prefix_len());
        if address.is_ipv6() {
            // Nobody else has it, and until it is known to be unique nothing could listen on it.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
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

/// Prepares an interface of the calling thread's namespace for IPv6. `wanted`: it gets an IPv6
/// address.
fn set_ipv6_up(interface: &str, wanted: bool) {
    for setting in ["accept_ra", "autoconf", "accept_dad"] {
        set_ipv6(interface, setting, "0");
    }
    if wanted {
        enable_ipv6(interface);
    }
}

/// Some runtimes switch the family off for every interface of a new namespace, because the image or
/// the machine knows nothing of it. Where the cluster has IPv6 the pod's object shows an IPv6 address,
/// and others connect to it, so the pod has to have it. Interfaces of others stay as they are; a pod
/// that switches the family off by its own sysctls does so after ADD.
fn enable_ipv6(interface: &str) {
    set_ipv6(interface, "disable_ipv6", "0");
}

fn set_ipv6(interface: &str, setting: &str, value: &str) {
    let settings = Path::new("/proc/sys/net/ipv6/conf").join(interface);
    if !settings.exists() {
        // A kernel without IPv6; adding an address fails with its own words.
        return;
    }
    let path = settings.join(setting);
    if fs::read_to_string(&path).is_ok_and(|current| current.trim() == value) {
        return;
    }
    if let Err(error) = fs::write(&path, value) {
        warn!(interface, setting, value, %error, "cannot change a setting of IPv6");
    }
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

/// The node's addresses, as sources of what it sends to its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources(Vec<IpAddr>);

impl Sources {
    /// The one of this address's family. Without one the kernel picks.
    fn of_family(&self, other: IpAddr) -> Option<IpAddr> {
        let same = |address: &&IpAddr| address.is_ipv4() == other.is_ipv4();
        self.0.iter().find(same).copied()
    }
}

impl From<IpAddr> for Sources {
    fn from(address: IpAddr) -> Self {
        Self(vec![address])
    }
}

impl From<Vec<IpAddr>> for Sources {
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self(addresses)
    }
}

/// Sets the host's end up and makes it the way to the pod, in both families whatever the node's own
/// addresses are. Call it with the datapath attached.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn activate_host(
    host: &Netlink,
    link: &Link,
    mac: [u8; 6],
    addresses: &[IpAddr],
    sources: impl Into<Sources>,
) -> Result<(), NetlinkError> {
    let sources = sources.into();
    if addresses.iter().any(IpAddr::is_ipv6) {
        set_ipv6_up(&link.name, true);
    }
    host.set_up(link).await?;
    for address in addresses {
        host.set_neighbour(link, *address, mac).await?;
        add_host_route(host, link, *address, sources.of_family(*address)).await?;
    }
    Ok(())
}

/// The route to a pod of this node.
async fn add_host_route(
    host: &Netlink,
    link: &Link,
    address: IpAddr,
    source: Option<IpAddr>,
) -> Result<(), NetlinkError> {
    let what = || format!("add the route to pod address {address}");
    let invalid = |error: &dyn std::fmt::Display| NetlinkError::Request {
        what: what(),
        error: std::io::Error::other(error.to_string()),
    };
    let mut route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, IpNet::from(address).prefix_len())
        .map_err(|error| invalid(&error))?
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .scope(RouteScope::Link)
        .output_interface(link.index);
    if let Some(source) = source {
        route = route.pref_source(source).map_err(|error| invalid(&error))?;
    }
    let request = host.handle().route().add(route.build()).replace();
    let result = request.execute().await;
    result.map_err(|error| failed(what(), error))
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
    fn only_what_was_named_by_weft_is_a_host_end() {
        let is = |name: &str, kind: &str| {
            is_host_end(&Link {
                name: name.to_owned(),
                kind: kind.to_owned(),
                ..Link::default()
            })
        };
        assert!(is(&Pair::new("c1", "eth0", 1450).host, "veth"));
        assert!(!is("weft00000000001", "dummy"));
        for other in [
            "weft_vxlan",
            "weft-fabric",
            "weftzzzzzzzzzzz",
            "weft0000001",
        ] {
            assert!(!is(other, "veth"), "{other}");
        }
    }

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
