//! The addresses of a service, from inside and outside: who gets what with which address, and what
//! comes back.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use weft_abi::{MARK_ENCAPSULATED, MARK_FORWARDED, drop::DropReason};
use weft_core::model::Routing;
use weft_tests::packet::{
    Lab, LocalPod, Overlay, Setup, Somewhere as _, Verdict, Wire,
    bytes::{ACK, IcmpError, Packet, Payload, RST, SYN, finish},
    scene::{
        DB, ELSEWHERE, NODE, OTHER_NODE, OUTSIDE, PODS, REMOTE, REMOTE2, VIP, WEB, dropped,
        families, lab_with, policy,
    },
    services::{
        ADDRESSES, Address, Balanced, at_endpoint, requests, services_cluster, services_lab,
    },
};

use crate::support::{answer, delivered, in_range, leaves, served, served_outside};

/// A datagram that needs three fragments.
fn long(source: u16, destination: u16) -> Payload {
    Payload::udp_with(source, destination, vec![7; 3_000])
}

fn lab_by(routing: Routing, service: &Balanced) -> Lab {
    let mut cluster = services_cluster(&[service.manifest()]);
    cluster.state.settings.routing = routing;
    lab_with(&Setup::uplink(), cluster).0
}

#[test]
fn pods_keep_their_address_wherever_the_endpoint_is() {
    for f in families() {
        for endpoint in [DB.place, REMOTE, OTHER_NODE] {
            for routing in [Routing::Vxlan, Routing::Native] {
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
        for (routing, endpoint, mark) in [
            (Routing::Vxlan, REMOTE, MARK_ENCAPSULATED),
            (Routing::Native, REMOTE, MARK_FORWARDED),
            // A process of that node: the overlay is for what pods send there.
            (Routing::Vxlan, OTHER_NODE, MARK_FORWARDED),
            (Routing::Native, OTHER_NODE, MARK_FORWARDED),
        ] {
            let mut lab = lab_by(routing, &Balanced::with(&[endpoint]));
            for (port, address) in (50000..).zip(ADDRESSES) {
                for request in requests(port) {
                    let sent = address.asked_outside(f, OUTSIDE, request.clone());
                    let went = served_outside(&mut lab, &sent);
                    assert_eq!(went.destination, endpoint.at(f), "{address:?}");
                    let port = went.payload.source_port();
                    let seen = at_endpoint(request).with_source_port(port);
                    assert_eq!(went.payload, seen);
                    // The next packet is of the same flow, and so is one after a new decision.
                    let again = lab.arrive(&sent);
                    assert!(matches!(again, Verdict::Redirect(_, with) if with == mark));
                    assert_eq!(again.packet().payload, seen);
                    lab.bump().unwrap();
                    assert_eq!(lab.arrive(&sent).packet().payload, seen);
                    if mark == MARK_ENCAPSULATED {
                        // Test runs have no overlay that the answer could come by.
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

/// What processes of other nodes send comes by the uplink, as what anybody outside sends, and is
/// answered there: the overlay is for pods.
#[test]
fn processes_of_other_nodes_come_by_the_uplink() {
    for f in families() {
        for (routing, endpoint) in [
            (Routing::Vxlan, DB.place),
            (Routing::Native, DB.place),
            (Routing::Native, REMOTE),
        ] {
            let mut lab = lab_by(routing, &Balanced::with(&[endpoint]));
            for (port, address) in (50000..).zip(ADDRESSES) {
                for request in requests(port) {
                    let sent = address.asked_outside(f, OTHER_NODE, request);
                    let came = served_outside(&mut lab, &sent);
                    assert_eq!(came.destination, endpoint.at(f));
                    let verdict = if endpoint == DB.place {
                        lab.send(&DB, &answer(&came).sent_by(DB.mac))
                    } else {
                        lab.arrive(&answer(&came))
                    };
                    assert!(
                        matches!(verdict, Verdict::Redirect(_, MARK_FORWARDED)),
                        "{verdict:?}"
                    );
                    let left = verdict.packet();
                    assert_eq!(
                        (left.source, left.destination),
                        (sent.destination, OTHER_NODE.at(f))
                    );
                    assert_eq!(left.payload, sent.payload.answer());
                }
            }
        }
    }
}

/// A pod of another node uses this node's port: from there to there, by way of this node.
#[test]
fn the_overlay_takes_other_nodes_pods_back_to_an_endpoint_there() {
    let mut cluster = services_cluster(&[Balanced::with(&[REMOTE]).manifest()]);
    let mut wire = Wire::new(&mut cluster, &PODS).unwrap();
    let by_overlay = |inner| Overlay {
        source: OTHER_NODE.v4.into(),
        destination: NODE.v4.into(),
        vni: 1,
        inner,
    };
    for f in families() {
        for request in requests(40000) {
            let asked = Address::NodePort.asked_outside(f, REMOTE2, request.clone());
            for _ in 0..2 {
                wire.arrive_by_overlay(&by_overlay(asked.clone())).unwrap();
                let went = wire.overlay().unwrap();
                assert_eq!(went.destination, IpAddr::from(OTHER_NODE.v4));
                let inner = went.inner;
                assert_eq!(
                    (inner.source, inner.destination),
                    (NODE.at(f), REMOTE.at(f)),
                    "or it would answer by itself, untranslated"
                );
                assert!(in_range(&inner.payload));
                let port = inner.payload.source_port();
                let seen = at_endpoint(request.clone()).with_source_port(port);
                assert_eq!(inner.payload, seen);
                wire.arrive_by_overlay(&by_overlay(answer(&inner))).unwrap();
                let back = wire.overlay().unwrap().inner;
                assert_eq!((back.source, back.destination), (NODE.at(f), REMOTE2.at(f)));
                assert_eq!(back.payload, asked.payload.answer());
            }
        }
    }
    // What is rejected is told the same way.
    cluster.apply(&Balanced::with(&[]).manifest()).unwrap();
    wire.lab.update(&cluster).unwrap();
    for f in families() {
        for request in requests(41000) {
            let asked = Address::NodePort.asked_outside(f, REMOTE2, request);
            wire.arrive_by_overlay(&by_overlay(asked.clone())).unwrap();
            let told = wire.overlay().unwrap().inner;
            assert_eq!((told.source, told.destination), (NODE.at(f), REMOTE2.at(f)));
            match told.payload {
                Payload::Tcp { flags, .. } => assert_eq!(flags, RST | ACK),
                _ => assert_eq!(told.quoted().source, REMOTE2.at(f)),
            }
        }
    }
}

#[test]
fn policy_knows_who_asks_from_outside() {
    let spec = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
        ingress: [{from: [{ipBlock: {cidr: 192.0.2.8/32}}, {ipBlock: {cidr: '2001:db8:7::8/128'}}],
                   ports: [{port: 8080}]}]}";
    for f in families() {
        let manifests = [Balanced::with(&[DB.place]).manifest(), policy("db", spec)];
        let (mut lab, _) = services_lab(&manifests);
        for address in ADDRESSES {
            let request = Payload::tcp(50000, 80, SYN);
            let sent = address.asked_outside(f, OUTSIDE, request.clone());
            assert_eq!(lab.arrive(&sent), dropped(DropReason::PolicyIngress));
            let sent = address.asked_outside(f, ELSEWHERE, request);
            served_outside(&mut lab, &sent);
            lab.forget_flows().unwrap();
        }
    }
}

#[test]
fn pieces_of_datagrams_go_where_the_whole_would() {
    for f in families() {
        for endpoint in [DB.place, REMOTE] {
            let mut lab = lab_by(Routing::Native, &Balanced::with(&[endpoint]));
            let sent = Address::NodePort.asked_outside(f, OUTSIDE, long(50000, 53));
            let through = |lab: &mut Lab, from: Option<&LocalPod>, packet: &Packet| {
                let pieces = packet.split(1_400, 77).into_iter().map(|piece| {
                    let verdict = match from {
                        Some(pod) => lab.send(pod, &piece.sent_by(pod.mac)),
                        None => lab.arrive(&piece),
                    };
                    assert!(verdict.redirected(), "{verdict:?}");
                    verdict.packet()
                });
                Packet::reassemble(&pieces.collect::<Vec<_>>()).unwrap()
            };
            let came = through(&mut lab, None, &sent);
            let source = if endpoint == REMOTE { NODE } else { OUTSIDE };
            assert_eq!(
                (came.source, came.destination),
                (source.at(f), endpoint.at(f))
            );
            let port = came.payload.source_port();
            assert_eq!(came.payload, long(port, 5353));
            let from = (endpoint == DB.place).then_some(&DB);
            let left = through(&mut lab, from, &answer(&came));
            assert_eq!((left.source, left.destination), (NODE.at(f), OUTSIDE.at(f)));
            assert_eq!(left.payload, sent.payload.answer());
        }
    }
}

#[test]
fn errors_about_what_went_to_another_node_are_about_what_the_client_sent() {
    for f in families() {
        let mut lab = lab_by(Routing::Native, &Balanced::with(&[REMOTE]));
        for request in requests(50000) {
            let sent = Address::LoadBalancer.asked_outside(f, OUTSIDE, request);
            let went = served_outside(&mut lab, &sent);
            for error in [
                IcmpError::PortUnreachable,
                IcmpError::TooBig(1_300),
                IcmpError::TimeExceeded,
            ] {
                let told = went.error(REMOTE.at(f), error, 8);
                let verdict = lab.arrive(&told);
                assert!(verdict.redirected(), "{error:?}: {verdict:?}");
                let left = verdict.packet();
                assert_eq!(left.destination, OUTSIDE.at(f));
                let quoted = left.quoted();
                assert_eq!(
                    (quoted.source, quoted.destination),
                    (OUTSIDE.at(f), sent.destination)
                );
                let ports = sent.quote(4)[f.header()..].to_vec();
                assert_eq!(quoted.transport[..4], ports);
            }
            // And what the client says about answers, to the endpoint.
            let left = lab.arrive(&answer(&went)).packet();
            let told = left.error(OUTSIDE.at(f), IcmpError::PortUnreachable, 8);
            let verdict = lab.arrive(&told);
            assert!(verdict.redirected(), "{verdict:?}");
            let came = verdict.packet();
            assert_eq!((came.source, came.destination), (NODE.at(f), REMOTE.at(f)));
            let quoted = came.quoted();
            assert_eq!(
                (quoted.source, quoted.destination),
                (REMOTE.at(f), NODE.at(f))
            );
        }
    }
}

/// The stack would take the packet for its own: nobody could tell the client.
#[test]
fn what_is_too_old_to_go_on_to_another_node_is_dropped() {
    for f in families() {
        for routing in [Routing::Vxlan, Routing::Native] {
            let mut lab = lab_by(routing, &Balanced::with(&[REMOTE]));
            for _ in 0..2 {
                let mut sent = Address::NodePort.asked_outside(f, OUTSIDE, Payload::udp(50000, 53));
                sent.ttl = 1;
                assert_eq!(lab.arrive(&sent), dropped(DropReason::NoRoute));
                sent.ttl = 2;
                assert_eq!(lab.arrive(&sent).packet().ttl, 1);
            }
        }
    }
}
