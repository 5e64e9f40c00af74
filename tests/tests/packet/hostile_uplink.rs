//! What would break the way out of the node: translations that leak or that are lost, errors that
//! cross policy, and what the host stack does with packets that were left to it.

use weft_abi::{config::Uplink, drop::DropReason};
use weft_core::model::{HostPort, Protocol};
use weft_tests::packet::{
    Setup, Somewhere as _, Verdict,
    bytes::{ACK, IcmpError, Payload, SYN},
    scene::{
        DB, DB2, NODE, OUTSIDE, REMOTE, VIP, WEB, cluster, dropped, families, hairpin, lab,
        lab_with, native_lab, policy, service, uplink_lab,
    },
};

use crate::support::{answer, delivered, leaves, masqueraded};

/// A UDP datagram that needs three fragments.
fn long(source: u16, destination: u16) -> Payload {
    Payload::udp_with(source, destination, vec![7; 3_000])
}

#[test]
fn an_answered_query_keeps_its_translation_for_two_minutes() {
    for f in families() {
        // A server that sees another port with every query takes each for another client's.
        let (mut lab, _) = uplink_lab(&[]);
        let query = f.from(&WEB, OUTSIDE, Payload::udp(40000, 5060));
        let left = masqueraded(&mut lab, &WEB, &query);
        for _ in 0..4 {
            delivered(&mut lab, &WEB, &answer(&left));
            lab.idle(100).unwrap();
            assert_eq!(
                masqueraded(&mut lab, &WEB, &query).payload,
                left.payload,
                "the flow is as old as its last packet"
            );
        }
        // Without an answer it is over sooner.
        lab.forget_flows().unwrap();
        masqueraded(&mut lab, &WEB, &query);
        lab.idle(40).unwrap();
        masqueraded(&mut lab, &WEB, &query);
    }
    for f in families() {
        let backends = [DB.place, DB2.place];
        let (mut lab, _) = lab(&[service("s", VIP, &backends)]);
        for port in 40000..40008 {
            let query = f.from(&WEB, VIP, Payload::udp(port, 53));
            let came = lab.send(&WEB, &query).packet();
            let server = [DB, DB2]
                .into_iter()
                .find(|pod| pod.at(f) == came.destination);
            let server = server.unwrap();
            let reply = f.from(&server, WEB, came.payload.answer());
            assert!(lab.send(&server, &reply).redirected());
            lab.idle(100).unwrap();
            assert_eq!(lab.send(&WEB, &query).packet().destination, server.at(f));
        }
    }
}

#[test]
fn an_answer_at_a_port_of_the_node_leaves_the_stack_as_the_nodes() {
    for f in families() {
        let (mut lab, mut cluster) = lab_with(&Setup::uplink(), cluster(&[]));
        cluster.endpoint(&DB).host_ports = vec![HostPort {
            host_ip: None,
            host_port: 8053,
            protocol: Protocol::Udp,
            container_port: 53,
        }];
        lab.update(&cluster).unwrap();
        let asked = f.packet(OUTSIDE, NODE, Payload::udp(50000, 8053));
        delivered(&mut lab, &DB, &asked);
        // Too big for the uplink: the stack has it, and may cut it into fragments.
        let large = Payload::udp_with(53, 50000, vec![7; 1_600]);
        let reply = f.from(&DB, OUTSIDE, large.clone());
        let verdict = lab.send(&DB, &reply);
        assert!(verdict.passed(), "{verdict:?}");
        let left = lab.leave(0, &f.packet(DB, OUTSIDE, large)).packet();
        assert_eq!(
            (left.source, left.payload.ports()),
            (NODE.at(f), (8053, 50000))
        );
    }
}

#[test]
fn what_the_stack_cuts_into_fragments_leaves_whole() {
    for f in families() {
        for native in [false, true] {
            let (mut lab, _) = if native {
                native_lab(&[])
            } else {
                uplink_lab(&[])
            };
            let to = if native { REMOTE } else { OUTSIDE };
            let verdict = lab.send(&WEB, &f.from(&WEB, to, long(40000, 9)));
            assert!(verdict.passed(), "{verdict:?}");
            let pieces = f.packet(WEB, to, long(40000, 9)).split(1_400, 77);
            for piece in &pieces {
                let verdict = lab.leave(0, piece);
                assert!(verdict.passed(), "{verdict:?}");
                let source = if native { WEB.at(f) } else { NODE.at(f) };
                assert_eq!(verdict.packet().source, source);
            }
        }
    }
}

#[test]
fn icmp_that_has_no_answer_is_not_masqueraded() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        // Nothing tells its answers from those to the node, nor where its identifier is.
        for (kind, rest) in [
            (f.pick(17, 139), [1, 2, 3, 4]),
            (f.pick(10, 200), [9, 9, 0, 1]),
        ] {
            let payload = Payload::Icmp {
                kind,
                code: 0,
                rest,
                data: vec![1, 2, 3, 4],
            };
            let verdict = lab.send(&WEB, &f.from(&WEB, OUTSIDE, payload));
            assert_eq!(verdict, dropped(DropReason::NotMasqueraded), "{verdict:?}");
        }
        let reply = f.from(&WEB, OUTSIDE, Payload::echo(false, 7));
        assert_eq!(lab.send(&WEB, &reply), dropped(DropReason::NotMasqueraded));
    }
}

#[test]
fn errors_in_a_strangers_name_do_not_cross_policy() {
    let deny = policy(
        "deny",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
    );
    for f in families() {
        let (mut native, _) = native_lab(std::slice::from_ref(&deny));
        let sent = f.from(&WEB, OUTSIDE, Payload::udp(40000, 53));
        let left = leaves(&mut native, &WEB, &sent);
        // Pods are no routers: one of another node says nothing about others' packets.
        let told = left.error(REMOTE.at(f), IcmpError::PortUnreachable, 8);
        let verdict = native.arrive(&told);
        assert!(!verdict.redirected(), "{verdict:?}");
        let (mut vxlan, _) = uplink_lab(std::slice::from_ref(&deny));
        let inside = f.from(&WEB, DB, Payload::udp(40000, 53));
        let came = vxlan.send(&WEB, &inside).packet();
        // Nor do pods of this node, or of the overlay, or the node itself, arrive at an uplink.
        for source in [DB.place, REMOTE, NODE] {
            let told = came.error(source.at(f), IcmpError::PortUnreachable, 8);
            assert_eq!(
                vxlan.arrive(&told),
                dropped(DropReason::Spoofed),
                "{source:?}"
            );
        }
    }
}

#[test]
fn a_connection_outlives_an_uplink_that_was_away() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        let there = |flags| f.from(&WEB, OUTSIDE, Payload::tcp(40000, 443, flags));
        let left = masqueraded(&mut lab, &WEB, &there(SYN));
        let port = left.payload.source_port();
        delivered(&mut lab, &WEB, &answer(&left));
        masqueraded(&mut lab, &WEB, &there(ACK));
        let uplink = Uplink {
            v4: NODE.v4.into(),
            v6: NODE.v6.into(),
            mtu: 1500,
        };
        let bare = Uplink {
            v4: Default::default(),
            v6: Default::default(),
            ..uplink
        };
        for away in [None, Some(bare)] {
            lab.set_uplink(away).unwrap();
            for _ in 0..2 {
                let verdict = lab.send(&WEB, &there(ACK));
                assert!(!verdict.redirected(), "{verdict:?}");
                if let Verdict::Pass(..) = verdict {
                    let verdict = lab.leave(0, &f.packet(WEB, OUTSIDE, there(ACK).payload));
                    assert!(!verdict.redirected());
                }
            }
            lab.set_uplink(Some(uplink)).unwrap();
            let again = masqueraded(&mut lab, &WEB, &there(ACK));
            assert_eq!(
                again.payload.source_port(),
                port,
                "the other end knows no other"
            );
            let back = f.packet(OUTSIDE, NODE, Payload::tcp(443, port, ACK));
            delivered(&mut lab, &WEB, &back);
        }
    }
}

#[test]
fn what_a_pod_says_to_itself_does_not_leave() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        // The answer to a connection through a service that is forgotten by now.
        let answer = f.packet(WEB, hairpin(f), Payload::tcp(80, 40000, ACK));
        let verdict = lab.send(&WEB, &answer.sent_by(WEB.mac));
        assert!(!verdict.redirected(), "{verdict:?}");
    }
}
