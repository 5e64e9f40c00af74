//! ICMP errors: they belong to the flow whose packet they quote, and are translated with it.

use network_types::{tcp::TcpHdr, udp::UdpHdr};
use weft_abi::flow::Tuple;

use crate::{
    checksum::Difference,
    drops::Drop,
    family::Family,
    packet::{Icmp, Packet, protocol},
    skb::Skb,
};

/// The packet that an ICMP error quotes, as that packet was where the error arose.
#[derive(Clone, Copy)]
pub struct Quoted<A> {
    /// Its addresses and ports.
    pub tuple: Tuple<A>,
    /// Its protocol.
    pub protocol: u8,
    /// Where its IP header is in the error's packet.
    l3: u32,
    /// Where its transport header is.
    l4: u32,
}

impl<A: Copy> Quoted<A> {
    /// Between these ends, and nothing else of it yet.
    #[inline(always)]
    pub fn between(source: A, destination: A) -> Self {
        Self {
            tuple: Tuple {
                source,
                destination,
                source_port: 0,
                destination_port: 0,
            },
            protocol: 0,
            l3: 0,
            l4: 0,
        }
    }

    /// Reads the transport header of a quoted packet; an error quotes at least eight bytes of it
    /// (RFC 792; RFC 4443 has more).
    #[inline(always)]
    pub fn read<F: Family<Addr = A>>(
        &mut self,
        skb: &Skb,
        protocol: u8,
        l3: usize,
        l4: usize,
    ) -> bool {
        let Some(bytes) = skb.load::<[u8; 8]>(l4) else {
            return false;
        };
        let word = |index: usize| u16::from_be_bytes([bytes[index], bytes[index + 1]]);
        let (source_port, destination_port) = match protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => (word(0), word(2)),
            _ if protocol == F::ICMP => match F::icmp(bytes[0]) {
                Icmp::Request => (word(4), 0),
                Icmp::Reply => (0, word(4)),
                // No error is about an error.
                _ => return false,
            },
            _ => (0, 0),
        };
        self.tuple.source_port = source_port;
        self.tuple.destination_port = destination_port;
        self.protocol = protocol;
        self.l3 = l3 as u32;
        self.l4 = l4 as u32;
        true
    }
}

/// The addresses of an error whose quoted packet becomes one of `new`: it goes where that comes from,
/// and keeps its own source, unless that is the quoted packet's destination.
#[inline(always)]
pub fn addresses<A: Copy + PartialEq>(
    packet: &Packet<A>,
    quoted: &Quoted<A>,
    new: &Tuple<A>,
    outer: &mut Tuple<A>,
) {
    outer.source = if packet.tuple.source == quoted.tuple.destination {
        new.destination
    } else {
        packet.tuple.source
    };
    outer.destination = new.source;
    outer.source_port = 0;
    outer.destination_port = 0;
}

/// Makes what an error quotes a packet of `new`; returns what that changes of the error's checksum,
/// which covers it.
///
/// Its own checksums are mended by the difference: the IP header's, and the transport header's as far
/// as it is quoted.
#[inline(always)]
pub fn requote<F: Family>(
    skb: &Skb,
    quoted: &Quoted<F::Addr>,
    new: &Tuple<F::Addr>,
) -> Result<Difference, Drop> {
    let old = &quoted.tuple;
    let l4 = quoted.l4 as usize;
    let addresses =
        F::difference(old.source, new.source).plus(F::difference(old.destination, new.destination));
    let mut change = F::requote(skb, quoted.l3 as usize, new, addresses)?;
    let ports = Difference::NONE
        .word(old.source_port.to_be(), new.source_port.to_be())
        .word(old.destination_port.to_be(), new.destination_port.to_be());
    let (check, covered) = match quoted.protocol {
        protocol::TCP => (core::mem::offset_of!(TcpHdr, check), addresses.plus(ports)),
        protocol::UDP => (core::mem::offset_of!(UdpHdr, check), addresses.plus(ports)),
        _ if quoted.protocol == F::ICMP && F::ICMP_PSEUDO_HEADER => (2, addresses.plus(ports)),
        _ if quoted.protocol == F::ICMP => (2, ports),
        _ => (0, Difference::NONE),
    };
    // TCP's may be beyond the quote; UDP's may be absent (zero).
    if check != 0
        && let Some(bytes) = skb.load::<[u8; 2]>(l4 + check)
    {
        let old_check = u16::from_ne_bytes(bytes);
        if quoted.protocol != protocol::UDP || old_check != 0 {
            let mut new_check = covered.apply(old_check);
            if quoted.protocol == protocol::UDP && new_check == 0 {
                new_check = 0xffff;
            }
            skb.store(l4 + check, &new_check.to_ne_bytes())?;
            change = change.word(old_check, new_check);
        }
    }
    match quoted.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            skb.store(l4, &new.source_port.to_be_bytes())?;
            skb.store(l4 + 2, &new.destination_port.to_be_bytes())?;
            change = change.plus(ports);
        }
        _ if quoted.protocol == F::ICMP => {
            // One of the two is the identifier, the other is 0.
            let identifier = new.source_port | new.destination_port;
            skb.store(l4 + 4, &identifier.to_be_bytes())?;
            change = change.plus(ports);
        }
        _ => {}
    }
    Ok(change)
}
