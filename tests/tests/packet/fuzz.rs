//! Bytes that nobody meant: every program says something about each, and no pod gets what is no
//! packet.

use weft_abi::maps::programs;
use weft_tests::packet::{
    Context, Family, Lab, LocalPod, Verdict,
    bytes::{ACK, Extension, IcmpError, Packet, Payload, SYN, sound},
    frames,
    scene::{DB, NODE, OUTSIDE, PODS, REMOTE, VIP, WEB, families, service, uplink_lab},
};

use crate::support::Numbers;

/// Mutations of each packet, in each program.
const MUTATIONS: usize = 60;
/// Frames of nothing but noise, in each program.
const NOISE: usize = 2_000;
/// Test runs take no frame that is shorter than its IP header.
fn shortest(frame: &[u8]) -> usize {
    if frame[12..14] == [0x86, 0xdd] {
        54
    } else {
        34
    }
}

/// Packets to begin with.
fn seeds(f: Family, pod: &LocalPod) -> Vec<Packet> {
    let mut seeds = Vec::new();
    for to in [DB.place, REMOTE, OUTSIDE, VIP, NODE] {
        for payload in [
            Payload::tcp(40000, 80, SYN),
            Payload::tcp(40000, 80, ACK),
            Payload::udp(40000, 53),
            Payload::echo(true, 7),
        ] {
            let sent = f.from(pod, to, payload);
            seeds.push(f.packet(to, NODE, sent.payload.answer()));
            seeds.push(f.packet(to, pod, sent.payload.answer()));
            let error = sent.error(sent.destination, IcmpError::TooBig(1_300), usize::MAX);
            seeds.push(error);
            seeds.extend(sent.split(8, 7));
            if f == Family::V6 {
                let chain = [
                    Extension::HopByHop(vec![1, 4, 0, 0, 0, 0]),
                    Extension::Authentication(vec![0; 22]),
                    Extension::Destination(vec![1, 4, 0, 0, 0, 0]),
                ];
                seeds.push(sent.clone().with_extensions(&chain));
            }
            seeds.push(sent);
        }
    }
    seeds
}

/// The same with some bytes changed, cut off or added; mostly in the headers.
fn mutate(numbers: &mut Numbers, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for _ in 0..=numbers.below(4) {
        // The addresses of Ethernet stay: otherwise nearly everything is somebody else's.
        let at = 12 + numbers.below(frame.len() - 12);
        match numbers.below(8) {
            0 => frame.truncate(shortest(&frame).max(at)),
            1 => {
                let more = numbers.below(64);
                frame.extend((0..more).map(|byte| byte as u8));
            }
            2 => frame[at] = 0,
            3 => frame[at] = 0xff,
            _ => frame[at] ^= 1 << numbers.below(8),
        }
    }
    frame
}

fn contexts(lab: &Lab) -> Vec<(&'static str, Context)> {
    let at = |ifindex| Context {
        ifindex,
        ..Context::default()
    };
    let pod = at(lab.interface(&WEB));
    vec![
        (programs::FROM_CONTAINER, pod),
        (programs::TO_CONTAINER, pod),
        (programs::FROM_OVERLAY, Context::default()),
        (programs::TO_OVERLAY, Context::default()),
        (programs::FROM_NETDEV, at(lab.uplink())),
        (programs::TO_NETDEV, at(lab.uplink())),
    ]
}

#[track_caller]
fn try_frame(lab: &mut Lab, program: &str, context: Context, frame: &[u8]) {
    if frame.len() < shortest(frame) {
        return;
    }
    // A drop that no counter tells, or an unknown answer, is an error.
    let verdict = match lab.run(program, context, frame) {
        Ok(verdict) => verdict,
        Err(error) => panic!("{program}: {error:#}: {frame:02x?}"),
    };
    let into_pod = match &verdict {
        Verdict::Redirect(bytes, _) => {
            let to_pod = PODS.iter().any(|pod| bytes[..6] == pod.mac);
            to_pod.then_some(bytes)
        }
        Verdict::Pass(bytes, _) if program == programs::TO_CONTAINER => Some(bytes),
        _ => None,
    };
    if let Some(bytes) = into_pod
        && let Err(error) = sound(bytes)
    {
        panic!(
            "{program} let into a pod what is no packet ({error}): {frame:02x?} as {bytes:02x?}"
        );
    }
}

#[test]
fn changed_packets() {
    let mut numbers = Numbers(0x5745_4654_0001);
    for f in families() {
        let (mut lab, _) = uplink_lab(&[service("s", VIP, &[DB.place])]);
        for (program, context) in contexts(&lab) {
            for seed in seeds(f, &WEB) {
                let frame = seed.to_bytes();
                // First as it is, so that there are flows to be confused.
                try_frame(&mut lab, program, context, &frame);
                for _ in 0..MUTATIONS {
                    let frame = mutate(&mut numbers, &frame);
                    try_frame(&mut lab, program, context, &frame);
                }
            }
        }
    }
}

#[test]
fn noise() {
    let mut numbers = Numbers(0x5745_4654_0002);
    let (mut lab, _) = uplink_lab(&[service("s", VIP, &[DB.place])]);
    for (program, context) in contexts(&lab) {
        for _ in 0..NOISE {
            let length = 54 + numbers.below(1_500);
            let mut frame: Vec<u8> = (0..length).map(|_| numbers.below(256) as u8).collect();
            frame[..6].copy_from_slice(&weft_abi::GATEWAY_MAC);
            frame[6..12].copy_from_slice(&WEB.mac);
            let ether_types: [[u8; 2]; 4] = [[0x08, 0], [0x86, 0xdd], [0x81, 0], [0x08, 6]];
            frame[12..14].copy_from_slice(&ether_types[numbers.below(4)]);
            // Half of them begin like a packet.
            if numbers.below(2) == 0 {
                frame[14] = if frame[12] == 8 { 0x45 } else { 0x60 };
            }
            try_frame(&mut lab, program, context, &frame);
        }
        for frame in [
            frames::lldp(WEB.mac),
            frames::arp(true, (WEB.mac, WEB.place.v4), (DB.mac, DB.place.v4)),
        ] {
            try_frame(&mut lab, program, context, &frame);
        }
    }
}
