//! Endpoints that come, go and are going: which flows stay with theirs, and who gets the new ones.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weft_abi::{
    drop::DropReason,
    flow::{FLOW_BACK, FLOW_FRONT},
};
use weft_tests::packet::{
    Cluster, Family, Lab, Somewhere as _,
    bytes::{ACK, COOKIE_ECHO, DATA, INIT, Payload, SYN},
    scene::{DB, DB2, NODE, OUTSIDE, REMOTE, VIP, WEB, families},
    services::{Address, Balanced, requests, services_lab},
};

use crate::support::{answer, leaves, rejected, rejected_outside, served, served_outside};

/// How many flows are opened to see who gets them.
const MANY: u16 = 60;

fn change(lab: &mut Lab, cluster: &mut Cluster, service: &Balanced) {
    cluster.apply(&service.manifest()).unwrap();
    lab.update(cluster).unwrap();
}

/// The endpoint of a pod's packet to the cluster IP.
#[track_caller]
fn goes(lab: &mut Lab, f: Family, payload: Payload) -> IpAddr {
    let sent = f.from(&WEB, VIP, payload);
    served(lab, &WEB, &sent).destination
}

/// The endpoint of a packet of somebody outside to the port of the node.
#[track_caller]
fn comes(lab: &mut Lab, f: Family, payload: Payload) -> IpAddr {
    let sent = Address::NodePort.asked_outside(f, OUTSIDE, payload);
    served_outside(lab, &sent).destination
}

#[test]
fn an_endpoint_that_terminates_keeps_its_flows_and_gets_no_more() {
    for f in families() {
        let (mut lab, mut cluster) =
            services_lab(&[Balanced::with(&[DB.place, DB2.place]).manifest()]);
        let mut flows = Vec::new();
        for port in 40000..40000 + MANY {
            for request in requests(port) {
                let inside = goes(&mut lab, f, request.clone());
                let outside = comes(&mut lab, f, request.clone());
                flows.push((request, inside, outside));
            }
        }
        let going = Balanced::with(&[DB.place]).and_terminating(DB2.place);
        change(&mut lab, &mut cluster, &going);
        for (request, inside, outside) in flows {
            let next = match request {
                Payload::Tcp { source, .. } => Payload::tcp(source, 80, ACK),
                datagram => datagram,
            };
            assert_eq!(goes(&mut lab, f, next.clone()), inside);
            assert_eq!(comes(&mut lab, f, next), outside);
        }
        for port in 41000..41000 + MANY {
            for request in requests(port) {
                assert_eq!(goes(&mut lab, f, request.clone()), DB.at(f));
                assert_eq!(comes(&mut lab, f, request), DB.at(f));
            }
        }
    }
}

#[test]
fn endpoints_that_terminate_serve_where_nobody_else_does() {
    for f in families() {
        let service = Balanced::with(&[])
            .and_terminating(DB.place)
            .and_terminating(REMOTE)
            .and(DB2.place, "ready: false, serving: false, terminating: true");
        let (mut lab, mut cluster) = services_lab(&[service.manifest()]);
        let both = BTreeSet::from([DB.at(f), REMOTE.at(f)]);
        let ports = 40000..40000 + MANY;
        let inside: BTreeSet<_> = ports
            .clone()
            .map(|port| goes(&mut lab, f, Payload::tcp(port, 80, SYN)))
            .collect();
        let outside: BTreeSet<_> = ports
            .map(|port| comes(&mut lab, f, Payload::tcp(port, 80, SYN)))
            .collect();
        assert_eq!((&inside, &outside), (&both, &both));
        // This node's own, although another node has one that is ready.
        let service = Balanced::with(&[REMOTE])
            .and_terminating(DB.place)
            .spec("externalTrafficPolicy: Local");
        change(&mut lab, &mut cluster, &service);
        for port in 41000..41000 + MANY {
            let tcp = Payload::tcp(port, 80, SYN);
            assert_eq!(comes(&mut lab, f, tcp.clone()), DB.at(f));
            assert_eq!(goes(&mut lab, f, tcp), REMOTE.at(f));
        }
        // None that serves.
        let service =
            Balanced::with(&[]).and(DB2.place, "ready: false, serving: false, terminating: true");
        change(&mut lab, &mut cluster, &service);
        for request in requests(42000) {
            let sent = f.from(&WEB, VIP, request.clone());
            rejected(&mut lab, DropReason::NoBackend, &WEB, &sent);
            let sent = Address::NodePort.asked_outside(f, OUTSIDE, request);
            rejected_outside(&mut lab, DropReason::NoBackend, &sent);
        }
    }
}

#[test]
fn established_connections_survive_the_last_endpoint() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        for flags in [SYN, ACK] {
            goes(&mut lab, f, Payload::tcp(40000, 80, flags));
            comes(&mut lab, f, Payload::tcp(50000, 80, flags));
        }
        change(&mut lab, &mut cluster, &Balanced::with(&[]));
        for _ in 0..2 {
            let data = goes(&mut lab, f, Payload::tcp(40000, 80, ACK));
            assert_eq!(data, DB.at(f));
            let data = comes(&mut lab, f, Payload::tcp(50000, 80, ACK));
            assert_eq!(data, DB.at(f));
            lab.bump().unwrap();
        }
        let again = f.from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
        rejected(&mut lab, DropReason::NoBackend, &WEB, &again);
        let again = Address::NodePort.asked_outside(f, OUTSIDE, Payload::tcp(50000, 80, SYN));
        rejected_outside(&mut lab, DropReason::NoBackend, &again);
    }
}

/// As kube-proxy does, which leaves associations alone as it does connections.
#[test]
fn an_association_keeps_its_endpoint() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let both = |lab: &mut Lab, chunk| {
            let inside = goes(lab, f, Payload::sctp(40000, 9999, chunk));
            let outside = comes(lab, f, Payload::sctp(50000, 9999, chunk));
            assert_eq!(inside, outside);
            inside
        };
        for chunk in [INIT, INIT, COOKIE_ECHO, DATA] {
            assert_eq!(both(&mut lab, chunk), DB.at(f));
        }
        for service in [
            Balanced::with(&[DB2.place]).and_terminating(DB.place),
            Balanced::with(&[DB2.place]),
            Balanced::with(&[]),
        ] {
            change(&mut lab, &mut cluster, &service);
            assert_eq!(both(&mut lab, DATA), DB.at(f));
            assert_eq!(both(&mut lab, DATA), DB.at(f));
        }
        // Another association from the same port.
        change(&mut lab, &mut cluster, &Balanced::with(&[REMOTE]));
        for chunk in [INIT, COOKIE_ECHO, DATA] {
            assert_eq!(both(&mut lab, chunk), REMOTE.at(f));
        }
    }
}

#[test]
fn an_association_that_did_not_open_yet_gets_an_endpoint_that_is_there() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        for endpoint in [DB.place, DB2.place, REMOTE] {
            change(&mut lab, &mut cluster, &Balanced::with(&[endpoint]));
            let init = Payload::sctp(40000, 9999, INIT);
            assert_eq!(goes(&mut lab, f, init.clone()), endpoint.at(f));
            assert_eq!(comes(&mut lab, f, init), endpoint.at(f));
        }
    }
}

/// A client that always sends from one port.
#[test]
fn a_udp_flow_moves_with_the_next_packet() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let query = || Payload::udp(40000, 53);
        let ask = |lab: &mut Lab| [goes(lab, f, query()), comes(lab, f, query())];
        assert_eq!(ask(&mut lab), [DB.at(f); 2]);
        for (service, expected) in [
            (Balanced::with(&[DB2.place]), DB2.at(f)),
            (Balanced::with(&[REMOTE]), REMOTE.at(f)),
            (Balanced::with(&[DB.place, REMOTE]), REMOTE.at(f)),
            (Balanced::with(&[DB.place]), DB.at(f)),
        ] {
            change(&mut lab, &mut cluster, &service);
            for _ in 0..3 {
                assert_eq!(ask(&mut lab), [expected; 2]);
            }
            // What the endpoint answers is of the service.
            if expected == DB.at(f) {
                let sent = Address::NodePort.asked_outside(f, OUTSIDE, query());
                let came = served_outside(&mut lab, &sent);
                let left = leaves(&mut lab, &DB, &answer(&came).sent_by(DB.mac));
                assert_eq!(left.source, sent.destination);
                assert_eq!(left.payload, sent.payload.answer());
            }
        }
    }
}

#[test]
fn flows_that_began_without_endpoints_find_them() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[]).manifest()]);
        let query = f.from(&WEB, VIP, Payload::udp(40000, 53));
        let asked = Address::NodePort.asked_outside(f, OUTSIDE, Payload::udp(50000, 53));
        for _ in 0..3 {
            rejected(&mut lab, DropReason::NoBackend, &WEB, &query);
            rejected_outside(&mut lab, DropReason::NoBackend, &asked);
        }
        for endpoint in [DB.place, REMOTE] {
            change(&mut lab, &mut cluster, &Balanced::with(&[endpoint]));
            assert_eq!(served(&mut lab, &WEB, &query).destination, endpoint.at(f));
            assert_eq!(served_outside(&mut lab, &asked).destination, endpoint.at(f));
            change(&mut lab, &mut cluster, &Balanced::with(&[]));
            rejected(&mut lab, DropReason::NoBackend, &WEB, &query);
            rejected_outside(&mut lab, DropReason::NoBackend, &asked);
        }
    }
}

/// The client is there before the service is.
#[test]
fn flows_that_began_before_the_service_find_it() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[]);
        let asked = Address::NodePort.asked_by(f, &WEB, Payload::udp(40000, 53));
        let outside = Address::NodePort.asked_outside(f, OUTSIDE, Payload::udp(50000, 53));
        let balancer = Address::LoadBalancer.asked_by(f, &WEB, Payload::udp(40001, 53));
        for _ in 0..2 {
            assert!(lab.send(&WEB, &asked).passed(), "the host's own");
            assert!(lab.arrive(&outside).passed());
            assert_ne!(lab.send(&WEB, &balancer).packet().source, WEB.at(f));
        }
        for endpoint in [DB.place, REMOTE] {
            change(&mut lab, &mut cluster, &Balanced::with(&[endpoint]));
            for sent in [&asked, &balancer] {
                assert_eq!(served(&mut lab, &WEB, sent).destination, endpoint.at(f));
            }
            let came = served_outside(&mut lab, &outside);
            assert_eq!(came.destination, endpoint.at(f));
        }
    }
}

#[test]
fn another_target_port_moves_datagrams_and_no_connections() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let ports = |lab: &mut Lab, flags| {
            [Payload::tcp(40000, 80, flags), Payload::udp(40000, 53)].map(|payload| {
                let inside = f.from(&WEB, VIP, payload.clone());
                let inside = served(lab, &WEB, &inside).payload.ports().1;
                let outside = Address::NodePort.asked_outside(f, OUTSIDE, payload);
                let outside = served_outside(lab, &outside).payload.ports().1;
                assert_eq!(inside, outside);
                inside
            })
        };
        assert_eq!(ports(&mut lab, SYN), [8080, 5353]);
        assert_eq!(ports(&mut lab, ACK), [8080, 5353]);
        let moved = Balanced::with(&[DB.place]).targets([8081, 5354, 9001]);
        change(&mut lab, &mut cluster, &moved);
        assert_eq!(ports(&mut lab, ACK), [8080, 5354]);
        assert_eq!(ports(&mut lab, SYN), [8081, 5354]);
    }
}

#[test]
fn flows_survive_another_traffic_policy() {
    for f in families() {
        let both = Balanced::with(&[DB.place, REMOTE]);
        let (mut lab, mut cluster) = services_lab(&[both.manifest()]);
        let mut flows = Vec::new();
        for port in 50000..50000 + MANY {
            for request in requests(port) {
                let endpoint = comes(&mut lab, f, request.clone());
                flows.push((request, endpoint));
            }
        }
        let local = both.spec("externalTrafficPolicy: Local");
        change(&mut lab, &mut cluster, &local);
        for (request, endpoint) in flows {
            let next = match request {
                Payload::Tcp { source, .. } => Payload::tcp(source, 80, ACK),
                datagram => datagram,
            };
            assert_eq!(comes(&mut lab, f, next), endpoint);
        }
        for request in requests(51000) {
            assert_eq!(comes(&mut lab, f, request), DB.at(f));
        }
    }
}

/// The flow table forgot one view of a connection from outside.
#[test]
fn a_connection_from_outside_finds_its_endpoint_again() {
    for f in families() {
        for flag in [FLOW_FRONT, FLOW_BACK] {
            let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place, DB2.place]).manifest()]);
            let mut flows = Vec::new();
            for port in 50000..50000 + MANY {
                for (opens, next) in [
                    (Payload::tcp(port, 80, SYN), Payload::tcp(port, 80, ACK)),
                    (
                        Payload::sctp(port, 9999, INIT),
                        Payload::sctp(port, 9999, DATA),
                    ),
                ] {
                    let endpoint = comes(&mut lab, f, opens);
                    assert_eq!(comes(&mut lab, f, next.clone()), endpoint);
                    flows.push((next, endpoint));
                }
            }
            lab.idle(20).unwrap();
            for entry in lab.flows().unwrap() {
                if entry.flow.flags & flag != 0 {
                    lab.evict_flow(&entry).unwrap();
                }
            }
            for (next, endpoint) in flows {
                let sent = Address::NodePort.asked_outside(f, OUTSIDE, next);
                let came = served_outside(&mut lab, &sent);
                assert_eq!(came.destination, endpoint);
                let pod = [DB, DB2].into_iter().find(|pod| pod.at(f) == endpoint);
                let pod = pod.unwrap();
                let left = leaves(&mut lab, &pod, &answer(&came).sent_by(pod.mac));
                assert_eq!(left.source, NODE.at(f));
                assert_eq!(left.payload, sent.payload.answer());
            }
        }
    }
}
