//! What several files of these tests do.

use std::io::{self, Write as _};

use weft_abi::{GATEWAY_MAC, MARK_FORWARDED, drop::DropReason};
use weft_tests::packet::{
    Family, Lab, LocalPod, MASQUERADE_FIRST, MASQUERADE_PORTS, Place, Somewhere as _, Verdict,
    bytes::{ACK, FIN, IcmpError, Packet, Payload, RST, SYN, tcp_numbers},
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

/// A pod's packet is on its way to one of a service's endpoints, with the pod's own address.
#[track_caller]
pub fn served(lab: &mut Lab, pod: &LocalPod, packet: &Packet) -> Packet {
    let verdict = lab.send(pod, packet);
    assert!(verdict.redirected(), "{verdict:?}");
    let went = verdict.packet();
    assert_eq!(went.source, packet.source, "pods keep their address");
    assert_eq!(went.ttl, packet.ttl - 1, "Weft routes it");
    went
}

/// A packet of somebody outside is on its way to one of a service's endpoints, in a pod of this node
/// with his address, or elsewhere with this node's.
#[track_caller]
pub fn served_outside(lab: &mut Lab, packet: &Packet) -> Packet {
    let verdict = lab.arrive(packet);
    assert!(verdict.redirected(), "{verdict:?}");
    let went = verdict.packet();
    let pods = lab.pods().iter();
    let mut local = pods.filter(|pod| pod.at(packet.family()) == went.destination);
    if let Some(pod) = local.next() {
        assert_eq!(went.source, packet.source, "the pod sees who asks");
        assert_eq!(went.destination_mac, pod.mac);
    } else {
        assert_eq!(went.source, NODE.at(packet.family()));
        assert!(
            in_range(&went.payload),
            "out of the range of ports: {:?}",
            went.payload
        );
    }
    assert_eq!(went.ttl, packet.ttl - 1, "Weft routes it");
    went
}

/// A pod's packet is rejected for this reason: it is counted as dropped, and answered.
#[track_caller]
pub fn rejected(lab: &mut Lab, reason: DropReason, pod: &LocalPod, packet: &Packet) {
    let before = lab.drops(reason).expect("counters");
    let verdict = lab.send(pod, packet);
    let after = lab.drops(reason).expect("counters");
    assert_eq!(after, before + 1, "{}: {verdict:?}", reason.name());
    let Verdict::Redirect(frame, 0) = &verdict else {
        panic!("no answer: {verdict:?}")
    };
    let told = is_rejection(packet, frame);
    assert_eq!(
        (told.destination_mac, told.source_mac),
        (pod.mac, GATEWAY_MAC)
    );
}

/// The same of a packet from outside.
#[track_caller]
pub fn rejected_outside(lab: &mut Lab, reason: DropReason, packet: &Packet) {
    let before = lab.drops(reason).expect("counters");
    let verdict = lab.arrive(packet);
    let after = lab.drops(reason).expect("counters");
    assert_eq!(after, before + 1, "{}: {verdict:?}", reason.name());
    let Verdict::Redirect(frame, MARK_FORWARDED) = &verdict else {
        panic!("no answer: {verdict:?}")
    };
    is_rejection(packet, frame);
}

/// A frame says to who sent a packet that nobody is there: to TCP with a reset that its sender
/// believes (RFC 9293, section 3.10.7.1), to anything else with an ICMP error.
#[track_caller]
pub fn is_rejection(packet: &Packet, frame: &[u8]) -> Packet {
    let told = Packet::parse(frame).expect("a sound packet");
    assert_eq!(
        (told.source, told.destination),
        (packet.destination, packet.source)
    );
    assert_eq!(told.ttl, 64);
    match &packet.payload {
        Payload::Tcp {
            source,
            destination,
            flags,
            data,
        } => {
            let acknowledges = flags & ACK != 0;
            let answer = if acknowledges { RST } else { RST | ACK };
            assert_eq!(told.payload, Payload::tcp(*destination, *source, answer));
            let length = u32::try_from(data.len()).expect("a segment")
                + u32::from(flags & SYN != 0)
                + u32::from(flags & FIN != 0);
            let numbers = if acknowledges {
                (2, 0)
            } else {
                (0, 1 + length)
            };
            assert_eq!(tcp_numbers(frame), Ok(numbers));
        }
        payload => {
            let quoted = if matches!(payload, Payload::Sctp { .. }) {
                12
            } else {
                8
            };
            let error = IcmpError::PortUnreachable;
            let quote = packet.quote(quoted);
            assert_eq!(told.payload, Payload::Error { error, quote });
        }
    }
    told
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
