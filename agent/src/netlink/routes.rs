//! Weft's routes on the node: to the other nodes' pods, through the overlay or by their nodes, and to
//! this node's pods.
//!
//! Weft's routes are those of protocol [`ROUTE_PROTOCOL`] in the main table; all others are not
//! touched. Each reconciliation dumps them, adds or replaces what is missing, and then removes what
//! is not wanted: a route that leads elsewhere from now on is never missing in between, and routes of
//! nodes that left while the agent was down go as well. Routes to pods are left alone: they come with
//! a pod's interface and the kernel removes them with it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use tracing::{debug, warn};

use super::ROUTE_PROTOCOL;
use super::socket::{Netlink, NetlinkError, failed};

/// A route of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub to: IpNet,
    /// Where it leads.
    pub via: Via,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// Out of an interface, with this source address for what the node itself sends.
    Interface {
        /// Its index.
        index: u32,
        /// The source address.
        source: IpAddr,
    },
    /// Out of an interface; what the node itself sends gets whatever source address the kernel picks.
    Device {
        /// Its index.
        index: u32,
    },
    /// By a neighbour on an interface's link.
    Gateway {
        /// The interface's index.
        index: u32,
        /// The neighbour.
        gateway: IpAddr,
    },
    /// Nowhere: a packet to this node's pod network that is no pod's must not go to the default
    /// gateway, which may well send it back.
    Unreachable,
}

impl Via {
    /// Out of an interface; what the node itself sends gets this source address, if it has one.
    pub fn out_of(index: u32, source: Option<IpAddr>) -> Self {
        match source {
            Some(source) => Self::Interface { index, source },
            None => Self::Device { index },
        }
    }

    /// The interface that it leads out of.
    pub fn interface(&self) -> Option<u32> {
        match self {
            Self::Interface { index, .. }
            | Self::Device { index }
            | Self::Gateway { index, .. } => Some(*index),
            Self::Unreachable => None,
        }
    }
}

/// Where the kernel would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The interface's index.
    pub interface: u32,
    /// The router; `None`: the destination is on the interface's link.
    pub gateway: Option<IpAddr>,
}

/// What a reconciliation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Routes added or replaced.
    pub added: usize,
    /// Routes removed.
    pub removed: usize,
    /// Routes that could not be brought into place.
    pub failed: usize,
}

/// Makes the routes to other nodes' pods, and the unreachable ones, equal to the wanted ones. One
/// route's failure does not keep the others; it is logged and counted. `overlay` is the index of the
/// overlay device, or 0.
///
/// # Errors
///
/// When the routes cannot be listed.
pub async fn reconcile(
    netlink: &Netlink,
    overlay: u32,
    wanted: &BTreeSet<Route>,
) -> Result<Outcome, NetlinkError> {
    let mut outcome = Outcome::default();
    let (there, mut stale) = sort(list(netlink).await?, overlay, wanted);
    for route in wanted.difference(&there) {
        match add(netlink, route).await {
            Ok(()) => {
                debug!(?route, "added a route");
                outcome.added += 1;
            }
            Err(error) => {
                warn!(%error, "a route is missing");
                outcome.failed += 1;
            }
        }
    }
    if outcome.added > 0 && !stale.is_empty() {
        // Some were replaced just now. The kernel does not compare everything that differs, and would
        // take the new route for the old one.
        (_, stale) = sort(list(netlink).await?, overlay, wanted);
    }
    for message in stale {
        let found = Route::from_message(&message);
        let result = netlink.handle().route().del(message).execute().await;
        match result.map_err(|error| failed("remove a route", error)) {
            Ok(()) => {
                debug!(?found, "removed a route");
                outcome.removed += 1;
            }
            // Gone with its interface.
            Err(error) if error.is(libc::ESRCH) => {}
            Err(error) => {
                warn!(?found, %error, "a stale route stays");
                outcome.failed += 1;
            }
        }
    }
    Ok(outcome)
}

/// Our routes that are as wanted, and those that are to go.
fn sort(
    routes: Vec<RouteMessage>,
    overlay: u32,
    wanted: &BTreeSet<Route>,
) -> (BTreeSet<Route>, Vec<RouteMessage>) {
    let (mut there, mut stale) = (BTreeSet::new(), Vec::new());
    for message in routes {
        match Route::from_message(&message) {
            Some(route) if wanted.contains(&route) => {
                there.insert(route);
            }
            // A pod's.
            Some(Route {
                via: Via::Interface { index, .. } | Via::Device { index },
                ..
            }) if index != overlay => {}
            _ => stale.push(message),
        }
    }
    (there, stale)
}

/// Where the kernel would send a packet to this address; `None` if nowhere, or to the node itself.
///
/// # Errors
///
/// When the kernel refuses for another reason than that there is no route.
pub async fn lookup(netlink: &Netlink, to: IpAddr) -> Result<Option<Hop>, NetlinkError> {
    let what = format!("look up the route to {to}");
    let request = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, IpNet::from(to).prefix_len())
        .map_err(|error| NetlinkError::Request {
            what: what.clone(),
            error: std::io::Error::other(error.to_string()),
        })?
        .build();
    let found = netlink.handle().route().get(request).execute();
    let found = std::pin::pin!(found).try_next().await;
    let message = match found.map_err(|error| failed(what, error)) {
        Ok(Some(message)) => message,
        Ok(None) => return Ok(None),
        // What an unreachable, prohibiting or discarding route says, and none.
        Err(error)
            if [
                libc::ENETUNREACH,
                libc::EHOSTUNREACH,
                libc::EACCES,
                libc::EINVAL,
            ]
            .iter()
            .any(|errno| error.is(*errno)) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if message.header.kind != RouteType::Unicast {
        return Ok(None);
    }
    let mut interface = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            // An IPv4 destination by an IPv6 router.
            RouteAttribute::Via(_) => gateway = Some(Ipv6Addr::UNSPECIFIED.into()),
            _ => {}
        }
    }
    Ok(interface.map(|interface| Hop { interface, gateway }))
}

/// Adds or replaces one route.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn add(netlink: &Netlink, route: &Route) -> Result<(), NetlinkError> {
    let request = netlink.handle().route().add(message(route)?).replace();
    let result = request.execute().await;
    result.map_err(|error| failed(format!("add the route to {}", route.to), error))
}

async fn list(netlink: &Netlink) -> Result<Vec<RouteMessage>, NetlinkError> {
    let mut routes = dump(netlink).await?;
    routes.retain(|route| route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL));
    Ok(routes)
}

/// The main table's routes, of both families.
pub(super) async fn dump(netlink: &Netlink) -> Result<Vec<RouteMessage>, NetlinkError> {
    let families = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ];
    let mut routes = Vec::new();
    for family in families {
        let listed = netlink.handle().route().get(family).execute();
        let listed: Vec<RouteMessage> = listed
            .try_collect()
            .await
            .map_err(|error| failed("list the routes", error))?;
        routes.extend(listed);
    }
    routes.retain(|route| route.header.table == RouteHeader::RT_TABLE_MAIN);
    Ok(routes)
}

fn message(route: &Route) -> Result<RouteMessage, NetlinkError> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.to.network(), route.to.prefix_len())
        .map_err(|error| invalid(route, error))?
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .table_id(RouteHeader::RT_TABLE_MAIN.into());
    Ok(match route.via {
        Via::Interface { index, source } => builder
            .kind(RouteType::Unicast)
            .scope(RouteScope::Link)
            .output_interface(index)
            .pref_source(source)
            .map_err(|error| invalid(route, error))?
            .build(),
        Via::Device { index } => builder
            .kind(RouteType::Unicast)
            .scope(RouteScope::Link)
            .output_interface(index)
            .build(),
        Via::Gateway { index, gateway } => builder
            .kind(RouteType::Unicast)
            .scope(RouteScope::Universe)
            .output_interface(index)
            .gateway(gateway)
            .map_err(|error| invalid(route, error))?
            .build(),
        Via::Unreachable => builder
            .kind(RouteType::Unreachable)
            .scope(RouteScope::Universe)
            .build(),
    })
}

/// A route of mixed families.
fn invalid(route: &Route, error: impl std::fmt::Display) -> NetlinkError {
    NetlinkError::Request {
        what: format!("make the route to {} by {:?}", route.to, route.via),
        error: std::io::Error::other(error.to_string()),
    }
}

impl Route {
    /// The route of a message, if it is of a form that Weft makes.
    pub(super) fn from_message(message: &RouteMessage) -> Option<Self> {
        let (mut source, mut index, mut gateway) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) => return None,
                _ => {}
            }
        }
        let to = destination(message)?;
        let via = match (message.header.kind, gateway) {
            (RouteType::Unicast, None) => Via::out_of(index?, source),
            (RouteType::Unicast, Some(gateway)) => Via::Gateway {
                index: index?,
                gateway,
            },
            (RouteType::Unreachable, None) => Via::Unreachable,
            _ => return None,
        };
        Some(Self { to, via })
    }
}

/// The destination of a route; a default route's message names none.
pub(super) fn destination(message: &RouteMessage) -> Option<IpNet> {
    let named = message.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Destination(address) = attribute else {
            return None;
        };
        ip(address)
    });
    let any = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let length = message.header.destination_prefix_length;
    let address = named.or((length == 0).then_some(any))?;
    IpNet::new(address, length).ok()
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
