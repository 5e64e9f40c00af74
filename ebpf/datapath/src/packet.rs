//! A parsed packet: what the pipeline needs of its headers.

use weft_abi::flow::Tuple;

/// [`Packet::signals`]: this packet opens a connection (TCP SYN without ACK, ICMP echo request).
pub const OPENS: u8 = 1;
/// [`Packet::signals`]: TCP, anything but the opening packet.
pub const DATA: u8 = 2;
/// [`Packet::signals`]: TCP FIN.
pub const FIN: u8 = 4;
/// [`Packet::signals`]: TCP RST.
pub const RST: u8 = 8;
/// [`Packet::signals`]: an ICMP error, about the packet that it quotes.
pub const ERROR: u8 = 16;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Length of the Ethernet header, and so the offset of the IP header.
pub const L3: usize = 14;

/// The headers of one packet. Ports are host order; see [`weft_abi::flow::FlowKey`] for ICMP's.
#[derive(Clone, Copy)]
pub struct Packet<A> {
    /// Addresses and ports.
    pub tuple: Tuple<A>,
    /// Offset of the transport header; use [`Packet::l4`].
    pub l4_offset: u32,
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// IP protocol.
    pub protocol: u8,
    /// `OPENS`, `DATA`, `FIN`, `RST`, `ERROR`.
    pub signals: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// ICMP type and code; else zero.
    pub icmp: [u8; 2],
}

impl<A> Packet<A> {
    /// Offset of the transport header.
    ///
    /// The mask is for the verifier, which forgets the bound when the packet is passed by reference:
    /// 14 bytes of Ethernet and at most 60 of IP are below 128.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        (self.l4_offset & 0x7f) as usize
    }

    /// Whether any of these signals is set.
    #[inline(always)]
    pub fn has(&self, signals: u8) -> bool {
        self.signals & signals != 0
    }
}
