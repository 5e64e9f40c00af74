//! Every route that Weft made, whatever its form and table: for cleanup. [`super::routes`] keeps the
//! routes of a running agent.

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};

use super::ROUTE_PROTOCOL;
use super::socket::{Netlink, NetlinkError, failed};

/// The routes of Weft's protocol number, of a family.
pub fn routes(
    netlink: &Netlink,
    family: AddressFamily,
) -> impl Stream<Item = Result<RouteMessage, NetlinkError>> {
    let mut filter = RouteMessage::default();
    filter.header.address_family = family;
    let listed = netlink.handle().route().get(filter).execute();
    listed
        .map_err(|error| failed("list the routes", error))
        .filter(|route| {
            let other = |route: &RouteMessage| {
                route.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL)
            };
            std::future::ready(!route.as_ref().is_ok_and(other))
        })
}

/// Removes a route; gone already is fine.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn remove(netlink: &Netlink, route: RouteMessage) -> Result<(), NetlinkError> {
    let what = format!("remove the route to {}", text(&route));
    let result = netlink.handle().route().del(route).execute().await;
    match result.map_err(|error| failed(what, error)) {
        Err(error) if !error.is(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// A route in words: its destination.
pub fn text(route: &RouteMessage) -> String {
    let length = route.header.destination_prefix_length;
    let destination = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(v4.to_string()),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(v6.to_string()),
            _ => None,
        });
    match destination {
        Some(destination) => format!("{destination}/{length}"),
        None => "default".to_owned(),
    }
}
