//! Ports of the node that lead to a pod.

use weft_abi::drop::DropReason;
use weft_core::model::{HostPort, Protocol};
use weft_tests::packet::{
    Cluster, Lab, Setup, Somewhere as _, Verdict,
    bytes::{IcmpError, Payload, SYN},
    scene::{DB, DB2, ELSEWHERE, NODE, OUTSIDE, WEB, cluster, dropped, families, lab_with, policy},
};

use crate::support::{answer, delivered, leaves};

fn port(host_port: u16, protocol: Protocol, container_port: u16) -> HostPort {
    HostPort {
        host_ip: None,
        host_port,
        protocol,
        container_port,
    }
}

/// `db` has TCP 8080 and UDP 8053 of the node.
fn with_ports(manifests: &[String]) -> (Lab, Cluster) {
    let (mut lab, mut cluster) = lab_with(&Setup::uplink(), cluster(manifests));
    cluster.endpoint(&DB).host_ports =
        vec![port(8080, Protocol::Tcp, 80), port(8053, Protocol::Udp, 53)];
    lab.update(&cluster).unwrap();
    (lab, cluster)
}

#[test]
fn the_outside_reaches_a_pod_by_a_port_of_the_node() {
    for f in families() {
        let (mut lab, _) = with_ports(&[]);
        for (asked, seen) in [
            (Payload::tcp(50000, 8080, SYN), Payload::tcp(50000, 80, SYN)),
            (Payload::udp(50000, 8053), Payload::udp(50000, 53)),
        ] {
            let sent = f.packet(OUTSIDE, NODE, asked.clone());
            for _ in 0..2 {
                let came = delivered(&mut lab, &DB, &sent);
                assert_eq!(came.source, OUTSIDE.at(f), "the pod sees who asks");
                assert_eq!(came.payload, seen);
                let left = leaves(&mut lab, &DB, &f.from(&DB, OUTSIDE, seen.answer()));
                assert_eq!((left.source, left.destination), (NODE.at(f), OUTSIDE.at(f)));
                assert_eq!(left.payload, asked.answer());
            }
        }
        // Another client from the same port.
        let sent = f.packet(ELSEWHERE, NODE, Payload::tcp(50000, 8080, SYN));
        assert_eq!(delivered(&mut lab, &DB, &sent).source, ELSEWHERE.at(f));
        // Other ports and protocols are the host's.
        for payload in [
            Payload::tcp(50000, 80, SYN),
            Payload::tcp(50000, 8053, SYN),
            Payload::udp(50000, 8080),
        ] {
            let sent = f.packet(OUTSIDE, NODE, payload);
            assert_eq!(lab.arrive(&sent), Verdict::Pass(sent.to_bytes(), 0));
        }
    }
}

#[test]
fn pods_use_it_too() {
    for f in families() {
        let (mut lab, _) = with_ports(&[]);
        // Another pod, and the very pod that has it.
        for pod in [WEB, DB] {
            let sent = f.from(&pod, NODE, Payload::tcp(40000, 8080, SYN));
            let verdict = lab.send(&pod, &sent);
            assert!(verdict.redirected(), "{verdict:?}");
            let came = verdict.packet();
            assert_eq!((came.destination, came.destination_mac), (DB.at(f), DB.mac));
            assert_eq!(came.payload, Payload::tcp(40000, 80, SYN));
            let reply = lab
                .send(
                    &DB,
                    &f.packet(DB, came.source, came.payload.answer())
                        .sent_by(DB.mac),
                )
                .packet();
            assert_eq!((reply.source, reply.destination), (NODE.at(f), pod.at(f)));
            assert_eq!(reply.payload, sent.payload.answer());
        }
    }
}

#[test]
fn an_address_may_be_asked_for() {
    for f in families() {
        let (mut lab, mut cluster) = lab_with(&Setup::uplink(), cluster(&[]));
        let at = |address| HostPort {
            host_ip: Some(address),
            ..port(8080, Protocol::Tcp, 80)
        };
        let loopback = f.pick([127, 0, 0, 1].into(), "::1".parse().unwrap());
        cluster.endpoint(&DB).host_ports = vec![at(NODE.at(f))];
        cluster.endpoint(&DB2).host_ports = vec![at(loopback)];
        lab.update(&cluster).unwrap();
        let sent = f.packet(OUTSIDE, NODE, Payload::tcp(50000, 8080, SYN));
        delivered(&mut lab, &DB, &sent);
        cluster.endpoint(&DB).host_ports.clear();
        lab.update(&cluster).unwrap();
        let sent = f.packet(OUTSIDE, NODE, Payload::tcp(50001, 8080, SYN));
        assert_eq!(
            lab.arrive(&sent),
            Verdict::Pass(sent.to_bytes(), 0),
            "loopback is not reached from outside"
        );
    }
}

#[test]
fn policy_holds_for_it() {
    let spec = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
        ingress: [{from: [{ipBlock: {cidr: 192.0.2.8/32}}, {ipBlock: {cidr: '2001:db8:7::8/128'}}],
                   ports: [{port: 80}]}]}";
    for f in families() {
        let (mut lab, mut cluster) = with_ports(&[policy("db", spec)]);
        let from = |source| f.packet(source, NODE, Payload::tcp(50000, 8080, SYN));
        assert_eq!(
            lab.arrive(&from(OUTSIDE)),
            dropped(DropReason::PolicyIngress)
        );
        delivered(&mut lab, &DB, &from(ELSEWHERE));
        // A pod that is gone has no port.
        cluster.state.endpoints.remove(DB.name);
        cluster.state.pods.retain(|key, _| key.name != DB.name);
        lab.update(&cluster).unwrap();
        for source in [OUTSIDE, ELSEWHERE] {
            let verdict = lab.arrive(&from(source));
            assert!(!verdict.redirected(), "{verdict:?}");
        }
    }
}

#[test]
fn errors_of_both_ends_find_the_other() {
    for f in families() {
        let (mut lab, _) = with_ports(&[]);
        let asked = f.packet(OUTSIDE, NODE, Payload::udp(50000, 8053));
        let came = delivered(&mut lab, &DB, &asked);
        // Nobody listens in the pod.
        let told = came
            .error(DB.at(f), IcmpError::PortUnreachable, 8)
            .sent_by(DB.mac);
        let left = leaves(&mut lab, &DB, &told);
        assert_eq!((left.source, left.destination), (NODE.at(f), OUTSIDE.at(f)));
        let quoted = left.quoted();
        assert_eq!(
            (quoted.source, quoted.destination),
            (OUTSIDE.at(f), NODE.at(f))
        );
        assert_eq!(quoted.transport, asked.quote(8)[f.header()..]);
        // Nobody waits for the answer.
        let left = leaves(&mut lab, &DB, &f.from(&DB, OUTSIDE, came.payload.answer()));
        let told = left.error(OUTSIDE.at(f), IcmpError::PortUnreachable, 8);
        let told = delivered(&mut lab, &DB, &told);
        let quoted = told.quoted();
        assert_eq!(
            (quoted.source, quoted.destination),
            (DB.at(f), OUTSIDE.at(f))
        );
        assert_eq!(answer(&left).destination, NODE.at(f));
    }
}

/// What the node's stack says about a packet that was translated before it came to it.
#[test]
fn the_nodes_errors_are_about_what_the_client_sent() {
    for f in families() {
        let (mut lab, _) = with_ports(&[]);
        let mut asked = f.packet(OUTSIDE, NODE, Payload::udp(50000, 8053));
        asked.ttl = 1;
        let verdict = lab.arrive(&asked);
        assert!(verdict.passed(), "{verdict:?}");
        let came = verdict.packet();
        assert_eq!(came.destination, DB.at(f), "the stack would forward it");
        let told = came.error(NODE.at(f), IcmpError::TimeExceeded, usize::MAX);
        let verdict = lab.leave(0, &told);
        assert!(verdict.passed(), "{verdict:?}");
        let left = verdict.packet();
        assert_eq!((left.source, left.destination), (NODE.at(f), OUTSIDE.at(f)));
        let expected = asked.error(NODE.at(f), IcmpError::TimeExceeded, usize::MAX);
        assert_eq!(left.payload, expected.payload, "to the byte");
        // What the stack says about packets of its own is its own.
        let other = f.packet(OUTSIDE, NODE, Payload::udp(50000, 9));
        let told = other.error(NODE.at(f), IcmpError::PortUnreachable, usize::MAX);
        assert_eq!(lab.leave(0, &told), Verdict::Pass(told.to_bytes(), 0));
    }
}
