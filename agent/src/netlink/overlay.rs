//! The VXLAN device: one per node, for all remote nodes.
//!
//! The tunnel's ends come with each packet (collect-metadata): the datapath sets and checks them,
//! so the device learns nothing, floods nothing, and needs no forwarding entries. It does without
//! ARP: the kernel then addresses frames to the device's own MAC, which every node's device has.

use rtnetlink::LinkVxlan;
use rtnetlink::packet_route::link::LinkMessage;
use tracing::{info, warn};
use weft_abi::OVERLAY_MAC;

use super::socket::{Link, Netlink, NetlinkError, Vxlan};
use super::sysctl;

/// The device's name.
pub const DEVICE: &str = "weft_vxlan";
/// The overlay's UDP port.
pub const PORT: u16 = 4789;
/// The overlay's network identifier.
pub const VNI: u32 = 1;
/// What the outer headers take of the uplink's MTU over an IPv4 underlay, in bytes: Ethernet, VXLAN,
/// UDP, IPv4.
pub const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
/// The same over an IPv6 underlay.
pub const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;

const SETTINGS: Vxlan = Vxlan {
    port: PORT,
    collect_metadata: true,
    learning: false,
};

/// Makes the device as it must be, or repairs the one that is there. It is not set up yet: no packet
/// may pass it without programs. See [`activate`].
///
/// # Errors
///
/// When the kernel refuses.
pub async fn ensure(netlink: &Netlink, mtu: u32) -> Result<Link, NetlinkError> {
    let mut found = netlink.find_link(DEVICE).await?;
    if let Some(link) = &found
        && link.vxlan != Some(SETTINGS)
    {
        warn!(interface = DEVICE, settings = ?link.vxlan, "the overlay device has other \
            settings; making it anew");
        netlink.delete_link(link).await?;
        found = None;
    }
    if found.is_none() {
        let result = netlink.add_link(DEVICE, message(mtu)).await;
        if let Err(error) = result
            && !error.is(libc::EEXIST)
        {
            return Err(error);
        }
        info!(interface = DEVICE, mtu, "made the overlay device");
    }
    let link = netlink.link(DEVICE).await?;
    if link.mtu != mtu || link.mac != OVERLAY_MAC || !link.noarp {
        let change = rtnetlink::LinkUnspec::new_with_index(link.index)
            .address(OVERLAY_MAC.to_vec())
            .mtu(mtu)
            .arp(false)
            .build();
        netlink.set_link(DEVICE, change).await?;
    }
    netlink.link(DEVICE).await
}

/// Sets the device up, if it is not. Call it with the datapath attached.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn activate(netlink: &Netlink, link: &Link) -> Result<(), NetlinkError> {
    if link.up {
        return Ok(());
    }
    netlink.no_automatic_ipv6(link).await;
    sysctl::relax_reverse_path(DEVICE);
    netlink.set_up(link).await
}

fn message(mtu: u32) -> LinkMessage {
    // The identifier comes with each packet, as the addresses do.
    LinkVxlan::new(DEVICE, 0)
        .port(PORT)
        .collect_metadata(true)
        .learning(false)
        .address(OVERLAY_MAC.to_vec())
        .mtu(mtu)
        .arp(false)
        .build()
}
