//! What a pod may not send, and packets that are not what they say.

use weft_abi::drop::DropReason;
use weft_tests::packet::{
    Context, Family, Somewhere as _,
    bytes::{Fragment, Payload, SYN},
    scene::{DB, OUTSIDE, REMOTE, VIP, WEB, dropped, families, lab, service},
};

#[test]
fn a_pod_cannot_claim_what_is_not_its_own() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        let syn = || Payload::tcp(40000, 80, SYN);
        let spoofed = dropped(DropReason::Spoofed);
        // Another pod's address, an address of nobody, the wrong MAC address.
        let packet = f.packet(DB, REMOTE, syn()).sent_by(WEB.mac);
        assert_eq!(lab.send(&WEB, &packet), spoofed);
        let packet = f.packet(OUTSIDE, DB, syn()).sent_by(WEB.mac);
        assert_eq!(lab.send(&WEB, &packet), spoofed);
        let packet = f.from(&WEB, DB, syn()).sent_by(DB.mac);
        assert_eq!(lab.send(&WEB, &packet), spoofed);
        // Nor join a flow of another pod, once that is known.
        assert!(lab.send(&WEB, &f.from(&WEB, REMOTE, syn())).redirected());
        let packet = f.packet(WEB, REMOTE, syn()).sent_by(WEB.mac);
        assert_eq!(lab.send(&DB, &packet), spoofed);
        let packet = f.from(&WEB, REMOTE, syn()).sent_by(DB.mac);
        assert_eq!(lab.send(&WEB, &packet), spoofed);
    }
}

#[test]
fn ip_options_are_walked() {
    let f = Family::V4;
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
    let mut sent = f.from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
    sent.options = vec![1; 8];
    let packet = lab.send(&WEB, &sent).packet();
    assert_eq!((packet.destination, packet.options.len()), (DB.at(f), 8));
    assert_eq!(packet.payload, Payload::tcp(40000, 8080, SYN));
}

#[test]
fn what_weft_does_not_forward_is_dropped_and_named() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        let mut fragment = f.from(&WEB, DB, Payload::udp(1, 2));
        fragment = fragment.with_fragment(Fragment {
            id: 1,
            offset: 1_480,
            more: false,
        });
        // From anywhere else it would wait for the first one.
        assert_eq!(
            lab.receive(&DB, 0, &fragment),
            dropped(DropReason::Fragment)
        );
        let context = Context {
            ifindex: lab.interface(&WEB),
            ..Context::default()
        };
        let mut arp = f.from(&WEB, DB, Payload::udp(1, 2)).to_bytes();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        let verdict = lab.run("from_container", context, &arp).unwrap();
        assert_eq!(verdict, dropped(DropReason::UnsupportedEtherType));
    }
}

#[test]
fn a_packet_cut_anywhere_is_dropped_or_whole() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        let context = Context {
            ifindex: lab.interface(&WEB),
            ..Context::default()
        };
        for payload in [
            Payload::tcp(1, 80, SYN),
            Payload::udp(1, 53),
            Payload::echo(true, 1),
        ] {
            let whole = f.from(&WEB, VIP, payload.clone()).to_bytes();
            let transport = 14 + f.header();
            // Test runs refuse what is shorter than the IP header.
            for length in transport..whole.len() {
                let verdict = lab
                    .run("from_container", context, &whole[..length])
                    .unwrap();
                let header = if matches!(payload, Payload::Tcp { .. }) {
                    20
                } else {
                    8
                };
                if length < transport + header {
                    assert_eq!(
                        verdict,
                        dropped(DropReason::Malformed),
                        "{payload:?} cut to {length}"
                    );
                }
            }
        }
        let mut lies = f.from(&WEB, DB, Payload::udp(1, 2)).to_bytes();
        // IPv4 has its header's length there as well.
        for version_and_length in f.pick(&[0x44, 0x00, 0x65, 0x4f][..], &[0x45, 0x00, 0x70]) {
            lies[14] = *version_and_length;
            let verdict = lab.run("from_container", context, &lies).unwrap();
            assert_eq!(
                verdict,
                dropped(DropReason::Malformed),
                "{version_and_length:#x}"
            );
        }
    }
}
