//! What a pod may not send, and packets that are not what they say.

use weft_abi::drop::DropReason;
use weft_tests::packet::{
    Context,
    bytes::{Packet, Payload, SYN},
    scene::{DB, OUTSIDE, REMOTE, VIP, WEB, dropped, from, lab, service},
};

#[test]
fn a_pod_cannot_claim_what_is_not_its_own() {
    let (mut lab, _) = lab(&[]);
    let syn = || Payload::tcp(40000, 80, SYN);
    let spoofed = dropped(DropReason::Spoofed);
    // Another pod's address, an address of nobody, the wrong MAC address.
    let packet = Packet::new(DB.address, REMOTE, syn()).sent_by(WEB.mac);
    assert_eq!(lab.send(&WEB, &packet), spoofed);
    let packet = Packet::new(OUTSIDE, DB.address, syn()).sent_by(WEB.mac);
    assert_eq!(lab.send(&WEB, &packet), spoofed);
    let packet = from(&WEB, DB.address, syn()).sent_by(DB.mac);
    assert_eq!(lab.send(&WEB, &packet), spoofed);
    // Nor join a flow of another pod, once that is known.
    assert!(lab.send(&WEB, &from(&WEB, REMOTE, syn())).redirected());
    let packet = Packet::new(WEB.address, REMOTE, syn()).sent_by(WEB.mac);
    assert_eq!(lab.send(&DB, &packet), spoofed);
    let packet = from(&WEB, REMOTE, syn()).sent_by(DB.mac);
    assert_eq!(lab.send(&WEB, &packet), spoofed);
}

#[test]
fn ip_options_are_walked() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address])]);
    let mut sent = from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
    sent.options = vec![1; 8];
    let packet = lab.send(&WEB, &sent).packet();
    assert_eq!((packet.destination, packet.options.len()), (DB.address, 8));
    assert_eq!(packet.payload, Payload::tcp(40000, 8080, SYN));
}

#[test]
fn what_weft_does_not_forward_is_dropped_and_named() {
    let (mut lab, _) = lab(&[]);
    let mut fragment = from(&WEB, DB.address, Payload::udp(1, 2));
    fragment.fragment = 185;
    assert_eq!(lab.send(&WEB, &fragment), dropped(DropReason::Fragment));
    let other = from(
        &WEB,
        DB.address,
        Payload::Other {
            protocol: 47,
            data: vec![0; 40],
        },
    );
    assert_eq!(
        lab.send(&WEB, &other),
        dropped(DropReason::UnsupportedProtocol)
    );
    let context = Context {
        ifindex: lab.interface(&WEB),
        ..Context::default()
    };
    let mut arp = from(&WEB, DB.address, Payload::udp(1, 2)).to_bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let verdict = lab.run("from_container", context, &arp).unwrap();
    assert_eq!(verdict, dropped(DropReason::UnsupportedEtherType));
}

#[test]
fn a_packet_cut_anywhere_is_dropped_or_whole() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address])]);
    let context = Context {
        ifindex: lab.interface(&WEB),
        ..Context::default()
    };
    for payload in [
        Payload::tcp(1, 80, SYN),
        Payload::udp(1, 53),
        Payload::echo(true, 1),
    ] {
        let whole = from(&WEB, VIP, payload.clone()).to_bytes();
        // Test runs refuse what is shorter than an IP header.
        for length in 34..whole.len() {
            let verdict = lab
                .run("from_container", context, &whole[..length])
                .unwrap();
            let header = if matches!(payload, Payload::Tcp { .. }) {
                20
            } else {
                8
            };
            if length < 34 + header {
                assert_eq!(
                    verdict,
                    dropped(DropReason::Malformed),
                    "{payload:?} cut to {length}"
                );
            }
        }
    }
    let mut lies = from(&WEB, DB.address, Payload::udp(1, 2)).to_bytes();
    for version_and_length in [0x44, 0x00, 0x65, 0x4f] {
        lies[14] = version_and_length;
        let verdict = lab.run("from_container", context, &lies).unwrap();
        assert_eq!(
            verdict,
            dropped(DropReason::Malformed),
            "{version_and_length:#x}"
        );
    }
}
