//! The last step: rewrite, and send the packet the way its flow knows.

use network_types::eth::EthHdr;
use weft_abi::{
    GATEWAY_MAC, MARK_ENCAPSULATED, OVERLAY_MAC, OVERLAY_PEER_MAC,
    config::Config,
    drop::DropReason,
    event::POINT_TO_CONTAINER,
    flow::{HOP_ENDPOINT, HOP_HOST, HOP_TUNNEL, Side, Tuple},
};

use crate::{
    drops::Drop,
    family::Family,
    packet::Packet,
    rewrite::rewrite,
    skb::{Action, Skb},
    tunnel,
};

/// Sends a packet to `to`, as a packet of `translation` if there is one.
///
/// What Weft forwards itself it forwards as a router: the time to live goes down by one, and a
/// packet whose time is over goes to the host stack, untranslated, which answers it.
#[inline(always)]
pub fn deliver<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    translation: Option<&Tuple<F::Addr>>,
    to: &Side,
    config: &Config,
) -> Result<Action, Drop> {
    let forwards = POINT != POINT_TO_CONTAINER && to.hop != HOP_HOST;
    if forwards && packet.ttl <= 1 {
        return Ok(Action::Pass);
    }
    if let Some(tuple) = translation {
        rewrite::<F>(skb, packet, tuple)?;
    }
    match to.hop {
        HOP_HOST => Ok(Action::Pass),
        HOP_ENDPOINT if POINT == POINT_TO_CONTAINER => {
            // The host stack's route and the flow must agree on the pod.
            if to.ifindex == skb.ifindex() {
                Ok(Action::Pass)
            } else {
                Err(Drop::because(DropReason::NoEndpoint))
            }
        }
        HOP_ENDPOINT => {
            F::decrement_ttl(skb)?;
            write_macs(skb, to.mac, GATEWAY_MAC)?;
            Ok(skb.redirect_peer(to.ifindex))
        }
        HOP_TUNNEL if POINT != POINT_TO_CONTAINER => {
            F::decrement_ttl(skb)?;
            write_macs(skb, OVERLAY_MAC, OVERLAY_PEER_MAC)?;
            tunnel::address(skb, config, &to.tunnel)?;
            skb.set_mark(MARK_ENCAPSULATED);
            Ok(skb.redirect(config.overlay_ifindex))
        }
        _ => Err(Drop::because(DropReason::NoRoute)),
    }
}

/// Writes the Ethernet addresses.
#[inline(always)]
pub fn write_macs(skb: &Skb, destination: [u8; 6], source: [u8; 6]) -> Result<(), Drop> {
    let ethernet = skb
        .at::<EthHdr>(0)
        .ok_or(Drop::because(DropReason::Malformed))?;
    // SAFETY: `at` checked the bounds; no helper ran since.
    unsafe {
        (*ethernet).dst_addr = destination;
        (*ethernet).src_addr = source;
    }
    Ok(())
}
