//! Remembers a decision under every tuple that the flow's packets have, and finds a source port where
//! the other end's view of it is taken.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use weft_abi::{
    drop::DropReason,
    flow::{FLOW_BACK, FLOW_FRONT, FLOW_MASQUERADE, FLOW_OWN_NODE, Side},
};

use super::work::{Work, scratch};
use crate::{
    config,
    drops::Drop,
    family::Family,
    flows,
    packet::{OPENS, protocol},
    route,
    skb::{Action, Skb},
};

/// Ports for flows that had to give up theirs without leaving the node: the start of Linux's default
/// ephemeral range, of which nobody else has the pod's.
const FIRST_PORT: u16 = 32_768;
/// How many such ports there are.
const PORTS: u16 = 28_000;
/// How often another port is tried: with three of four taken, one flow in a million finds none, and
/// has to try again.
const TRIES: u32 = 48;

/// Step 6: remembers the decision under every tuple that its packets have.
///
/// - A flow that is not translated has one.
/// - A reply of a translated flow renews the entry that led here.
/// - A translated flow has two: the other end's view, under which replies will come
///   ([`claim_back`], [`claim_port`]), and then the client's, under which its packets come.
#[inline(always)]
pub(super) fn remember<F: Family>(skb: &Skb) -> Result<(), Drop> {
    let state = scratch::<F>()?;
    state.translated = state.service != 0 || state.masquerade || state.reply;
    if state.translated && !state.reply {
        let _ = F::claim_back(skb).unpack()?;
        let mut tries = 0;
        while !scratch::<F>()?.claimed {
            if tries == TRIES {
                return Err(Drop::because(DropReason::NoPort));
            }
            tries += 1;
            scratch::<F>()?.in_need = tries > TRIES / 2;
            let _ = F::claim_port(skb).unpack()?;
        }
    }
    let _ = F::store(skb).unpack()?;
    Ok(())
}

/// Claims the other end's view with the source port that the flow has, if that may be and is free, or
/// was this flow's before.
#[inline(always)]
pub fn claim_back<F: Family>(_: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    work.claimed = false;
    if work.masquerade && !work.keeps_port {
        // What leaves masqueraded gets a port that no socket of the node has or gets.
        return Ok(Action::Pass);
    }
    let protocol = work.packet.protocol;
    let (key, from) = flows::key::<F>(&work.real, protocol);
    fill_back(work, from);
    if flows::claim::<F>(&key, &work.flow) {
        work.claimed = true;
        return Ok(Action::Pass);
    }
    let Some(old) = flows::lookup::<F>(&key) else {
        return Ok(Action::Pass);
    };
    let ours = old.flags & FLOW_BACK != 0 && old.xlat == work.flow.xlat;
    if ours && !work.packet.has(OPENS) {
        // What the other end has sent so far outlives the decision, but not the connection.
        keep(&mut work.flow.sides[1 - from], &old.sides[1 - from]);
        work.destination.side.seen |= old.sides[1 - from].seen;
    }
    let over =
        flows::closed(old) || flows::expired(old, protocol, work.now, config.ticks_per_second);
    if ours || over {
        flows::store::<F>(&key, &work.flow)?;
        work.claimed = true;
    }
    Ok(Action::Pass)
}

/// Claims the other end's view with another source port, if that is free.
#[inline(always)]
pub fn claim_port<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    let protocol = work.packet.protocol;
    if protocol != protocol::TCP && protocol != protocol::UDP && protocol != F::ICMP {
        // No ports, or none that can be changed.
        return Err(Drop::because(DropReason::NoPort));
    }
    let (first, ports) = if work.masquerade {
        (config.masquerade_first, config.masquerade_ports)
    } else {
        (FIRST_PORT, PORTS)
    };
    // SAFETY: the helper takes nothing and returns a number.
    let random = unsafe { bpf_get_prandom_u32() };
    work.real.source_port = (u32::from(first) + random % u32::from(ports).max(1)) as u16;
    let (key, from) = flows::key::<F>(&work.real, protocol);
    if let Some(old) = flows::lookup::<F>(&key) {
        // The other end may remember a connection that is just over; it takes a new one all the same,
        // but better from a port that rested.
        let over = flows::expired(old, protocol, work.now, config.ticks_per_second)
            || (work.in_need && flows::closed(old));
        if !over {
            return Ok(Action::Pass);
        }
        // Another CPU may find it as well: who inserts first has it.
        flows::remove::<F>(&key);
    }
    if work.masquerade && route::held_by_socket::<F>(skb, &work.real, protocol, &mut work.socket) {
        return Ok(Action::Pass);
    }
    fill_back(work, from);
    work.claimed = flows::claim::<F>(&key, &work.flow);
    Ok(Action::Pass)
}

/// Stores the entry under the tuple that led here; then `real` is what the packet is rewritten to, if
/// the flow is translated.
#[inline(always)]
pub fn store<F: Family>(_: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    let (key, from) = flows::key::<F>(&work.packet.tuple, work.packet.protocol);
    fill(work, from);
    if work.reply {
        // The client's view is as it was.
        work.flow.flags |= FLOW_BACK;
        work.flow.xlat = work.before.xlat;
        work.real = work.before.xlat;
    } else if work.translated {
        work.flow.flags |= FLOW_FRONT;
        work.flow.xlat = work.real;
    }
    flows::store::<F>(&key, &work.flow)?;
    Ok(Action::Pass)
}

/// Fills in the flow entry of the other end's view.
#[inline(always)]
fn fill_back<A: Copy>(work: &mut Work<A>, from: usize) {
    fill(work, from);
    work.flow.flags |= FLOW_BACK;
    work.flow.xlat = flows::reversed(&work.packet.tuple);
}

/// Fills in the flow entry, without translation; `from` is the packet's side under its key.
#[inline(always)]
fn fill<A: Copy>(work: &mut Work<A>, from: usize) {
    let flow = &mut work.flow;
    flow.sides[from] = work.source.side;
    flow.sides[1 - from] = work.destination.side;
    flow.epoch = work.epoch;
    flow.last_seen = work.now;
    flow.egress_rule = work.allowed.egress_rule;
    flow.ingress_rule = work.allowed.ingress_rule;
    flow.service = work.service;
    flow.backend = work.backend;
    flow.xlat = work.real;
    flow.initiator = if work.initiates {
        from as u8
    } else {
        1 - from as u8
    };
    flow.flags = (if work.own_node { FLOW_OWN_NODE } else { 0 })
        | (if work.masquerade { FLOW_MASQUERADE } else { 0 });
    flow.reserved = [0; 2];
}

/// Carries what an end has sent so far over into a new decision.
#[inline(always)]
pub(super) fn keep(side: &mut Side, old: &Side) {
    side.bytes = old.bytes;
    side.packets = old.packets;
    side.seen = old.seen;
}
