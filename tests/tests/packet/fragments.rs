//! Fragments: all of a datagram go where the first one goes, and nowhere if that went nowhere.

use weft_abi::drop::DropReason;
use weft_tests::packet::{
    Family, Lab, LocalPod, Overlay, Somewhere as _, Verdict, Wire,
    bytes::{Extension, Fragment, Packet, Payload, SYN},
    scene::{
        DB, DB2, NODE, OTHER_NODE, OTHER_VIP, OUTSIDE, PODS, REMOTE, VIP, WEB, cluster, dropped,
        families, lab, policy, service, uplink_lab,
    },
};

use crate::support::in_range;

/// A datagram that needs three fragments.
fn long(source: u16, destination: u16) -> Payload {
    let bytes = (0..3_000_u16).map(|index| (index % 251) as u8);
    Payload::udp_with(source, destination, bytes.collect())
}

/// Sends all pieces, in their order, and puts together what goes on.
#[track_caller]
fn pass(lab: &mut Lab, pod: &LocalPod, pieces: &[Packet]) -> Packet {
    let passed = pieces.iter().map(|piece| {
        let verdict = lab.send(pod, piece);
        assert!(verdict.redirected(), "{verdict:?}");
        verdict.packet()
    });
    together(&passed.collect::<Vec<_>>())
}

#[track_caller]
fn together(pieces: &[Packet]) -> Packet {
    match Packet::reassemble(pieces) {
        Ok(packet) => packet,
        Err(error) => panic!("they make no datagram: {error}: {pieces:#?}"),
    }
}

#[test]
fn a_datagram_in_pieces_arrives_whole() {
    for f in families() {
        let services = [
            service("s", VIP, &[DB.place]),
            service("t", OTHER_VIP, &[REMOTE]),
        ];
        let (mut lab, _) = lab(&services);
        for (to, port, at, seen) in [
            (DB.place, 5353, DB.place, 5353),
            (REMOTE, 5353, REMOTE, 5353),
            (VIP, 53, DB.place, 5353),
            (OTHER_VIP, 53, REMOTE, 5353),
        ] {
            let sent = f.from(&WEB, to, long(40000, port));
            let came = pass(&mut lab, &WEB, &sent.split(1_400, 0x1_2345));
            assert_eq!((came.source, came.destination), (WEB.at(f), at.at(f)));
            // Its own port, unless the backend could not tell it from the direct one.
            let source = came.payload.source_port();
            assert_eq!(came.payload, long(source, seen));
            if at == DB.place {
                let reply = f.from(&DB, WEB, long(seen, source));
                let came = pass(&mut lab, &DB, &reply.split(1_400, 0x1_2345));
                assert_eq!((came.source, came.destination), (to.at(f), WEB.at(f)));
                assert_eq!(came.payload, long(port, 40000));
            }
        }
    }
}

#[test]
fn pieces_are_masqueraded_alike() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for payload in [
            long(40000, 53),
            Payload::Echo {
                request: true,
                identifier: 40000,
                sequence: 1,
                data: vec![5; 3_000],
            },
        ] {
            let sent = f.from(&WEB, OUTSIDE, payload.clone());
            let left = pass(&mut lab, &WEB, &sent.split(1_400, 7));
            assert_eq!((left.source, left.destination), (NODE.at(f), OUTSIDE.at(f)));
            assert!(in_range(&left.payload));
            let reply = f.packet(OUTSIDE, NODE, left.payload.answer());
            let pieces = reply.split(1_400, 8).into_iter().map(|piece| {
                let verdict = lab.arrive(&piece);
                assert!(verdict.redirected(), "{verdict:?}");
                verdict.packet()
            });
            let came = together(&pieces.collect::<Vec<_>>());
            assert_eq!((came.source, came.destination), (OUTSIDE.at(f), WEB.at(f)));
            assert_eq!(came.payload, payload.answer());
        }
    }
}

#[test]
fn two_pods_of_one_identification_stay_apart() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        // Pods do not know of each other's identifications, nor of their ports; and the other end
        // puts together by addresses, which are the node's for both.
        let sent =
            [WEB, DB].map(|pod| (pod, f.from(&pod, OUTSIDE, long(40000, 53)).split(1_400, 7)));
        let mut left = [Vec::new(), Vec::new()];
        for index in 0..3 {
            for (left, (pod, pieces)) in left.iter_mut().zip(&sent) {
                let verdict = lab.send(pod, &pieces[index]);
                assert!(verdict.redirected(), "{verdict:?}");
                left.push(verdict.packet());
            }
        }
        let [web, db] = left.map(|pieces| together(&pieces));
        assert_ne!(web.payload.source_port(), db.payload.source_port());
    }
}

#[test]
fn a_piece_without_its_first_reaches_no_pod() {
    for f in families() {
        let mut cluster = cluster(&[service("s", VIP, &[DB.place])]);
        let wire = Wire::new(&mut cluster, &PODS).unwrap();
        for to in [DB.place, VIP] {
            let pieces = f.from(&WEB, to, long(40000, 53)).split(1_400, 9);
            for piece in &pieces[1..] {
                wire.send(&WEB, piece).unwrap();
            }
        }
        // What comes next is what was sent next.
        let next = f.from(&WEB, DB, Payload::udp(1, 2));
        wire.send(&WEB, &next).unwrap();
        assert_eq!(wire.at_pod(&DB).unwrap().payload, next.payload);
    }
}

#[test]
fn pieces_that_overtake_the_first_wait_for_it() {
    for f in families() {
        let mut cluster = cluster(&[
            service("s", VIP, &[DB.place]),
            service("t", OTHER_VIP, &[REMOTE]),
        ]);
        let wire = Wire::new(&mut cluster, &PODS).unwrap();
        for (round, order) in [[2, 1, 0], [1, 0, 2], [2, 0, 1]].into_iter().enumerate() {
            let id = 100 + u32::try_from(round).unwrap();
            // In a pod's way to a service on this node.
            let sent = f.from(&WEB, VIP, long(40000, 53)).split(1_400, id);
            for index in order {
                wire.send(&WEB, &sent[index]).unwrap();
            }
            let came = (0..3).map(|_| wire.at_pod(&DB).unwrap());
            let came = together(&came.collect::<Vec<_>>());
            assert_eq!(came.payload, long(40000, 5353), "{order:?}");
            // From outside, to where a flow is masqueraded.
            let query = f.from(&WEB, OUTSIDE, Payload::udp(40001, 53));
            wire.send(&WEB, &query).unwrap();
            let port = wire.outside().unwrap().payload.source_port();
            let reply = f.packet(OUTSIDE, NODE, long(53, port)).split(1_400, id);
            for index in order {
                wire.arrive(&reply[index]).unwrap();
            }
            let came = (0..3).map(|_| wire.at_pod(&WEB).unwrap());
            let came = together(&came.collect::<Vec<_>>());
            assert_eq!(came.payload, long(53, 40001), "{order:?}");
            // From another node.
            let opened = f.packet(REMOTE, DB, long(40002, 53)).split(1_296, id);
            for index in order {
                wire.arrive_by_overlay(&Overlay {
                    source: OTHER_NODE.v4.into(),
                    destination: NODE.v4.into(),
                    vni: 1,
                    inner: opened[index].clone(),
                })
                .unwrap();
            }
            let came = (0..3).map(|_| wire.at_pod(&DB).unwrap());
            let came = together(&came.collect::<Vec<_>>());
            assert_eq!(came.payload, long(40002, 53), "{order:?}");
        }
    }
}

#[test]
fn an_identification_that_is_used_again_is_another_datagram() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        for (source, port, seen) in [(40000, 53, 5353), (40001, 7946, 7946), (40002, 53, 5353)] {
            let sent = f.from(&WEB, VIP, long(source, port));
            let came = pass(&mut lab, &WEB, &sent.split(1_400, 3));
            assert_eq!(came.payload, long(source, seen));
        }
    }
}

#[test]
fn protocols_have_identifications_of_their_own() {
    // IPv6 counts them for all protocols together (RFC 8200, section 4.5).
    let f = Family::V4;
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
    let udp = f.from(&WEB, DB, long(40000, 5353)).split(1_400, 3);
    let echo = Payload::Echo {
        request: true,
        identifier: 1,
        sequence: 1,
        data: vec![5; 3_000],
    };
    let ping = f.from(&WEB, DB, echo.clone()).split(1_400, 3);
    let mut came = [Vec::new(), Vec::new()];
    for index in 0..3 {
        for (came, pieces) in came.iter_mut().zip([&udp, &ping]) {
            let verdict = lab.send(&WEB, &pieces[index]);
            assert!(verdict.redirected(), "{verdict:?}");
            came.push(verdict.packet());
        }
    }
    let [udp, ping] = came.map(|pieces| together(&pieces));
    assert_eq!((udp.payload, ping.payload), (long(40000, 5353), echo));
}

#[test]
fn what_the_first_may_not_the_others_may_not() {
    for f in families() {
        let deny = policy(
            "db",
            "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
              ingress: [{ports: [{port: 53, protocol: UDP}]}]}",
        );
        let (mut lab, _) = lab(&[deny]);
        let allowed = f.from(&WEB, DB, long(40000, 53));
        pass(&mut lab, &WEB, &allowed.split(1_400, 3));
        let pieces = f.from(&WEB, DB, long(40000, 54)).split(1_400, 4);
        assert_eq!(
            lab.send(&WEB, &pieces[0]),
            dropped(DropReason::PolicyIngress)
        );
        for piece in &pieces[1..] {
            let verdict = lab.send(&WEB, piece);
            assert!(!verdict.redirected(), "{verdict:?}");
        }
        // Nor with the identification of what was allowed, from another pod.
        let pieces = f.from(&DB2, DB, long(40000, 54)).split(1_400, 3);
        for piece in &pieces {
            let verdict = lab.send(&DB2, piece);
            assert!(!verdict.redirected(), "{verdict:?}");
        }
    }
}

#[test]
fn tricks_with_fragments() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        // A first fragment without the whole transport header says nothing of its ports' owner.
        for payload in [Payload::tcp(40000, 80, SYN), long(40000, 53)] {
            let tiny = f.from(&WEB, VIP, payload).split(8, 1).swap_remove(0);
            let is_tcp = matches!(tiny.payload, Payload::Other { protocol: 6, .. });
            let verdict = lab.send(&WEB, &tiny);
            if is_tcp {
                assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
            }
        }
        // One that would overlay the header of the first (RFC 3128). IPv6 hosts take no datagram whose
        // fragments overlap (RFC 5722).
        if f == Family::V6 {
            continue;
        }
        let mut syn = Payload::tcp(40000, 80, SYN);
        if let Payload::Tcp { data, .. } = &mut syn {
            data.resize(2_000, 1);
        }
        let first = f.from(&WEB, DB, syn).split(1_400, 2).swap_remove(0);
        assert!(lab.send(&WEB, &first).redirected());
        let overlay = Payload::Other {
            protocol: 6,
            data: vec![0; 64],
        };
        let overlay = f.from(&WEB, DB, overlay).with_fragment(Fragment {
            id: 2,
            offset: 8,
            more: true,
        });
        let verdict = lab.send(&WEB, &overlay);
        assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
        // Beyond 65,535 bytes: the last one that the offset allows.
        let end = f.from(
            &WEB,
            DB,
            Payload::Other {
                protocol: 6,
                data: vec![0; 400],
            },
        );
        let end = end.with_fragment(Fragment {
            id: 2,
            offset: 65_528,
            more: false,
        });
        let verdict = lab.send(&WEB, &end);
        if let Verdict::Redirect(bytes, _) = &verdict {
            assert!(Packet::parse(bytes).is_ok(), "{verdict:?}");
        }
    }
}

#[test]
fn a_fragment_header_may_be_anywhere_in_the_chain() {
    if !families().any(|family| family == Family::V6) {
        return;
    }
    let f = Family::V6;
    let (mut lab, _) = uplink_lab(&[service("s", VIP, &[DB.place])]);
    let extensions = [
        Extension::HopByHop(vec![1, 4, 0, 0, 0, 0]),
        Extension::Destination(vec![1, 4, 0, 0, 0, 0]),
        Extension::Routing(vec![0; 6]),
        Extension::Authentication(vec![0; 22]),
        Extension::Destination(vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    let mut id = 0;
    for length in 0..=extensions.len() {
        for unfragmented in 0..=length {
            id += 1;
            let sent = f
                .from(&WEB, VIP, long(40000, 53))
                .with_extensions(&extensions[..length]);
            let came = pass(&mut lab, &WEB, &sent.split_behind(unfragmented, 1_304, id));
            assert_eq!((came.source, came.destination), (WEB.at(f), DB.at(f)));
            assert_eq!(came.payload, long(40000, 5353));
            assert_eq!(came.extensions, sent.extensions);
            // A fragment that is the whole (RFC 6946) is a packet like any other.
            let mut atomic = f
                .from(&WEB, VIP, Payload::udp(40000, 53))
                .with_extensions(&extensions[..length]);
            let whole = Fragment {
                id,
                offset: 0,
                more: false,
            };
            atomic
                .extensions
                .insert(unfragmented, Extension::Fragment(whole));
            let verdict = lab.send(&WEB, &atomic);
            assert!(verdict.redirected(), "{verdict:?}");
            let came = verdict.packet();
            assert_eq!(came.destination, DB.at(f));
            assert_eq!(came.payload, Payload::udp(40000, 5353));
            assert_eq!(came.extensions, atomic.extensions);
        }
    }
}
