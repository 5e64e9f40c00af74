//! What several files of these tests do.

use std::io::{self, Write as _};

use weft_abi::MARK_FORWARDED;
use weft_tests::packet::{
    Family, Lab, LocalPod, MASQUERADE_FIRST, MASQUERADE_PORTS, Place, Somewhere as _, Verdict,
    bytes::{Packet, Payload, SYN},
    scene::NODE,
};

/// One of everything that is masqueraded.
pub fn payloads() -> [Payload; 3] {
    [
        Payload::tcp(40000, 80, SYN),
        Payload::udp(40000, 53),
        Payload::echo(true, 40000),
    ]
}

/// Sends a packet of a pod that leaves by the uplink; it is on its way with the node's address.
#[track_caller]
pub fn masqueraded(lab: &mut Lab, pod: &LocalPod, packet: &Packet) -> Packet {
    let left = leaves(lab, pod, packet);
    assert_eq!(left.source, NODE.at(packet.family()));
    assert!(
        in_range(&left.payload),
        "out of the range of ports: {:?}",
        left.payload
    );
    left
}

/// Sends a packet of a pod that leaves by the uplink, with whatever address.
#[track_caller]
pub fn leaves(lab: &mut Lab, pod: &LocalPod, packet: &Packet) -> Packet {
    let verdict = lab.send(pod, packet);
    let Verdict::Redirect(_, mark) = verdict else {
        panic!("it does not leave: {verdict:?}")
    };
    assert_eq!(mark, MARK_FORWARDED, "to_netdev must know it");
    let left = verdict.packet();
    assert_eq!(left.ttl, packet.ttl - 1, "Weft routes it");
    left
}

/// The packet that arrives at the uplink is delivered to this pod.
#[track_caller]
pub fn delivered(lab: &mut Lab, pod: &LocalPod, packet: &Packet) -> Packet {
    let verdict = lab.arrive(packet);
    assert!(verdict.redirected(), "{verdict:?}");
    let came = verdict.packet();
    assert_eq!(came.destination_mac, pod.mac);
    assert_eq!(came.destination, pod.at(packet.family()));
    assert_eq!(came.ttl, packet.ttl - 1, "Weft routes it");
    came
}

/// What the other end of a packet that left answers.
pub fn answer(left: &Packet) -> Packet {
    Packet::new(left.destination, left.source, left.payload.answer())
}

/// Whether the source port is one that masquerading gives out.
pub fn in_range(payload: &Payload) -> bool {
    (MASQUERADE_FIRST..MASQUERADE_FIRST + MASQUERADE_PORTS).contains(&payload.source_port())
}

/// Says that this kernel lacks what a test needs. Written past the harness, which shows what a test
/// prints only when it fails; `cargo xtask vm` reports it.
pub fn skipped(why: &str) {
    // Nobody reads it if it cannot be written.
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// The manifest's CIDR of a single address.
pub fn network(place: Place, family: Family) -> ipnet::IpNet {
    place.at(family).into()
}

/// A source of numbers that look random and are the same each time.
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number below `end` (xorshift64*).
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(number).unwrap_or(0) % end
    }
}
