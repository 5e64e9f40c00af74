//! Weft's routes on the node: to the other nodes' pods through the overlay, and to this node's
//! pods.
//!
//! Weft's routes are those of protocol [`ROUTE_PROTOCOL`] in the main table; all others are not
//! touched. Each reconciliation dumps them, removes what is not wanted and adds what is missing, so
//! routes of nodes that left while the agent was down go as well. Routes to pods are left alone:
//! they come with a pod's interface and the kernel removes them with it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
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
    /// Nowhere: a packet to this node's pod network that is no pod's must not go to the default
    /// gateway, which may well send it back.
    Unreachable,
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

/// Makes the routes through the overlay, and the unreachable ones, equal to the wanted ones. One
/// route's failure does not keep the others; it is logged and counted.
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
    let mut there = BTreeSet::new();
    for message in list(netlink).await? {
        match Route::from_message(&message) {
            Some(route) if wanted.contains(&route) => {
                there.insert(route);
            }
            Some(Route {
                via: Via::Interface { index, .. },
                ..
            }) if index != overlay => {}
            found => {
                let result = netlink.handle().route().del(message).execute().await;
                match result.map_err(|error| failed("remove a route", error)) {
                    Err(error) if !error.is(libc::ESRCH) => {
                        warn!(?found, %error, "a stale route stays");
                        outcome.failed += 1;
                    }
                    _ => {
                        debug!(?found, "removed a route");
                        outcome.removed += 1;
                    }
                }
            }
        }
    }
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
    Ok(outcome)
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
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<RouteMessage> = netlink
        .handle()
        .route()
        .get(all)
        .execute()
        .try_collect()
        .await
        .map_err(|error| failed("list the routes", error))?;
    Ok(routes
        .into_iter()
        .filter(|route| {
            route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
                && route.header.table == RouteHeader::RT_TABLE_MAIN
        })
        .collect())
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
    fn from_message(message: &RouteMessage) -> Option<Self> {
        let (mut destination, mut source, mut index) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address),
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::Gateway(_) | RouteAttribute::MultiPath(_) => return None,
                _ => {}
            }
        }
        let to = IpNet::new(destination?, message.header.destination_prefix_length).ok()?;
        let via = match message.header.kind {
            RouteType::Unicast => Via::Interface {
                index: index?,
                source: source?,
            },
            RouteType::Unreachable => Via::Unreachable,
            _ => return None,
        };
        Some(Self { to, via })
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
