//! A parsed packet: what the pipeline needs of its headers.

use network_types::{tcp::TcpHdr, udp::UdpHdr};
use weft_abi::{drop::DropReason, flow::Tuple};

use crate::{drops::Drop, family::Family, fragments, skb::Skb};

/// [`Packet::signals`]: this packet opens a connection (TCP SYN without ACK, ICMP echo request, SCTP
/// INIT).
pub const OPENS: u8 = 1;
/// [`Packet::signals`]: TCP or SCTP, anything but the opening packet.
pub const DATA: u8 = 2;
/// [`Packet::signals`]: TCP FIN.
pub const FIN: u8 = 4;
/// [`Packet::signals`]: TCP RST.
pub const RST: u8 = 8;
/// [`Packet::signals`]: an ICMP error, about the packet that it quotes.
pub const ERROR: u8 = 16;
/// [`Packet::signals`]: a later fragment, without transport header: its ports are the first one's.
pub const LATER: u8 = 32;
/// [`Packet::signals`]: the first fragment of a datagram; others follow, or wait for it.
pub const FIRST: u8 = 64;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// Length of the Ethernet header, and so the offset of the IP header.
pub const L3: usize = 14;

/// Where a packet ends whose IP header is at [`L3`] and tells a `length` for what begins `header` bytes
/// behind that. One that was cut off before its end is no packet. A length of 0 is told by those that
/// are larger than the field can say, before they are cut into segments.
#[inline(always)]
pub fn end(skb: &Skb, header: usize, length: [u8; 2]) -> Result<u32, Drop> {
    let length = u16::from_be_bytes(length);
    let end = L3 as u32 + header as u32 + u32::from(length);
    if length == 0 && skb.len() > u32::from(u16::MAX) {
        Ok(skb.len())
    } else if end <= skb.len() {
        Ok(end)
    } else {
        Err(Drop::because(DropReason::Malformed))
    }
}

/// TCP flags, in the byte at offset 13.
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// Length of SCTP's header. The type of the first chunk follows; INIT is alone in its packet.
const SCTP_HEADER: usize = 12;
/// The type of the chunk that opens an association.
const SCTP_INIT: u8 = 1;

/// The headers of one packet. Ports are host order; see [`weft_abi::flow::FlowKey`] for ICMP's.
#[derive(Clone, Copy)]
pub struct Packet<A> {
    /// Addresses and ports.
    pub tuple: Tuple<A>,
    /// Offset of the transport header; use [`Packet::l4`].
    pub l4_offset: u32,
    /// Offset of the end that the IP header tells: what follows is the frame's padding.
    pub end: u32,
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// IP protocol: the transport's, behind any IPv6 extension headers.
    pub protocol: u8,
    /// `OPENS`, `DATA`, `FIN`, `RST`, `ERROR`, `LATER`, `FIRST`.
    pub signals: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// ICMP type and code; else zero.
    pub icmp: [u8; 2],
    /// The identification of a fragment's datagram.
    pub datagram: u32,
}

/// What a fragment is of its datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first part, with this identification.
    First(u32),
    /// A later one.
    Later(u32),
}

/// What an ICMP message is to a flow.
pub enum Icmp {
    /// Asks; the identifier stands for the port of who asks (RFC 792, RFC 4443).
    Request,
    /// Answers.
    Reply,
    /// An error about the packet that it quotes.
    Error,
    /// Anything else.
    Other,
}

impl<A> Packet<A> {
    /// Offset of the transport header.
    ///
    /// The mask is for the verifier, which forgets the bound when the packet is passed by reference:
    /// Ethernet, IP and what is looked through of extension headers are below 512 bytes.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        (self.l4_offset & 0x1ff) as usize
    }

    /// Whether any of these signals is set.
    #[inline(always)]
    pub fn has(&self, signals: u8) -> bool {
        self.signals & signals != 0
    }

    /// Reads the transport header, which may not be linear yet: most are, and those of strange senders
    /// or drivers cost one pull.
    #[inline(always)]
    fn header<T: Copy>(&self, skb: &Skb) -> Result<T, Drop> {
        let offset = self.l4();
        let end = (offset + size_of::<T>()) as u32;
        if end > self.end {
            return Err(Drop::because(DropReason::Malformed));
        }
        if let Some(header) = skb.read(offset) {
            return Ok(header);
        }
        skb.pull(end)?;
        skb.read(offset).ok_or(Drop::because(DropReason::Malformed))
    }

    /// Reads the transport header into the packet; of a later fragment, what its first one had.
    #[inline(always)]
    pub fn read_transport<F: Family<Addr = A>>(
        &mut self,
        skb: &Skb,
        part: Part,
    ) -> Result<(), Drop> {
        if self.l4_offset > self.end {
            return Err(Drop::because(DropReason::Malformed));
        }
        if let Part::Later(id) = part {
            self.datagram = id;
            return fragments::recall::<F>(self);
        }
        if self.protocol == protocol::TCP {
            let tcp: [u8; TcpHdr::LEN] = self.header(skb)?;
            self.tuple.source_port = u16::from_be_bytes([tcp[0], tcp[1]]);
            self.tuple.destination_port = u16::from_be_bytes([tcp[2], tcp[3]]);
            let flags = tcp[13];
            self.signals = if flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN {
                OPENS
            } else {
                DATA | ((flags & TCP_FIN) * FIN) | (if flags & TCP_RST != 0 { RST } else { 0 })
            };
        } else if self.protocol == protocol::UDP || self.protocol == protocol::SCTP {
            let ports: [u8; UdpHdr::LEN] = self.header(skb)?;
            self.tuple.source_port = u16::from_be_bytes([ports[0], ports[1]]);
            self.tuple.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
            if self.protocol == protocol::SCTP {
                self.signals = match skb.load::<[u8; 1]>(self.l4() + SCTP_HEADER) {
                    Some([SCTP_INIT]) => OPENS,
                    _ => DATA,
                };
            }
        } else if self.protocol == F::ICMP {
            let icmp: [u8; 8] = self.header(skb)?;
            self.icmp = [icmp[0], icmp[1]];
            let identifier = u16::from_be_bytes([icmp[4], icmp[5]]);
            match F::icmp(icmp[0]) {
                Icmp::Request => {
                    self.tuple.source_port = identifier;
                    self.signals = OPENS;
                }
                Icmp::Reply => self.tuple.destination_port = identifier,
                Icmp::Error => self.signals = ERROR,
                Icmp::Other => {}
            }
        }
        // Other protocols have no ports: all that two addresses send of one is a flow.
        if let Part::First(id) = part {
            self.datagram = id;
            self.signals |= FIRST;
        }
        Ok(())
    }
}
