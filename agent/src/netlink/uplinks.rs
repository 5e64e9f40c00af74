//! The uplinks: the interfaces by which packets leave the node for others.
//!
//! ```text
//!   kernel --[observe]--> Observed --[select]--> uplinks, and what an operator should know
//! ```
//!
//! Without `--uplink`, an interface is an uplink if it is up, carries Ethernet, has a global address,
//! is no port of another interface, and leads somewhere: it has the node's address, a default route,
//! or a route to another node on its link. Loopback, the overlay and pods' interfaces never are.
//!
//! An interface that leads to nothing but a network of its own is none. Mostly it is a bridge of this
//! node (`docker0`, `virbr0`): its machines have the node as their router, so they answer to pods'
//! own addresses, and the packet filter of the bridge's owner sees what passes. But a card in a
//! network that the node does not route for (storage, say) looks the same: pods' packets leave by it
//! with pods' addresses, which machines there need a route to. The agent says so, and `--uplink` makes
//! it an uplink.
//!
//! [`select`] is pure: the same view of the kernel gives the same uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteType,
};
use weft_abi::config::Uplink as Entry;

use super::leftovers::IPVS_DEVICE;
use super::routes::{self, Route};
use super::socket::{Link, Netlink, NetlinkError, failed};
use super::{ROUTE_PROTOCOL, overlay, veth};

/// The kinds of network cards (which have none) and of what is made of cards.
const CARDS: [&str; 6] = ["", "vlan", "bond", "team", "macvlan", "ipvlan"];

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Whether new connections may use it: it is neither being tested, nor a duplicate, nor running
    /// out, nor one of those that change for privacy.
    pub lasting: bool,
}

/// An interface that is neither a pod's nor the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its settings.
    pub link: Link,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<Address>,
}

/// A route of the main table that somebody else made; one per next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// Destination.
    pub to: IpNet,
    /// Whether packets are sent on, and not refused.
    pub unicast: bool,
    /// The router, if the destination is not on the link.
    pub gateway: Option<IpAddr>,
    /// The interface's index; 0 for what leads nowhere.
    pub interface: u32,
    /// The kernel takes the lowest.
    pub metric: u32,
}

/// What the kernel says of the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The overlay device, if there is one.
    pub overlay: Option<Link>,
    /// Routes that others made. Those of a single link or of multicast are left out.
    pub routes: BTreeSet<HostRoute>,
    /// Routes that Weft made, those to its pods left out.
    pub own_routes: BTreeSet<Route>,
}

/// The host's ends of pods' interfaces, by name.
pub type PodLinks = BTreeMap<String, Link>;

/// What decides which interfaces are uplinks.
#[derive(Clone, Copy, Debug)]
pub struct Criteria<'a> {
    /// The interfaces that the operator named; empty: the rule decides.
    pub names: &'a [String],
    /// The node's addresses, at most one per family.
    pub node: &'a [IpAddr],
    /// The other nodes' addresses.
    pub peers: &'a BTreeSet<IpAddr>,
    /// The uplinks until now: their addresses stay while they can, so that connections do.
    pub previous: &'a BTreeMap<u32, Entry>,
}

/// An uplink.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Uplink {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The largest packet that it takes, in bytes.
    pub mtu: u32,
    /// What IPv4 packets are masqueraded with.
    pub v4: Option<Ipv4Addr>,
    /// What IPv6 packets are masqueraded with.
    pub v6: Option<Ipv6Addr>,
    /// Whether it has an address of the node's underlay.
    #[serde(skip)]
    pub carries_node: bool,
}

impl Uplink {
    /// As the datapath reads it.
    pub fn entry(&self) -> Entry {
        Entry {
            v4: self.v4.map(Into::into).unwrap_or_default(),
            v6: self.v6.map(Into::into).unwrap_or_default(),
            mtu: self.mtu,
        }
    }
}

/// Something about the uplinks that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// A named interface is not there, or not up.
    Missing(String),
    /// An interface carries packets without Ethernet headers.
    NotEthernet(String),
    /// A card leads to a network of its own and nowhere else.
    NotNamed(String),
    /// No interface is an uplink.
    None,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(
                f,
                "interface {name} (--uplink) is not there or not up; it is no uplink until it is"
            ),
            Self::NotEthernet(name) => write!(
                f,
                "interface {name} carries packets without Ethernet headers, which Weft does not \
                 support as an uplink: pods reach nothing through it but by the host's own routing, \
                 without masquerade"
            ),
            Self::NotNamed(name) => write!(
                f,
                "interface {name} leads to neither a router nor a node, so it is no uplink: pods \
                 reach its network by the host's own routing, without masquerade, and machines there \
                 need a route to pods. Give --uplink for each uplink, with {name} or without, to \
                 decide"
            ),
            Self::None => f.write_str(
                "no interface is an uplink: pods reach nothing outside of the node. Give --uplink if \
                 there is one",
            ),
        }
    }
}

/// Asks the kernel.
///
/// # Errors
///
/// When it refuses.
pub async fn observe(netlink: &Netlink) -> Result<(Observed, PodLinks), NetlinkError> {
    let mut observed = Observed::default();
    let mut pods = PodLinks::new();
    for link in netlink.links().await? {
        if link.name == overlay::DEVICE {
            observed.overlay = Some(link);
        } else if veth::is_host_end(&link) {
            pods.insert(link.name.clone(), link);
        } else {
            let addresses = Vec::new();
            observed
                .interfaces
                .insert(link.index, Interface { link, addresses });
        }
    }
    for message in addresses(netlink).await? {
        if let Some(interface) = observed.interfaces.get_mut(&message.header.index)
            && let Some(address) = address(&message)
        {
            interface.addresses.push(address);
        }
    }
    let pod_indices: BTreeSet<u32> = pods.values().map(|link| link.index).collect();
    for message in routes::dump(netlink).await? {
        if message.header.protocol == ROUTE_PROTOCOL.into() {
            observed
                .own_routes
                .extend(Route::from_message(&message).filter(|route| {
                    !route
                        .via
                        .interface()
                        .is_some_and(|index| pod_indices.contains(&index))
                }));
        } else {
            observed.routes.extend(host_routes(&message));
        }
    }
    Ok((observed, pods))
}

/// The uplinks among what was observed, in the order of their indices, and what is wrong with them.
pub fn select(observed: &Observed, criteria: &Criteria<'_>) -> (Vec<Uplink>, BTreeSet<Problem>) {
    let mut problems = BTreeSet::new();
    let uplinks: Vec<Uplink> = observed
        .interfaces
        .values()
        .filter(|interface| {
            let name = &interface.link.name;
            if criteria.names.is_empty() {
                if !interface.is_candidate() {
                    return false;
                }
                if !interface.link.ethernet {
                    if criteria.in_use(interface) {
                        problems.insert(Problem::NotEthernet(name.clone()));
                    }
                    return false;
                }
                if interface.link.master.is_some() {
                    return false;
                }
                let leads_out = observed.leads_out(interface, criteria);
                if !leads_out && interface.is_card() && observed.has_network(interface) {
                    problems.insert(Problem::NotNamed(name.clone()));
                }
                leads_out
            } else {
                let named = criteria.names.contains(name) && interface.link.up;
                if named && !interface.link.ethernet {
                    problems.insert(Problem::NotEthernet(name.clone()));
                }
                named && interface.link.ethernet
            }
        })
        .map(|interface| uplink(observed, interface, criteria))
        .collect();
    for name in criteria.names {
        let there = |interface: &Interface| interface.link.name == *name && interface.link.up;
        if !observed.interfaces.values().any(there) {
            problems.insert(Problem::Missing(name.clone()));
        }
    }
    if uplinks.is_empty() {
        problems.insert(Problem::None);
    }
    (uplinks, problems)
}

impl Criteria<'_> {
    fn in_use(&self, interface: &Interface) -> bool {
        interface.has_any(self.node)
    }
}

impl Observed {
    /// Every address of this node that others may use: none of a single link, none of loopback, and
    /// none of a Service that kube-proxy left here.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let interfaces = self.interfaces.values();
        let interfaces = interfaces.filter(|interface| interface.link.name != IPVS_DEVICE);
        let addresses = interfaces.flat_map(|interface| &interface.addresses);
        addresses
            .map(|address| address.ip)
            .filter(|ip| is_global(*ip))
            .collect()
    }

    /// Whether an interface has the node's address, a default route, or another node on its link.
    fn leads_out(&self, interface: &Interface, criteria: &Criteria<'_>) -> bool {
        let routes = self
            .routes
            .iter()
            .filter(|route| route.unicast && route.interface == interface.link.index);
        let leads = |route: &HostRoute| {
            let on_link = route.gateway.is_none() && route.to.prefix_len() > 0;
            let to_a_node = || criteria.peers.iter().any(|peer| route.to.contains(peer));
            route.to.prefix_len() == 0 || (on_link && to_a_node())
        };
        interface.has_any(criteria.node) || { routes }.any(leads)
    }

    /// Whether others can be on an interface's link: some route leads there.
    fn has_network(&self, interface: &Interface) -> bool {
        let index = interface.link.index;
        { self.routes.iter() }.any(|route| route.unicast && route.interface == index)
    }

    /// Whether an address is on a loopback interface, and so as good on any uplink.
    fn is_on_loopback(&self, address: IpAddr) -> bool {
        let loopbacks = self.interfaces.values().filter(|i| i.link.loopback);
        { loopbacks }.any(|interface| interface.has_any(&[address]))
    }
}

impl Interface {
    fn is_candidate(&self) -> bool {
        let global = |address: &Address| is_global(address.ip);
        self.link.up && !self.link.loopback && self.addresses.iter().any(global)
    }

    /// Whether it is a network card, or stands for one: not made by software of this node for its own
    /// containers and machines.
    fn is_card(&self) -> bool {
        CARDS.contains(&self.link.kind.as_str())
    }

    fn has_any(&self, addresses: &[IpAddr]) -> bool {
        self.addresses.iter().any(|own| addresses.contains(&own.ip))
    }
}

fn uplink(observed: &Observed, interface: &Interface, criteria: &Criteria<'_>) -> Uplink {
    let previous = criteria.previous.get(&interface.link.index);
    let usable: Vec<IpAddr> = interface
        .addresses
        .iter()
        .filter(|address| address.lasting && is_global(address.ip))
        .map(|address| address.ip)
        .collect();
    let choose = |is_family: fn(&IpAddr) -> bool, previous: Option<IpAddr>| {
        let node = criteria.node.iter().find(|address| is_family(address));
        let nodes = node.filter(|node| usable.contains(node));
        let stays = || previous.filter(|address| usable.contains(address));
        let first = || usable.iter().copied().find(is_family);
        // A node that is reached by routes alone has its address on loopback.
        let everywhere = || node.copied().filter(|node| observed.is_on_loopback(*node));
        nodes
            .copied()
            .or_else(stays)
            .or_else(first)
            .or_else(everywhere)
    };
    let v4 = choose(
        IpAddr::is_ipv4,
        previous.map(|entry| Ipv4Addr::from(entry.v4).into()),
    );
    let v6 = choose(
        IpAddr::is_ipv6,
        previous.map(|entry| Ipv6Addr::from(entry.v6).into()),
    );
    Uplink {
        index: interface.link.index,
        name: interface.link.name.clone(),
        mtu: interface.link.mtu,
        v4: v4.and_then(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }),
        v6: v6.and_then(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(v6),
        }),
        carries_node: interface.has_any(criteria.node),
    }
}

/// Whether an address is a host's, and means the same on every link.
fn is_global(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    }
}

async fn addresses(netlink: &Netlink) -> Result<Vec<AddressMessage>, NetlinkError> {
    let stream = netlink.handle().address().get().execute();
    stream
        .try_collect()
        .await
        .map_err(|error| failed("list the addresses", error))
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut other) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            // For point-to-point interfaces this one is the node's, and the other the peer's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = local.or(other)?;
    let mut passing = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    if ip.is_ipv6() {
        // The same bit says `temporary` for IPv6.
        passing |= AddressFlags::Secondary;
    }
    Some(Address {
        ip,
        lasting: !flags.intersects(passing),
    })
}

fn host_routes(message: &RouteMessage) -> Vec<HostRoute> {
    let cloned = message.header.flags.contains(RouteFlags::Cloned);
    let (mut interface, mut gateway, mut metric) = (0, None, 0);
    let mut hops: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = *index,
            RouteAttribute::Gateway(address) => gateway = routes::ip(address),
            RouteAttribute::Via(_) => gateway = Some(Ipv6Addr::UNSPECIFIED.into()),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(several) => hops = several,
            _ => {}
        }
    }
    let Some(to) = routes::destination(message).filter(|to| !cloned && is_of_many_links(to)) else {
        return Vec::new();
    };
    let route = HostRoute {
        to,
        unicast: message.header.kind == RouteType::Unicast,
        gateway,
        interface,
        metric,
    };
    if hops.is_empty() {
        return vec![route];
    }
    let by_hop = hops.iter().map(|hop| HostRoute {
        interface: hop.interface_index,
        gateway: hop.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => routes::ip(address),
            RouteAttribute::Via(_) => Some(Ipv6Addr::UNSPECIFIED.into()),
            _ => None,
        }),
        ..route.clone()
    });
    by_hop.collect()
}

/// Every link has its own routes to link-local and multicast addresses; they come and go with it.
fn is_of_many_links(to: &IpNet) -> bool {
    match to.network() {
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_multicast(),
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_multicast(),
    }
}

#[cfg(test)]
mod tests;
