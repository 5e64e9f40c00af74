//! The way of a packet, from top to bottom.

use weft_abi::{
    MARK_ENCAPSULATED, OVERLAY_MAC, OVERLAY_PEER_MAC,
    config::Config,
    drop::DropReason,
    event::{POINT_FROM_CONTAINER, POINT_FROM_OVERLAY, POINT_TO_CONTAINER, POINT_TO_OVERLAY},
    flow::{FLOW_BACK, FLOW_FRONT, Flow, HOP_ENDPOINT, HOP_HOST, HOP_TUNNEL, Side},
    ipcache::{KIND_REMOTE_NODE, KIND_REMOTE_POD},
};

use crate::{
    addresses, clock, config,
    decide::decide,
    deliver::{deliver, write_macs},
    drops::Drop,
    family::{Family, V4},
    flows,
    packet::{ERROR, Packet},
    skb::{Action, Skb},
    tunnel,
};

/// What happens to a packet at a hook.
#[inline(always)]
pub fn packet<const POINT: u8>(skb: &Skb) -> Result<Action, Drop> {
    // Encapsulated by another program of ours already: nothing is left to do.
    if POINT == POINT_TO_OVERLAY && skb.mark() == MARK_ENCAPSULATED {
        skb.set_mark(0);
        return Ok(Action::Pass);
    }
    let config = config::get()?;
    if skb.ether_type() != V4::ETHER_TYPE {
        return Err(Drop::because(DropReason::UnsupportedEtherType));
    }
    if POINT == POINT_TO_OVERLAY {
        encapsulate::<V4>(skb, config)
    } else {
        forward::<V4, POINT>(skb, config)
    }
}

/// A packet of a known flow costs one lookup here; any other is decided.
#[inline(always)]
fn forward<F: Family, const POINT: u8>(skb: &Skb, config: &Config) -> Result<Action, Drop> {
    let packet = F::parse(skb)?;
    let (key, from) = flows::key::<F>(&packet.tuple, packet.protocol);
    let now = clock::now();
    if !packet.has(ERROR)
        && let Some(flow) = flows::live::<F>(&packet, &key, from, now, config.ticks_per_second)
        && flow.epoch == config.epoch
        && arrived_right::<F::Addr, POINT>(skb, &packet, flow, from)?
        && flows::refresh::<F>(flow, &packet, from, now)
    {
        flows::account(&mut flow.sides[from], packet.signals, skb.len());
        let translated = flow.flags & (FLOW_FRONT | FLOW_BACK) != 0;
        let translation = if translated { Some(&flow.xlat) } else { None };
        return deliver::<F, POINT>(skb, &packet, translation, &flow.sides[1 - from], config);
    }
    decide::<F, POINT>(skb, &packet, config)
}

/// Whether the packet came from where its side of the flow is, in the direction that this entry
/// serves: an entry of a service flow translates one direction only.
#[inline(always)]
fn arrived_right<A, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<A>,
    flow: &Flow<A>,
    from: usize,
) -> Result<bool, Drop> {
    let side: &Side = &flow.sides[from];
    let initiates = from == usize::from(flow.initiator);
    if (flow.flags & FLOW_FRONT != 0 && !initiates) || (flow.flags & FLOW_BACK != 0 && initiates) {
        return Ok(false);
    }
    Ok(match POINT {
        POINT_FROM_CONTAINER => {
            side.hop == HOP_ENDPOINT
                && side.ifindex == skb.ifindex()
                && side.mac == packet.source_mac
        }
        POINT_TO_CONTAINER => side.hop == HOP_HOST,
        POINT_FROM_OVERLAY => side.hop == HOP_TUNNEL && side.tunnel == tunnel::remote(skb)?,
        _ => false,
    })
}

/// What the host stack routes into the overlay: only the way is Weft's business, not the flow.
#[inline(always)]
fn encapsulate<F: Family>(skb: &Skb, config: &Config) -> Result<Action, Drop> {
    let Some((_, destination, _)) = F::ends(skb) else {
        return Err(Drop::because(DropReason::Malformed));
    };
    match addresses::ipcache::<F>(destination) {
        Some(entry) if entry.kind == KIND_REMOTE_POD || entry.kind == KIND_REMOTE_NODE => {
            write_macs(skb, OVERLAY_MAC, OVERLAY_PEER_MAC)?;
            tunnel::address(skb, config, &entry.tunnel)?;
            Ok(Action::Pass)
        }
        _ => Err(Drop::because(DropReason::NoRoute)),
    }
}
