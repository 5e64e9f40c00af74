//! Answers to packets that are rejected: TCP gets a RST, everything else "port unreachable".
//!
//! The packet is dropped and counted first; then it becomes its own answer, from whom it was meant
//! for, and goes back the way it came. Where that is not possible, silence must do.

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::{bpf_skb_adjust_room, bpf_skb_change_tail},
};
use network_types::tcp::TcpHdr;
use weft_abi::{
    GATEWAY_MAC, MARK_ENCAPSULATED, MARK_FORWARDED, OVERLAY_MAC, OVERLAY_PEER_MAC,
    drop::DropReason,
    flow::{HOP_ENDPOINT, HOP_TUNNEL, HOP_UPLINK, Tuple},
};

use crate::{
    checksum::Difference,
    config,
    decide::scratch,
    deliver::write_macs,
    drops::Drop,
    family::{Family, V4, V6},
    flows,
    packet::{ERROR, FIRST, L3, LATER, RST, protocol},
    skb::{Action, Skb},
    tunnel,
};

/// Time to live of what is sent here.
pub const TTL: u8 = 64;

/// TCP flags.
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// Length of an ICMP header.
const ICMP: usize = 8;

/// Whether a packet that is dropped for this reason is answered.
#[inline(always)]
pub fn answers(reason: DropReason) -> bool {
    matches!(reason, DropReason::NoBackend | DropReason::NoServicePort)
}

/// Turns the packet that the slow path just refused into the answer to it, and sends that.
///
/// A function of its own: its stack does not add up with that of what came before.
#[inline(never)]
pub fn answer(skb: &Skb) -> i32 {
    let action = if skb.ether_type() == V4::ETHER_TYPE {
        of_family::<V4>(skb)
    } else {
        of_family::<V6>(skb)
    };
    match action {
        Ok(action) => action.code(),
        Err(_) => Action::Keep.code(),
    }
}

#[inline(always)]
fn of_family<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    let packet = &work.packet;
    // No answers to answers, nor to what is not whole; and IP options would have to be answered too.
    if packet.has(RST | ERROR | FIRST | LATER) || packet.l4() != L3 + F::HEADER {
        return Err(refused());
    }
    if packet.protocol == protocol::TCP {
        let _ = F::reset(skb).unpack()?;
    } else {
        let _ = F::unreachable(skb).unpack()?;
    }
    let side = &scratch::<F>()?.source.side;
    match side.hop {
        HOP_ENDPOINT => {
            write_macs(skb, side.mac, GATEWAY_MAC)?;
            Ok(skb.redirect_peer(side.ifindex))
        }
        HOP_TUNNEL => {
            let config = config::get()?;
            write_macs(skb, OVERLAY_MAC, OVERLAY_PEER_MAC)?;
            tunnel::address(skb, config, &side.tunnel)?;
            skb.set_mark(MARK_ENCAPSULATED);
            Ok(skb.redirect(config.overlay_ifindex))
        }
        HOP_UPLINK => {
            skb.set_mark(MARK_FORWARDED);
            Ok(skb.redirect_neighbour(side.ifindex))
        }
        _ => Err(refused()),
    }
}

/// The RST that answers a segment (RFC 9293, section 3.10.7.1).
#[inline(always)]
pub fn reset<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    let packet = &work.packet;
    let l4 = L3 + F::HEADER;
    let segment: [u8; TcpHdr::LEN] = skb.load(l4).ok_or(refused())?;
    let flags = segment[13];
    let (sequence, acknowledged, flags) = if flags & TCP_ACK != 0 {
        (
            [segment[8], segment[9], segment[10], segment[11]],
            [0; 4],
            TCP_RST,
        )
    } else {
        let header = u32::from(segment[12] >> 4) * 4;
        let length = packet
            .end
            .wrapping_sub(l4 as u32)
            .wrapping_sub(header)
            .wrapping_add(u32::from(flags & TCP_SYN != 0))
            .wrapping_add(u32::from(flags & TCP_FIN != 0));
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        let acknowledged = sequence.wrapping_add(length).to_be_bytes();
        ([0; 4], acknowledged, TCP_RST | TCP_ACK)
    };
    resize(skb, l4 + TcpHdr::LEN)?;
    work.outer = flows::reversed(&packet.tuple);
    let tuple = &work.outer;
    F::write_header(skb, tuple, protocol::TCP, TcpHdr::LEN as u16)?;
    let [from_high, from_low] = tuple.source_port.to_be_bytes();
    let [to_high, to_low] = tuple.destination_port.to_be_bytes();
    work.header = [
        from_high,
        from_low,
        to_high,
        to_low, //
        sequence[0],
        sequence[1],
        sequence[2],
        sequence[3], //
        acknowledged[0],
        acknowledged[1],
        acknowledged[2],
        acknowledged[3], //
        (TcpHdr::LEN as u8 / 4) << 4,
        flags,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    // A sender may leave the checksum to the device (CHECKSUM_PARTIAL): then the field has the sum of
    // the pseudo-header, and the helper leaves it alone. Otherwise it adds what makes that, counted
    // twice because the field has it complemented, and the header's own sum the checksum.
    let pseudo = pseudo_header::<F>(tuple, protocol::TCP, TcpHdr::LEN as u16);
    let own = sum(&work.header);
    let [first, second] = pseudo.folded().to_ne_bytes();
    work.header[16] = first;
    work.header[17] = second;
    skb.store(l4, &work.header)?;
    let change = pseudo.plus(pseudo).plus(own).folded();
    let check = l4 + core::mem::offset_of!(TcpHdr, check);
    skb.ctx()
        .l4_csum_replace(check, 0, u64::from(change), 0)
        .map_err(|_| refused())?;
    Ok(Action::Pass)
}

/// The ICMP error about a packet (RFC 792, RFC 4443), which quotes its IP header and the least of its
/// transport header.
#[inline(always)]
pub fn unreachable<F: Family>(skb: &Skb) -> Result<Action, Drop> {
    let work = scratch::<F>()?;
    let packet = &work.packet;
    // What a device would still write a checksum into cannot be cut off: SCTP's ends at byte 12.
    let transport = if packet.protocol == protocol::SCTP {
        12
    } else {
        8
    };
    let quote = F::HEADER + transport;
    resize(skb, L3 + quote)?;
    // SAFETY: the context is valid for the whole program; the helper takes no other pointers.
    let grown =
        unsafe { bpf_skb_adjust_room(skb.raw(), (F::HEADER + ICMP) as i32, BPF_ADJ_ROOM_MAC, 0) };
    if grown != 0 {
        return Err(refused());
    }
    let l4 = L3 + F::HEADER;
    let length = (ICMP + quote) as u16;
    work.outer = flows::reversed(&packet.tuple);
    let tuple = &work.outer;
    let [kind, code] = F::PORT_UNREACHABLE;
    let mut check = Difference::NONE.adds(u16::from_ne_bytes([kind, code]));
    if F::ICMP_PSEUDO_HEADER {
        check = check.plus(pseudo_header::<F>(tuple, F::ICMP, length));
    }
    let mut offset = 0;
    // The bound is for the verifier.
    while offset < quote && offset < 64 {
        let word: [u8; 2] = skb.load(l4 + ICMP + offset).ok_or(refused())?;
        check = check.adds(u16::from_ne_bytes(word));
        offset += 2;
    }
    let [first, second] = (!check.folded()).to_ne_bytes();
    let header = [kind, code, first, second, 0, 0, 0, 0];
    // The room is where the old header was: what is read of the packet from now on is new.
    skb.pull((l4 + ICMP) as u32)?;
    F::write_header(skb, tuple, F::ICMP, length)?;
    skb.store(l4, &header)?;
    Ok(Action::Pass)
}

/// The sum of a header's words.
#[inline(always)]
fn sum(bytes: &[u8; TcpHdr::LEN]) -> Difference {
    let mut sum = Difference::NONE;
    let mut index = 0;
    while index < TcpHdr::LEN {
        sum = sum.adds(u16::from_ne_bytes([bytes[index], bytes[index + 1]]));
        index += 2;
    }
    sum
}

/// The sum of the pseudo-header: the same words in both families. A function of its own, for its stack.
#[inline(never)]
fn pseudo_header<F: Family>(tuple: &Tuple<F::Addr>, protocol: u8, length: u16) -> Difference {
    F::sum(tuple.source)
        .plus(F::sum(tuple.destination))
        .adds(u16::from(protocol).to_be())
        .adds(length.to_be())
}

/// Cuts the packet off, or pads it. It is one segment afterwards, linear and nobody else's.
#[inline(always)]
fn resize(skb: &Skb, length: usize) -> Result<(), Drop> {
    // SAFETY: the context is valid for the whole program; the helper takes no other pointers.
    match unsafe { bpf_skb_change_tail(skb.raw(), length as u32, 0) } {
        0 => Ok(()),
        _ => Err(refused()),
    }
}

/// There is no answer; why the packet was dropped was told already.
#[inline(always)]
fn refused() -> Drop {
    Drop::because(DropReason::Helper)
}
