//! Translation: writes another tuple into a packet, checksums included.

use network_types::{icmp::Icmpv4Hdr, tcp::TcpHdr, udp::UdpHdr};
use weft_abi::{drop::DropReason, flow::Tuple};

use crate::{
    checksum::Difference,
    drops::Drop,
    family::Family,
    packet::{FIRST, LATER, Packet, protocol},
    sctp,
    skb::Skb,
};

/// `BPF_F_PSEUDO_HDR`: the difference is of the pseudo-header, which a checksum left to the device
/// (`CHECKSUM_PARTIAL`) holds already.
const PSEUDO_HEADER: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: a UDP checksum of 0 means none, and stays.
const UDP_ZERO: u64 = 1 << 5;
/// `BPF_F_IPV6`: the addresses are in an IPv6 header, whose change the checksum makes up for in the
/// sum of all bytes (kernel commit ead7f9b8de65, 6.16).
const IPV6: u64 = 1 << 7;

/// Offset of the checksum in an ICMP header.
const ICMP_CHECKSUM: usize = 2;

/// Makes the packet one of `new`.
#[inline(always)]
pub fn rewrite<F: Family>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    new: &Tuple<F::Addr>,
) -> Result<(), Drop> {
    let old = &packet.tuple;
    if packet.has(LATER) {
        // The checksum in the first fragment is that of the whole datagram.
        return addresses_only::<F>(skb, packet, new);
    }
    let ports = Difference::NONE
        .word(old.source_port.to_be(), new.source_port.to_be())
        .word(old.destination_port.to_be(), new.destination_port.to_be());
    let moves = old.source_port != new.source_port || old.destination_port != new.destination_port;
    let l4 = packet.l4();
    match packet.protocol {
        protocol::TCP | protocol::UDP => {
            let (checksum, flags) = if packet.protocol == protocol::TCP {
                (l4 + core::mem::offset_of!(TcpHdr, check), 0)
            } else {
                (l4 + core::mem::offset_of!(UdpHdr, check), UDP_ZERO)
            };
            replace_pseudo::<F>(skb, checksum, difference::<F>(old, new), flags)?;
            if moves {
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
        _ if packet.protocol == F::ICMP => {
            if F::ICMP_PSEUDO_HEADER {
                replace_pseudo::<F>(skb, l4 + ICMP_CHECKSUM, difference::<F>(old, new), 0)?;
            }
            // Echo: the identifier is one of the two ports, the other is 0.
            let identifier = new.source_port | new.destination_port;
            if old.source_port | old.destination_port != identifier {
                replace(skb, l4 + ICMP_CHECKSUM, ports, 0)?;
                let icmp = skb
                    .at::<Icmpv4Hdr>(l4)
                    .ok_or(Drop::because(DropReason::Malformed))?;
                let id = identifier.to_be_bytes();
                // SAFETY: `at` checked the bounds; no helper ran since.
                unsafe {
                    (*icmp).data[0] = id[0];
                    (*icmp).data[1] = id[1];
                }
            }
        }
        // Their checksums cover the addresses, and are not where one could know.
        protocol::UDP_LITE | protocol::DCCP => {
            return Err(Drop::because(DropReason::UnsupportedProtocol));
        }
        protocol::SCTP if moves => return with_sctp::<F>(skb, packet, new),
        // Nor does anything else with ports that Weft knows.
        _ if moves => return Err(Drop::because(DropReason::UnsupportedProtocol)),
        _ => return addresses_only::<F>(skb, packet, new),
    }
    F::write_addresses(skb, new)
}

/// Writes a tuple with other ports into an SCTP packet, whose checksum covers these and no addresses.
#[inline(always)]
fn with_sctp<F: Family>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    new: &Tuple<F::Addr>,
) -> Result<(), Drop> {
    if packet.has(FIRST) {
        // The checksum is that of the whole packet, whose length only its last fragment tells.
        return Err(Drop::because(DropReason::UnsupportedProtocol));
    }
    let old = &packet.tuple;
    let l4 = packet.l4();
    let ports = |tuple: &Tuple<F::Addr>| {
        u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port)
    };
    let length = packet.end.wrapping_sub(l4 as u32);
    let header: [u8; 12] = skb.load(l4).ok_or(Drop::because(DropReason::Malformed))?;
    let check = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    // Zero: the sender left it to the device, which will compute all of it.
    if check != 0 {
        skb.store(
            l4 + 8,
            &sctp_checksum(check, ports(old), ports(new), length),
        )?;
    }
    skb.store(l4, &ports(new).to_be_bytes())?;
    addresses_only::<F>(skb, packet, new)
}

/// See [`sctp::checksum`]. A global function, which the verifier walks once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sctp_checksum(check: u32, old_ports: u32, new_ports: u32, length: u32) -> u32 {
    sctp::checksum(
        check,
        old_ports.to_be_bytes(),
        new_ports.to_be_bytes(),
        length as u16,
    )
}

/// Writes the addresses where no transport checksum makes up for them.
#[inline(always)]
fn addresses_only<F: Family>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    new: &Tuple<F::Addr>,
) -> Result<(), Drop> {
    F::write_addresses(skb, new)?;
    if F::ICMP_PSEUDO_HEADER {
        // IPv6: nor does one of the header.
        skb.summed(difference::<F>(&packet.tuple, new));
    }
    Ok(())
}

/// Makes the addresses of an ICMP message those of `outer`; its content changed by `change` already.
#[inline(always)]
pub fn icmp<F: Family>(
    skb: &Skb,
    packet: &Packet<F::Addr>,
    outer: &Tuple<F::Addr>,
    change: Difference,
) -> Result<(), Drop> {
    let checksum = packet.l4() + ICMP_CHECKSUM;
    if F::ICMP_PSEUDO_HEADER {
        replace_pseudo::<F>(skb, checksum, difference::<F>(&packet.tuple, outer), 0)?;
    }
    replace(skb, checksum, change, 0)?;
    F::write_addresses(skb, outer)
}

#[inline(always)]
fn difference<F: Family>(old: &Tuple<F::Addr>, new: &Tuple<F::Addr>) -> Difference {
    F::difference(old.source, new.source).plus(F::difference(old.destination, new.destination))
}

/// Accounts for addresses in a checksum.
#[inline(always)]
fn replace_pseudo<F: Family>(
    skb: &Skb,
    offset: usize,
    change: Difference,
    flags: u64,
) -> Result<(), Drop> {
    if !F::ICMP_PSEUDO_HEADER {
        return replace(skb, offset, change, flags | PSEUDO_HEADER);
    }
    if replace(skb, offset, change, flags | PSEUDO_HEADER | IPV6).is_ok() {
        return Ok(());
    }
    // Kernels before 6.16 do not know the flag, and take the difference from the sum of all bytes.
    replace(skb, offset, change, flags | PSEUDO_HEADER)?;
    skb.summed(change);
    Ok(())
}

#[inline(always)]
fn replace(skb: &Skb, offset: usize, difference: Difference, flags: u64) -> Result<(), Drop> {
    skb.ctx()
        .l4_csum_replace(offset, 0, u64::from(difference.folded()), flags)
        .map_err(|_| Drop::because(DropReason::Helper))
}
