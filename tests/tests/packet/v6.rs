//! What only IPv6 has, and what two families must not have in common.

use std::net::Ipv6Addr;

use weft_abi::drop::DropReason;
use weft_tests::packet::{
    Context, FAMILIES, Family, Setup, Somewhere as _, Verdict,
    bytes::{ACK, Extension, Packet, Payload, SYN},
    scene::{
        DB, OUTSIDE, REMOTE, VIP, WEB, cluster_of, dropped, families, lab, lab_with, service,
        service_of,
    },
};

const HOP_BY_HOP: [u8; 6] = [1, 4, 0, 0, 0, 0];

fn destination_options(units: usize) -> Extension {
    // One option fills it: PadN.
    let mut content = vec![0; units * 8 - 2];
    content[0] = 1;
    content[1] = u8::try_from(content.len() - 2).unwrap();
    Extension::Destination(content)
}

#[test]
fn extension_headers_are_looked_through() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
    let f = Family::V6;
    for extensions in [
        vec![Extension::HopByHop(HOP_BY_HOP.to_vec())],
        vec![Extension::Routing(vec![0; 6])],
        vec![Extension::Authentication(vec![0; 14])],
        vec![Extension::Authentication(vec![0; 22])],
        vec![destination_options(1)],
        vec![destination_options(31)],
        vec![
            Extension::HopByHop(HOP_BY_HOP.to_vec()),
            destination_options(2),
            Extension::Routing(vec![0; 6]),
            Extension::Authentication(vec![0; 22]),
            destination_options(1),
        ],
    ] {
        for (there, seen) in [
            (Payload::tcp(40000, 80, SYN), Payload::tcp(40000, 8080, SYN)),
            (Payload::udp(40000, 53), Payload::udp(40000, 5353)),
        ] {
            let sent = f
                .from(&WEB, VIP, there.clone())
                .with_extensions(&extensions);
            let verdict = lab.send(&WEB, &sent);
            assert!(verdict.redirected(), "{extensions:?}: {verdict:?}");
            let came = verdict.packet();
            assert_eq!((came.destination, &came.payload), (DB.at(f), &seen));
            assert_eq!(came.extensions, extensions);
            let reply = f.from(&DB, WEB, seen.answer()).with_extensions(&extensions);
            let came = lab.send(&DB, &reply).packet();
            assert_eq!((came.source, came.payload), (VIP.at(f), there.answer()));
        }
        let ping = f
            .from(&WEB, DB, Payload::echo(true, 7))
            .with_extensions(&extensions);
        assert!(lab.send(&WEB, &ping).redirected());
    }
}

#[test]
fn extension_headers_have_a_bound() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
    let f = Family::V6;
    for extensions in [
        vec![destination_options(1); 12],
        vec![destination_options(31); 3],
    ] {
        for to in [DB.place, REMOTE, OUTSIDE, VIP] {
            let sent = f
                .from(&WEB, to, Payload::tcp(40000, 80, SYN))
                .with_extensions(&extensions);
            assert_eq!(lab.send(&WEB, &sent), dropped(DropReason::ExtensionHeaders));
        }
    }
    assert_eq!(lab.flows().unwrap(), []);
}

#[test]
fn a_chain_that_is_cut_goes_nowhere() {
    let (mut lab, _) = lab(&[]);
    let f = Family::V6;
    let context = Context {
        ifindex: lab.interface(&WEB),
        ..Context::default()
    };
    let sent = f
        .from(&WEB, DB, Payload::tcp(40000, 80, SYN))
        .with_extensions(&[
            Extension::HopByHop(HOP_BY_HOP.to_vec()),
            destination_options(3),
            Extension::Authentication(vec![0; 22]),
        ]);
    let whole = sent.to_bytes();
    for length in 54..whole.len() {
        let verdict = lab
            .run("from_container", context, &whole[..length])
            .unwrap();
        assert!(
            matches!(
                verdict,
                Verdict::Drop(DropReason::Malformed | DropReason::ExtensionHeaders)
            ),
            "cut to {length}: {verdict:?}"
        );
    }
    // No next header at all (59): there is nothing to deliver but nothing wrong either.
    let nothing = f.from(
        &WEB,
        DB,
        Payload::Other {
            protocol: 59,
            data: Vec::new(),
        },
    );
    let verdict = lab.send(&WEB, &nothing);
    if let Verdict::Redirect(bytes, _) = verdict {
        assert!(Packet::parse(&bytes).is_ok());
    }
}

#[test]
fn a_udp_checksum_never_becomes_zero() {
    // Zero means "none", which IPv6 forbids: a sum of zero is written as its equal.
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        let with = |packet: &Packet, word: u16| {
            let data = word.to_be_bytes().to_vec();
            let (source, destination) = packet.payload.ports();
            let payload = Payload::udp_with(source, destination, data);
            Packet {
                payload,
                ..packet.clone()
            }
        };
        let checksum = |packet: &Packet| {
            let at = 14 + f.header() + 6;
            let bytes = packet.to_bytes();
            u16::from_be_bytes([bytes[at], bytes[at + 1]])
        };
        let seen = f.packet(WEB, DB, Payload::udp(40000, 5353));
        let word = (0..=u16::MAX)
            .find(|word| checksum(&with(&seen, *word)) == u16::MAX)
            .unwrap();
        let sent = with(&f.from(&WEB, VIP, Payload::udp(40000, 53)), word);
        assert_ne!(checksum(&sent), u16::MAX);
        let came = lab.send(&WEB, &sent).packet();
        let Payload::Udp { checksum, data, .. } = came.payload else {
            panic!("{came:?}")
        };
        assert!(checksum, "the checksum is gone");
        assert_eq!(data, word.to_be_bytes());
    }
}

#[test]
fn a_cluster_of_one_family_has_only_that() {
    for f in FAMILIES {
        let service = service_of(&[f], "s", VIP, &[DB.place]);
        let (mut lab, _) = lab_with(&Setup::uplink(), cluster_of(&[f], &[service]));
        for (to, port) in [(DB.place, 8080), (VIP, 80), (REMOTE, 8080)] {
            let packet = f.from(&WEB, to, Payload::tcp(40000 + port, port, SYN));
            let verdict = lab.send(&WEB, &packet);
            assert!(verdict.redirected(), "{verdict:?}");
        }
        crate::support::masqueraded(
            &mut lab,
            &WEB,
            &f.from(&WEB, OUTSIDE, Payload::udp(40000, 53)),
        );
        // The other family's addresses are nobody's.
        let other = f.pick(Family::V6, Family::V4);
        let packet = other.from(&WEB, DB, Payload::tcp(40000, 80, SYN));
        assert_eq!(lab.send(&WEB, &packet), dropped(DropReason::Spoofed));
    }
}

#[test]
fn the_families_know_nothing_of_each_other() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
    for f in families() {
        let sent = f.from(&WEB, VIP, Payload::tcp(40000, 80, ACK));
        assert_eq!(lab.send(&WEB, &sent).packet().destination, DB.at(f));
    }
    // An IPv4 address in IPv6 clothes is no pod's (RFC 4291, section 2.5.5.2).
    let mapped = |address: std::net::Ipv4Addr| address.to_ipv6_mapped();
    for (source, destination) in [
        (mapped(WEB.place.v4), DB.place.v6),
        (mapped(WEB.place.v4), mapped(DB.place.v4)),
    ] {
        let packet = Packet::new(source, destination, Payload::tcp(40000, 80, SYN));
        assert_eq!(
            lab.send(&WEB, &packet.sent_by(WEB.mac)),
            dropped(DropReason::Spoofed)
        );
    }
    let packet = Packet::new(
        WEB.place.v6,
        mapped(DB.place.v4),
        Payload::tcp(40000, 80, SYN),
    );
    let verdict = lab.send(&WEB, &packet.sent_by(WEB.mac));
    if let Verdict::Redirect(bytes, _) = &verdict {
        panic!("delivered somewhere: {bytes:02x?}");
    }
    // Nor may a pod speak with the address of its link.
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);
    let packet = Packet::new(link_local, DB.place.v6, Payload::tcp(1, 2, SYN));
    assert_eq!(
        lab.send(&WEB, &packet.sent_by(WEB.mac)),
        dropped(DropReason::Spoofed)
    );
}
