//! The slow path: what to do with a packet whose flow is unknown, or was decided in another epoch.
//!
//! The steps, in the order of [`steps`]:
//!
//! 1. where the packet comes from, and whether it may claim its source address;
//! 2. which flow it belongs to, if one still lives;
//! 3. what it is translated to;
//! 4. where it goes;
//! 5. whether policy allows the flow, in the direction in which it was opened;
//! 6. remember the decision, and deliver.
//!
//! Nothing is remembered of a packet that is dropped: the next one is judged afresh.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_log_ebpf::debug;
use weft_abi::{
    config::Config,
    drop::DropReason,
    event::{POINT_FROM_CONTAINER, POINT_FROM_OVERLAY, POINT_TO_CONTAINER},
    flow::{FLOW_BACK, FLOW_FRONT, FLOW_OWN_NODE, Flow, HOP_HOST, HOP_TUNNEL, Side, Tuple},
    ipcache::{KIND_HOST, KIND_LOCAL_POD},
};

use crate::{
    addresses::{self, End},
    clock, config,
    deliver::deliver,
    drops::Drop,
    family::Family,
    flows,
    outcome::Outcome,
    packet::{ERROR, OPENS, Packet, protocol},
    policy::{self, Allowed, Question},
    services,
    skb::{Action, Skb},
    tunnel,
};

/// What is being decided: the slow path's scratch space, one per CPU and family.
///
/// The kernel gives a program 512 bytes of stack, which this would fill. Programs of these hooks run
/// with softirqs off and never interrupt each other on a CPU, so one suffices.
#[repr(C)]
pub struct Work<A> {
    /// The entry being written.
    flow: Flow<A>,
    /// Where the packet comes from.
    source: End,
    /// Where it goes.
    destination: End,
    /// The flow as the backend sees it, in the direction of this packet.
    real: Tuple<A>,
    /// The service port; 0 without a service.
    service: u32,
    /// The backend.
    backend: u32,
    /// The rules that allow it.
    allowed: Allowed,
    /// The epoch of the decision, read before anything that it rests on.
    epoch: u32,
    /// Now, in kernel ticks.
    now: u32,
    /// Whether the packet goes in the direction in which its flow was opened.
    initiates: bool,
    /// Whether a process of this node opened the flow.
    own_node: bool,
    /// Whether the packet is of a flow, and the decision to be remembered.
    remember: bool,
    /// Whether the packet is a backend's reply, to be rewritten to the client's view.
    reply: bool,
}

/// Decides a packet, and delivers it.
///
/// Two functions of their own, one after the other: their code and stack stay off the way of known
/// flows, and their stacks do not add up.
#[inline(always)]
pub fn decide<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
) -> Result<Action, Drop> {
    let Some(work) = F::scratch().get_ptr_mut(0) else {
        return Err(Drop::because(DropReason::NotConfigured));
    };
    // SAFETY: this CPU's own slot, and nothing interrupts (see `Work`).
    let work = unsafe { &mut *work };
    let _ = judge::<F, POINT>(skb, packet, config, work).unpack()?;
    trace::<F, POINT>(skb, packet);
    finish::<F, POINT>(skb, packet, config, work).unpack()
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

/// Steps 1 to 5; an action means "allowed".
#[inline(never)]
fn judge<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
    work: &mut Work<F::Addr>,
) -> Outcome {
    Outcome::pack(steps::<F, POINT>(skb, packet, config, work).map(|()| Action::Pass))
}

#[inline(always)]
fn steps<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
    work: &mut Work<F::Addr>,
) -> Result<(), Drop> {
    work.epoch = config::epoch(config);

    // 1.
    let own_process = POINT == POINT_TO_CONTAINER && skb.ingress_ifindex() == 0;
    origin::<F, POINT>(skb, packet, config, &mut work.source)?;
    if packet.has(ERROR) {
        return error::<F, POINT>(skb, packet, config, work, own_process);
    }
    work.remember = true;

    // 2.
    work.now = clock::now();
    let (key, from) = flows::key::<F>(&packet.tuple, packet.protocol);
    let known = flows::live::<F>(packet, &key, from, work.now, config.ticks_per_second);
    work.initiates = true;
    work.own_node = own_process;
    if let Some(flow) = &known {
        work.initiates = from == usize::from(flow.initiator);
        work.own_node = flow.flags & FLOW_OWN_NODE != 0 || (own_process && work.initiates);
    }

    // 3.
    translate::<F, POINT>(packet, known.as_deref(), work)?;

    // 4.
    if work.real.destination == F::GATEWAY && work.reply || work.real.source == F::GATEWAY {
        // A pod that reaches itself through a service: it is on both ends.
        work.destination = work.source;
    } else {
        work.destination.locate::<F>(work.real.destination);
    }
    check_destination::<POINT>(skb, &work.destination)?;

    // 5.
    let port = if packet.protocol == protocol::ICMP {
        packet.icmp
    } else if work.initiates {
        work.real.destination_port.to_be_bytes()
    } else {
        work.real.source_port.to_be_bytes()
    };
    let question = Question {
        protocol: packet.protocol,
        port,
        own_node: work.own_node,
    };
    work.allowed = if work.initiates {
        policy::judge(&work.source, &work.destination, &question)?
    } else {
        policy::judge(&work.destination, &work.source, &question)?
    };

    // 6.
    if let Some(flow) = &known {
        // What both ends have sent so far outlives the decision.
        keep(&mut work.source.side, &flow.sides[from]);
        keep(&mut work.destination.side, &flow.sides[1 - from]);
    }
    flows::account(&mut work.source.side, packet.signals, skb.len());
    Ok(())
}

/// 1. Where the packet comes from: proves that it may claim its source address.
#[inline(always)]
fn origin<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
    end: &mut End,
) -> Result<(), Drop> {
    match POINT {
        POINT_FROM_CONTAINER => match addresses::endpoint::<F>(packet.tuple.source) {
            Some(endpoint)
                if endpoint.ifindex == skb.ifindex() && endpoint.mac == packet.source_mac =>
            {
                end.set_endpoint(endpoint);
                Ok(())
            }
            _ => Err(Drop::because(DropReason::Spoofed)),
        },
        POINT_FROM_OVERLAY => {
            end.set_elsewhere::<F>(packet.tuple.source);
            if end.side.hop == HOP_TUNNEL && end.side.tunnel == tunnel::remote(skb)? {
                Ok(())
            } else {
                Err(Drop::because(DropReason::UnknownTunnel))
            }
        }
        _ => {
            let ingress = skb.ingress_ifindex();
            end.locate::<F>(packet.tuple.source);
            if ingress == 0 {
                // A process of this node may use any address.
                end.side = Side {
                    hop: HOP_HOST,
                    ..Side::default()
                };
                return Ok(());
            }
            // Forwarded by the host stack: it must have come from where the address is.
            let right = if end.is_endpoint() {
                ingress == end.side.ifindex
            } else if end.side.hop == HOP_TUNNEL {
                ingress == config.overlay_ifindex
            } else {
                end.kind != KIND_HOST && end.kind != KIND_LOCAL_POD
            };
            if right {
                Ok(())
            } else {
                Err(Drop::because(DropReason::Spoofed))
            }
        }
    }
}

/// 3. What the packet is translated to.
///
/// - A packet towards a service keeps the backend of its flow while that still serves; TCP keeps it
///   for as long as the connection lives, as with kube-proxy, which never cuts established TCP.
///   An opening packet that is sent again has no connection yet.
/// - A backend's reply is rewritten back.
/// - A new flow of a pod may be one to a service. So may a known one that is none yet, because the
///   service came later: a client that keeps trying would keep its flow alive, and out of reach.
#[inline(always)]
fn translate<F: Family, const POINT: u8>(
    packet: &Packet<F::Addr>,
    known: Option<&Flow<F::Addr>>,
    work: &mut Work<F::Addr>,
) -> Result<(), Drop> {
    work.real = packet.tuple;
    work.service = 0;
    work.backend = 0;
    work.reply = false;
    if let Some(flow) = known {
        if flow.flags & FLOW_BACK != 0 {
            if work.initiates {
                return direct::<F>(packet, flow);
            }
            work.service = flow.service;
            work.backend = flow.backend;
            work.reply = true;
            return Ok(());
        }
        let begins = packet.protocol != protocol::TCP || packet.has(OPENS);
        if flow.flags & FLOW_FRONT == 0 {
            if !(work.initiates && begins) {
                return Ok(());
            }
        } else if !work.initiates {
            // A packet that claims a service's address as its source.
            return Err(Drop::because(DropReason::Spoofed));
        } else if !begins || services::still_serves::<F>(flow, &flow.xlat) {
            work.service = flow.service;
            work.backend = flow.backend;
            work.real = flow.xlat;
            return Ok(());
        }
    }
    if POINT != POINT_FROM_CONTAINER {
        return Ok(());
    }
    if let Some(choice) = services::select::<F>(&packet.tuple, packet.protocol)? {
        work.service = choice.service;
        work.backend = choice.backend;
        work.real.destination = choice.address;
        work.real.destination_port = choice.port;
        // A pod that reaches itself must not see its own address as the client: it would answer
        // itself without the datapath ever translating back.
        if choice.address == packet.tuple.source {
            work.real.source = F::GATEWAY;
        }
    }
    Ok(())
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

/// 4. Whether a packet at this hook may go there at all.
#[inline(always)]
fn check_destination<const POINT: u8>(skb: &Skb, end: &End) -> Result<(), Drop> {
    if !end.is_endpoint() && end.kind == KIND_LOCAL_POD {
        return Err(Drop::because(DropReason::NoEndpoint));
    }
    match POINT {
        // The overlay ends here: a pod, or this node itself.
        POINT_FROM_OVERLAY if !end.is_endpoint() && end.kind != KIND_HOST => {
            Err(Drop::because(DropReason::NoRoute))
        }
        // The host stack's route must lead to the pod that has the address.
        POINT_TO_CONTAINER if !end.is_endpoint() || end.side.ifindex != skb.ifindex() => {
            Err(Drop::because(DropReason::NoEndpoint))
        }
        _ => Ok(()),
    }
}

/// Step 6.
#[inline(never)]
fn finish<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
    work: &mut Work<F::Addr>,
) -> Outcome {
    Outcome::pack(remember_and_deliver::<F, POINT>(skb, packet, config, work))
}

/// Remembers the decision under every tuple that its packets have, and delivers.
#[inline(always)]
fn remember_and_deliver<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
    work: &mut Work<F::Addr>,
) -> Result<Action, Drop> {
    if !work.remember {
        return deliver::<F, POINT>(skb, packet, None, &work.destination.side, config);
    }
    let (key, from) = flows::key::<F>(&work.real, packet.protocol);
    fill(work, from);
    if work.service == 0 {
        flows::store::<F>(&key, &work.flow)?;
        return deliver::<F, POINT>(skb, packet, None, &work.destination.side, config);
    }
    if work.reply {
        // The entry that led here holds the client's view; nothing of it changes.
        let Some(old) = flows::lookup::<F>(&key) else {
            return Err(Drop::because(DropReason::FlowTable));
        };
        work.flow.flags |= FLOW_BACK;
        work.flow.xlat = old.xlat;
        work.real = old.xlat;
        flows::store::<F>(&key, &work.flow)?;
    } else {
        remember_backend::<F>(packet, config, work)?;
        // The client's view, under which its packets come.
        let (key, from) = flows::key::<F>(&packet.tuple, packet.protocol);
        fill(work, from);
        work.flow.flags |= FLOW_FRONT;
        work.flow.xlat = work.real;
        flows::store::<F>(&key, &work.flow)?;
    }
    deliver::<F, POINT>(
        skb,
        packet,
        Some(&work.real),
        &work.destination.side,
        config,
    )
}

/// Remembers the backend's view, under which replies will come. Another flow may have that tuple:
/// then this one gets another source port.
#[inline(always)]
fn remember_backend<F: Family>(
    packet: &Packet<F::Addr>,
    config: &Config,
    work: &mut Work<F::Addr>,
) -> Result<(), Drop> {
    let (key, from) = flows::key::<F>(&work.real, packet.protocol);
    work.flow.flags |= FLOW_BACK;
    work.flow.xlat = flows::reversed(&packet.tuple);
    if flows::claim::<F>(&key, &work.flow) {
        return Ok(());
    }
    if let Some(old) = flows::lookup::<F>(&key) {
        let ours = old.flags & FLOW_BACK != 0 && old.xlat == work.flow.xlat;
        if ours && !packet.has(OPENS) {
            // What the backend has sent so far outlives the decision, but not the connection.
            keep(&mut work.flow.sides[1 - from], &old.sides[1 - from]);
        }
        let over = flows::closed(old)
            || flows::expired(old, packet.protocol, work.now, config.ticks_per_second);
        if ours || over {
            return flows::store::<F>(&key, &work.flow);
        }
    }
    let mut attempts = 0;
    while attempts < PORT_ATTEMPTS {
        // SAFETY: the helper takes nothing and returns a number.
        let random = unsafe { bpf_get_prandom_u32() };
        work.real.source_port = FIRST_PORT + (random % PORTS) as u16;
        let (key, from) = flows::key::<F>(&work.real, packet.protocol);
        fill(work, from);
        work.flow.flags |= FLOW_BACK;
        work.flow.xlat = flows::reversed(&packet.tuple);
        if flows::claim::<F>(&key, &work.flow) {
            return Ok(());
        }
        attempts += 1;
    }
    Err(Drop::because(DropReason::NoPort))
}

/// Ports for flows that had to give up theirs: the start of Linux's default ephemeral range.
const FIRST_PORT: u16 = 32_768;
/// How many such ports there are.
const PORTS: u32 = 28_000;
/// How often a free one is looked for: with half of all taken, one in 256 flows finds none.
const PORT_ATTEMPTS: u32 = 8;

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
    flow.flags = if work.own_node { FLOW_OWN_NODE } else { 0 };
    flow.reserved = [0; 2];
}

/// Carries what an end has sent so far over into a new decision.
#[inline(always)]
fn keep(side: &mut Side, old: &Side) {
    side.bytes = old.bytes;
    side.packets = old.packets;
    side.seen = old.seen;
}

/// An ICMP error belongs to the flow that it quotes, and passes where that flow is allowed. About
/// any other packet it is a packet like any other, judged by type and code, and never remembered.
#[inline(always)]
fn error<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
    work: &mut Work<F::Addr>,
    own_process: bool,
) -> Result<(), Drop> {
    work.remember = false;
    work.destination.locate::<F>(packet.tuple.destination);
    check_destination::<POINT>(skb, &work.destination)?;
    // The quoted packet was sent by whom the error goes to.
    let related = match F::quoted(skb, packet.l4() + 8) {
        Some((quoted, protocol)) if quoted.source == packet.tuple.destination => {
            let (key, _) = flows::key::<F>(&quoted, protocol);
            match flows::lookup::<F>(&key) {
                Some(flow) => {
                    flow.epoch == work.epoch
                        && !flows::expired(flow, protocol, clock::now(), config.ticks_per_second)
                }
                None => false,
            }
        }
        _ => false,
    };
    if !related {
        let question = Question {
            protocol: packet.protocol,
            port: packet.icmp,
            own_node: own_process,
        };
        let _ = policy::judge(&work.source, &work.destination, &question)?;
    }
    Ok(())
}
