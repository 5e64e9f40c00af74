//! What would break services: frames that are somebody else's, addresses that nobody has, and flows
//! that look like others.

use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};
use weft_abi::flow::FLOW_FRONT;
use weft_core::model::{HostPort, Protocol};
use weft_tests::packet::{
    Family, OVERLAY_PORT, Somewhere as _, Verdict,
    bytes::{ACK, Payload, SYN},
    scene::{DB, ELSEWHERE, NODE, OTHER_NODE, OUTSIDE, REMOTE, REMOTE2, WEB, families},
    services::{ADDRESSES, Address, Balanced, requests, services_lab},
};

use crate::support::{answer, delivered, served_outside};

#[test]
fn frames_of_others_are_left_alone() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        for mac in [[2, 9, 9, 9, 9, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            for address in ADDRESSES {
                for request in requests(50000) {
                    let mut asked = address.asked_outside(f, OUTSIDE, request);
                    asked.destination_mac = mac;
                    assert_eq!(lab.arrive(&asked), Verdict::Pass(asked.to_bytes(), 0));
                }
            }
        }
        assert!(lab.flows().unwrap().is_empty());
        cluster.apply(&Balanced::with(&[]).manifest()).unwrap();
        lab.update(&cluster).unwrap();
        let mut asked = Address::NodePort.asked_outside(f, OUTSIDE, Payload::udp(50000, 53));
        asked.destination_mac = [0xff; 6];
        assert_eq!(lab.arrive(&asked), Verdict::Pass(asked.to_bytes(), 0));
    }
}

#[test]
fn the_unspecified_address_is_no_node() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let payload = Payload::tcp(50000, 30080, SYN);
        let asked = f.packet(OUTSIDE, f.unspecified(), payload.clone());
        assert_eq!(lab.arrive(&asked), Verdict::Pass(asked.to_bytes(), 0));
        let verdict = lab.send(&WEB, &f.from(&WEB, f.unspecified(), payload));
        assert!(!verdict.redirected(), "{verdict:?}");
    }
}

#[test]
fn datagrams_to_a_process_are_answered_by_its_own_port() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[NODE]).manifest()]);
        let direct = f.packet(OUTSIDE, NODE, Payload::udp(50000, 5353));
        let by_service = Address::NodePort.asked_outside(f, OUTSIDE, Payload::udp(50000, 53));
        for round in 0..3 {
            let came = lab.arrive(&by_service);
            assert!(came.passed(), "{came:?}");
            let came = came.packet();
            assert_eq!(came.destination, NODE.at(f));
            let told = lab.leave(0, &answer(&came)).packet();
            assert_eq!(told.payload, by_service.payload.answer(), "round {round}");

            let verdict = lab.arrive(&direct);
            assert_eq!(verdict, Verdict::Pass(direct.to_bytes(), 0));
            let told = answer(&direct);
            assert_eq!(
                lab.leave(0, &told),
                Verdict::Pass(told.to_bytes(), 0),
                "round {round}"
            );
        }
    }
}

#[test]
fn a_client_behind_the_node_keeps_its_backend() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[REMOTE, REMOTE2]).manifest()]);
        for port in 50000..50016 {
            let asks =
                |flags| Address::NodePort.asked_outside(f, OUTSIDE, Payload::tcp(port, 80, flags));
            let went = served_outside(&mut lab, &asks(SYN));
            served_outside(&mut lab, &asks(ACK));
            for entry in lab.flows().unwrap() {
                if entry.flow.flags & FLOW_FRONT != 0 {
                    lab.evict_flow(&entry).unwrap();
                }
            }
            let again = served_outside(&mut lab, &asks(ACK));
            assert_eq!(again.destination, went.destination);
            assert_eq!(again.payload.source_port(), went.payload.source_port());
            lab.forget_flows().unwrap();
        }
    }
}

/// A socket of the node that is connected, or tries to be.
fn own_socket(f: Family, kind: Type, port: u16, to: SocketAddr) -> Socket {
    let domain = f.pick(Domain::IPV4, Domain::IPV6);
    let socket = Socket::new(domain, kind, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
        .bind(&SocketAddr::new(NODE.at(f), port).into())
        .unwrap();
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}"),
    }
    socket
}

#[test]
fn what_answers_the_nodes_own_connection_is_its_own() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let to = SocketAddr::new(OUTSIDE.at(f), 443);
        let tcp = own_socket(f, Type::STREAM, 30080, to);
        let udp = own_socket(f, Type::DGRAM, 30053, to);
        let answers = [
            Payload::tcp(443, 30080, SYN | ACK),
            Payload::tcp(443, 30080, ACK),
            Payload::udp(443, 30053),
        ];
        for payload in &answers {
            let came = f.packet(OUTSIDE, NODE, payload.clone());
            assert_eq!(lab.arrive(&came), Verdict::Pass(came.to_bytes(), 0));
            // Others ask the service.
            let other = f.packet(ELSEWHERE, NODE, payload.clone());
            let verdict = lab.arrive(&other);
            assert!(verdict.redirected(), "{verdict:?}");
        }
        drop((tcp, udp));
        let came = f.packet(OUTSIDE, NODE, Payload::udp(443, 30053));
        assert!(lab.arrive(&came).redirected());

        // A listener has no say: as with kube-proxy, the service is in front of it.
        let listens = Socket::new(f.pick(Domain::IPV4, Domain::IPV6), Type::STREAM, None).unwrap();
        listens
            .bind(&SocketAddr::new(NODE.at(f), 30080).into())
            .unwrap();
        listens.listen(1).unwrap();
        let came = f.packet(OUTSIDE, NODE, Payload::tcp(443, 30080, ACK));
        assert!(lab.arrive(&came).redirected());
    }
}

#[test]
fn no_host_port_takes_the_overlay() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[]);
        cluster.endpoint(&DB).host_ports = [OVERLAY_PORT, OVERLAY_PORT + 1]
            .map(|host_port| HostPort {
                host_ip: None,
                host_port,
                protocol: Protocol::Udp,
                container_port: 53,
            })
            .into();
        lab.update(&cluster).unwrap();
        let tunnelled = f.packet(OTHER_NODE, NODE, Payload::udp(50000, OVERLAY_PORT));
        assert_eq!(
            lab.arrive(&tunnelled),
            Verdict::Pass(tunnelled.to_bytes(), 0)
        );
        let asked = f.packet(OTHER_NODE, NODE, Payload::udp(50000, OVERLAY_PORT + 1));
        delivered(&mut lab, &DB, &asked);
    }
}
