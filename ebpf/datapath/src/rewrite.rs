//! Translation: writes another tuple into a packet, checksums included.

use network_types::{icmp::Icmpv4Hdr, tcp::TcpHdr, udp::UdpHdr};
use weft_abi::{drop::DropReason, flow::Tuple};

use crate::{
    checksum::Difference,
    drops::Drop,
    family::Family,
    packet::{Packet, protocol},
    skb::Skb,
};

/// `BPF_F_PSEUDO_HDR`: the difference is of the pseudo-header, which a checksum left to the device
/// (`CHECKSUM_PARTIAL`) holds already.
const PSEUDO_HEADER: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: a UDP checksum of 0 means none, and stays.
const UDP_ZERO: u64 = 1 << 5;

/// Makes the packet one of `new`.
#[inline(always)]
pub fn rewrite<F: Family>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    new: &Tuple<F::Addr>,
) -> Result<(), Drop> {
    let old = &packet.tuple;
    let ports = Difference::NONE
        .word(old.source_port.to_be(), new.source_port.to_be())
        .word(old.destination_port.to_be(), new.destination_port.to_be());
    let addresses = (
        F::difference(old.source, new.source),
        F::difference(old.destination, new.destination),
    );
    let l4 = packet.l4();
    match packet.protocol {
        protocol::TCP | protocol::UDP => {
            let (checksum, flags) = if packet.protocol == protocol::TCP {
                (l4 + core::mem::offset_of!(TcpHdr, check), 0)
            } else {
                (l4 + core::mem::offset_of!(UdpHdr, check), UDP_ZERO)
            };
            let addresses = addresses.0.plus(addresses.1);
            replace(skb, checksum, addresses, flags | PSEUDO_HEADER)?;
            if old.source_port != new.source_port || old.destination_port != new.destination_port {
                replace(skb, checksum, ports, flags)?;
                let ports = skb
                    .at::<[u8; 4]>(l4)
                    .ok_or(Drop::because(DropReason::Malformed))?;
                let (source, destination) = (
                    new.source_port.to_be_bytes(),
                    new.destination_port.to_be_bytes(),
                );
                // SAFETY: `at` checked the bounds; no helper ran since.
                unsafe { *ports = [source[0], source[1], destination[0], destination[1]] };
            }
        }
        protocol::ICMP => {
            // Echo: the identifier is one of the two ports, the other is 0.
            let identifier = new.source_port | new.destination_port;
            if old.source_port | old.destination_port != identifier {
                let icmp = skb
                    .at::<Icmpv4Hdr>(l4)
                    .ok_or(Drop::because(DropReason::Malformed))?;
                // SAFETY: `at` checked the bounds; no helper ran since.
                unsafe {
                    (*icmp).check = ports.apply(u16::from_ne_bytes((*icmp).check)).to_ne_bytes();
                    let id = identifier.to_be_bytes();
                    (*icmp).data[0] = id[0];
                    (*icmp).data[1] = id[1];
                }
            }
        }
        // No service and so no translation has another protocol yet.
        _ => return Err(Drop::because(DropReason::UnsupportedProtocol)),
    }
    F::write_addresses(skb, new)
}

#[inline(always)]
fn replace(skb: &Skb, offset: usize, difference: Difference, flags: u64) -> Result<(), Drop> {
    skb.ctx()
        .l4_csum_replace(offset, 0, u64::from(difference.folded()), flags)
        .map_err(|_| Drop::because(DropReason::Helper))
}
