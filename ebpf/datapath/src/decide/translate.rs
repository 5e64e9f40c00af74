//! What a packet is translated to: a service's backend, or back to what the client knows.

use weft_abi::{
    drop::DropReason,
    event::{POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_FROM_OVERLAY},
    flow::{
        FLOW_BACK, FLOW_DIRECT_RETURN, FLOW_FRONT, FLOW_MASQUERADE, FLOW_OWN_NODE, Flow, Tuple,
    },
    service::{SCOPE_EXTERNAL, SCOPE_FORWARDED, SCOPE_INTERNAL},
};

use super::{
    remember::first_port,
    work::{ASKS_NONE, scratch},
};
use crate::{
    config,
    drops::Drop,
    family::Family,
    flows,
    packet::{DATA, Packet, protocol},
    services::{self, Choice},
    skb::{Action, Skb},
};

/// Step 3, as far as the packet's flow knows it: what it is translated to, and where it goes in the end.
///
/// - A packet towards a service keeps the backend of its flow while that still serves; TCP and SCTP
///   keep it for as long as the connection lives, as with kube-proxy, which never cuts established
///   ones. An opening packet that is sent again has no connection yet.
/// - A reply of a translated flow is rewritten back.
/// - A new flow may be one to a service: then a backend is chosen next ([`super::serve`]). So may a
///   known one that is none yet, because the service came later: a client that keeps trying would keep
///   its flow alive, and out of reach.
#[inline(always)]
pub fn translate<F: Family>(_: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    let packet = &work.packet;
    work.asks = ASKS_NONE;
    work.target = packet.tuple.destination;
    if work.known {
        let flow = &work.before;
        if flow.flags & FLOW_BACK != 0 {
            if work.initiates {
                direct::<F>(packet, flow)?;
                return Ok(Action::Pass);
            }
            work.service = flow.service;
            work.backend = flow.backend;
            work.masquerade = flow.flags & FLOW_MASQUERADE != 0;
            work.reply = true;
            work.target = flow.xlat.destination;
            return Ok(Action::Pass);
        }
        let begins = !packet.has(DATA);
        if flow.flags & FLOW_DIRECT_RETURN != 0 && flow.flags & FLOW_FRONT == 0 {
            if let Some(backend) = services::backend::<F>(flow.backend)
                && backend.service == flow.service
            {
                work.service = flow.service;
                work.backend = flow.backend;
                work.direct = true;
                work.target = backend.address;
                work.real.destination = backend.address;
                work.real.destination_port = backend.port;
                return Ok(Action::Pass);
            }
        } else if flow.flags & FLOW_FRONT == 0 {
            if !(work.initiates && begins) {
                return Ok(Action::Pass);
            }
        } else if !work.initiates {
            // A packet that claims a service's address as its source.
            return Err(Drop::because(DropReason::Spoofed));
        } else if flow.service == 0 {
            // Masqueraded, and nothing else.
            if !begins {
                return Ok(Action::Pass);
            }
        } else if !begins || services::still_serves::<F>(flow, &flow.xlat) {
            work.service = flow.service;
            work.backend = flow.backend;
            work.real = flow.xlat;
            if work.before.flags & FLOW_MASQUERADE != 0 {
                // With what source it leaves is decided again.
                work.real.source = packet.tuple.source;
                work.real.source_port = packet.tuple.source_port;
            }
            work.target = work.real.destination;
            return Ok(Action::Pass);
        }
    }
    work.asks = match work.point {
        POINT_FROM_CONTAINER => SCOPE_INTERNAL,
        POINT_FROM_OVERLAY if work.forwarded => SCOPE_FORWARDED,
        POINT_FROM_OVERLAY | POINT_FROM_NETDEV => SCOPE_EXTERNAL,
        _ => ASKS_NONE,
    };
    Ok(Action::Pass)
}

/// How often the backends of a service are asked for a connection whose client's view is gone: 32 of
/// them twice, for the connection as it is, and as it leaves the node with the node's address.
const ASKED: u32 = 64;

/// Step 3, for a connection to a service that is under way and unknown: the backend
/// that has it may still be known by its own view of it. Then the client's is what it was.
#[inline(always)]
pub(super) fn find_backend<F: Family>(skb: &Skb) -> Result<(), Drop> {
    let mut index = 0;
    scratch::<F>()?.searches = true;
    while index < ASKED && scratch::<F>()?.searches {
        scratch::<F>()?.tries = index;
        index += 1;
        let _ = F::ask_backend(skb).unpack()?;
    }
    Ok(())
}

/// Whether the connection is at the next backend of its service; see [`find_backend`].
#[inline(always)]
pub fn ask_backend<F: Family>(_: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    let tuple = &work.packet.tuple;
    let protocol = work.packet.protocol;
    let index = work.tries / 2;
    work.searches = index < work.frontend.count;
    if !work.searches {
        return Ok(Action::Pass);
    }
    let masquerades = work.tries % 2 != 0;
    if masquerades && (work.point == POINT_FROM_CONTAINER || protocol != protocol::TCP) {
        // It keeps its address, or nobody knows what port it had.
        return Ok(Action::Pass);
    }
    let Some(choice) = services::at::<F>(&work.frontend, index) else {
        return Ok(Action::Pass);
    };
    work.outer = as_backend_sees::<F>(tuple, &choice);
    if masquerades {
        let Some(address) = F::node_address(config) else {
            return Ok(Action::Pass);
        };
        work.outer.source = address;
        work.outer.source_port = first_port::<F>(tuple, protocol, config);
    }
    let (key, client) = flows::key::<F>(&work.outer, protocol);
    if let Some(back) = flows::lookup::<F>(&key)
        && back.flags & FLOW_BACK != 0
        && back.xlat == flows::reversed(tuple)
        && !flows::closed(back)
        && !flows::expired(back, protocol, work.now, config.ticks_per_second)
    {
        let from = work.from & 1;
        work.before = *back;
        work.before.sides[from] = back.sides[client];
        work.before.sides[1 - from] = back.sides[1 - client];
        work.before.initiator = from as u8;
        work.before.flags ^= FLOW_BACK | FLOW_FRONT;
        work.before.xlat = work.outer;
        work.known = true;
        work.own_node |= back.flags & FLOW_OWN_NODE != 0;
        work.searches = false;
    }
    Ok(Action::Pass)
}

/// What a backend sees of a client's packet to its service.
///
/// A pod that reaches itself must not see its own address as the client: it would answer itself without
/// the datapath ever translating back.
#[inline(always)]
pub(super) fn as_backend_sees<F: Family>(
    tuple: &Tuple<F::Addr>,
    choice: &Choice<F::Addr>,
) -> Tuple<F::Addr> {
    Tuple {
        source: if choice.address == tuple.source {
            F::HAIRPIN
        } else {
            tuple.source
        },
        destination: choice.address,
        source_port: tuple.source_port,
        destination_port: choice.port,
    }
}

/// The client talks to a backend directly, from the very port from which it also talks to it
/// through a service; `back` is that flow. The backend could not tell the two apart.
///
/// A connection has to wait. Datagrams need not: the direct ones take the port, and those through
/// the service get another with the next one, as they would had they come second.
#[inline(always)]
fn direct<F: Family>(packet: &Packet<F::Addr>, back: &Flow<F::Addr>) -> Result<(), Drop> {
    if packet.protocol == protocol::TCP {
        return Err(Drop::because(DropReason::NoPort));
    }
    let (key, _) = flows::key::<F>(&back.xlat, packet.protocol);
    if let Some(front) = flows::lookup::<F>(&key)
        && front.xlat == packet.tuple
    {
        // No epoch: decided again.
        front.epoch = 0;
    }
    Ok(())
}
