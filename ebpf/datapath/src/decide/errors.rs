//! An ICMP error belongs to the flow that it quotes, and passes where that flow is allowed, as a
//! packet of the direction against the quoted one: translated and delivered like those. About any
//! other packet it is a packet like any other, judged by type and code, and never remembered.

use weft_abi::{
    event::{POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_TO_CONTAINER},
    flow::{FLOW_BACK, FLOW_FRONT},
    ipcache::KIND_REMOTE_POD,
};

use super::{
    ends::{check_destination, check_uplink},
    work::{Fate, scratch, scratch_packet},
};
use crate::{
    config,
    drops::Drop,
    family::Family,
    flows, icmp,
    outcome::Outcome,
    packet::ERROR,
    rewrite,
    skb::{Action, Skb},
};

/// Reads the packet that an error quotes, if it can be read.
#[inline(always)]
pub fn read_quote<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    work.quotes = F::quoted(skb, work.packet.l4() + 8, &mut work.quoted);
    Ok(Action::Pass)
}

/// Steps 2 to 4 of an error: the flow of the packet that it quotes.
#[inline(always)]
pub fn relate<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    let packet = &work.packet;
    // The quoted packet was sent by whom the error goes to.
    if work.quotes
        && work.quoted.tuple.source == packet.tuple.destination
        // Pods are no routers: what they report are packets to themselves.
        && ((work.point != POINT_FROM_CONTAINER && work.source.kind != KIND_REMOTE_POD)
            || work.quoted.tuple.destination == packet.tuple.source)
    {
        let protocol = work.quoted.protocol;
        work.outer = flows::reversed(&work.quoted.tuple);
        let (key, from) = flows::key::<F>(&work.outer, protocol);
        if let Some(flow) = flows::lookup::<F>(&key)
            && flow.epoch == work.epoch
            && !flows::expired(flow, protocol, work.now, config.ticks_per_second)
        {
            let initiates = from == usize::from(flow.initiator);
            let translates = (flow.flags & FLOW_FRONT != 0 && initiates)
                || (flow.flags & FLOW_BACK != 0 && !initiates);
            // About a packet that was not translated yet, only this node's own stack can tell.
            if translates
                || flow.flags & (FLOW_FRONT | FLOW_BACK) == 0
                || work.point == POINT_TO_CONTAINER
            {
                if work.point == POINT_FROM_NETDEV && !check_uplink(skb, &mut work.source)? {
                    work.fate = Fate::NotOurs;
                    return Ok(Action::Pass);
                }
                work.destination.side = flow.sides[1 - from];
                work.fate = Fate::Error;
                if translates {
                    work.fate = Fate::Quoting;
                    work.real = flows::reversed(&flow.xlat);
                    icmp::addresses(&work.packet, &work.quoted, &work.real, &mut work.outer);
                }
                return Ok(Action::Pass);
            }
        }
    }
    work.fate = Fate::Once;
    work.destination
        .locate::<F>(packet.tuple.destination, config);
    if work.point == POINT_FROM_NETDEV
        && (!work.destination.is_endpoint() || !check_uplink(skb, &mut work.source)?)
    {
        work.fate = Fate::NotOurs;
        return Ok(Action::Pass);
    }
    check_destination(skb, config, work)?;
    Ok(Action::Pass)
}

/// Translates what an error quotes.
#[inline(always)]
pub fn requote<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    work.change = icmp::requote::<F>(skb, &work.quoted, &work.real)?;
    Ok(Action::Pass)
}

/// Translates the error itself.
#[inline(always)]
pub fn readdress<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    rewrite::icmp::<F>(skb, &work.packet, &work.outer, work.change)?;
    Ok(Action::Pass)
}

/// What the host stack says of a packet that it was given translated, it says of the translated one:
/// here it becomes one about the packet that its sender knows. Where it goes is the host's to say.
///
/// A function of its own, so that its stack and its caller's do not add up with those of the steps.
#[inline(never)]
pub fn own_error<F: Family, const POINT: u8>(skb: &Skb) -> Outcome {
    Outcome::pack(correct::<F, POINT>(skb).map(|()| Action::Pass))
}

/// See [`own_error`].
#[inline(always)]
fn correct<F: Family, const POINT: u8>(skb: &Skb) -> Result<(), Drop> {
    let packet = scratch_packet::<F>()?;
    if skb.ingress_ifindex() != 0 || F::parse(skb, packet).is_err() || !packet.has(ERROR) {
        return Ok(());
    }
    scratch::<F>()?.point = POINT;
    let _ = F::begin(skb).unpack()?;
    let _ = F::read_quote(skb).unpack()?;
    // An error means that it is about no flow.
    if F::relate(skb).unpack().is_ok() && scratch::<F>()?.fate == Fate::Quoting {
        let _ = F::requote_error(skb).unpack()?;
        let _ = F::readdress(skb).unpack()?;
    }
    Ok(())
}
