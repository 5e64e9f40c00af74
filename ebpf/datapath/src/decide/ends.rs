//! The ends of a packet: whether it may come from where it says, and go where it wants.

use weft_abi::{
    config::Config,
    drop::DropReason,
    event::{POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_FROM_OVERLAY, POINT_TO_CONTAINER},
    flow::HOP_TUNNEL,
    ipcache::{KIND_HOST, KIND_LOCAL_POD, KIND_REMOTE_POD, KIND_SERVICE, KIND_WORLD},
};

use super::work::Work;
use crate::{
    addresses::{self, End},
    drops::Drop,
    family::Family,
    packet::{LATER, protocol},
    skb::Skb,
    tunnel,
};

/// 1. Where the packet comes from: proves that it may claim its source address.
#[inline(always)]
pub(super) fn origin<F: Family>(
    skb: &Skb,
    config: &Config,
    work: &mut Work<F::Addr>,
) -> Result<(), Drop> {
    let (packet, end) = (&work.packet, &mut work.source);
    match work.point {
        POINT_FROM_CONTAINER => match addresses::endpoint::<F>(packet.tuple.source) {
            Some(endpoint)
                if endpoint.ifindex == skb.ifindex() && endpoint.mac == packet.source_mac =>
            {
                end.set_endpoint(endpoint);
                Ok(())
            }
            _ => Err(Drop::because(DropReason::Spoofed)),
        },
        POINT_FROM_OVERLAY => {
            end.set_elsewhere::<F>(packet.tuple.source, config);
            if end.side.hop == HOP_TUNNEL {
                if tunnel::is_from(skb, config, &end.side.tunnel, packet.has(LATER))? {
                    return Ok(());
                }
            } else if end.kind == KIND_WORLD {
                // A client's packet, which another node forwards to its backend here.
                let node = tunnel::remote(skb, config)?;
                if addresses::is_node(&node) {
                    end.side.tunnel = node;
                    work.forwarded = true;
                    return Ok(());
                }
            }
            Err(Drop::because(DropReason::UnknownTunnel))
        }
        POINT_FROM_NETDEV => {
            // Checked by `check_uplink`, once it is known that the packet is Weft's business.
            end.locate::<F>(packet.tuple.source, config);
            Ok(())
        }
        _ => {
            let ingress = skb.ingress_ifindex();
            end.locate::<F>(packet.tuple.source, config);
            if ingress == 0 {
                // A process of this node may use any address.
                end.set_host();
                return Ok(());
            }
            // Forwarded by the host stack: it must have come from where the address is.
            let right = if end.is_endpoint() {
                ingress == end.side.ifindex
            } else if end.side.hop == HOP_TUNNEL {
                ingress == config.overlay_ifindex
            } else {
                end.kind != KIND_HOST && end.kind != KIND_LOCAL_POD
            };
            if right {
                Ok(())
            } else {
                Err(Drop::because(DropReason::Spoofed))
            }
        }
    }
}

/// What arrived at an uplink must have come from where its source is: not from one of this node's
/// addresses, and not from a pod to which the overlay leads. Returns whether the interface is an
/// uplink: until the agent says so, and when it does no more, the host stack goes on as it did.
#[inline(always)]
pub(super) fn check_uplink(skb: &Skb, end: &mut End) -> Result<bool, Drop> {
    let elsewhere = end.is_endpoint()
        || end.kind == KIND_HOST
        || end.kind == KIND_LOCAL_POD
        || (end.kind == KIND_REMOTE_POD && end.side.hop == HOP_TUNNEL);
    if elsewhere {
        return Err(Drop::because(DropReason::Spoofed));
    }
    let ifindex = skb.ifindex();
    match addresses::uplink(ifindex) {
        Some(uplink) => {
            end.set_uplink(ifindex, uplink);
            Ok(true)
        }
        None => Ok(false),
    }
}

/// 4. Whether a packet at this hook may go there at all.
#[inline(always)]
pub(super) fn check_destination<A>(skb: &Skb, config: &Config, work: &Work<A>) -> Result<(), Drop> {
    let packet = &work.packet;
    let end = &work.destination;
    if !end.is_endpoint() && end.kind == KIND_LOCAL_POD {
        return Err(Drop::because(DropReason::NoEndpoint));
    }
    if !end.is_endpoint() && end.kind == KIND_SERVICE {
        return Err(Drop::because(DropReason::UnallocatedAddress));
    }
    match work.point {
        // What a pod sends there, masqueraded, would come from a node.
        POINT_FROM_CONTAINER
            if packet.protocol == protocol::UDP
                && work.initiates
                && config.overlay_port != 0
                && work.real.destination_port == config.overlay_port
                && !end.is_endpoint()
                && end.kind != KIND_REMOTE_POD =>
        {
            Err(Drop::because(DropReason::OverlayPort))
        }
        // The overlay ends here, but for services: a pod, or this node itself.
        POINT_FROM_OVERLAY if !end.is_endpoint() && end.kind != KIND_HOST && work.service == 0 => {
            Err(Drop::because(DropReason::NoRoute))
        }
        // The host stack's route must lead to the pod that has the address.
        POINT_TO_CONTAINER if !end.is_endpoint() || end.side.ifindex != skb.ifindex() => {
            Err(Drop::because(DropReason::NoEndpoint))
        }
        _ => Ok(()),
    }
}
