//! Which interface carries the node's address: its MTU decides the pods'.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use super::socket::{Link, Netlink, NetlinkError, failed};

/// The interface that has this address, if one has it.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn with_address(
    netlink: &Netlink,
    address: IpAddr,
) -> Result<Option<Link>, NetlinkError> {
    let addresses: Vec<AddressMessage> = netlink
        .handle()
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| failed("list the addresses", error))?;
    let Some(found) = addresses.iter().find(|message| has(message, address)) else {
        return Ok(None);
    };
    let index = found.header.index;
    Ok(netlink
        .links()
        .await?
        .into_iter()
        .find(|link| link.index == index))
}

fn has(message: &AddressMessage, address: IpAddr) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        // For point-to-point interfaces the local one is the node's; otherwise they are equal.
        AddressAttribute::Local(local) => *local == address,
        AddressAttribute::Address(other) => {
            *other == address
                && !message
                    .attributes
                    .iter()
                    .any(|a| matches!(a, AddressAttribute::Local(_)))
        }
        _ => false,
    })
}
