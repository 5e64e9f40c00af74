//! Step 3 for what may go to a service: which backend gets it.

use weft_abi::{drop::DropReason, event::POINT_FROM_NETDEV, service::FRONTEND_DIRECT_RETURN};

use super::{
    ends::check_uplink,
    translate::as_backend_sees,
    work::{Fate, scratch},
};
use crate::{
    config,
    drops::Drop,
    family::Family,
    services::{self, Client},
    skb::{Action, Skb},
};

/// Whether the destination is a service's as the packet sees it, which lets it in.
#[inline(always)]
pub fn serve<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    let tuple = &work.packet.tuple;
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
