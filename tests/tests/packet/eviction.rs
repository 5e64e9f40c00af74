//! The flow table forgets one half of a translated flow, or both.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use weft_abi::{
    drop::DropReason,
    flow::{FLOW_BACK, FLOW_FRONT},
};
use weft_core::model::{HostPort, Protocol};
use weft_tests::packet::{
    Cluster, Family, Lab, MASQUERADE_FIRST, MASQUERADE_PORTS, Setup, Somewhere as _, Verdict,
    bytes::{ACK, Packet, Payload, RST, SYN},
    scene::{
        DB, DB2, ELSEWHERE, NODE, OTHER_VIP, OUTSIDE, REMOTE, VIP, WEB, cluster, dropped, families,
        lab, lab_with, service, uplink_lab,
    },
};

use crate::support::{answer, delivered, leaves, masqueraded};

/// Enough for a packet to visit the other entry of its flow.
const A_WHILE: u32 = 20;
/// How many resets of a flow that was joined midway are held back.
const HELD_BACK: u32 = 8;

/// Removes the entries with this flag.
fn lose(lab: &mut Lab, flag: u8) {
    let mut lost = 0;
    for entry in lab.flows().unwrap() {
        if entry.flow.flags & flag != 0 {
            lab.evict_flow(&entry).unwrap();
            lost += 1;
        }
    }
    assert_eq!(lost, 1);
}

/// How many entries there are with each half's flag.
fn halves(lab: &Lab) -> [usize; 2] {
    let flows = lab.flows().unwrap();
    [FLOW_FRONT, FLOW_BACK].map(|flag| {
        let with = flows.iter().filter(|entry| entry.flow.flags & flag != 0);
        with.count()
    })
}

/// A packet of `WEB` to the outside.
fn there(f: Family, flags: u8) -> Packet {
    f.from(&WEB, OUTSIDE, Payload::tcp(40000, 80, flags))
}

/// A connection of `WEB` to the outside; returns a packet of it as it leaves.
fn opened(lab: &mut Lab, f: Family) -> Packet {
    let left = masqueraded(lab, &WEB, &there(f, SYN));
    delivered(lab, &WEB, &answer(&left));
    masqueraded(lab, &WEB, &there(f, ACK))
}

#[test]
fn a_masqueraded_connection_finds_its_port_again() {
    for f in families() {
        for lost in [&[FLOW_FRONT][..], &[FLOW_BACK], &[FLOW_FRONT, FLOW_BACK]] {
            let (mut lab, _) = uplink_lab(&[]);
            let left = opened(&mut lab, f);
            lab.idle(A_WHILE).unwrap();
            for flag in lost {
                lose(&mut lab, *flag);
            }
            let again = masqueraded(&mut lab, &WEB, &there(f, ACK));
            assert_eq!(again.payload, left.payload, "without {lost:?}");
            let came = delivered(&mut lab, &WEB, &answer(&again));
            assert_eq!(came.payload, there(f, ACK).payload.answer());
            assert_eq!(halves(&lab), [1, 1]);
        }
    }
}

#[test]
fn ports_that_are_asked_for_alike_stay_apart() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        lab.configure(|config| config.masquerade_ports = 2).unwrap();
        let other = |flags| f.from(&DB, OUTSIDE, Payload::tcp(40000, 80, flags));
        let first = masqueraded(&mut lab, &WEB, &there(f, SYN));
        let second = masqueraded(&mut lab, &DB, &other(SYN));
        assert_ne!(first.payload, second.payload);
        lab.idle(A_WHILE).unwrap();
        for entry in lab.flows().unwrap() {
            if entry.flow.flags & FLOW_FRONT != 0 {
                lab.evict_flow(&entry).unwrap();
            }
        }
        for (pod, packet, before) in [(DB, other(ACK), second), (WEB, there(f, ACK), first)] {
            let left = masqueraded(&mut lab, &pod, &packet);
            assert_eq!(left.payload.source_port(), before.payload.source_port());
            delivered(&mut lab, &pod, &answer(&left));
        }
    }
}

#[test]
fn a_reply_restores_what_the_client_sends_by() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        let left = opened(&mut lab, f);
        lab.idle(A_WHILE).unwrap();
        lose(&mut lab, FLOW_FRONT);
        delivered(&mut lab, &WEB, &answer(&left));
        assert_eq!(halves(&lab), [1, 1]);
        let before = lab.lookups().unwrap();
        let again = masqueraded(&mut lab, &WEB, &there(f, ACK));
        assert_eq!(again.payload, left.payload);
        let after = lab.lookups().unwrap();
        assert_eq!(after[1..], before[1..], "nothing is decided again");
    }
}

#[test]
fn a_reply_keeps_the_client_at_its_backend() {
    for f in families() {
        // Of so many backends, no luck finds the right one.
        let backends = [DB.place, DB2.place, REMOTE];
        let (mut lab, _) = lab(&[service("s", VIP, &backends)]);
        for port in 40000..40040 {
            let there = |flags| f.from(&WEB, VIP, Payload::tcp(port, 80, flags));
            let seen = lab.send(&WEB, &there(SYN)).packet();
            let Some(pod) = [DB, DB2]
                .into_iter()
                .find(|pod| pod.at(f) == seen.destination)
            else {
                lab.forget_flows().unwrap();
                continue;
            };
            let reply = f.from(&pod, WEB, seen.payload.answer());
            assert_eq!(lab.send(&pod, &reply).packet().source, VIP.at(f));
            lab.idle(A_WHILE).unwrap();
            lose(&mut lab, FLOW_FRONT);
            assert_eq!(lab.send(&pod, &reply).packet().source, VIP.at(f));
            let again = lab.send(&WEB, &there(ACK)).packet();
            assert_eq!(again.destination, seen.destination);
            assert_eq!(halves(&lab), [1, 1]);
            lab.forget_flows().unwrap();
        }
    }
}

#[test]
fn the_node_resets_no_connection_of_a_pod() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        let left = opened(&mut lab, f);
        let port = left.payload.source_port();
        lab.idle(A_WHILE).unwrap();
        lose(&mut lab, FLOW_BACK);
        let reply = answer(&left);
        // The node's stack gets what nobody knows, and says so.
        assert_eq!(lab.arrive(&reply), Verdict::Pass(reply.to_bytes(), 0));
        let reset = |source, port, flags| f.packet(source, OUTSIDE, Payload::tcp(port, 80, flags));
        let told = reset(NODE, port, RST);
        assert_eq!(lab.leave(0, &told), dropped(DropReason::FlowTable));
        // The pod's next packet is what the other end waits for.
        let again = masqueraded(&mut lab, &WEB, &there(f, ACK));
        assert_eq!(again.payload, left.payload);
        delivered(&mut lab, &WEB, &reply);

        // Who is refused hears of it, and who is cut off; so do other ports and addresses.
        for told in [
            reset(NODE, port, RST | ACK),
            reset(NODE, port, ACK),
            reset(NODE, MASQUERADE_FIRST - 1, RST),
            reset(NODE, MASQUERADE_FIRST + MASQUERADE_PORTS, RST),
            reset(ELSEWHERE, port, RST),
        ] {
            assert_eq!(lab.leave(0, &told), Verdict::Pass(told.to_bytes(), 0));
        }
        // A port that the node listens at is the node's.
        let listener = match f {
            Family::V4 => TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)),
            Family::V6 => TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let listener = listener.unwrap();
        let port = listener.local_addr().unwrap().port();
        lab.configure(|config| config.masquerade_first = port)
            .unwrap();
        let told = reset(NODE, port, RST);
        assert_eq!(lab.leave(0, &told), Verdict::Pass(told.to_bytes(), 0));
        drop(listener);
        assert_eq!(lab.leave(0, &told), dropped(DropReason::FlowTable));
    }
}

/// `db` has TCP 8080 of the node.
fn with_port() -> (Lab, Cluster) {
    let (mut lab, mut cluster) = lab_with(&Setup::uplink(), cluster(&[]));
    cluster.endpoint(&DB).host_ports = vec![HostPort {
        host_ip: None,
        host_port: 8080,
        protocol: Protocol::Tcp,
        container_port: 80,
    }];
    lab.update(&cluster).unwrap();
    (lab, cluster)
}

#[test]
fn what_a_port_of_the_node_answers_ends_nothing() {
    for f in families() {
        let (mut lab, _) = with_port();
        let asks = |flags| f.packet(OUTSIDE, NODE, Payload::tcp(50000, 8080, flags));
        let says = f.from(&DB, OUTSIDE, Payload::tcp(80, 50000, ACK));
        for flags in [SYN, ACK] {
            delivered(&mut lab, &DB, &asks(flags));
        }
        let left = leaves(&mut lab, &DB, &says);
        assert_eq!(
            (left.source, left.payload.source_port()),
            (NODE.at(f), 8080)
        );
        lab.idle(A_WHILE).unwrap();
        lose(&mut lab, FLOW_BACK);
        // It looks like a connection of the pod's own, and the client knows no such.
        let strays = leaves(&mut lab, &DB, &says);
        assert_ne!(strays.payload.source_port(), 8080);
        let (port, to) = strays.payload.ports();
        let reset = f.packet(OUTSIDE, NODE, Payload::tcp(to, port, RST));
        assert_eq!(lab.arrive(&reset), dropped(DropReason::FlowTable));
        // But when the client speaks again, all is as it was.
        delivered(&mut lab, &DB, &asks(ACK));
        let left = leaves(&mut lab, &DB, &says);
        assert_eq!(
            (left.source, left.payload.source_port()),
            (NODE.at(f), 8080)
        );
        // A real reset is delivered.
        delivered(&mut lab, &DB, &asks(RST));
    }
}

#[test]
fn what_a_backend_answers_ends_nothing() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        let asks = |flags| f.from(&WEB, VIP, Payload::tcp(40000, 80, flags));
        let says = f.from(&DB, WEB, Payload::tcp(8080, 40000, ACK));
        for lost in [&[FLOW_BACK][..], &[FLOW_FRONT, FLOW_BACK]] {
            for flags in [SYN, ACK] {
                assert!(lab.send(&WEB, &asks(flags)).redirected());
            }
            assert_eq!(lab.send(&DB, &says).packet().source, VIP.at(f));
            lab.idle(A_WHILE).unwrap();
            for flag in lost {
                lose(&mut lab, *flag);
            }
            let reset = f.from(&WEB, DB, Payload::tcp(40000, 8080, RST));
            for _ in 0..2 {
                assert_eq!(lab.send(&DB, &says).packet().source, DB.at(f));
                assert_eq!(lab.send(&WEB, &reset), dropped(DropReason::FlowTable));
            }
            let seen = lab.send(&WEB, &asks(ACK)).packet();
            assert_eq!(seen.payload, Payload::tcp(40000, 8080, ACK), "its own port");
            assert_eq!(lab.send(&DB, &says).packet().source, VIP.at(f));
            assert_eq!(halves(&lab), [1, 1]);
            lab.forget_flows().unwrap();
        }
    }
}

#[test]
fn a_reset_is_held_back_for_a_while_only() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for (to, masquerades) in [(DB.place, false), (OUTSIDE, true)] {
            let data = f.from(&WEB, to, Payload::tcp(40000, 80, ACK));
            let left = lab.send(&WEB, &data).packet();
            let back = |flags| {
                let (port, from) = left.payload.ports();
                let reply = Payload::tcp(from, port, flags);
                f.packet(to, if masquerades { NODE } else { WEB.place }, reply)
            };
            let mut come = |packet: Packet| {
                if masquerades {
                    lab.arrive(&packet)
                } else {
                    lab.send(&DB, &packet.sent_by(DB.mac))
                }
            };
            for _ in 0..HELD_BACK {
                assert_eq!(come(back(RST)), dropped(DropReason::FlowTable));
            }
            let verdict = come(back(RST));
            assert!(verdict.redirected(), "{verdict:?}");
            lab.forget_flows().unwrap();
            // Nor is it, where the connection is known there, or its opening was seen.
            for before in [Some(ACK), None] {
                let data = f.from(&WEB, to, Payload::tcp(40001, 80, before.unwrap_or(SYN)));
                let left = lab.send(&WEB, &data).packet();
                for flags in before.into_iter().chain([RST]) {
                    let (port, from) = left.payload.ports();
                    let reply = Payload::tcp(from, port, flags);
                    let verdict = if masquerades {
                        lab.arrive(&f.packet(to, NODE, reply))
                    } else {
                        lab.send(&DB, &f.from(&DB, WEB, reply))
                    };
                    assert!(verdict.redirected(), "{verdict:?}");
                }
                lab.forget_flows().unwrap();
            }
        }
    }
}

#[test]
fn a_client_finds_the_backend_that_has_its_connection() {
    for f in families() {
        let backends = [DB.place, DB2.place, REMOTE, WEB.place];
        let (mut lab, mut cluster) = lab(&[service("s", VIP, &backends)]);
        let mut chosen = BTreeSet::new();
        for port in 40000..40040 {
            let there = |flags| f.from(&WEB, VIP, Payload::tcp(port, 80, flags));
            for flags in [SYN, ACK] {
                assert!(lab.send(&WEB, &there(flags)).redirected());
            }
            let before = lab.send(&WEB, &there(ACK)).packet();
            chosen.insert(before.destination);
            lose(&mut lab, FLOW_FRONT);
            let after = lab.send(&WEB, &there(ACK)).packet();
            assert_eq!(after, before);
            assert_eq!(halves(&lab), [1, 1]);
            lab.forget_flows().unwrap();
        }
        assert_eq!(chosen.len(), backends.len(), "or it was luck");

        // Two services share the backend: the client of one is no client of the other.
        cluster.apply(&service("s", VIP, &[DB.place])).unwrap();
        cluster
            .apply(&service("t", OTHER_VIP, &[DB.place]))
            .unwrap();
        lab.update(&cluster).unwrap();
        let to = |vip| f.from(&WEB, vip, Payload::tcp(40000, 80, ACK));
        let first = lab.send(&WEB, &to(VIP)).packet();
        let second = lab.send(&WEB, &to(OTHER_VIP)).packet();
        assert_ne!(first.payload, second.payload);
        for entry in lab.flows().unwrap() {
            if entry.flow.flags & FLOW_FRONT != 0 {
                lab.evict_flow(&entry).unwrap();
            }
        }
        assert_eq!(lab.send(&WEB, &to(OTHER_VIP)).packet(), second);
        assert_eq!(lab.send(&WEB, &to(VIP)).packet(), first);
    }
}
