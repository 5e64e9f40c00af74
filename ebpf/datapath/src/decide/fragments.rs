//! Fragments on their way: later ones wait for the first, and follow it once that may pass.

use weft_abi::{
    drop::DropReason,
    event::{POINT_FROM_OVERLAY, POINT_TO_CONTAINER, POINT_TO_NETDEV},
};

use super::work::scratch;
use crate::{
    addresses, config,
    drops::Drop,
    family::Family,
    fragments,
    skb::{Action, Skb},
    tunnel,
};

/// A later fragment that comes before the first one waits for it; `None` if there is no room.
#[inline(always)]
pub fn wait<F: Family, const POINT: u8>(skb: &Skb) -> Result<Option<Action>, Drop> {
    scratch::<F>()?.point = POINT;
    Ok(match F::hold(skb).unpack()? {
        Action::Pass => None,
        held => Some(held),
    })
}

/// See [`wait`]; an action of `Pass` says that there is no room.
#[inline(always)]
pub fn hold<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    if work.point == POINT_FROM_OVERLAY {
        // When it comes again, nothing tells any more which node sent it.
        match addresses::ipcache::<F>(work.packet.tuple.source) {
            Some(entry) if tunnel::is_from(skb, config, &entry.tunnel, false)? => {}
            _ => return Err(Drop::because(DropReason::UnknownTunnel)),
        }
    }
    Ok(fragments::hold::<F>(skb, &work.packet).unwrap_or(Action::Pass))
}

/// The first fragment of a datagram may pass: the others may follow it, those that wait at once.
///
/// Not before: what a stranger sends in somebody's name says nothing about the others.
#[inline(always)]
pub fn others<F: Family, const POINT: u8>(skb: &Skb) -> Result<(), Drop> {
    scratch::<F>()?.point = POINT;
    let _ = F::follow(skb).unpack()?;
    Ok(())
}

/// See [`others`].
#[inline(always)]
pub fn follow<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    fragments::remember::<F>(&work.packet);
    if work.point != POINT_TO_CONTAINER && work.point != POINT_TO_NETDEV {
        fragments::resume::<F>(skb, &work.packet)?;
    }
    Ok(Action::Pass)
}
