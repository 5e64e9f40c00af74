//! The way out of the node, and with what address a packet takes it.

use weft_abi::{
    drop::DropReason,
    event::{POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_FROM_OVERLAY},
    flow::{FLOW_MASQUERADE, HOP_HOST, HOP_NONE, HOP_TUNNEL, HOP_UPLINK},
    ipcache::{IPCACHE_NO_MASQUERADE, KIND_HOST, KIND_REMOTE_NODE, KIND_WORLD},
};

use super::work::{Fate, Work, scratch};
use crate::{
    addresses, config,
    drops::Drop,
    family::Family,
    flows,
    packet::{Icmp, protocol},
    route,
    skb::{Action, Skb},
};

/// 4. The way out of the node, for what neither a pod of this node nor the overlay takes.
///
/// - Replies go the way the other end's packets came.
/// - What comes from outside to a service, and goes on to a backend on another node, leaves with this
///   node's address, so that the backend answers through this node; or as it came, where the
///   backend's node is to answer the client directly.
/// - Everything else goes by the node's routes; what does not lead to an uplink stays with the host
///   stack. What pods open towards the outside is masqueraded: they have addresses that the outside
///   cannot answer.
#[inline(always)]
pub fn leave<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    if work.forwarded && work.initiates {
        return answer_directly::<F>(skb, work);
    }
    let packet = &work.packet;
    let end = &mut work.destination;
    let back = if work.known && !work.initiates && !end.is_endpoint() {
        work.before.sides[1 - (work.from & 1)].hop
    } else {
        HOP_NONE
    };
    let passes_through = work.service != 0
        && work.initiates
        && (work.point == POINT_FROM_NETDEV || work.point == POINT_FROM_OVERLAY)
        && !end.is_endpoint()
        && end.kind != KIND_HOST;
    if passes_through && end.side.hop == HOP_TUNNEL && end.kind != KIND_REMOTE_NODE {
        if work.direct && work.point == POINT_FROM_NETDEV && work.source.kind == KIND_WORLD {
            return Ok(Action::Pass);
        }
        work.direct = false;
        let Some(address) = F::node_address(config) else {
            return Err(Drop::because(DropReason::NoRoute));
        };
        return masquerade::<F>(work, address);
    }
    work.direct = false;
    let ifindex = if back == HOP_HOST {
        end.set_host();
        return Ok(Action::Pass);
    } else if back == HOP_UPLINK {
        work.before.sides[1 - (work.from & 1)].ifindex
    } else if !passes_through
        && (work.point != POINT_FROM_CONTAINER || end.side.hop != HOP_HOST || end.kind == KIND_HOST)
    {
        return Ok(Action::Pass);
    } else if work.real.destination == F::HAIRPIN {
        // What a pod answers itself, in a flow that is forgotten.
        return Err(Drop::because(DropReason::NoRoute));
    } else {
        route::interface::<F>(skb, &work.real, packet.protocol, &mut work.fib).unwrap_or(0)
    };
    // A flow whose uplink or address is away keeps its translation until they are back: what the host
    // stack says of its packets meanwhile is no decision.
    let waits = work.known && work.initiates && work.before.flags & FLOW_MASQUERADE != 0;
    let Some(uplink) = addresses::uplink(ifindex) else {
        if passes_through {
            // The host stack takes no packet that claims to come from the node itself.
            return Err(Drop::because(DropReason::NoRoute));
        }
        if waits {
            work.fate = Fate::Once;
        }
        return Ok(Action::Pass);
    };
    let inside = end.kind != KIND_WORLD || end.flags & IPCACHE_NO_MASQUERADE != 0;
    let masquerades =
        passes_through || (work.initiates && !inside && config.flags & F::MASQUERADE != 0);
    if !masquerades {
        end.set_uplink(ifindex, uplink);
        return Ok(Action::Pass);
    }
    if work.fate == Fate::Once {
        // Nobody could answer: it goes to the host stack, and no farther (`to_netdev`).
        return Ok(Action::Pass);
    }
    let Some(address) = F::uplink_address(uplink) else {
        if passes_through {
            return Err(Drop::because(DropReason::NoRoute));
        }
        // Likewise.
        if waits {
            work.fate = Fate::Once;
        }
        return Ok(Action::Pass);
    };
    end.set_uplink(ifindex, uplink);
    masquerade::<F>(work, address)
}

/// Gives the flow the node's address towards the other end.
#[inline(always)]
fn masquerade<F: Family>(work: &mut Work<F::Addr>, address: F::Addr) -> Result<Action, Drop> {
    let packet = &work.packet;
    let has_port = packet.protocol == protocol::TCP
        || packet.protocol == protocol::UDP
        || packet.protocol == protocol::SCTP
        || (packet.protocol == F::ICMP && matches!(F::icmp(packet.icmp[0]), Icmp::Request));
    if !has_port {
        // Nothing would tell what answers it from what the node receives itself: a tunnel of the
        // node's, to the same peer, would end in the pod.
        return Err(Drop::because(DropReason::NotMasqueraded));
    }
    work.masquerade = true;
    work.real.source = address;
    work.keeps_port = false;
    let before = &work.before;
    if work.known
        && before.flags & FLOW_MASQUERADE != 0
        && before.xlat.source == address
        && before.xlat.destination == work.real.destination
        && before.xlat.destination_port == work.real.destination_port
    {
        work.real.source_port = before.xlat.source_port;
        work.keeps_port = true;
    }
    Ok(Action::Pass)
}

/// The client of a flow that another node forwards is answered by this node's own routes.
#[inline(always)]
fn answer_directly<F: Family>(skb: &Skb, work: &mut Work<F::Addr>) -> Result<Action, Drop> {
    let node = work.source.side.tunnel;
    work.outer = flows::reversed(&work.packet.tuple);
    let ifindex = route::interface::<F>(skb, &work.outer, work.packet.protocol, &mut work.fib);
    match addresses::uplink(ifindex.unwrap_or(0)) {
        Some(uplink) => {
            work.source.set_uplink(ifindex.unwrap_or(0), uplink);
            work.source.side.tunnel = node;
            Ok(Action::Pass)
        }
        None => Err(Drop::because(DropReason::NoRoute)),
    }
}
