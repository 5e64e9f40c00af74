//! Services: the choice of a backend, translation there and back.

use weft_abi::drop::DropReason;
use weft_tests::packet::{
    Family, Somewhere as _,
    bytes::{ACK, Payload, SYN},
    scene::{DB, OTHER_VIP, OUTSIDE, REMOTE, VIP, WEB, families, lab, policy, service},
    services::{Balanced, services_lab},
};

use crate::support::{rejected, served};

#[test]
fn a_service_is_translated_there_and_back() {
    for f in families() {
        for (backend, remote) in [(DB.place, false), (REMOTE, true)] {
            let (mut lab, _) = lab(&[service("s", VIP, &[backend])]);
            for (there, seen) in [
                (Payload::tcp(40000, 80, SYN), Payload::tcp(40000, 8080, SYN)),
                (Payload::tcp(40000, 80, ACK), Payload::tcp(40000, 8080, ACK)),
                (Payload::udp(40001, 53), Payload::udp(40001, 5353)),
            ] {
                let verdict = lab.send(&WEB, &f.from(&WEB, VIP, there));
                assert!(verdict.redirected(), "{verdict:?}");
                let packet = verdict.packet();
                assert_eq!(
                    (packet.source, packet.destination),
                    (WEB.at(f), backend.at(f))
                );
                assert_eq!(packet.payload, seen);
            }
            if !remote {
                for (back, seen) in [
                    (
                        Payload::tcp(8080, 40000, SYN | ACK),
                        Payload::tcp(80, 40000, SYN | ACK),
                    ),
                    (Payload::udp(5353, 40001), Payload::udp(53, 40001)),
                ] {
                    let verdict = lab.send(&DB, &f.from(&DB, WEB, back));
                    assert!(verdict.redirected(), "{verdict:?}");
                    let packet = verdict.packet();
                    assert_eq!((packet.source, packet.destination), (VIP.at(f), WEB.at(f)));
                    assert_eq!(packet.destination_mac, WEB.mac);
                    assert_eq!(packet.payload, seen);
                }
            }
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    // IPv6 has no packets without (RFC 8200, section 8.1).
    let f = Family::V4;
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
    let payload = Payload::Udp {
        source: 40000,
        destination: 53,
        checksum: false,
        data: vec![7; 9],
    };
    let verdict = lab.send(&WEB, &f.from(&WEB, VIP, payload));
    let Payload::Udp {
        destination: 5353,
        checksum: false,
        data,
        ..
    } = verdict.packet().payload
    else {
        panic!("{verdict:?}")
    };
    assert_eq!(data, vec![7; 9]);
}

#[test]
fn every_backend_is_chosen_and_a_connection_keeps_its_own() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place, REMOTE])]);
        let mut counts = [0; 2];
        for port in 40000..40200 {
            let first = lab
                .send(&WEB, &f.from(&WEB, VIP, Payload::tcp(port, 80, SYN)))
                .packet();
            let then = lab
                .send(&WEB, &f.from(&WEB, VIP, Payload::tcp(port, 80, ACK)))
                .packet();
            assert_eq!(first.destination, then.destination);
            counts[usize::from(first.destination == REMOTE.at(f))] += 1;
        }
        // 200 fair coins: fewer than 50 of one kind has a chance below one in 10^12.
        assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
    }
}

#[test]
fn a_service_without_endpoints_leaves_nothing_behind() {
    for f in families() {
        let (mut lab, mut cluster) = lab(&[service("s", VIP, &[])]);
        for payload in [Payload::tcp(40000, 80, SYN), Payload::udp(40000, 53)] {
            let sent = f.from(&WEB, VIP, payload);
            rejected(&mut lab, DropReason::NoBackend, &WEB, &sent);
            assert!(
                lab.flows().unwrap().is_empty(),
                "nothing is left to blackhole what comes"
            );
            cluster.apply(&service("s", VIP, &[DB.place])).unwrap();
            lab.update(&cluster).unwrap();
            assert_eq!(served(&mut lab, &WEB, &sent).destination, DB.at(f));
            cluster.apply(&service("s", VIP, &[])).unwrap();
            lab.update(&cluster).unwrap();
            lab.forget_flows().unwrap();
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    for f in families() {
        let deny = policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
        for manifests in [vec![], vec![deny]] {
            let manifests = [vec![service("s", VIP, &[WEB.place])], manifests].concat();
            let (mut lab, _) = lab(&manifests);
            let packet = lab
                .send(&WEB, &f.from(&WEB, VIP, Payload::tcp(40000, 80, SYN)))
                .packet();
            assert_eq!(
                (packet.destination, packet.destination_mac),
                (WEB.at(f), WEB.mac)
            );
            assert_ne!(
                packet.source,
                WEB.at(f),
                "or the pod would answer itself, untranslated"
            );
            assert_eq!(packet.payload, Payload::tcp(40000, 8080, SYN));
            let reply = f.from(&WEB, packet.source, Payload::tcp(8080, 40000, SYN | ACK));
            let verdict = lab.send(&WEB, &reply);
            assert!(verdict.redirected(), "{verdict:?}");
            let packet = verdict.packet();
            assert_eq!((packet.source, packet.destination), (VIP.at(f), WEB.at(f)));
            assert_eq!(packet.destination_mac, WEB.mac);
            assert_eq!(packet.payload, Payload::tcp(80, 40000, SYN | ACK));
        }
    }
}

#[test]
fn two_services_with_one_backend_do_not_cross() {
    for f in families() {
        let (mut lab, _) = lab(&[
            service("s", VIP, &[DB.place]),
            service("t", OTHER_VIP, &[DB.place]),
        ]);
        let mut ports = Vec::new();
        for vip in [VIP, OTHER_VIP] {
            let packet = lab
                .send(&WEB, &f.from(&WEB, vip, Payload::tcp(40000, 80, SYN)))
                .packet();
            let Payload::Tcp {
                source,
                destination: 8080,
                ..
            } = packet.payload
            else {
                panic!("{packet:?}")
            };
            ports.push(source);
        }
        assert_ne!(
            ports[0], ports[1],
            "the second connection gets a port of its own"
        );
        for (vip, port) in [VIP, OTHER_VIP].into_iter().zip(ports) {
            let reply = f.from(&DB, WEB, Payload::tcp(8080, port, SYN | ACK));
            let packet = lab.send(&DB, &reply).packet();
            assert_eq!(
                (packet.source, packet.payload),
                (vip.at(f), Payload::tcp(80, 40000, SYN | ACK))
            );
        }
    }
}

#[test]
fn a_udp_flow_leaves_a_dead_backend_and_a_tcp_connection_stays() {
    for f in families() {
        let (mut lab, mut cluster) = lab(&[service("s", VIP, &[DB.place])]);
        let udp = f.from(&WEB, VIP, Payload::udp(40000, 53));
        let tcp = f.from(&WEB, VIP, Payload::tcp(40000, 80, ACK));
        assert_eq!(lab.send(&WEB, &udp).packet().destination, DB.at(f));
        assert_eq!(lab.send(&WEB, &tcp).packet().destination, DB.at(f));
        cluster.apply(&service("s", VIP, &[REMOTE])).unwrap();
        lab.update(&cluster).unwrap();
        assert_eq!(lab.send(&WEB, &udp).packet().destination, REMOTE.at(f));
        assert_eq!(lab.send(&WEB, &tcp).packet().destination, DB.at(f));
        // A new connection from the same port is a new choice.
        let syn = f.from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
        assert_eq!(lab.send(&WEB, &syn).packet().destination, REMOTE.at(f));
    }
}

#[test]
fn an_sctp_checksum_is_mended_or_stays_zero() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        for (port, length) in (40000..).zip([0, 1, 3, 4, 100, 1_400, 1_452, 3_001]) {
            for checksum in [true, false] {
                let payload = |source, destination| Payload::Sctp {
                    source,
                    destination,
                    checksum,
                    data: (0..length).map(|index: u32| (index % 251) as u8).collect(),
                };
                let sent = f.from(&WEB, VIP, payload(port, 9999));
                // Whoever reads the packet proves the checksum.
                let came = served(&mut lab, &WEB, &sent);
                assert_eq!(came.payload, payload(port, 9000));
                let back = f.from(&DB, WEB, payload(9000, port));
                let came = lab.send(&DB, &back).packet();
                assert_eq!(came.source, VIP.at(f));
                assert_eq!(came.payload, payload(9999, port));
                if length > 1_400 {
                    // Too big for the uplink.
                    continue;
                }
                // The source port as well.
                let sent = f.from(&WEB, OUTSIDE, payload(port, 7));
                let left = lab.send(&WEB, &sent).packet();
                let masked = left.payload.source_port();
                assert_ne!(masked, port);
                assert_eq!(left.payload, payload(masked, 7));
            }
        }
    }
}
