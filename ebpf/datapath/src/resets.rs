//! Resets that would end a connection only because its entry is gone.
//!
//! The flow table forgets what was not used for longest when it is full, and so a translated flow may
//! lose one of its two entries. The client's next packet restores the other end's view. What the other
//! end sends before that is not known for what it is: it goes on as it came, or with another port, and
//! who gets it knows no such connection and resets it. Such a reset is held back, for a while: meanwhile
//! the one end sends again, and the other may send at last.

use weft_abi::{config::Config, drop::DropReason, flow::Flow};

use crate::{
    addresses,
    decide::scratch_packet,
    drops::Drop,
    family::Family,
    flows,
    outcome::Outcome,
    packet::{Packet, RST, protocol},
    route,
    skb::{self, Action, Skb},
};

/// How many resets of a flow are held back. Those who are not answered send again, and wait twice as
/// long each time: from Linux's 200 milliseconds on, eight times make most of a minute.
const HELD_BACK: u32 = 8;

/// Lets a packet of a flow through, unless it is a reset that says only that nobody there knows the
/// flow: the first that comes from that end of a flow that was joined midway.
#[inline(always)]
pub fn admit<A>(packet: &Packet<A>, flow: &mut Flow<A>, from: usize) -> Result<(), Drop> {
    if !packet.has(RST) {
        return Ok(());
    }
    let answers = from != usize::from(flow.initiator);
    let service = flow.service != 0;
    if !answers || service || !flows::joined_midway(flow, packet.protocol) {
        return Ok(());
    }
    let side = &mut flow.sides[from];
    if side.seen != 0 || side.packets >= HELD_BACK {
        return Ok(());
    }
    side.packets += 1;
    Err(Drop::because(DropReason::FlowTable))
}

/// The longest frame that is a reset of the node's stack: it has a TCP header with options at most.
const LONGEST: u32 = 14 + 40 + 60;
/// TCP's flag, in the byte at offset 13.
const TCP_ACK: u8 = 0x10;

/// Holds back what the node's stack answers to packets of connections that it does not know, from a
/// port that masquerading gives out: the connection may be a pod's.
///
/// Such a reset has no ACK (RFC 9293, section 3.10.7.1), unlike one that ends a connection or refuses
/// one. A port that a socket has is the node's. The packet is in the scratch space.
#[inline(never)]
pub fn of_nobody<F: Family>(skb: &Skb, config: &Config) -> Outcome {
    Outcome::pack(hold_back::<F>(skb, config).map(|()| Action::Pass))
}

#[inline(always)]
fn hold_back<F: Family>(skb: &Skb, config: &Config) -> Result<(), Drop> {
    let own = skb.ingress_ifindex() == 0 && skb.len() <= LONGEST;
    if !own || config.flags & F::MASQUERADE == 0 {
        return Ok(());
    }
    // As it was parsed to see whether it answers what was asked of a service.
    let packet = &*scratch_packet::<F>()?;
    if !packet.has(RST) {
        return Ok(());
    }
    let tuple = &packet.tuple;
    let masquerades = tuple.source_port.wrapping_sub(config.masquerade_first)
        < config.masquerade_ports
        && match addresses::uplink(skb.ifindex()) {
            Some(uplink) => F::uplink_address(uplink) == Some(tuple.source),
            None => false,
        };
    if !masquerades {
        return Ok(());
    }
    match skb.load::<[u8; 1]>(packet.l4() + 13) {
        Some([flags]) if flags & TCP_ACK == 0 => {}
        _ => return Ok(()),
    }
    if route::held_by_socket::<F>(skb, tuple, protocol::TCP, &mut skb::zeroed()) {
        return Ok(());
    }
    Err(Drop::because(DropReason::FlowTable))
}
