//! ICMP errors: they belong to the flow whose packet they quote, and say what its sender can
//! understand.

use weft_abi::{MARK_FORWARDED, drop::DropReason};
use weft_tests::packet::{
    Family, Lab, Overlay, Somewhere as _, UPLINK_MTU, Verdict, Wire,
    bytes::{IcmpError, Packet, Payload, SYN},
    scene::{
        DB, ELSEWHERE, NODE, OTHER_NODE, OUTSIDE, PODS, REMOTE, ROUTER, VIP, WEB, cluster, dropped,
        families, hairpin, lab, policy, service, uplink_lab,
    },
};

use crate::support::{answer, delivered, masqueraded, payloads};

/// Everything that routers and hosts say about packets.
const ERRORS: [IcmpError; 6] = [
    IcmpError::PortUnreachable,
    IcmpError::NoRoute,
    IcmpError::Prohibited,
    IcmpError::TooBig(1_300),
    IcmpError::TimeExceeded,
    IcmpError::Problem(9),
];

/// How much of the transport is quoted: what RFC 792 asks for, the header of TCP, all.
const QUOTES: [usize; 3] = [8, 20, usize::MAX];

fn deny_all() -> String {
    policy("deny", "{podSelector: {}, policyTypes: [Ingress]}")
}

/// What a packet sent with this time to live looks like to a router some hops on.
fn aged(packet: &Packet, ttl: u8) -> Packet {
    Packet {
        ttl,
        ..packet.clone()
    }
}

fn error_of(packet: &Packet) -> IcmpError {
    match packet.payload {
        Payload::Error { error, .. } => error,
        ref other => panic!("no error: {other:?}"),
    }
}

fn quote_of(packet: &Packet) -> &[u8] {
    match &packet.payload {
        Payload::Error { quote, .. } => quote,
        other => panic!("no error: {other:?}"),
    }
}

#[test]
fn an_error_about_a_masqueraded_packet_finds_its_pod() {
    for f in families() {
        // Whatever policy says about what comes in: it is of a flow that is allowed.
        let (mut lab, _) = uplink_lab(&[deny_all()]);
        for payload in payloads() {
            let sent = f.from(&WEB, OUTSIDE, payload);
            let left = masqueraded(&mut lab, &WEB, &sent);
            for error in ERRORS {
                for router in [ROUTER, ELSEWHERE, OUTSIDE] {
                    for cut in QUOTES {
                        let told = aged(&left, 1).error(router.at(f), error, cut);
                        let came = delivered(&mut lab, &WEB, &told);
                        assert_eq!(came.source, router.at(f), "who says so");
                        assert_eq!(error_of(&came), error);
                        // What the pod sent, to the byte, but for the hops.
                        assert_eq!(quote_of(&came), aged(&sent, 1).quote(cut), "{cut}");
                    }
                }
            }
            // The flow is none the worse for it.
            let came = delivered(&mut lab, &WEB, &answer(&left));
            assert_eq!(came.payload, sent.payload.answer());
        }
    }
}

#[test]
fn an_error_about_a_masqueraded_packet_to_a_service() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[service("s", VIP, &[OUTSIDE]), deny_all()]);
        for payload in [Payload::tcp(40000, 80, SYN), Payload::udp(40000, 53)] {
            let sent = f.from(&WEB, VIP, payload);
            let left = masqueraded(&mut lab, &WEB, &sent);
            for cut in QUOTES {
                let told = aged(&left, 9).error(ROUTER.at(f), IcmpError::TooBig(1_300), cut);
                let came = delivered(&mut lab, &WEB, &told);
                assert_eq!(came.source, ROUTER.at(f));
                assert_eq!(quote_of(&came), aged(&sent, 9).quote(cut));
                // From the backend itself: the client knows it as the service.
                let told = aged(&left, 9).error(OUTSIDE.at(f), IcmpError::PortUnreachable, cut);
                let came = delivered(&mut lab, &WEB, &told);
                assert_eq!(came.source, VIP.at(f));
                assert_eq!(quote_of(&came), aged(&sent, 9).quote(cut));
            }
        }
    }
}

#[test]
fn a_backend_where_nobody_listens() {
    for f in families() {
        let deny = policy(
            "web",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
        );
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place]), deny]);
        for to in [VIP, DB.place] {
            let port = if to == VIP { 53 } else { 5353 };
            let sent = f.from(&WEB, to, Payload::udp(40000 + port, port));
            let came = lab.send(&WEB, &sent).packet();
            for cut in QUOTES {
                let told = came
                    .error(DB.at(f), IcmpError::PortUnreachable, cut)
                    .sent_by(DB.mac);
                let verdict = lab.send(&DB, &told);
                assert!(verdict.redirected(), "{verdict:?}");
                let told = verdict.packet();
                assert_eq!((told.source, told.destination), (to.at(f), WEB.at(f)));
                assert_eq!(told.destination_mac, WEB.mac);
                assert_eq!(error_of(&told), IcmpError::PortUnreachable);
                assert_eq!(quote_of(&told), aged(&sent, 63).quote(cut));
            }
        }
    }
}

#[test]
fn a_pods_error_about_a_reply_from_outside() {
    for f in families() {
        for (to, port) in [(OUTSIDE, 5353), (VIP, 53)] {
            let (mut lab, _) = uplink_lab(&[service("s", VIP, &[OUTSIDE])]);
            let sent = f.from(&WEB, to, Payload::udp(40000, port));
            let left = masqueraded(&mut lab, &WEB, &sent);
            let reply = answer(&left);
            let came = delivered(&mut lab, &WEB, &reply);
            for cut in QUOTES {
                // Nobody waits for it any more.
                let told = came
                    .error(WEB.at(f), IcmpError::PortUnreachable, cut)
                    .sent_by(WEB.mac);
                let verdict = lab.send(&WEB, &told);
                assert!(
                    matches!(verdict, Verdict::Redirect(_, MARK_FORWARDED)),
                    "{verdict:?}"
                );
                let told = verdict.packet();
                assert_eq!((told.source, told.destination), (NODE.at(f), OUTSIDE.at(f)));
                assert_eq!(error_of(&told), IcmpError::PortUnreachable);
                assert_eq!(quote_of(&told), aged(&reply, 63).quote(cut));
            }
        }
    }
}

#[test]
fn a_pods_error_about_a_services_reply() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        let sent = f.from(&WEB, VIP, Payload::udp(40000, 53));
        let asked = lab.send(&WEB, &sent).packet();
        let reply = f.from(&DB, WEB, asked.payload.answer());
        let came = lab.send(&DB, &reply).packet();
        assert_eq!(came.source, VIP.at(f));
        for cut in QUOTES {
            let told = came
                .error(WEB.at(f), IcmpError::PortUnreachable, cut)
                .sent_by(WEB.mac);
            let verdict = lab.send(&WEB, &told);
            assert!(verdict.redirected(), "{verdict:?}");
            let told = verdict.packet();
            assert_eq!((told.source, told.destination), (WEB.at(f), DB.at(f)));
            assert_eq!(told.destination_mac, DB.mac);
            assert_eq!(quote_of(&told), aged(&reply, 63).quote(cut));
        }
    }
}

#[test]
fn a_pod_that_talks_to_itself_through_a_service_is_told_as_well() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[WEB.place])]);
        let sent = f.from(&WEB, VIP, Payload::udp(40000, 53));
        let asked = lab.send(&WEB, &sent).packet();
        assert_eq!(asked.source, hairpin(f));
        let told = asked
            .error(WEB.at(f), IcmpError::PortUnreachable, usize::MAX)
            .sent_by(WEB.mac);
        let verdict = lab.send(&WEB, &told);
        assert!(verdict.redirected(), "{verdict:?}");
        let told = verdict.packet();
        assert_eq!((told.source, told.destination), (VIP.at(f), WEB.at(f)));
        assert_eq!(quote_of(&told), aged(&sent, 63).quote(usize::MAX));
    }
}

/// What the host stack says about a packet that it was given.
#[test]
fn the_hosts_errors_reach_the_pod() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[service("s", VIP, &[DB.place]), deny_all_but_db()]);
        for (to, port) in [(OUTSIDE, 53), (VIP, 53), (DB.place, 5353)] {
            let mut sent = f.from(&WEB, to, Payload::udp(40000, port));
            sent.ttl = 1;
            let verdict = lab.send(&WEB, &sent);
            assert!(verdict.passed(), "{verdict:?}");
            let told = verdict
                .packet()
                .error(NODE.at(f), IcmpError::TimeExceeded, usize::MAX);
            let verdict = lab.receive(&WEB, 0, &told);
            assert!(verdict.passed(), "{verdict:?}");
            let told = verdict.packet();
            assert_eq!((told.source, told.destination), (NODE.at(f), WEB.at(f)));
            assert_eq!(quote_of(&told), sent.quote(usize::MAX), "to {to:?}");
        }
    }
}

/// Nothing gets into `web` but what belongs to its flows.
fn deny_all_but_db() -> String {
    policy(
        "web",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
    )
}

/// Errors that speak of nothing that is known are packets like any other.
#[test]
fn an_error_about_nothing_known_is_judged() {
    for f in families() {
        for denied in [true, false] {
            let policies = if denied { vec![deny_all()] } else { Vec::new() };
            let (mut lab, _) = uplink_lab(&policies);
            let about = f.packet(WEB, DB, Payload::udp(40000, 53));
            let told = about
                .error(DB.at(f), IcmpError::PortUnreachable, usize::MAX)
                .sent_by(DB.mac);
            assert_judged(&mut lab, f, &told, denied);
            for malformed in malformed(f, &about) {
                let told = f.from(&DB, WEB, malformed);
                assert_judged(&mut lab, f, &told, denied);
            }
            // Nor does the outside get in by them.
            let left = f.packet(NODE, OUTSIDE, Payload::udp(2_000, 53));
            let told = left.error(ROUTER.at(f), IcmpError::NoRoute, 8);
            assert_eq!(lab.arrive(&told), Verdict::Pass(told.to_bytes(), 0));
            for malformed in malformed(f, &left) {
                let told = f.packet(ROUTER, NODE, malformed);
                assert_eq!(lab.arrive(&told), Verdict::Pass(told.to_bytes(), 0));
            }
            assert_eq!(lab.flows().unwrap(), [], "errors open nothing");
        }
    }
}

#[track_caller]
fn assert_judged(lab: &mut Lab, f: Family, told: &Packet, denied: bool) {
    let verdict = lab.send(&DB, told);
    if denied {
        assert_eq!(verdict, dropped(DropReason::PolicyIngress), "{told:?}");
        return;
    }
    let Verdict::Redirect(bytes, _) = &verdict else {
        panic!("{verdict:?}: {told:?}")
    };
    let transport = 14 + f.header();
    assert_eq!(
        bytes[transport..],
        told.to_bytes()[transport..],
        "untouched"
    );
}

/// Errors whose quotes are no packets, or none that tell a flow.
fn malformed(f: Family, about: &Packet) -> Vec<Payload> {
    let whole = about.quote(usize::MAX);
    let header = f.header();
    let mut quotes = vec![Vec::new(), vec![0xff; 60]];
    for length in [1, 7, 19, header - 1, header, header + 3, header + 7] {
        quotes.push(whole[..length].to_vec());
    }
    for first in [
        0x00,
        0x05,
        0x75,
        0xf5,
        f.pick(0x60, 0x45),
        f.pick(0x44, 0x00),
    ] {
        let mut quote = whole.clone();
        quote[0] = first;
        quotes.push(quote);
    }
    // An error about an error.
    let inner = about.error(about.destination, IcmpError::NoRoute, 8);
    quotes.push(Packet::new(about.source, about.destination, inner.payload).quote(usize::MAX));
    let (kind, code) = f.pick((3, 3), (1, 4));
    let quotes = quotes.into_iter().map(|data| Payload::Icmp {
        kind,
        code,
        rest: [0; 4],
        data,
    });
    quotes.collect()
}

#[test]
fn an_error_is_about_what_its_receiver_sent() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[deny_all()]);
        let sent = f.from(&WEB, OUTSIDE, Payload::udp(40000, 53));
        let left = masqueraded(&mut lab, &WEB, &sent);
        // About a packet of the other direction: no router tells the receiver of it.
        let backwards = answer(&left).error(NODE.at(f), IcmpError::NoRoute, 8);
        let backwards = f.packet(ROUTER, NODE, backwards.payload);
        assert_eq!(
            lab.arrive(&backwards),
            Verdict::Pass(backwards.to_bytes(), 0)
        );
        // About the pod's packet, to another pod.
        let about = sent.error(NODE.at(f), IcmpError::NoRoute, 8);
        let stray = f.packet(NODE, DB, about.payload);
        if lab.takes_ingress(&DB) {
            let verdict = lab.receive(&DB, lab.uplink(), &stray);
            assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
        }
    }
}

#[test]
fn traceroute_sees_every_hop() {
    let mut cluster = cluster(&[service("s", VIP, &[REMOTE]), deny_all()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for to in [OUTSIDE, REMOTE, VIP] {
            let mut sent = f.from(&WEB, to, Payload::udp(40000, 53));
            sent.ttl = 1;
            wire.send(&WEB, &sent).unwrap();
            let told = wire.at_pod(&WEB).unwrap();
            assert_eq!(error_of(&told), IcmpError::TimeExceeded, "to {to:?}");
            assert_eq!(told.source, NODE.at(f));
            let quoted = told.quoted();
            assert_eq!((quoted.source, quoted.destination), (WEB.at(f), to.at(f)));
            assert_eq!(quoted.transport[..4], sent.quote(4)[f.header()..]);
        }
        // The next one is a router outside.
        let mut sent = f.from(&WEB, OUTSIDE, Payload::udp(40001, 53));
        sent.ttl = 2;
        wire.send(&WEB, &sent).unwrap();
        let left = wire.outside().unwrap();
        wire.arrive(&left.error(ROUTER.at(f), IcmpError::TimeExceeded, 8))
            .unwrap();
        let told = wire.at_pod(&WEB).unwrap();
        assert_eq!(told.source, ROUTER.at(f));
        assert_eq!(quote_of(&told), aged(&sent, 1).quote(8));
        // Or the other node, whose word comes by the overlay.
        let mut sent = f.from(&WEB, VIP, Payload::udp(40002, 53));
        sent.ttl = 2;
        wire.send(&WEB, &sent).unwrap();
        let inner = wire.overlay().unwrap().inner;
        assert_eq!((inner.destination, inner.ttl), (REMOTE.at(f), 1));
        wire.arrive_by_overlay(&Overlay {
            source: OTHER_NODE.v4.into(),
            destination: NODE.v4.into(),
            vni: 1,
            inner: inner.error(OTHER_NODE.at(f), IcmpError::TimeExceeded, usize::MAX),
        })
        .unwrap();
        let told = wire.at_pod(&WEB).unwrap();
        assert_eq!(told.source, OTHER_NODE.at(f));
        assert_eq!(quote_of(&told), aged(&sent, 1).quote(usize::MAX));
    }
}

#[test]
fn the_path_is_too_narrow_and_the_pod_learns_it() {
    let mut cluster = cluster(&[service("s", VIP, &[REMOTE]), deny_all()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        let cases = [(OUTSIDE, UPLINK_MTU), (REMOTE, 1_450), (VIP, 1_450)];
        for (index, (to, mtu)) in cases.into_iter().enumerate() {
            let port = 40_000 + u16::try_from(index).unwrap();
            let fits = usize::try_from(mtu).unwrap() - f.header() - 8;
            for (size, passes) in [(fits, true), (fits + 1, false)] {
                let payload = Payload::udp_with(port, 53, vec![7; size]);
                let mut sent = f.from(&WEB, to, payload);
                sent.dont_fragment = f == Family::V4;
                wire.send(&WEB, &sent).unwrap();
                if passes {
                    if to == OUTSIDE {
                        wire.outside().unwrap();
                    } else {
                        wire.overlay().unwrap();
                    }
                    continue;
                }
                let told = wire.at_pod(&WEB).unwrap();
                assert_eq!(error_of(&told), IcmpError::TooBig(mtu), "to {to:?}");
                assert_eq!(told.source, NODE.at(f));
                let quoted = told.quoted();
                assert_eq!((quoted.source, quoted.destination), (WEB.at(f), to.at(f)));
                assert_eq!(quoted.transport[..4], sent.quote(4)[f.header()..]);
            }
        }
    }
}
