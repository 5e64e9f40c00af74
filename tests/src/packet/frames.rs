//! Frames that are no packets of flows: what belongs to one link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bytes::{Extension, Mac, Packet, Payload};

/// The Ethernet broadcast address.
pub const BROADCAST: Mac = [0xff; 6];

/// The MAC address of an IPv6 multicast group.
#[must_use]
pub const fn multicast_mac(group: Ipv6Addr) -> Mac {
    let octets = group.octets();
    [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
}

/// An ARP request for an IPv4 address, or the reply about it.
#[must_use]
pub fn arp(request: bool, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let to = if request { BROADCAST } else { target.0 };
    let mut frame = ethernet(to, sender.0, 0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, if request { 1 } else { 2 }]);
    frame.extend(sender.0);
    frame.extend(sender.1.octets());
    frame.extend(if request { [0; 6] } else { target.0 });
    frame.extend(target.1.octets());
    frame.resize(60, 0);
    frame
}

/// An LLDP frame.
#[must_use]
pub fn lldp(sender: Mac) -> Vec<u8> {
    let mut frame = ethernet([0x01, 0x80, 0xc2, 0, 0, 0x0e], sender, 0x88cc);
    // Chassis and port are the MAC address, for two minutes.
    frame.extend([2, 7, 4]);
    frame.extend(sender);
    frame.extend([4, 7, 3]);
    frame.extend(sender);
    frame.extend([6, 2, 0, 120, 0, 0]);
    frame.resize(60, 0);
    frame
}

/// The same frame in this VLAN.
#[must_use]
pub fn tagged(vlan: u16, frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    bytes.extend(0x8100_u16.to_be_bytes());
    bytes.extend(vlan.to_be_bytes());
    bytes.extend(&frame[12..]);
    bytes
}

/// A neighbour solicitation for `target`.
#[must_use]
pub fn neighbour_solicitation(sender: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Packet {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    discovery(
        sender,
        source,
        group,
        135,
        &[&target.octets(), &[1, 1], &sender],
    )
}

/// A neighbour advertisement for `target`, to `destination`.
#[must_use]
pub fn neighbour_advertisement(sender: Mac, target: Ipv6Addr, destination: Ipv6Addr) -> Packet {
    let mut packet = discovery(
        sender,
        target,
        destination,
        136,
        &[&target.octets(), &[2, 1], &sender],
    );
    if let Payload::Icmp { rest, .. } = &mut packet.payload {
        rest[0] = 0x60;
    }
    packet
}

/// A router solicitation.
#[must_use]
pub fn router_solicitation(sender: Mac, source: Ipv6Addr) -> Packet {
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    discovery(sender, source, routers, 133, &[&[1, 1], &sender])
}

/// A router advertisement.
#[must_use]
pub fn router_advertisement(sender: Mac, source: Ipv6Addr) -> Packet {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    discovery(sender, source, all, 134, &[&[0; 8]])
}

/// A redirect: `target` is the better way to `destination`.
#[must_use]
pub fn redirect(sender: Mac, source: Ipv6Addr, to: Ipv6Addr, destination: Ipv6Addr) -> Packet {
    discovery(
        sender,
        source,
        to,
        137,
        &[&source.octets(), &destination.octets()],
    )
}

/// A multicast listener report (MLDv2) for `group`.
#[must_use]
pub fn listener_report(sender: Mac, source: Ipv6Addr, group: Ipv6Addr) -> Packet {
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    let mut packet = discovery(
        sender,
        source,
        routers,
        143,
        &[&[4, 0, 0, 0], &group.octets()],
    );
    if let Payload::Icmp { rest, .. } = &mut packet.payload {
        rest[3] = 1;
    }
    packet.ttl = 1;
    // The router alert.
    packet.with_extensions(&[Extension::HopByHop(vec![5, 2, 0, 0, 1, 0])])
}

fn discovery(
    sender: Mac,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: u8,
    data: &[&[u8]],
) -> Packet {
    let payload = Payload::Icmp {
        kind,
        code: 0,
        rest: [0; 4],
        data: data.concat(),
    };
    let mut packet = Packet::new(IpAddr::V6(source), IpAddr::V6(destination), payload);
    packet.source_mac = sender;
    if destination.is_multicast() {
        packet.destination_mac = multicast_mac(destination);
    }
    packet.ttl = 255;
    packet
}

fn ethernet(destination: Mac, source: Mac, ether_type: u16) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend(source);
    frame.extend(ether_type.to_be_bytes());
    frame
}
