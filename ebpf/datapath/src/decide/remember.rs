//! Remembers a decision under every tuple that the flow's packets have, and finds a source port where
//! the other end's view of it is taken.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use weft_abi::{
    config::Config,
    drop::DropReason,
    flow::{
        FLOW_BACK, FLOW_DIRECT_RETURN, FLOW_FRONT, FLOW_MASQUERADE, FLOW_OWN_NODE, Flow, Side,
        Tuple,
    },
};

use super::work::{Work, scratch};
use crate::{
    config,
    drops::Drop,
    family::Family,
    flows,
    hash::Hash,
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
/// - A reply of a translated flow renews the entry that led here, and restores the other one where it
///   is gone ([`store_front`]).
/// - A translated flow has two: the other end's view, under which replies will come
///   ([`claim_back`], [`claim_port`]), and then the client's, under which its packets come.
#[inline(always)]
pub(super) fn remember<F: Family>(skb: &Skb) -> Result<(), Drop> {
    let work = scratch::<F>()?;
    work.translated = (work.service != 0 && !work.direct) || work.masquerade || work.reply;
    if work.translated && !work.reply {
        let _ = F::claim_back(skb).unpack()?;
        let mut tries = 0;
        while !scratch::<F>()?.claimed {
            if tries == TRIES {
                return Err(Drop::because(DropReason::NoPort));
            }
            scratch::<F>()?.tries = tries;
            tries += 1;
            let _ = F::claim_port(skb).unpack()?;
        }
    } else if work.reply {
        let _ = F::store_front(skb).unpack()?;
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
    let over =
        flows::closed(old) || flows::expired(old, protocol, work.now, config.ticks_per_second);
    // What the other end sent while this entry was gone looked like a flow of its own.
    let answers = old.flags & FLOW_BACK == 0
        && usize::from(old.initiator) != from
        && flows::joined_midway(old, protocol);
    let ours = resume(work, old, from);
    if ours || over || answers {
        flows::store::<F>(&key, &work.flow)?;
        work.claimed = true;
    }
    Ok(Action::Pass)
}

/// Whether an entry is the other end's view of the flow that is being decided, as it was before: then
/// what its ends have sent so far outlives the decision, but not the connection. `work.flow` is the new
/// entry, and `from` the packet's side in both.
#[inline(always)]
fn resume<A: Copy + PartialEq>(work: &mut Work<A>, old: &Flow<A>, from: usize) -> bool {
    if old.flags & FLOW_BACK == 0 || old.xlat != work.flow.xlat {
        return false;
    }
    if !work.packet.has(OPENS) {
        keep(&mut work.flow.sides[1 - from], &old.sides[1 - from]);
        work.flow.sides[from].seen |= old.sides[from].seen;
        work.source.side.seen |= old.sides[from].seen;
        work.destination.side.seen |= old.sides[1 - from].seen;
    }
    true
}

/// The number that decides which port a flow gets at its `index`-th try.
///
/// Of a TCP connection it is always the same, so that one whose entries are gone finds the port again
/// that its other end knows. Whoever could guess it knows the pod's own port, and needs no guess. What
/// has no connections to lose gets a port that nobody can guess.
#[inline(always)]
fn number<F: Family>(tuple: &Tuple<F::Addr>, protocol: u8, index: u32) -> u32 {
    if protocol != protocol::TCP {
        // SAFETY: the helper takes nothing and returns a number.
        return unsafe { bpf_get_prandom_u32() };
    }
    Hash::of(protocol, 0, 0)
        .word(F::hash(tuple, protocol))
        .word(index)
        .finish()
}

/// The port that a TCP connection leaves the node with, unless that was taken.
#[inline(always)]
pub(super) fn first_port<F: Family>(tuple: &Tuple<F::Addr>, protocol: u8, config: &Config) -> u16 {
    let number = number::<F>(tuple, protocol, 0);
    port(config.masquerade_first, config.masquerade_ports, number)
}

/// The port that a number stands for, out of so many from the first on.
#[inline(always)]
fn port(first: u16, ports: u16, number: u32) -> u16 {
    (u32::from(first) + number % u32::from(ports).max(1)) as u16
}

/// Claims the other end's view with another source port, if that is free or was this flow's before.
#[inline(always)]
pub fn claim_port<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    let protocol = work.packet.protocol;
    if protocol != protocol::TCP
        && protocol != protocol::UDP
        && protocol != protocol::SCTP
        && protocol != F::ICMP
    {
        // No ports, or none that can be changed.
        return Err(Drop::because(DropReason::NoPort));
    }
    let (first, ports) = if work.masquerade {
        (config.masquerade_first, config.masquerade_ports)
    } else {
        (FIRST_PORT, PORTS)
    };
    let number = number::<F>(&work.packet.tuple, protocol, work.tries);
    work.real.source_port = port(first, ports, number);
    let (key, from) = flows::key::<F>(&work.real, protocol);
    fill_back(work, from);
    if let Some(old) = flows::lookup::<F>(&key) {
        // The other end may remember a connection that is just over; it takes a new one all the same,
        // but better from a port that rested.
        let in_need = work.tries >= TRIES / 2;
        let over = flows::expired(old, protocol, work.now, config.ticks_per_second)
            || (in_need && flows::closed(old));
        if !over {
            // Of a flow whose client's view is gone, the other end's may still be there.
            if !work.packet.has(OPENS) && !flows::closed(old) && resume(work, old, from) {
                flows::store::<F>(&key, &work.flow)?;
                work.claimed = true;
            }
            return Ok(Action::Pass);
        }
        // Another CPU may find it as well: who inserts first has it.
        flows::remove::<F>(&key);
    }
    if work.masquerade && route::held_by_socket::<F>(skb, &work.real, protocol, &mut work.socket) {
        return Ok(Action::Pass);
    }
    work.claimed = flows::claim::<F>(&key, &work.flow);
    Ok(Action::Pass)
}

/// Restores the client's view of a translated flow, of which a reply came, if it is gone.
#[inline(always)]
pub fn store_front<F: Family>(_: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    let client = flows::reversed(&work.before.xlat);
    let (key, from) = flows::key::<F>(&client, work.packet.protocol);
    if flows::lookup::<F>(&key).is_some() || flows::closed(&work.before) {
        return Ok(Action::Pass);
    }
    // The reply goes the other way.
    fill(work, 1 - from);
    work.flow.flags |= FLOW_FRONT;
    work.flow.xlat = flows::reversed(&work.packet.tuple);
    flows::claim::<F>(&key, &work.flow);
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
        | (if work.masquerade { FLOW_MASQUERADE } else { 0 })
        | (if work.direct || work.forwarded {
            FLOW_DIRECT_RETURN
        } else {
            0
        });
    flow.backends_epoch = work.backends_epoch;
}

/// Carries what an end has sent so far over into a new decision.
#[inline(always)]
pub(super) fn keep(side: &mut Side, old: &Side) {
    side.bytes = old.bytes;
    side.packets = old.packets;
    side.seen = old.seen;
}
