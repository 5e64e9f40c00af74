//! The addresses of a service, from inside and outside: who gets what with which address, and what
//! comes back.

use std::net::UdpSocket;
use std::time::Duration;

use weft_abi::{MARK_ENCAPSULATED, MARK_FORWARDED};
use weft_core::model::Routing;
use weft_tests::packet::{
    Lab, Overlay, Setup, Somewhere as _, Verdict, Wire,
    bytes::{ACK, Payload, finish},
    scene::{DB, ELSEWHERE, NODE, OTHER_NODE, OUTSIDE, PODS, REMOTE, VIP, WEB, families, lab_with},
    services::{
        ADDRESSES, Address, Balanced, at_endpoint, requests, services_cluster, services_lab,
    },
};

use crate::support::{answer, delivered, in_range, leaves, served, served_outside};

/// How other nodes are reached, and the mark of what goes there.
const ROUTINGS: [(Routing, u32); 2] = [
    (Routing::Vxlan, MARK_ENCAPSULATED),
    (Routing::Native, MARK_FORWARDED),
];

fn lab_by(routing: Routing, service: &Balanced) -> Lab {
    let mut cluster = services_cluster(&[service.manifest()]);
    cluster.state.settings.routing = routing;
    lab_with(&Setup::uplink(), cluster).0
}

#[test]
fn pods_keep_their_address_wherever_the_endpoint_is() {
    for f in families() {
        for endpoint in [DB.place, REMOTE, OTHER_NODE] {
            for (routing, _) in ROUTINGS {
                let mut lab = lab_by(routing, &Balanced::with(&[endpoint]));
                for (port, address) in (40000..).zip(ADDRESSES) {
                    for request in requests(port) {
                        let sent = address.asked_by(f, &WEB, request.clone());
                        let went = served(&mut lab, &WEB, &sent);
                        assert_eq!(went.destination, endpoint.at(f), "{address:?}");
                        assert_eq!(went.payload, at_endpoint(request));
                        let answer = answer(&went);
                        let came = if endpoint == DB.place {
                            lab.send(&DB, &answer.sent_by(DB.mac)).packet()
                        } else if routing == Routing::Native {
                            delivered(&mut lab, &WEB, &answer)
                        } else {
                            // Test runs have no overlay that it could come by.
                            continue;
                        };
                        assert_eq!(
                            (came.source, came.destination),
                            (sent.destination, WEB.at(f))
                        );
                        assert_eq!(came.destination_mac, WEB.mac);
                        assert_eq!(came.payload, sent.payload.answer());
                    }
                }
            }
        }
    }
}

#[test]
fn a_pod_of_the_node_sees_who_asks_from_outside() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        for (port, address) in (50000..).zip(ADDRESSES) {
            for request in requests(port) {
                let sent = address.asked_outside(f, OUTSIDE, request.clone());
                for _ in 0..2 {
                    let came = served_outside(&mut lab, &sent);
                    assert_eq!(
                        (came.source, came.destination),
                        (OUTSIDE.at(f), DB.at(f)),
                        "{address:?}"
                    );
                    assert_eq!(came.payload, at_endpoint(request.clone()));
                    let left = leaves(&mut lab, &DB, &answer(&came).sent_by(DB.mac));
                    assert_eq!(
                        (left.source, left.destination),
                        (sent.destination, OUTSIDE.at(f))
                    );
                    assert_eq!(left.payload, sent.payload.answer());
                }
            }
        }
    }
}

#[test]
fn an_endpoint_on_another_node_sees_this_node() {
    for f in families() {
        for (routing, mark) in ROUTINGS {
            let mut lab = lab_by(routing, &Balanced::with(&[REMOTE]));
            for (port, address) in (50000..).zip(ADDRESSES) {
                for request in requests(port) {
                    let sent = address.asked_outside(f, OUTSIDE, request.clone());
                    let went = served_outside(&mut lab, &sent);
                    assert_eq!(went.destination, REMOTE.at(f), "{address:?}");
                    let port = went.payload.source_port();
                    let seen = at_endpoint(request).with_source_port(port);
                    assert_eq!(went.payload, seen);
                    // The next packet is of the same flow, and so is one after a new decision.
                    let again = lab.arrive(&sent);
                    assert!(matches!(again, Verdict::Redirect(_, with) if with == mark));
                    assert_eq!(again.packet().payload, seen);
                    lab.bump().unwrap();
                    assert_eq!(lab.arrive(&sent).packet().payload, seen);
                    if routing == Routing::Vxlan {
                        continue;
                    }
                    let verdict = lab.arrive(&answer(&went));
                    assert!(matches!(verdict, Verdict::Redirect(_, MARK_FORWARDED)));
                    let left = verdict.packet();
                    assert_eq!(
                        (left.source, left.destination),
                        (sent.destination, OUTSIDE.at(f))
                    );
                    assert_eq!(left.payload, sent.payload.answer());
                    assert_eq!(left.ttl, 63);
                }
            }
        }
    }
}

#[test]
fn clients_from_one_port_stay_apart_at_another_node() {
    for f in families() {
        let mut lab = lab_by(Routing::Native, &Balanced::with(&[REMOTE]));
        for address in ADDRESSES {
            for request in requests(50000) {
                let asked = [OUTSIDE, ELSEWHERE].map(|client| {
                    let sent = address.asked_outside(f, client, request.clone());
                    (client, served_outside(&mut lab, &sent), sent)
                });
                for (client, went, sent) in asked {
                    let left = lab.arrive(&answer(&went)).packet();
                    assert_eq!(
                        (left.source, left.destination),
                        (sent.destination, client.at(f))
                    );
                    assert_eq!(left.payload, sent.payload.answer());
                }
            }
        }
    }
}

#[test]
fn the_overlay_takes_the_outside_to_another_node_and_back() {
    let mut cluster = services_cluster(&[Balanced::with(&[REMOTE]).manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for (port, address) in (50000..).zip(ADDRESSES) {
            for request in requests(port) {
                let sent = address.asked_outside(f, OUTSIDE, request.clone());
                for _ in 0..2 {
                    wire.arrive(&sent).unwrap();
                    let went = wire.overlay().unwrap();
                    assert_eq!(
                        (went.source, went.destination),
                        (NODE.v4.into(), OTHER_NODE.v4.into())
                    );
                    let inner = &went.inner;
                    assert_eq!(
                        (inner.source, inner.destination),
                        (NODE.at(f), REMOTE.at(f))
                    );
                    assert!(in_range(&inner.payload));
                    let port = inner.payload.source_port();
                    let seen = at_endpoint(request.clone()).with_source_port(port);
                    assert_eq!(inner.payload, seen);
                    let back = Overlay {
                        source: went.destination,
                        destination: went.source,
                        vni: 1,
                        inner: answer(inner),
                    };
                    wire.arrive_by_overlay(&back).unwrap();
                    let left = wire.outside().unwrap();
                    assert_eq!(
                        (left.source, left.destination),
                        (sent.destination, OUTSIDE.at(f))
                    );
                    assert_eq!(left.payload, sent.payload.answer());
                }
            }
        }
    }
}

#[test]
fn an_endpoint_in_the_nodes_own_network() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[NODE]).manifest()]);
        for (port, address) in (50000..).zip(ADDRESSES) {
            for request in requests(port) {
                let sent = address.asked_outside(f, OUTSIDE, request.clone());
                for _ in 0..2 {
                    let verdict = lab.arrive(&sent);
                    assert!(verdict.passed(), "the stack takes it: {verdict:?}");
                    let came = verdict.packet();
                    assert_eq!((came.source, came.destination), (OUTSIDE.at(f), NODE.at(f)));
                    assert_eq!(came.payload, at_endpoint(request.clone()));
                    let verdict = lab.leave(0, &answer(&came));
                    assert!(verdict.passed(), "{verdict:?}");
                    let left = verdict.packet();
                    assert_eq!(
                        (left.source, left.destination),
                        (sent.destination, OUTSIDE.at(f)),
                        "{address:?}"
                    );
                    assert_eq!(left.payload, sent.payload.answer());
                }
                // Whatever else the process says to the same client is its own.
                let other = f.packet(NODE, OUTSIDE, Payload::tcp(7000, port, ACK));
                assert_eq!(lab.leave(0, &other), Verdict::Pass(other.to_bytes(), 0));
            }
        }
    }
}

#[test]
fn a_pod_reaches_an_endpoint_in_the_nodes_own_network() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[NODE]).manifest()]);
        for (port, address) in (40000..).zip(ADDRESSES) {
            for request in requests(port) {
                let sent = address.asked_by(f, &WEB, request.clone());
                let verdict = lab.send(&WEB, &sent);
                assert!(verdict.passed(), "the stack takes it: {verdict:?}");
                let came = verdict.packet();
                assert_eq!((came.source, came.destination), (WEB.at(f), NODE.at(f)));
                assert_eq!(came.payload, at_endpoint(request));
                let verdict = lab.receive(&WEB, 0, &answer(&came));
                assert!(verdict.passed(), "{verdict:?}");
                let back = verdict.packet();
                assert_eq!(
                    (back.source, back.destination),
                    (sent.destination, WEB.at(f))
                );
                assert_eq!(back.payload, sent.payload.answer());
            }
        }
    }
}

/// A process of the node that serves, asked by a pod of another node at this node's port.
#[test]
fn the_overlay_takes_other_nodes_pods_to_a_process() {
    let mut cluster = services_cluster(&[Balanced::with(&[NODE]).manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        let server = UdpSocket::bind((NODE.at(f), 5353)).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        for request in [Payload::udp(40000, 53), Payload::udp(40001, 53)] {
            let asked = Address::NodePort.asked_outside(f, REMOTE, request);
            wire.arrive_by_overlay(&Overlay {
                source: OTHER_NODE.v4.into(),
                destination: NODE.v4.into(),
                vni: 1,
                inner: asked.clone(),
            })
            .unwrap();
            let mut question = [0; 16];
            let (length, client) = server.recv_from(&mut question).unwrap();
            assert_eq!(&question[..length], b"hello");
            assert_eq!(client.ip(), REMOTE.at(f));
            server.send_to(b"hello", client).unwrap();
            let left = finish(&wire.overlay_frame().unwrap()).unwrap();
            assert_eq!((left.source, left.destination), (NODE.at(f), REMOTE.at(f)));
            assert_eq!(left.payload, asked.payload.answer());
        }
    }
}

#[test]
fn a_pod_that_reaches_itself_does_so_at_every_address() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[WEB.place]).manifest()]);
        for (port, address) in (40000..).zip(ADDRESSES) {
            for request in requests(port) {
                let sent = address.asked_by(f, &WEB, request.clone());
                let came = lab.send(&WEB, &sent).packet();
                assert_eq!(
                    (came.destination, came.destination_mac),
                    (WEB.at(f), WEB.mac)
                );
                assert_ne!(came.source, WEB.at(f));
                let seen = at_endpoint(request);
                assert_eq!(came.payload.ports().1, seen.ports().1);
                let back = lab.send(&WEB, &answer(&came).sent_by(WEB.mac)).packet();
                assert_eq!(
                    (back.source, back.destination),
                    (address.place(VIP).at(f), WEB.at(f))
                );
                assert_eq!(back.payload, sent.payload.answer());
            }
        }
    }
}
