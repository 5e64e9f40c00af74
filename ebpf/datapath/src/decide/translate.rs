//! What a packet is translated to: a service's backend, or back to what the client knows.

use weft_abi::{
    drop::DropReason,
    event::{POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_FROM_OVERLAY},
    flow::{FLOW_BACK, FLOW_FRONT, FLOW_MASQUERADE, Flow},
    service::{SCOPE_EXTERNAL, SCOPE_INTERNAL},
};

use super::work::Work;
use crate::{
    drops::Drop,
    family::Family,
    flows,
    packet::{OPENS, Packet, protocol},
    services,
};

/// 3. What the packet is translated to; returns the address where it goes in the end.
///
/// - A packet towards a service keeps the backend of its flow while that still serves; TCP keeps it
///   for as long as the connection lives, as with kube-proxy, which never cuts established TCP.
///   An opening packet that is sent again has no connection yet.
/// - A reply of a translated flow is rewritten back.
/// - A new flow may be one to a service. So may a known one that is none yet, because the service
///   came later: a client that keeps trying would keep its flow alive, and out of reach.
#[inline(always)]
pub(super) fn translate<F: Family>(work: &mut Work<F::Addr>) -> Result<F::Addr, Drop> {
    let packet = &work.packet;
    if work.known {
        let flow = &work.before;
        if flow.flags & FLOW_BACK != 0 {
            if work.initiates {
                direct::<F>(packet, flow)?;
                return Ok(packet.tuple.destination);
            }
            work.service = flow.service;
            work.backend = flow.backend;
            work.masquerade = flow.flags & FLOW_MASQUERADE != 0;
            work.reply = true;
            return Ok(flow.xlat.destination);
        }
        let begins = packet.protocol != protocol::TCP || packet.has(OPENS);
        if flow.flags & FLOW_FRONT == 0 {
            if !(work.initiates && begins) {
                return Ok(packet.tuple.destination);
            }
        } else if !work.initiates {
            // A packet that claims a service's address as its source.
            return Err(Drop::because(DropReason::Spoofed));
        } else if flow.service == 0 {
            // Masqueraded, and nothing else.
            if !begins {
                return Ok(packet.tuple.destination);
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
            return Ok(work.real.destination);
        }
    }
    let scope = match work.point {
        POINT_FROM_CONTAINER => SCOPE_INTERNAL,
        POINT_FROM_OVERLAY | POINT_FROM_NETDEV => SCOPE_EXTERNAL,
        _ => return Ok(packet.tuple.destination),
    };
    if let Some(choice) = services::select::<F>(&packet.tuple, packet.protocol, scope)? {
        work.service = choice.service;
        work.backend = choice.backend;
        work.real.destination = choice.address;
        work.real.destination_port = choice.port;
        // A pod that reaches itself must not see its own address as the client: it would answer
        // itself without the datapath ever translating back.
        if choice.address == packet.tuple.source {
            work.real.source = F::HAIRPIN;
        }
    }
    Ok(work.real.destination)
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
