//! The flow table: keys, lifetimes, and what a packet leaves behind in its flow.
//!
//! Concurrency: entries are written by packets of both directions, on any CPU, without locks. The
//! decision of an entry (hops, translation, rules, epoch) changes only by replacing the whole entry;
//! what packets write in place (`seen`, counters, `last_seen`) may lose an update to another CPU,
//! which costs a count and never a decision.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use weft_abi::{
    config::Config,
    drop::DropReason,
    flow::{
        FLOW_BACK, FLOW_FRONT, Flow, FlowKey, HIGH, LOW, SEEN_ANY, SEEN_DATA, SEEN_FIN, SEEN_OPEN,
        SEEN_RST, Side, Tuple,
    },
};

use crate::{
    clock,
    drops::Drop,
    family::Family,
    lookups::{self, Table},
    packet::{DATA, FIN, OPENS, Packet, RST, protocol},
};

/// Seconds without a packet after which a flow is no flow any more, as Linux's conntrack has them
/// (`net.netfilter.nf_conntrack_*_timeout`), with kube-proxy's 24 hours for established TCP.
mod idle {
    /// TCP after data in both directions.
    pub const TCP_ESTABLISHED: u32 = 86_400;
    /// TCP while it opens.
    pub const TCP_OPENING: u32 = 120;
    /// TCP after FIN in both directions, or RST.
    pub const TCP_CLOSED: u32 = 10;
    /// Anything else after packets in both directions.
    pub const REPLIED: u32 = 120;
    /// Anything else before.
    pub const UNREPLIED: u32 = 30;
    /// The smallest of them: below it nothing needs to be looked at closer.
    pub const LEAST: u32 = TCP_CLOSED;
}

/// The key of a packet's flow, and the side (`LOW` or `HIGH`) that the packet comes from.
#[inline(always)]
pub fn key<F: Family>(tuple: &Tuple<F::Addr>, protocol: u8) -> (FlowKey<F::Addr>, usize) {
    let first = F::sorts_first(
        tuple.source,
        tuple.source_port,
        tuple.destination,
        tuple.destination_port,
    );
    // One key, filled in by halves: two that are made whole would take the stack of two.
    let (low, high) = if first {
        (&tuple.source, &tuple.destination)
    } else {
        (&tuple.destination, &tuple.source)
    };
    let (low_port, high_port) = if first {
        (tuple.source_port, tuple.destination_port)
    } else {
        (tuple.destination_port, tuple.source_port)
    };
    let key = FlowKey {
        low: *low,
        high: *high,
        low_port,
        high_port,
        protocol,
        reserved: [0; 3],
    };
    (key, if first { LOW } else { HIGH })
}

/// The tuple of the opposite direction.
#[inline(always)]
pub fn reversed<A: Copy>(tuple: &Tuple<A>) -> Tuple<A> {
    Tuple {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
    }
}

/// The entry of a key, whatever its age.
#[inline(always)]
pub fn lookup<F: Family>(key: &FlowKey<F::Addr>) -> Option<&'static mut Flow<F::Addr>> {
    lookups::count(Table::Flows);
    // SAFETY: entries are plain data in preallocated slots, valid for the program's run. A slot that
    // is evicted and reused meanwhile yields another flow's plain data; see the module's doc.
    F::flows()
        .get_ptr_mut(key)
        .map(|flow| unsafe { &mut *flow })
}

/// The entry of a packet's flow, if it still lives and the packet does not open a new connection.
#[inline(always)]
pub fn live<F: Family>(
    packet: &Packet<F::Addr>,
    key: &FlowKey<F::Addr>,
    from: usize,
    now: u32,
    ticks_per_second: u32,
) -> Option<&'static mut Flow<F::Addr>> {
    let flow = lookup::<F>(key)?;
    if opens_anew(packet, flow, from) || expired(flow, key.protocol, now, ticks_per_second) {
        return None;
    }
    Some(flow)
}

/// Whether a packet opens a new connection although its tuple has an entry: an opening packet from
/// the other end, or from the same end after the old connection was under way or refused.
///
/// An entry of a service flow has one direction in which no packet of the flow itself comes. An
/// opening packet there is somebody else's and takes nothing from a flow that lives: in a service's
/// name nobody opens anything, and a client's direct connection waits until its port is free.
#[inline(always)]
pub fn opens_anew<A>(packet: &Packet<A>, flow: &Flow<A>, from: usize) -> bool {
    if !packet.has(OPENS) {
        return false;
    }
    let initiates = from == usize::from(flow.initiator);
    if flow.flags & FLOW_FRONT != 0 && !initiates {
        return false;
    }
    if flow.flags & FLOW_BACK != 0 && initiates {
        return closed(flow);
    }
    !initiates || flow.sides[from].seen & SEEN_DATA != 0 || closed(flow)
}

/// Whether the entry is too old to speak for its packets.
#[inline(always)]
pub fn expired<A>(flow: &Flow<A>, protocol: u8, now: u32, ticks_per_second: u32) -> bool {
    let age = clock::since(now, flow.last_seen);
    // The common case costs one comparison.
    if age < idle::LEAST * ticks_per_second {
        return false;
    }
    age / ticks_per_second.max(1)
        >= idle_limit(protocol, flow.sides[LOW].seen, flow.sides[HIGH].seen)
}

/// Seconds that a flow of this protocol may idle, by what its two sides have sent.
fn idle_limit(protocol: u8, low: u8, high: u8) -> u32 {
    let (both, either) = (low & high, low | high);
    if protocol == protocol::TCP {
        if both & SEEN_FIN != 0 || either & SEEN_RST != 0 {
            idle::TCP_CLOSED
        } else if either & SEEN_DATA != 0 {
            // One side is enough: the halves of a service flow are seen by different entries.
            idle::TCP_ESTABLISHED
        } else {
            idle::TCP_OPENING
        }
    } else if both & SEEN_ANY != 0 {
        idle::REPLIED
    } else {
        idle::UNREPLIED
    }
}

/// Whether the connection is over, so that its tuple may serve another.
#[inline(always)]
pub fn closed<A>(flow: &Flow<A>) -> bool {
    let (low, high) = (flow.sides[LOW].seen, flow.sides[HIGH].seen);
    (low & high) & SEEN_FIN != 0 || (low | high) & SEEN_RST != 0
}

/// Whether nothing became of the flow's backend since it was decided, as far as that matters to its
/// packet: connections that are under way keep theirs.
#[inline(always)]
pub fn keeps_backend<A>(flow: &Flow<A>, packet: &Packet<A>, config: &Config) -> bool {
    // The common case costs one comparison.
    flow.backends_epoch == config.backends_epoch as u16 || flow.service == 0 || packet.has(DATA)
}

/// The `SEEN_` bits that a packet leaves.
#[inline(always)]
pub fn seen_bits(signals: u8) -> u8 {
    SEEN_ANY
        | (if signals & OPENS != 0 { SEEN_OPEN } else { 0 })
        | (if signals & DATA != 0 { SEEN_DATA } else { 0 })
        | (if signals & FIN != 0 { SEEN_FIN } else { 0 })
        | (if signals & RST != 0 { SEEN_RST } else { 0 })
}

/// Whether a TCP flow was joined midway, because its entry was gone: what looks like its initiator may
/// well be the end that answers.
#[inline(always)]
pub fn joined_midway<A>(flow: &Flow<A>, protocol: u8) -> bool {
    protocol == protocol::TCP && flow.sides[usize::from(flow.initiator & 1)].seen & SEEN_OPEN == 0
}

/// Accounts for a packet on the side that sent it.
#[inline(always)]
pub fn account(side: &mut Side, signals: u8, length: u32) {
    side.packets = side.packets.wrapping_add(1);
    side.bytes = side.bytes.wrapping_add(u64::from(length));
    let seen = side.seen | seen_bits(signals);
    // Write only what changes: the line may be shared with the other direction's CPU.
    if seen != side.seen {
        side.seen = seen;
    }
}

/// Refreshes the entry's age, and now and then its twin.
///
/// The twin of a translated flow's entry is the one under the other tuple. Each is used by one
/// direction only; a visit every few seconds keeps the LRU from evicting one while the other lives.
/// What an end does for the first time, and the end of a connection, is told to both at once: how long
/// an entry may idle depends on what both ends have sent. Returns false if the twin is gone, or the
/// client's packets lead to an entry that is another flow's by now: then the flow must be decided
/// again.
#[inline(always)]
pub fn refresh<F: Family>(
    flow: &mut Flow<F::Addr>,
    packet: &Packet<F::Addr>,
    from: usize,
    now: u32,
) -> bool {
    let then = flow.last_seen;
    let tells = packet.has(FIN | RST) || seen_bits(packet.signals) & !flow.sides[from].seen != 0;
    if then == now && !tells {
        return true;
    }
    flow.last_seen = now;
    let translated = flow.flags & (FLOW_FRONT | FLOW_BACK) != 0;
    if !translated || !(tells || crosses_beat(now, then)) {
        return true;
    }
    visit_twin::<F>(flow, packet, from, now)
}

/// See [`refresh`]. A function of its own, because it is rare and takes stack.
#[inline(never)]
fn visit_twin<F: Family>(
    flow: &mut Flow<F::Addr>,
    packet: &Packet<F::Addr>,
    from: usize,
    now: u32,
) -> bool {
    let (key, _) = key::<F>(&flow.xlat, packet.protocol);
    let Some(twin) = lookup::<F>(&key) else {
        return false;
    };
    if twin.xlat != reversed(&packet.tuple) {
        // A backend whose client has gone on to another one has nothing to say about that.
        return flow.flags & FLOW_BACK != 0;
    }
    twin.last_seen = now;
    let initiator = usize::from(twin.initiator & 1);
    let same = if from == usize::from(flow.initiator) {
        initiator
    } else {
        1 - initiator
    };
    twin.sides[same].seen |= seen_bits(packet.signals);
    true
}

/// Whether a beat of 1,024 ticks (1 to 10 seconds) lies between two times.
fn crosses_beat(now: u32, then: u32) -> bool {
    (now ^ then) >> 10 != 0
}

/// Stores an entry, over any old one.
#[inline(always)]
pub fn store<F: Family>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> Result<(), Drop> {
    F::flows()
        .insert(key, flow, u64::from(BPF_ANY))
        .map_err(|_| Drop::because(DropReason::FlowTable))
}

/// Removes an entry; none is fine.
#[inline(always)]
pub fn remove<F: Family>(key: &FlowKey<F::Addr>) {
    let _ = F::flows().remove(key);
}

/// Stores an entry unless the key is taken; whether it was free.
#[inline(always)]
pub fn claim<F: Family>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    F::flows().insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::V4;
    use weft_abi::addr::Addr4;

    fn tuple(source: [u8; 4], source_port: u16, destination: [u8; 4], port: u16) -> Tuple<Addr4> {
        Tuple {
            source: Addr4::new(source),
            destination: Addr4::new(destination),
            source_port,
            destination_port: port,
        }
    }

    #[test]
    fn both_directions_share_a_key() {
        for tuple in [
            tuple([10, 0, 0, 1], 40000, [10, 0, 0, 2], 80),
            tuple([10, 0, 0, 2], 40000, [10, 0, 0, 1], 80),
            tuple([10, 0, 0, 1], 80, [10, 0, 0, 1], 40000),
        ] {
            let (there, from) = key::<V4>(&tuple, 6);
            let (back, to) = key::<V4>(&reversed(&tuple), 6);
            assert_eq!(there, back);
            assert_ne!(from, to);
        }
    }

    #[test]
    fn idle_limits() {
        assert_eq!(idle_limit(protocol::TCP, SEEN_ANY, 0), idle::TCP_OPENING);
        assert_eq!(
            idle_limit(protocol::TCP, SEEN_ANY | SEEN_DATA, SEEN_ANY),
            idle::TCP_ESTABLISHED
        );
        assert_eq!(
            idle_limit(protocol::TCP, SEEN_FIN, SEEN_FIN),
            idle::TCP_CLOSED
        );
        assert_eq!(
            idle_limit(protocol::TCP, SEEN_FIN, SEEN_DATA),
            idle::TCP_ESTABLISHED
        );
        assert_eq!(idle_limit(protocol::TCP, SEEN_RST, 0), idle::TCP_CLOSED);
        assert_eq!(idle_limit(protocol::UDP, SEEN_ANY, 0), idle::UNREPLIED);
        assert_eq!(idle_limit(protocol::UDP, SEEN_ANY, SEEN_ANY), idle::REPLIED);
    }

    #[test]
    fn an_opening_packet_restarts_a_connection_under_way() {
        let mut flow: Flow<Addr4> = Flow {
            initiator: LOW as u8,
            ..Flow::default()
        };
        let mut packet = Packet {
            tuple: tuple([10, 0, 0, 1], 1, [10, 0, 0, 2], 2),
            l4_offset: 34,
            end: 54,
            source_mac: [0; 6],
            protocol: protocol::TCP,
            signals: OPENS,
            ttl: 64,
            icmp: [0; 2],
            datagram: 0,
        };
        flow.sides[LOW].seen = SEEN_ANY;
        assert!(
            !opens_anew(&packet, &flow, LOW),
            "a retransmitted SYN is the same connection"
        );
        assert!(
            opens_anew(&packet, &flow, HIGH),
            "a SYN from the other end is another"
        );
        flow.sides[LOW].seen |= SEEN_DATA;
        assert!(
            opens_anew(&packet, &flow, LOW),
            "a SYN after data is a new connection"
        );
        packet.signals = DATA;
        assert!(!opens_anew(&packet, &flow, LOW));

        packet.signals = OPENS;
        flow.flags = FLOW_FRONT;
        assert!(opens_anew(&packet, &flow, LOW));
        assert!(!opens_anew(&packet, &flow, HIGH), "a service opens nothing");
        flow.flags = FLOW_BACK;
        assert!(!opens_anew(&packet, &flow, LOW), "the port is taken");
        flow.sides[HIGH].seen = SEEN_RST;
        assert!(opens_anew(&packet, &flow, LOW));
        flow.flags = 0;
        flow.sides[LOW].seen = SEEN_ANY;
        assert!(opens_anew(&packet, &flow, LOW), "refused, and tried again");
    }
}
