//! The way of a packet, from top to bottom.

use weft_abi::{
    MARK_ENCAPSULATED, MARK_FORWARDED, MARK_RESUMED, OVERLAY_MAC, OVERLAY_PEER_MAC,
    config::Config,
    drop::DropReason,
    event::{
        POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_FROM_OVERLAY, POINT_TO_CONTAINER,
        POINT_TO_NETDEV, POINT_TO_OVERLAY,
    },
    flow::{
        FLOW_BACK, FLOW_DIRECT_RETURN, FLOW_FRONT, FLOW_MASQUERADE, Flow, FlowKey, HOP_ENDPOINT,
        HOP_HOST, HOP_TUNNEL, HOP_UPLINK, Side,
    },
    ipcache::{IPCACHE_NO_MASQUERADE, KIND_SERVICE, KIND_WORLD},
    service::SCOPE_EXTERNAL,
};

use crate::{
    addresses, clock, config,
    decide::{decide, others, own_error, scratch_packet, wait},
    deliver::{Delivery, deliver, write_macs},
    drops::Drop,
    family::{Family, V4, V6},
    flows,
    outcome::Outcome,
    packet::{ERROR, FIRST, LATER, Packet, protocol},
    resets,
    rewrite::rewrite,
    services,
    skb::{Action, Skb},
    tunnel,
};

/// What happens to a packet at a hook.
#[inline(always)]
pub fn packet<const POINT: u8>(skb: &Skb) -> Result<Action, Drop> {
    // Handled by another program of ours already: nothing is left to do.
    if (POINT == POINT_TO_OVERLAY && skb.mark() == MARK_ENCAPSULATED)
        || (POINT == POINT_TO_NETDEV && skb.mark() == MARK_FORWARDED)
    {
        skb.set_mark(0);
        return Ok(Action::Pass);
    }
    if POINT == POINT_FROM_NETDEV && !skb.is_for_us() {
        // The host stack forwards and answers no such frame either.
        return Ok(Action::Pass);
    }
    let at_uplink = POINT == POINT_FROM_NETDEV || POINT == POINT_TO_NETDEV;
    let ether_type = skb.ether_type();
    if skb.is_tagged() || (ether_type != V4::ETHER_TYPE && ether_type != V6::ETHER_TYPE) {
        return if at_uplink {
            // The host's, or that of an interface of a VLAN on top of this one.
            Ok(Action::Pass)
        } else {
            Err(Drop::because(DropReason::UnsupportedEtherType))
        };
    }
    let config = match config::get() {
        Err(_) if at_uplink => return Ok(Action::Pass),
        config => config?,
    };
    let outcome = if ether_type == V4::ETHER_TYPE {
        of_family::<V4, POINT>(skb, config)
    } else {
        of_family::<V6, POINT>(skb, config)
    };
    outcome.unpack()
}

/// A function of its own, so that the stacks of the families, and of what comes after, do not add up.
#[inline(never)]
fn of_family<F: Family, const POINT: u8>(skb: &Skb, config: &Config) -> Outcome {
    Outcome::pack(match POINT {
        POINT_TO_OVERLAY => encapsulate::<F>(skb, config),
        POINT_TO_NETDEV => leave::<F>(skb, config),
        _ => forward::<F, POINT>(skb, config),
    })
}

/// A packet of a known flow costs one lookup here; any other is decided.
#[inline(always)]
fn forward<F: Family, const POINT: u8>(skb: &Skb, config: &Config) -> Result<Action, Drop> {
    let packet = scratch_packet::<F>()?;
    if let Err(drop) = F::parse(skb, packet) {
        if drop.reason == DropReason::Fragment
            && POINT != POINT_TO_CONTAINER
            && skb.mark() != MARK_RESUMED
            && let Some(action) = wait::<F, POINT>(skb)?
        {
            return Ok(action);
        }
        return if POINT == POINT_FROM_NETDEV {
            strange::<F>(skb, drop)
        } else {
            Err(drop)
        };
    }
    let packet = &*packet;
    let (key, from) = flows::key::<F>(&packet.tuple, packet.protocol);
    let now = clock::now();
    let delivery = if !packet.has(ERROR)
        && let Some(flow) = flows::live::<F>(packet, &key, from, now, config.ticks_per_second)
        && flow.epoch == config.epoch
        && flows::keeps_backend(flow, packet, config)
        && arrived_right::<F::Addr, POINT>(skb, config, packet, flow, from)?
        && resets::admit(packet, flow, from).map(|()| true)?
        && flows::refresh::<F>(flow, packet, from, now)
    {
        flows::account(&mut flow.sides[from], packet.signals, skb.len());
        Delivery {
            translated: flow.flags & (FLOW_FRONT | FLOW_BACK) != 0,
            answerless: flow.service != 0
                && (flow.flags & FLOW_MASQUERADE != 0
                    || flow.flags & (FLOW_DIRECT_RETURN | FLOW_BACK) == FLOW_DIRECT_RETURN),
            tuple: &flow.xlat,
            from: &flow.sides[from],
            to: &flow.sides[1 - from],
        }
    } else {
        let decided = if POINT == POINT_FROM_NETDEV && !is_ours::<F>(packet, &key) {
            None
        } else {
            decide::<F, POINT>(skb, packet)?
        };
        match decided {
            Some(delivery) => delivery,
            None => return not_ours::<F, POINT>(skb, packet),
        }
    };
    if packet.has(FIRST) {
        others::<F, POINT>(skb)?;
    }
    deliver::<F, POINT>(skb, packet, &delivery, config)
}

/// What is none of Weft's business goes on as it came.
#[inline(always)]
fn not_ours<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
) -> Result<Action, Drop> {
    // What comes in the name of a pod of this node says nothing about that pod's datagrams.
    if packet.has(FIRST) && addresses::endpoint::<F>(packet.tuple.source).is_none() {
        others::<F, POINT>(skb)?;
    }
    if packet.has(LATER) && skb.mark() == MARK_RESUMED {
        skb.set_mark(0);
    }
    Ok(Action::Pass)
}

/// Whether the packet came from where its side of the flow is, in the direction that this entry
/// serves: an entry of a translated flow translates one direction only.
#[inline(always)]
fn arrived_right<A, const POINT: u8>(
    skb: &Skb,
    config: &Config,
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
        POINT_FROM_OVERLAY => {
            (side.hop == HOP_TUNNEL || flow.flags & FLOW_DIRECT_RETURN != 0)
                && tunnel::is_from(skb, config, &side.tunnel, packet.has(LATER))?
        }
        // Any uplink: routers may send the two directions by different ways.
        POINT_FROM_NETDEV => side.hop == HOP_UPLINK,
        _ => false,
    })
}

/// Whether a packet at an uplink is Weft's business: everything else, most of all what the node's own
/// processes receive, goes on at once.
#[inline(always)]
fn is_ours<F: Family>(packet: &Packet<F::Addr>, key: &FlowKey<F::Addr>) -> bool {
    packet.has(ERROR)
        || flows::lookup::<F>(key).is_some()
        || addresses::endpoint::<F>(packet.tuple.destination).is_some()
        || services::may_have::<F>(&packet.tuple, packet.protocol, SCOPE_EXTERNAL)
        || services::is_allocated::<F>(packet.tuple.destination, SCOPE_EXTERNAL)
}

/// What cannot be understood at an uplink is the host's to judge, except where a pod has the address.
#[inline(always)]
fn strange<F: Family>(skb: &Skb, drop: Drop) -> Result<Action, Drop> {
    match F::ends(skb) {
        Some((_, destination, _)) if addresses::endpoint::<F>(destination).is_some() => Err(drop),
        _ => {
            if skb.mark() == MARK_RESUMED {
                skb.set_mark(0);
            }
            Ok(Action::Pass)
        }
    }
}

/// What the host stack routes into the overlay: only the way is Weft's business, not the flow.
#[inline(always)]
fn encapsulate<F: Family>(skb: &Skb, config: &Config) -> Result<Action, Drop> {
    let Some((_, destination, protocol)) = F::ends(skb) else {
        return Err(Drop::because(DropReason::Malformed));
    };
    if F::stays_on_link(destination) {
        return Err(Drop::because(DropReason::LinkLocal));
    }
    if protocol == F::ICMP {
        let _ = own_error::<F, POINT_TO_OVERLAY>(skb).unpack()?;
    } else {
        let _ = answer_as_asked::<F, POINT_TO_OVERLAY>(skb, config).unpack()?;
    }
    to_node::<F>(skb, config, destination).unpack()
}

/// Addresses a packet to the node that its destination is behind. A function of its own: its stack and
/// that of what looks into ICMP errors before it are too much together for the kernel.
#[inline(never)]
fn to_node<F: Family>(skb: &Skb, config: &Config, destination: F::Addr) -> Outcome {
    Outcome::pack(match addresses::ipcache::<F>(destination) {
        Some(entry) if addresses::leads_through_overlay(entry) => {
            write_macs(skb, OVERLAY_MAC, OVERLAY_PEER_MAC)
                .and_then(|()| tunnel::address(skb, config, &entry.tunnel))
                .map(|()| Action::Pass)
        }
        _ => Err(Drop::because(DropReason::NoRoute)),
    })
}

/// What the host stack sends out of an uplink.
#[inline(always)]
fn leave<F: Family>(skb: &Skb, config: &Config) -> Result<Action, Drop> {
    let Some((source, destination, protocol)) = F::ends(skb) else {
        return Ok(Action::Pass);
    };
    if addresses::endpoint::<F>(source).is_some() {
        return leave_pod::<F>(skb, config, destination).unpack();
    }
    // What is forwarded for somebody outside, and of the node's own what no socket program sees.
    let forwarded = skb.ingress_ifindex() != 0;
    if (forwarded || (protocol != protocol::TCP && protocol != protocol::UDP))
        && addresses::ipcache::<F>(destination).is_some_and(|entry| entry.kind == KIND_SERVICE)
    {
        // A service's address without a service leads nowhere.
        return Err(Drop::because(DropReason::UnallocatedAddress));
    }
    if forwarded {
        return Ok(Action::Pass);
    }
    if protocol == F::ICMP {
        own_error::<F, POINT_TO_NETDEV>(skb).unpack()
    } else {
        let _ = answer_as_asked::<F, POINT_TO_NETDEV>(skb, config).unpack()?;
        resets::of_nobody::<F>(skb, config).unpack()
    }
}

/// What was asked of a service, and is answered by a process of this node, leaves with the service's
/// address. The node's own packets of no such flow leave as they are.
#[inline(never)]
fn answer_as_asked<F: Family, const POINT: u8>(skb: &Skb, config: &Config) -> Outcome {
    Outcome::pack(answer_as_known::<F, POINT>(skb, config))
}

/// See [`answer_as_asked`].
#[inline(always)]
fn answer_as_known<F: Family, const POINT: u8>(skb: &Skb, config: &Config) -> Result<Action, Drop> {
    let packet = scratch_packet::<F>()?;
    if skb.ingress_ifindex() != 0 || F::parse(skb, packet).is_err() {
        packet.signals = 0;
        return Ok(Action::Pass);
    }
    let packet = &*packet;
    let (key, from) = flows::key::<F>(&packet.tuple, packet.protocol);
    let now = clock::now();
    // Of whatever epoch: nothing that is decided about a flow alters how it is answered.
    if let Some(flow) = flows::live::<F>(packet, &key, from, now, config.ticks_per_second)
        && flow.flags & FLOW_BACK != 0
        && from != usize::from(flow.initiator)
        && flow.sides[from & 1].hop == HOP_HOST
    {
        let _ = flows::refresh::<F>(flow, packet, from, now);
        flows::account(&mut flow.sides[from & 1], packet.signals, skb.len());
        rewrite::<F>(skb, packet, &flow.xlat)?;
        if packet.has(FIRST) {
            others::<F, POINT>(skb)?;
        }
        // It is somebody's: no reset of it is to be held back.
        scratch_packet::<F>()?.signals = 0;
    }
    Ok(Action::Pass)
}

/// Packets of pods leave by the host stack only where Weft left one to it, which had an answer to it,
/// or cut it into fragments: those leave as the flow knows.
#[inline(never)]
fn leave_pod<F: Family>(skb: &Skb, config: &Config, destination: F::Addr) -> Outcome {
    Outcome::pack(leave_as_known::<F>(skb, config, destination))
}

/// See [`leave_pod`].
#[inline(always)]
fn leave_as_known<F: Family>(
    skb: &Skb,
    config: &Config,
    destination: F::Addr,
) -> Result<Action, Drop> {
    let inside = config.flags & F::MASQUERADE == 0
        || match addresses::ipcache::<F>(destination) {
            Some(entry) => entry.kind != KIND_WORLD || entry.flags & IPCACHE_NO_MASQUERADE != 0,
            None => false,
        };
    let packet = scratch_packet::<F>()?;
    F::parse(skb, packet)?;
    let packet = &*packet;
    let (key, from) = flows::key::<F>(&packet.tuple, packet.protocol);
    let known = flows::live::<F>(packet, &key, from, clock::now(), config.ticks_per_second);
    match known {
        // Not by a translation of an earlier epoch: its address may be gone.
        Some(flow)
            if flow.flags & (FLOW_FRONT | FLOW_MASQUERADE) == FLOW_FRONT | FLOW_MASQUERADE
                && from == usize::from(flow.initiator)
                && flow.epoch == config.epoch
                && flow.sides[1 - from].ifindex == skb.ifindex() =>
        {
            rewrite::<F>(skb, packet, &flow.xlat)?;
        }
        // What was asked of a port of the node is answered by the node.
        Some(flow) if flow.flags & FLOW_BACK != 0 && from != usize::from(flow.initiator) => {
            rewrite::<F>(skb, packet, &flow.xlat)?;
        }
        // What was opened from outside is answered as it was asked.
        Some(flow) if flow.flags & FLOW_FRONT == 0 && from != usize::from(flow.initiator) => {}
        _ if inside => {}
        _ => return Err(Drop::because(DropReason::NotMasqueraded)),
    }
    if packet.has(FIRST) {
        // The stack cut it: the others come by the same way.
        others::<F, POINT_TO_NETDEV>(skb)?;
    }
    Ok(Action::Pass)
}
