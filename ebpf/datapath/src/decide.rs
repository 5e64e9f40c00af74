//! The slow path: what to do with a packet whose flow is unknown, or was decided in another epoch.
//!
//! The steps, in the order of [`steps`]:
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

use aya_ebpf::{
    bindings::{bpf_fib_lookup, bpf_sock_tuple},
    helpers::bpf_get_prandom_u32,
};
use aya_log_ebpf::debug;
use weft_abi::{
    config::Config,
    drop::DropReason,
    event::{
        POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_FROM_OVERLAY, POINT_TO_CONTAINER,
        POINT_TO_NETDEV,
    },
    flow::{
        FLOW_BACK, FLOW_FRONT, FLOW_MASQUERADE, FLOW_OWN_NODE, Flow, HOP_HOST, HOP_NONE,
        HOP_TUNNEL, HOP_UPLINK, Side, Tuple,
    },
    ipcache::{IPCACHE_NO_MASQUERADE, KIND_HOST, KIND_LOCAL_POD, KIND_REMOTE_POD, KIND_WORLD},
    service::{SCOPE_EXTERNAL, SCOPE_INTERNAL},
};

use crate::{
    addresses::{self, End},
    checksum::Difference,
    clock, config,
    deliver::Delivery,
    drops::Drop,
    family::Family,
    flows, fragments,
    icmp::{self, Quoted},
    outcome::Outcome,
    packet::{ERROR, Icmp, OPENS, Packet, protocol},
    policy::{self, Allowed, Question},
    rewrite, route, services,
    skb::{Action, Skb},
    tunnel,
};

/// What is being decided: the slow path's scratch space, one per CPU and family.
///
/// The kernel gives a program 512 bytes of stack, which this would fill. Programs of these hooks run
/// with softirqs off and never interrupt each other on a CPU, so one suffices.
#[repr(C)]
pub struct Work<A> {
    /// The packet.
    packet: Packet<A>,
    /// The hook: one of the `POINT_` constants.
    point: u8,
    /// The entry being written.
    flow: Flow<A>,
    /// Where the packet comes from.
    source: End,
    /// Where it goes.
    destination: End,
    /// The flow as the other end sees it, in the direction of this packet.
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
    /// What comes of it.
    fate: Fate,
    /// Whether the flow is translated: its two ends see different tuples.
    translated: bool,
    /// Whether the packet is a reply of a translated flow, to be rewritten to the client's view.
    reply: bool,
    /// Whether the flow leaves the node with the node's address.
    masquerade: bool,
    /// Whether the flow has its source port already, and keeps it if it can.
    keeps_port: bool,
    /// Whether the other end's view is the flow's.
    claimed: bool,
    /// Whether free ports are hard to find.
    in_need: bool,
    /// Whether the packet's flow lives.
    known: bool,
    /// The side of the packet's source under its key.
    from: usize,
    /// The entry of the packet's flow as it was, if it lives.
    before: Flow<A>,
    /// Whether an ICMP error quotes a packet that can be read.
    quotes: bool,
    /// That packet.
    quoted: Quoted<A>,
    /// What translating it changes of the error's checksum.
    change: Difference,
    /// The addresses of an ICMP error when what it quotes was translated.
    outer: Tuple<A>,
    /// What the kernel is asked about routes.
    fib: bpf_fib_lookup,
    /// What the kernel is asked about sockets.
    socket: bpf_sock_tuple,
}

/// What comes of a packet that may pass.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is of a flow: the decision is remembered.
    Flow,
    /// It is delivered if policy allows it, and nothing remembered.
    Once,
    /// It is an ICMP error about a flow, and delivered as it is.
    Error,
    /// It is an ICMP error about a flow, and what it quotes is translated.
    Quoting,
    /// It is none of Weft's business.
    NotOurs,
}

/// Decides a packet; returns how it is to be delivered, unless it is none of Weft's business.
///
/// The steps are functions of their own, one after the other: their code and stack stay off the way of
/// known flows, and their stacks do not add up. They are global functions ([`steps`]), which the
/// verifier walks once each and not once per way that leads to them; so they take nothing but the
/// context, and find everything else in [`Work`].
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
        let _ = F::choose(skb).unpack()?;
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
        tuple: &work.real,
        from: &work.source.side,
        to: &work.destination.side,
    }))
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

/// A later fragment that comes before the first one waits for it.
#[inline(always)]
pub fn wait<F: Family, const POINT: u8>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    drop: Drop,
) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    work.point = POINT;
    match F::hold(skb).unpack() {
        // No room: the host may know what to do with it, a pod's neighbours do not.
        Ok(Action::Pass) if POINT == POINT_FROM_NETDEV => {
            match addresses::endpoint::<F>(packet.tuple.destination) {
                Some(_) => Err(drop),
                None => Ok(Action::Pass),
            }
        }
        Ok(Action::Pass) => Err(drop),
        held => held,
    }
}

/// See [`wait`]; an action of `Pass` says that there is no room.
#[inline(always)]
pub fn hold<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    if work.point == POINT_FROM_OVERLAY {
        // When it comes again, nothing tells any more which node sent it.
        match addresses::ipcache::<F>(work.packet.tuple.source) {
            Some(entry) if tunnel::is_from(skb, config, &entry.tunnel)? => {}
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

/// Where a packet is parsed into. Not onto the stack, whose contents the verifier knows so well that it
/// walks what follows once for every kind of packet.
#[inline(always)]
pub fn scratch_packet<F: Family>() -> Result<&'static mut Packet<F::Addr>, Drop> {
    scratch::<F>().map(|work| &mut work.packet)
}

/// This CPU's scratch space.
#[inline(always)]
fn scratch<F: Family>() -> Result<&'static mut Work<F::Addr>, Drop> {
    match F::scratch().get_ptr_mut(0) {
        // SAFETY: this CPU's own slot, nothing interrupts (see `Work`), and no step keeps it.
        Some(work) => Ok(unsafe { &mut *work }),
        None => Err(Drop::because(DropReason::NotConfigured)),
    }
}

/// The global functions of a family, one for each step, and the methods of [`Family`] that call them.
macro_rules! steps {
    ($($step:ident: $name:ident = $body:path;)+) => {
        mod steps {
            use aya_ebpf::{bindings::__sk_buff, programs::TcContext};

            use super::*;

            $(
                #[unsafe(no_mangle)]
                #[inline(never)]
                pub extern "C" fn $name(context: *mut __sk_buff) -> u64 {
                    // For the verifier, which wants the context even of callers of a step without use
                    // for it; and so the compiler must find one.
                    if context.is_null() {
                        return 0;
                    }
                    let skb = $crate::skb::Skb::new(TcContext::new(context));
                    $crate::outcome::Outcome::pack($body(&skb)).number()
                }
            )+
        }
    };
}

/// The methods of [`Family`] that call the functions of [`steps`].
macro_rules! step_methods {
    ($($step:ident: $name:ident;)+) => {
        $(
            #[inline(always)]
            fn $step(skb: &$crate::skb::Skb) -> $crate::outcome::Outcome {
                $crate::outcome::Outcome::from_number(steps::$name(skb.raw()))
            }
        )+
    };
}

pub(crate) use {step_methods, steps};

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
    work.now = clock::now();
    work.fate = Fate::Flow;
    work.known = false;
    work.initiates = true;
    work.service = 0;
    work.backend = 0;
    work.reply = false;
    work.masquerade = false;
    work.translated = false;
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
        work.known = true;
        work.before = *flow;
        work.initiates = from == usize::from(flow.initiator);
        work.own_node = flow.flags & FLOW_OWN_NODE != 0 || (work.own_node && work.initiates);
    }
    Ok(Action::Pass)
}

/// Steps 3 and 4, but for the way out of the node.
#[inline(always)]
pub fn choose<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    // 3.
    let client = translate::<F>(work)?;

    // 4.
    work.destination.locate::<F>(client, config);
    if work.point == POINT_FROM_NETDEV {
        let ours = work.destination.is_endpoint() || work.destination.kind == KIND_LOCAL_POD;
        if !ours || !check_uplink(skb, &mut work.source)? {
            work.fate = Fate::NotOurs;
            return Ok(Action::Pass);
        }
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

/// 1. Where the packet comes from: proves that it may claim its source address.
#[inline(always)]
fn origin<F: Family>(skb: &Skb, config: &Config, work: &mut Work<F::Addr>) -> Result<(), Drop> {
    let (packet, end) = (&work.packet, &mut work.source);
    match work.point {
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
            end.set_elsewhere::<F>(packet.tuple.source, config);
            if end.side.hop == HOP_TUNNEL && tunnel::is_from(skb, config, &end.side.tunnel)? {
                Ok(())
            } else {
                Err(Drop::because(DropReason::UnknownTunnel))
            }
        }
        POINT_FROM_NETDEV => {
            // Checked by `check_uplink`, once it is known that the packet is Weft's business.
            end.locate::<F>(packet.tuple.source, config);
            Ok(())
        }
        _ => {
            let ingress = skb.ingress_ifindex();
            end.locate::<F>(packet.tuple.source, config);
            if ingress == 0 {
                // A process of this node may use any address.
                end.set_host();
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
/// What arrived at an uplink must have come from where its source is: not from one of this node's
/// addresses, and not from a pod to which the overlay leads. Returns whether the interface is an
/// uplink: until the agent says so, and when it does no more, the host stack goes on as it did.
#[inline(always)]
fn check_uplink(skb: &Skb, end: &mut End) -> Result<bool, Drop> {
    let elsewhere = end.is_endpoint()
        || end.kind == KIND_HOST
        || end.kind == KIND_LOCAL_POD
        || (end.kind == KIND_REMOTE_POD && end.side.hop == HOP_TUNNEL);
    if elsewhere {
        return Err(Drop::because(DropReason::Spoofed));
    }
    let ifindex = skb.ifindex();
    match addresses::uplink(ifindex) {
        Some(uplink) => {
            end.set_uplink(ifindex, uplink);
            Ok(true)
        }
        None => Ok(false),
    }
}

/// 3. What the packet is translated to; returns the address where it goes in the end.
///
/// - A packet towards a service keeps the backend of its flow while that still serves; TCP keeps it
///   for as long as the connection lives, as with kube-proxy, which never cuts established TCP.
///   An opening packet that is sent again has no connection yet.
/// - A reply of a translated flow is rewritten back.
/// - A new flow may be one to a service. So may a known one that is none yet, because the service
///   came later: a client that keeps trying would keep its flow alive, and out of reach.
#[inline(always)]
fn translate<F: Family>(work: &mut Work<F::Addr>) -> Result<F::Addr, Drop> {
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

/// 4. Whether a packet at this hook may go there at all.
#[inline(always)]
fn check_destination<A>(skb: &Skb, config: &Config, work: &Work<A>) -> Result<(), Drop> {
    let packet = &work.packet;
    let end = &work.destination;
    if !end.is_endpoint() && end.kind == KIND_LOCAL_POD {
        return Err(Drop::because(DropReason::NoEndpoint));
    }
    match work.point {
        // What a pod sends there, masqueraded, would come from a node.
        POINT_FROM_CONTAINER
            if packet.protocol == protocol::UDP
                && work.initiates
                && config.overlay_port != 0
                && work.real.destination_port == config.overlay_port
                && !end.is_endpoint()
                && end.kind != KIND_REMOTE_POD =>
        {
            Err(Drop::because(DropReason::OverlayPort))
        }
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

/// 4. The way out of the node, for what neither a pod of this node nor the overlay takes.
///
/// Replies go the way the other end's packets came. Everything else goes by the node's routes; what
/// does not lead to an uplink stays with the host stack. What pods open towards the outside is
/// masqueraded: they have addresses that the outside cannot answer.
#[inline(always)]
pub fn leave<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let (work, config) = (scratch::<F>()?, config::get()?);
    let packet = &work.packet;
    let end = &mut work.destination;
    let back = if work.known && !work.initiates && !end.is_endpoint() {
        work.before.sides[1 - (work.from & 1)].hop
    } else {
        HOP_NONE
    };
    let ifindex = if back == HOP_HOST {
        end.set_host();
        return Ok(Action::Pass);
    } else if back == HOP_UPLINK {
        work.before.sides[1 - (work.from & 1)].ifindex
    } else if work.point != POINT_FROM_CONTAINER
        || end.side.hop != HOP_HOST
        || end.kind == KIND_HOST
    {
        return Ok(Action::Pass);
    } else if work.real.destination == F::HAIRPIN {
        // What a pod answers itself, in a flow that is forgotten.
        return Err(Drop::because(DropReason::NoRoute));
    } else {
        route::interface::<F>(skb, &work.real, packet.protocol, &mut work.fib).unwrap_or(0)
    };
    // A flow whose uplink or address is away keeps its translation until they are back: what the host
    // stack says of its packets meanwhile is no decision.
    let waits = work.known && work.initiates && work.before.flags & FLOW_MASQUERADE != 0;
    let Some(uplink) = addresses::uplink(ifindex) else {
        if waits {
            work.fate = Fate::Once;
        }
        return Ok(Action::Pass);
    };
    let inside = end.kind != KIND_WORLD || end.flags & IPCACHE_NO_MASQUERADE != 0;
    if !work.initiates || inside || config.flags & F::MASQUERADE == 0 {
        end.set_uplink(ifindex, uplink);
        return Ok(Action::Pass);
    }
    if work.fate == Fate::Once {
        // Nobody could answer: it goes to the host stack, and no farther (`to_netdev`).
        return Ok(Action::Pass);
    }
    let Some(address) = F::uplink_address(uplink) else {
        // Likewise.
        if waits {
            work.fate = Fate::Once;
        }
        return Ok(Action::Pass);
    };
    let has_port = packet.protocol == protocol::TCP
        || packet.protocol == protocol::UDP
        || (packet.protocol == F::ICMP && matches!(F::icmp(packet.icmp[0]), Icmp::Request));
    if !has_port {
        // Nothing would tell what answers it from what the node receives itself: a tunnel of the
        // node's, to the same peer, would end in the pod.
        return Err(Drop::because(DropReason::NotMasqueraded));
    }
    end.set_uplink(ifindex, uplink);
    work.masquerade = true;
    work.real.source = address;
    work.keeps_port = false;
    let before = &work.before;
    if work.known
        && before.flags & FLOW_MASQUERADE != 0
        && before.xlat.source == address
        && before.xlat.destination == work.real.destination
        && before.xlat.destination_port == work.real.destination_port
    {
        work.real.source_port = before.xlat.source_port;
        work.keeps_port = true;
    }
    Ok(Action::Pass)
}

/// Step 6: remembers the decision under every tuple that its packets have.
///
/// - A flow that is not translated has one.
/// - A reply of a translated flow renews the entry that led here.
/// - A translated flow has two: the other end's view, under which replies will come
///   ([`claim_back`], [`claim_port`]), and then the client's, under which its packets come.
#[inline(always)]
fn remember<F: Family>(skb: &Skb) -> Result<(), Drop> {
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

/// Ports for flows that had to give up theirs without leaving the node: the start of Linux's default
/// ephemeral range, of which nobody else has the pod's.
const FIRST_PORT: u16 = 32_768;
/// How many such ports there are.
const PORTS: u16 = 28_000;
/// How often another port is tried: with three of four taken, one flow in a million finds none, and
/// has to try again.
const TRIES: u32 = 48;

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
fn keep(side: &mut Side, old: &Side) {
    side.bytes = old.bytes;
    side.packets = old.packets;
    side.seen = old.seen;
}

/// An ICMP error belongs to the flow that it quotes, and passes where that flow is allowed, as a
/// packet of the direction against the quoted one: translated and delivered like those. About any
/// other packet it is a packet like any other, judged by type and code, and never remembered.
#[inline(always)]
pub fn read_quote<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    work.quotes = F::quoted(skb, work.packet.l4() + 8, &mut work.quoted);
    Ok(Action::Pass)
}

/// See [`read_quote`].
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
