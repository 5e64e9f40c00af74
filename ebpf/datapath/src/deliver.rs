//! The last step: rewrite, and send the packet the way its flow knows.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use network_types::{eth::EthHdr, tcp::TcpHdr, udp::UdpHdr};
use weft_abi::{
    GATEWAY_MAC, MARK_ENCAPSULATED, MARK_FORWARDED, MARK_RESUMED, OVERLAY_MAC, OVERLAY_PEER_MAC,
    config::{CONFIG_DEPARTURE_TIME, Config},
    drop::DropReason,
    event::{POINT_FROM_CONTAINER, POINT_TO_CONTAINER},
    flow::{
        HOP_ENDPOINT, HOP_HOST, HOP_TUNNEL, HOP_UPLINK, LIMIT_EGRESS, LIMIT_INGRESS, Side, Tuple,
    },
};

use crate::{
    bandwidth::{self, Direction},
    drops::Drop,
    family::Family,
    outcome::Outcome,
    packet::{L3, LATER, Packet, protocol},
    rewrite::rewrite,
    skb::{Action, Skb},
    tunnel,
};

/// How a packet is delivered.
pub struct Delivery<A: 'static> {
    /// Whether it is rewritten.
    pub translated: bool,
    /// Whether the host stack cannot say what keeps it from being delivered: the packet is for an
    /// address of this node, or becomes one from there.
    pub answerless: bool,
    /// What to, if so.
    pub tuple: &'static Tuple<A>,
    /// Where it comes from.
    pub from: &'static Side,
    /// Where it goes.
    pub to: &'static Side,
}

/// Delivers a packet.
///
/// What Weft forwards itself it forwards as a router: the time to live goes down by one, and what a
/// router would answer goes to the host stack, which answers it.
#[inline(always)]
pub fn deliver<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    delivery: &Delivery<F::Addr>,
    config: &Config,
) -> Result<Action, Drop> {
    let to = delivery.to;
    let forwards = POINT != POINT_TO_CONTAINER && to.hop != HOP_HOST;
    let unfinished = forwards && (packet.ttl <= 1 || is_too_big(skb, packet, to.mtu));
    // What comes in by an uplink or the overlay to a service of this node, or as an answer to the node's
    // address that such a flow was given, the host stack would take for its own: nobody answers that it
    // is too old, and what is too big is cut on the underlay.
    let unanswered = unfinished && POINT != POINT_FROM_CONTAINER && delivery.answerless;
    if unanswered && packet.ttl <= 1 {
        return Err(Drop::because(DropReason::NoRoute));
    }
    let unfinished = unfinished && !unanswered;
    if POINT == POINT_FROM_CONTAINER && delivery.from.limits & LIMIT_EGRESS != 0 {
        let queues = config.flags & CONFIG_DEPARTURE_TIME != 0
            && !unfinished
            && (to.hop == HOP_TUNNEL || to.hop == HOP_UPLINK);
        let limit = if queues { DEPARTURE } else { EGRESS };
        let _ = Outcome::from_number(limit_bandwidth(skb.raw(), delivery.from.ifindex, limit))
            .unpack()?;
    }
    if to.hop == HOP_ENDPOINT && to.limits & LIMIT_INGRESS != 0 {
        let _ = Outcome::from_number(limit_bandwidth(skb.raw(), to.ifindex, INGRESS)).unpack()?;
    }
    // The host stack forwards no packet that claims to come from the node itself. And its answer finds
    // its way back through the same translation.
    if delivery.translated && (!unfinished || delivery.tuple.source == packet.tuple.source) {
        rewrite::<F>(skb, packet, delivery.tuple)?;
    }
    if packet.has(LATER) && skb.mark() == MARK_RESUMED {
        skb.set_mark(0);
    }
    if unfinished {
        return Ok(Action::Pass);
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
        HOP_UPLINK if POINT != POINT_TO_CONTAINER => {
            F::decrement_ttl(skb)?;
            skb.set_mark(MARK_FORWARDED);
            Ok(skb.redirect_neighbour(to.ifindex))
        }
        _ => Err(Drop::because(DropReason::NoRoute)),
    }
}

/// The limits that [`limit_bandwidth`] knows.
const EGRESS: u32 = 0;
const INGRESS: u32 = 1;
const DEPARTURE: u32 = 2;

/// Holds a packet to a limit of the endpoint behind `ifindex`; an [`Outcome`]. A global function: few
/// pods have limits, and the verifier walks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn limit_bandwidth(context: *mut __sk_buff, ifindex: u32, limit: u32) -> u64 {
    let skb = Skb::new(TcContext::new(context));
    let result = match limit {
        EGRESS => bandwidth::admit(&skb, ifindex, Direction::Egress),
        INGRESS => bandwidth::admit(&skb, ifindex, Direction::Ingress),
        _ => bandwidth::departure(&skb, ifindex),
    };
    Outcome::pack(result.map(|()| Action::Pass)).number()
}

/// Whether the packet does not fit through `mtu`; one that is cut into segments at the very end,
/// whether its segments do not.
#[inline(always)]
fn is_too_big<A>(skb: &Skb, packet: &Packet<A>, mtu: u16) -> bool {
    // The common case costs one comparison.
    if skb.len() <= u32::from(mtu) + L3 as u32 {
        return false;
    }
    let segment = skb.segment();
    if segment == 0 {
        return true;
    }
    let header = if packet.protocol == protocol::TCP {
        // The upper half of the byte, in words.
        match skb.read::<[u8; TcpHdr::LEN]>(packet.l4()) {
            Some(tcp) => u32::from(tcp[12] >> 4) * 4,
            None => 60,
        }
    } else {
        UdpHdr::LEN as u32
    };
    (packet.l4() - L3) as u32 + header + segment > u32::from(mtu)
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
