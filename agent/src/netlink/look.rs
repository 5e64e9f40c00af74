//! What an interface has: addresses, routes out of it, permanent neighbours. For checks; nothing is
//! changed.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use super::socket::{Netlink, NetlinkError, failed};

/// What an interface has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Routes out of it, in any table: destination and next hop.
    pub routes: Vec<(IpNet, Option<IpAddr>)>,
    /// Its permanent neighbours.
    pub neighbours: Vec<(IpAddr, Vec<u8>)>,
}

impl End {
    /// Whether there is a route to exactly this network by exactly this next hop.
    pub fn has_route(&self, to: IpNet, gateway: Option<IpAddr>) -> bool {
        self.routes.contains(&(to, gateway))
    }

    /// Whether this address has this MAC address for ever.
    pub fn has_neighbour(&self, address: IpAddr, mac: [u8; 6]) -> bool {
        self.neighbours
            .iter()
            .any(|(known, known_mac)| *known == address && *known_mac == mac)
    }
}

/// Looks at an interface, over a socket that nobody else lists by: the kernel answers one listing of
/// a socket at a time, and refuses others (`EBUSY`).
///
/// # Errors
///
/// When the kernel refuses.
pub async fn at(netlink: &Netlink, index: u32) -> Result<End, NetlinkError> {
    let handle = netlink.handle();
    let addresses = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute();
    let addresses: Vec<AddressMessage> = addresses
        .try_collect()
        .await
        .map_err(|error| failed("list the addresses", error))?;
    let neighbours: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| failed("list the neighbours", error))?;
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let listed = handle.route().get(filter).execute();
        let listed: Vec<RouteMessage> = listed
            .try_collect()
            .await
            .map_err(|error| failed("list the routes", error))?;
        routes.extend(listed.iter().filter_map(|route| route_of(route, index)));
    }
    Ok(End {
        addresses: addresses.iter().filter_map(address_of).collect(),
        routes,
        neighbours: neighbours
            .iter()
            .filter(|neighbour| {
                neighbour.header.ifindex == index
                    && neighbour.header.state == NeighbourState::Permanent
            })
            .filter_map(neighbour_of)
            .collect(),
    })
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
}

fn neighbour_of(message: &NeighbourMessage) -> Option<(IpAddr, Vec<u8>)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some((*v4).into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some((*v6).into());
            }
            NeighbourAttribute::LinkLayerAddress(known) => mac = Some(known.clone()),
            _ => {}
        }
    }
    Some((address?, mac?))
}

/// The route of a message, if it leads out of this interface.
fn route_of(message: &RouteMessage, index: u32) -> Option<(IpNet, Option<IpAddr>)> {
    let (mut to, mut gateway, mut out) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(oif) => out = Some(*oif),
            _ => {}
        }
    }
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let to = IpNet::new(to.unwrap_or(any), message.header.destination_prefix_length).ok()?;
    (out == Some(index)).then_some((to, gateway))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
