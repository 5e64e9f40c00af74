//! The slow path: what to do with a packet whose flow is unknown, or was decided in another epoch.
//!
//! The steps, in the order of [`decide`]:
//!
//! 1. where the packet comes from, and whether it may claim its source address;
//! 2. which flow it belongs to, if one still lives;
//! 3. what it is translated to: a service's backend, or back to what the client knows;
//! 4. where it goes, and whether it leaves the node masqueraded;
//! 5. whether policy allows the flow, in the direction in which it was opened;
//! 6. remember the decision, and deliver.
//!
//! Nothing is remembered of a packet that is dropped: the next one is judged afresh. What arrives at
//! an uplink and is none of Weft's business goes on to the host stack as it came.

mod ends;
pub mod errors;
pub mod fragments;
pub mod leave;
pub mod remember;
pub mod serve;
mod steps;
pub mod translate;
mod work;

use aya_log_ebpf::debug;
use weft_abi::{
    drop::DropReason,
    event::{POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_TO_CONTAINER},
    flow::{FLOW_BACK, FLOW_OWN_NODE},
    ipcache::{KIND_LOCAL_POD, KIND_SERVICE, KIND_WORLD},
};

pub(crate) use self::steps::steps;
use self::{
    ends::{check_destination, check_uplink, origin},
    remember::{keep, remember},
    translate::find_backend,
    work::{ASKS_NONE, Fate},
};
pub use self::{
    errors::own_error,
    fragments::{others, wait},
    steps::Steps,
    work::{Work, scratch, scratch_packet},
};
use crate::{
    clock, config,
    deliver::Delivery,
    drops::Drop,
    family::Family,
    flows,
    packet::{DATA, ERROR, Packet},
    policy::{self, Question},
    resets, services,
    skb::{Action, Skb},
};

/// Decides a packet; returns how it is to be delivered, unless it is none of Weft's business.
///
/// The steps are functions of their own, one after the other: their code and stack stay off the way of
/// known flows, and their stacks do not add up. What they share is in [`Work`].
#[inline(always)]
pub fn decide<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
) -> Result<Option<Delivery<F::Addr>>, Drop> {
    let work = scratch::<F>()?;
    work.point = POINT;
    let _ = F::begin(skb).unpack()?;
    if packet.has(ERROR) {
        let _ = F::read_quote(skb).unpack()?;
        let _ = F::relate(skb).unpack()?;
        if scratch::<F>()?.fate == Fate::Quoting {
            let _ = F::requote_error(skb).unpack()?;
            let _ = F::readdress(skb).unpack()?;
        }
    } else {
        let _ = F::recognise(skb).unpack()?;
        let _ = F::translate(skb).unpack()?;
        if scratch::<F>()?.asks != ASKS_NONE {
            let _ = F::serve(skb).unpack()?;
            if scratch::<F>()?.service != 0 {
                let unknown = !scratch::<F>()?.known;
                if unknown && packet.has(DATA) {
                    find_backend::<F>(skb)?;
                }
                if unknown && scratch::<F>()?.known {
                    let _ = F::translate(skb).unpack()?;
                } else {
                    let _ = F::elect(skb).unpack()?;
                }
            }
        }
        let _ = F::locate(skb).unpack()?;
    }
    match scratch::<F>()?.fate {
        Fate::NotOurs => return Ok(None),
        Fate::Flow | Fate::Once => {
            let _ = F::leave(skb).unpack()?;
            let _ = F::permit(skb).unpack()?;
        }
        Fate::Error | Fate::Quoting => {}
    }
    trace::<F, POINT>(skb, packet);
    if scratch::<F>()?.fate == Fate::Flow {
        remember::<F>(skb)?;
    }
    let work = scratch::<F>()?;
    Ok(Some(Delivery {
        translated: work.fate == Fate::Flow && work.translated,
        answerless: work.service != 0 && (work.masquerade || (work.direct && !work.reply)),
        tuple: &work.real,
        from: &work.source.side,
        to: &work.destination.side,
    }))
}

/// The debug trace of a decision. The level is a load-time constant: in production the verifier
/// removes the body.
#[inline(never)]
fn trace<F: Family, const POINT: u8>(skb: &Skb, packet: &Packet<F::Addr>) {
    debug!(
        skb.ctx(),
        "allow: protocol {} port {} to {} at {}",
        packet.protocol,
        packet.tuple.source_port,
        packet.tuple.destination_port,
        POINT
    );
}

/// Step 1.
#[inline(always)]
pub fn begin<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    work.epoch = config::epoch(config);
    work.backends_epoch = config::backends_epoch(config);
    work.now = clock::now();
    work.fate = Fate::Flow;
    work.known = false;
    work.initiates = true;
    work.service = 0;
    work.backend = 0;
    work.reply = false;
    work.masquerade = false;
    work.translated = false;
    work.forwarded = false;
    work.direct = false;
    work.real = work.packet.tuple;
    work.own_node = work.point == POINT_TO_CONTAINER && skb.ingress_ifindex() == 0;
    let between_pods_and_host =
        work.point == POINT_FROM_CONTAINER || work.point == POINT_TO_CONTAINER;
    if between_pods_and_host && F::stays_on_link(work.packet.tuple.destination) {
        return Err(Drop::because(DropReason::LinkLocal));
    }
    origin::<F>(skb, config, work)?;
    Ok(Action::Pass)
}

/// Step 2.
#[inline(always)]
pub fn recognise<F: Family>(_: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    let (key, from) = flows::key::<F>(&work.packet.tuple, work.packet.protocol);
    work.from = from;
    let now = work.now;
    if let Some(flow) = flows::live::<F>(&work.packet, &key, from, now, config.ticks_per_second) {
        resets::admit(&work.packet, flow, from)?;
        work.known = true;
        work.before = *flow;
        work.initiates = from == usize::from(flow.initiator);
        work.own_node = flow.flags & FLOW_OWN_NODE != 0 || (work.own_node && work.initiates);
    }
    Ok(Action::Pass)
}

/// Step 4, but for the way out of the node: where the packet goes.
#[inline(always)]
pub fn locate<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    if work.fate == Fate::NotOurs {
        return Ok(Action::Pass);
    }
    work.destination.locate::<F>(work.target, config);
    let kind = work.destination.kind;
    let no_port = work.service == 0
        && work.asks != ASKS_NONE
        && (kind == KIND_SERVICE || (kind == KIND_WORLD && !work.destination.is_endpoint()))
        && services::is_allocated::<F>(work.target, work.asks);
    if work.point == POINT_FROM_NETDEV {
        // What a client sends directly to a process of the node, from the port from which it also uses
        // a service of that process, has to be known: else the answers would be taken for the service's.
        // So has a connection, after one through the service that is over but not forgotten.
        let (key, from) = flows::key::<F>(&work.packet.tuple, work.packet.protocol);
        let directly = flows::lookup::<F>(&key)
            .is_some_and(|flow| flow.flags & FLOW_BACK != 0 && from == usize::from(flow.initiator));
        let ours = work.service != 0
            || no_port
            || directly
            || work.destination.is_endpoint()
            || work.destination.kind == KIND_LOCAL_POD;
        if !ours || !check_uplink(skb, &mut work.source)? {
            work.fate = Fate::NotOurs;
            return Ok(Action::Pass);
        }
    }
    if no_port {
        return Err(Drop::because(DropReason::NoServicePort));
    }
    check_destination(skb, config, work)?;
    Ok(Action::Pass)
}

/// Step 5, and what the flow's ends have sent so far.
#[inline(always)]
pub fn permit<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    let port = if work.packet.protocol == F::ICMP {
        work.packet.icmp
    } else if work.initiates {
        work.real.destination_port.to_be_bytes()
    } else {
        work.real.source_port.to_be_bytes()
    };
    let question = Question {
        protocol: work.packet.protocol,
        port,
        own_node: work.own_node,
    };
    work.allowed = if work.initiates {
        policy::judge(&work.source, &work.destination, &question)?
    } else {
        policy::judge(&work.destination, &work.source, &question)?
    };
    if work.known {
        // What both ends have sent so far outlives the decision.
        let from = work.from & 1;
        keep(&mut work.source.side, &work.before.sides[from]);
        keep(&mut work.destination.side, &work.before.sides[1 - from]);
    }
    flows::account(&mut work.source.side, work.packet.signals, skb.len());
    Ok(Action::Pass)
}
