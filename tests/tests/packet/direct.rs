//! Direct return: the endpoint's node answers a client from outside by itself.
//!
//! ```text
//!    client ──► node B ──overlay, as it came──► node C ──► pod
//!       ◄───────────────────────────────────────┘
//! ```

use weft_abi::drop::DropReason;
use weft_core::model::Routing;
use weft_tests::packet::{
    Family, Overlay, Setup, Somewhere as _, Wire,
    bytes::{ACK, FIN, IcmpError, Packet, Payload, RST, SYN},
    scene::{
        DB, DB2, NODE, OTHER_NODE, OUTSIDE, PODS, REMOTE, VIP, WEB, families, lab_with, node_place,
    },
    services::{Address, Balanced, EXPOSED, at_endpoint, requests, services_cluster, services_lab},
};

use crate::support::{answer, served, served_outside};

fn direct(service: Balanced) -> Balanced {
    service.annotated("load-balancing-return", "direct")
}

/// What the other node forwards to this one.
fn forwarded(inner: &Packet) -> Overlay {
    Overlay {
        source: OTHER_NODE.v4.into(),
        destination: NODE.v4.into(),
        vni: 1,
        inner: inner.clone(),
    }
}

/// The packet as the other node got it: its own port, or the same address.
fn at_other_node(address: Address, f: Family, payload: Payload) -> Packet {
    let mut sent = address.asked_outside(f, OUTSIDE, payload);
    if address == Address::NodePort {
        sent.destination = OTHER_NODE.at(f);
    }
    sent
}

#[test]
fn the_clients_node_forwards_as_it_came() {
    let mut cluster = services_cluster(&[direct(Balanced::with(&[REMOTE])).manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for (port, address) in (50000..).zip(EXPOSED) {
            for request in requests(port) {
                let sent = address.asked_outside(f, OUTSIDE, request);
                for _ in 0..3 {
                    wire.arrive(&sent).unwrap();
                    let went = wire.overlay().unwrap();
                    assert_eq!(
                        (went.source, went.destination),
                        (NODE.v4.into(), OTHER_NODE.v4.into())
                    );
                    assert_eq!(
                        (went.inner.source, went.inner.destination),
                        (sent.source, sent.destination)
                    );
                    assert_eq!(went.inner.payload, sent.payload);
                    assert_eq!(went.inner.ttl, sent.ttl - 1);
                }
            }
        }
        // A connection keeps its endpoint's node to its end.
        for flags in [SYN, ACK, FIN | ACK, ACK] {
            let sent = Address::NodePort.asked_outside(f, OUTSIDE, Payload::tcp(51000, 80, flags));
            wire.arrive(&sent).unwrap();
            assert_eq!(wire.overlay().unwrap().inner.payload, sent.payload);
        }
    }
}

#[test]
fn the_endpoints_node_translates_and_answers() {
    let mut cluster = services_cluster(&[direct(Balanced::with(&[DB.place])).manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for (port, address) in (50000..).zip(EXPOSED) {
            for request in requests(port) {
                let sent = at_other_node(address, f, request.clone());
                for _ in 0..2 {
                    wire.arrive_by_overlay(&forwarded(&sent)).unwrap();
                    let came = wire.at_pod(&DB).unwrap();
                    assert_eq!((came.source, came.destination), (OUTSIDE.at(f), DB.at(f)));
                    assert_eq!(came.payload, at_endpoint(request.clone()));
                    wire.send(&DB, &answer(&came).sent_by(DB.mac)).unwrap();
                    let left = wire.outside().unwrap();
                    assert_eq!(
                        (left.source, left.destination),
                        (sent.destination, OUTSIDE.at(f)),
                        "with the address that the client knows"
                    );
                    assert_eq!(left.payload, sent.payload.answer());
                }
            }
        }
    }
}

#[test]
fn a_forwarded_connection_is_one_to_its_end() {
    let mut cluster = services_cluster(&[direct(Balanced::with(&[DB.place])).manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for end in [FIN | ACK, RST | ACK] {
            let port = 52000 + u16::from(end);
            for flags in [SYN, ACK, end] {
                let payload = Payload::tcp(port, 80, flags);
                let sent = at_other_node(Address::NodePort, f, payload);
                wire.arrive_by_overlay(&forwarded(&sent)).unwrap();
                let came = wire.at_pod(&DB).unwrap();
                assert_eq!(came.payload, Payload::tcp(port, 8080, flags));
                let back = Payload::tcp(8080, port, flags | ACK);
                wire.send(&DB, &f.from(&DB, OUTSIDE, back)).unwrap();
                let left = wire.outside().unwrap();
                assert_eq!(left.source, OTHER_NODE.at(f));
                assert_eq!(left.payload, Payload::tcp(30080, port, flags | ACK));
            }
        }
    }
}

#[test]
fn errors_of_the_endpoint_are_about_what_the_client_sent() {
    let mut cluster = services_cluster(&[direct(Balanced::with(&[DB.place])).manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        let sent = at_other_node(Address::NodePort, f, Payload::udp(53000, 53));
        wire.arrive_by_overlay(&forwarded(&sent)).unwrap();
        let came = wire.at_pod(&DB).unwrap();
        let told = came.error(DB.at(f), IcmpError::PortUnreachable, 8);
        wire.send(&DB, &told.sent_by(DB.mac)).unwrap();
        let left = wire.outside().unwrap();
        assert_eq!(
            (left.source, left.destination),
            (OTHER_NODE.at(f), OUTSIDE.at(f))
        );
        let quoted = left.quoted();
        assert_eq!(
            (quoted.source, quoted.destination),
            (OUTSIDE.at(f), OTHER_NODE.at(f))
        );
    }
}

#[test]
fn only_nodes_forward_and_only_to_services_with_endpoints_here() {
    let mut cluster = services_cluster(&[direct(Balanced::with(&[DB.place])).manifest()]);
    let mut wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        let sent = at_other_node(Address::NodePort, f, Payload::tcp(50000, 80, SYN));
        // Nobody's node.
        let stranger = Overlay {
            source: node_place(99).v4.into(),
            ..forwarded(&sent)
        };
        let refused = wire.drops(DropReason::UnknownTunnel, |wire| {
            wire.arrive_by_overlay(&stranger)
        });
        refused.unwrap();
        // A pod, with whatever address outside.
        let to_pod = f.packet(OUTSIDE, DB, Payload::tcp(50000, 8080, SYN));
        let to_port = f.packet(OUTSIDE, OTHER_NODE, Payload::tcp(50000, 81, SYN));
        let to_cluster_ip = f.packet(OUTSIDE, VIP, Payload::tcp(50000, 80, SYN));
        for inner in [to_pod, to_port, to_cluster_ip] {
            let refused = wire.drops(DropReason::UnknownTunnel, |wire| {
                wire.arrive_by_overlay(&forwarded(&inner))
            });
            refused.unwrap();
        }
    }
    // The endpoint is gone before the other node knows.
    cluster
        .apply(&direct(Balanced::with(&[REMOTE])).manifest())
        .unwrap();
    wire.lab.update(&cluster).unwrap();
    for f in families() {
        let sent = at_other_node(Address::LoadBalancer, f, Payload::tcp(50001, 80, SYN));
        let refused = wire.drops(DropReason::NoLocalBackend, |wire| {
            wire.arrive_by_overlay(&forwarded(&sent))
        });
        refused.unwrap();
    }
}

/// Without the annotation the other node has no business to forward.
#[test]
fn a_service_that_answers_through_its_node_takes_nothing_forwarded() {
    let mut cluster = services_cluster(&[Balanced::with(&[DB.place]).manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for address in EXPOSED {
            let sent = at_other_node(address, f, Payload::tcp(50000, 80, SYN));
            let refused = wire.drops(DropReason::UnknownTunnel, |wire| {
                wire.arrive_by_overlay(&forwarded(&sent))
            });
            refused.unwrap();
        }
    }
}

#[test]
fn endpoints_of_the_clients_node_and_pods_are_as_ever() {
    for f in families() {
        let service = direct(Balanced::with(&[DB.place]));
        let (mut lab, mut cluster) = services_lab(&[service.manifest()]);
        for (port, address) in (50000..).zip(EXPOSED) {
            for request in requests(port) {
                let sent = address.asked_outside(f, OUTSIDE, request.clone());
                let came = served_outside(&mut lab, &sent);
                assert_eq!(came.payload, at_endpoint(request));
                let left = lab.send(&DB, &answer(&came).sent_by(DB.mac)).packet();
                assert_eq!(left.source, sent.destination);
                assert_eq!(left.payload, sent.payload.answer());
            }
        }
        let remote = direct(Balanced::with(&[REMOTE]));
        cluster.apply(&remote.manifest()).unwrap();
        lab.update(&cluster).unwrap();
        for (port, address) in (40000..).zip(EXPOSED) {
            for request in requests(port) {
                let sent = address.asked_by(f, &WEB, request.clone());
                let went = served(&mut lab, &WEB, &sent);
                assert_eq!(went.destination, REMOTE.at(f));
                assert_eq!(went.payload, at_endpoint(request));
            }
        }
        // Where the nodes' own routes lead to the endpoint, there is no way to forward as it came; nor
        // to a process of another node, which the overlay does not lead to.
        let mut cluster = services_cluster(&[remote.manifest()]);
        cluster.state.settings.routing = Routing::Native;
        let (mut lab, mut cluster) = lab_with(&Setup::uplink(), cluster);
        for endpoint in [REMOTE, OTHER_NODE] {
            let service = direct(Balanced::with(&[endpoint]));
            cluster.apply(&service.manifest()).unwrap();
            lab.update(&cluster).unwrap();
            lab.forget_flows().unwrap();
            for request in requests(50000) {
                let sent = Address::NodePort.asked_outside(f, OUTSIDE, request);
                let went = served_outside(&mut lab, &sent);
                assert_eq!(went.destination, endpoint.at(f));
            }
        }
    }
}

/// Both nodes choose by the same table: of several endpoints of the other node, it takes the one for
/// which this node sent the flow there.
#[test]
fn with_a_table_both_nodes_choose_alike() {
    let endpoints = [DB.place, DB2.place, REMOTE];
    let table = || Balanced::with(&endpoints).annotated("load-balancing", "maglev");
    for f in families() {
        // What any node of the cluster chooses: without direct return it is seen.
        let (mut lab, _) = services_lab(&[table().manifest()]);
        let mut chosen = Vec::new();
        for payload in (50000..50060).map(|port| Payload::tcp(port, 80, SYN)) {
            for address in [Address::LoadBalancer, Address::NodePort] {
                let here = address.asked_outside(f, OUTSIDE, payload.clone());
                let endpoint = lab.arrive(&here).packet().destination;
                chosen.push((at_other_node(address, f, payload.clone()), endpoint));
            }
        }
        drop(lab);
        let mut cluster = services_cluster(&[direct(table()).manifest()]);
        let wire = Wire::new(&mut cluster, &PODS).unwrap();
        let mut counts = [0; 2];
        for (sent, endpoint) in chosen {
            for (pod, count) in [DB, DB2].iter().zip(&mut counts) {
                if pod.at(f) == endpoint {
                    wire.arrive_by_overlay(&forwarded(&sent)).unwrap();
                    let came = wire.at_pod(pod).unwrap();
                    assert_eq!(came.destination, endpoint);
                    *count += 1;
                }
            }
        }
        assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    }
}
