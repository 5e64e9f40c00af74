//! Step 3 for what may go to a service: which backend gets it.

use weft_abi::{
    drop::DropReason, event::POINT_FROM_NETDEV, ipcache::KIND_HOST, service::FRONTEND_DIRECT_RETURN,
};

use super::{
    ends::check_uplink,
    translate::as_backend_sees,
    work::{Fate, scratch},
};
use crate::{
    addresses, config,
    drops::Drop,
    family::Family,
    flows,
    packet::{OPENS, protocol},
    route,
    services::{self, Client},
    skb::{Action, Skb},
};

/// Whether the destination is a service's as the packet sees it, which lets it in.
#[inline(always)]
pub fn serve<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    let tuple = &work.packet.tuple;
    // Whoever may have a hostPort must not have the overlay with it.
    let carries_overlay = work.point == POINT_FROM_NETDEV
        && work.packet.protocol == protocol::UDP
        && config.overlay_port != 0
        && tuple.destination_port == config.overlay_port;
    if carries_overlay
        && addresses::ipcache::<F>(tuple.destination).is_some_and(|entry| entry.kind == KIND_HOST)
    {
        work.fate = Fate::NotOurs;
        return Ok(Action::Pass);
    }
    let found = services::frontend::<F>(
        tuple.destination,
        tuple.destination_port,
        work.packet.protocol,
        work.asks,
    );
    let Some(frontend) = found else {
        return if work.forwarded {
            // Only a service's clients may come by another node.
            Err(Drop::because(DropReason::UnknownTunnel))
        } else {
            Ok(Action::Pass)
        };
    };
    if work.point == POINT_FROM_NETDEV && !check_uplink(skb, &mut work.source)? {
        work.fate = Fate::NotOurs;
        return Ok(Action::Pass);
    }
    let own = work.point == POINT_FROM_NETDEV && !work.known && !work.packet.has(OPENS);
    if own {
        work.outer = flows::reversed(tuple);
        if route::connected::<F>(skb, &work.outer, work.packet.protocol, &mut work.socket) {
            // The port is a NodePort by now, but was the node's own before, or a process asked for it.
            work.fate = Fate::NotOurs;
            return Ok(Action::Pass);
        }
    }
    if !services::lets_in::<F>(frontend, tuple.source) {
        return Err(Drop::because(DropReason::SourceRange));
    }
    work.service = frontend.service;
    work.direct = frontend.flags & FRONTEND_DIRECT_RETURN != 0;
    work.frontend = *frontend;
    Ok(Action::Pass)
}

/// Chooses a backend of that service.
#[inline(always)]
pub fn elect<F: Family>(_: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    let tuple = &work.packet.tuple;
    let client = Client {
        address: tuple.source,
        hash: Some(F::hash(tuple, work.packet.protocol)),
        now: work.now,
        ticks_per_second: config.ticks_per_second,
    };
    let choice = services::choose::<F>(&work.frontend, &client)?;
    work.backend = choice.backend;
    work.target = choice.address;
    work.real = as_backend_sees::<F>(tuple, &choice);
    Ok(Action::Pass)
}
