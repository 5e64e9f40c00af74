//! Packets and orders of events that would break a datapath: stale and stolen flows, tuples that
//! collide, services that come and go under traffic, addresses that are somebody else's.

use weft_abi::{
    drop::DropReason,
    flow::{FLOW_BACK, FLOW_FRONT},
};
use weft_tests::packet::{
    FlowEntry, Lab, Somewhere as _, Verdict,
    bytes::{ACK, FIN, Payload, RST, SYN},
    scene::{DB, DB2, NODE, VIP, WEB, dropped, families, hairpin, lab, pod, policy, service},
};

/// An interface of the node that no pod has.
const UPLINK: u32 = 77;
/// Ticks per second in the lab's configuration.
const HZ: u32 = 250;

fn flow_with(lab: &Lab, flag: u8) -> FlowEntry {
    let flows = lab.flows().unwrap();
    let mut found = flows
        .into_iter()
        .filter(|entry| entry.flow.flags & flag != 0);
    let entry = found.next().expect("such a flow");
    assert!(found.next().is_none(), "only one such flow");
    entry
}

fn ports(verdict: &Verdict) -> (u16, u16) {
    verdict.packet().payload.ports()
}

/// Deny what `db` opens itself: its packets pass as replies, or not at all.
fn db_opens_nothing() -> String {
    policy(
        "db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}",
    )
}

#[test]
fn a_connection_that_was_refused_first_outlives_its_pauses() {
    for f in families() {
        let (mut lab, _) = lab(&[db_opens_nothing()]);
        let syn = f.from(&WEB, DB, Payload::tcp(40000, 80, SYN));
        let refused = f.from(&DB, WEB, Payload::tcp(80, 40000, RST | ACK));
        assert!(lab.send(&WEB, &syn).redirected());
        assert!(lab.send(&DB, &refused).redirected());
        // The same port again, and now somebody listens.
        assert!(lab.send(&WEB, &syn).redirected());
        let accepted = f.from(&DB, WEB, Payload::tcp(80, 40000, SYN | ACK));
        assert!(lab.send(&DB, &accepted).redirected());
        let ack = f.from(&WEB, DB, Payload::tcp(40000, 80, ACK));
        assert!(lab.send(&WEB, &ack).redirected());
        lab.idle(60).unwrap();
        let data = f.from(&DB, WEB, Payload::tcp(80, 40000, ACK));
        let verdict = lab.send(&DB, &data);
        assert!(verdict.redirected(), "{verdict:?}");
    }
}

#[test]
fn a_new_connection_to_a_service_inherits_no_end_of_an_old_one() {
    for f in families() {
        for end in [RST, FIN | ACK] {
            let (mut lab, _) = lab(&[service("s", VIP, &[DB.place]), db_opens_nothing()]);
            let there = |flags| f.from(&WEB, VIP, Payload::tcp(40000, 80, flags));
            let back = |flags| f.from(&DB, WEB, Payload::tcp(8080, 40000, flags));
            for flags in [SYN, ACK, FIN | ACK] {
                assert!(lab.send(&WEB, &there(flags)).redirected());
            }
            assert!(lab.send(&DB, &back(end)).redirected());
            // The port is used again, for a connection that is half closed and then quiet.
            for flags in [SYN, ACK, FIN | ACK] {
                assert!(lab.send(&WEB, &there(flags)).redirected());
            }
            lab.idle(60).unwrap();
            let verdict = lab.send(&DB, &back(ACK));
            assert!(verdict.redirected(), "{verdict:?}");
            assert_eq!(verdict.packet().source, VIP.at(f));
            assert_eq!(lab.send(&WEB, &there(ACK)).packet().destination, DB.at(f));
        }
    }
}

#[test]
fn a_late_packet_of_an_old_backend_does_not_end_the_new_connection() {
    for f in families() {
        let (mut lab, mut cluster) = lab(&[service("s", VIP, &[DB.place])]);
        let there = |flags| f.from(&WEB, VIP, Payload::tcp(40000, 80, flags));
        for flags in [SYN, ACK] {
            assert_eq!(lab.send(&WEB, &there(flags)).packet().destination, DB.at(f));
        }
        cluster.apply(&service("s", VIP, &[DB2.place])).unwrap();
        lab.update(&cluster).unwrap();
        // The client uses its port again, and gets another backend.
        for flags in [SYN, ACK] {
            assert_eq!(
                lab.send(&WEB, &there(flags)).packet().destination,
                DB2.at(f)
            );
        }
        // Twice: the first is decided again, in the new epoch.
        for flags in [ACK, RST] {
            let late = f.from(&DB, WEB, Payload::tcp(8080, 40000, flags));
            let _ = lab.send(&DB, &late);
        }
        // New connections would get another one: this is none.
        cluster.apply(&service("s", VIP, &[DB.place])).unwrap();
        lab.update(&cluster).unwrap();
        lab.idle(60).unwrap();
        assert_eq!(lab.send(&WEB, &there(ACK)).packet().destination, DB2.at(f));
    }
}

#[test]
fn a_direct_connection_takes_no_tuple_from_a_live_one_through_a_service() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        let there = |flags| f.from(&WEB, VIP, Payload::tcp(40000, 80, flags));
        let back = |flags| f.from(&DB, WEB, Payload::tcp(8080, 40000, flags));
        for flags in [SYN, ACK] {
            assert!(lab.send(&WEB, &there(flags)).redirected());
            assert_eq!(lab.send(&DB, &back(ACK)).packet().source, VIP.at(f));
        }
        // What a client's packet leaves with the backend's entry when some seconds went by.
        let mut entry = flow_with(&lab, FLOW_BACK);
        for side in &mut entry.flow.sides {
            side.seen |= weft_abi::flow::SEEN_DATA;
        }
        lab.set_flow(&entry).unwrap();
        let direct = f.from(&WEB, DB, Payload::tcp(40000, 8080, SYN));
        assert_eq!(lab.send(&WEB, &direct), dropped(DropReason::NoPort));
        assert_eq!(
            lab.send(&DB, &back(ACK)).packet().source,
            VIP.at(f),
            "the live connection goes on"
        );
        // Once it is over the port is free.
        assert!(lab.send(&WEB, &there(FIN | ACK)).redirected());
        assert!(lab.send(&DB, &back(FIN | ACK)).redirected());
        assert!(lab.send(&WEB, &direct).redirected());
        assert_eq!(lab.send(&DB, &back(SYN | ACK)).packet().source, DB.at(f));
    }
}

#[test]
fn one_udp_socket_reaches_a_pod_directly_and_through_a_service() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        let through = f.from(&WEB, VIP, Payload::udp(7946, 7946));
        let direct = f.from(&WEB, DB, Payload::udp(7946, 7946));
        assert_eq!(lab.send(&WEB, &through).packet().destination, DB.at(f));
        let verdict = lab.send(&WEB, &direct);
        assert!(verdict.redirected(), "{verdict:?}");
        let answer = f.from(&DB, WEB, Payload::udp(7946, 7946));
        assert_eq!(lab.send(&DB, &answer).packet().source, DB.at(f));
        // The service's flow gets another port, and keeps it.
        for _ in 0..3 {
            let verdict = lab.send(&WEB, &through);
            let (port, _) = ports(&verdict);
            assert_ne!(port, 7946, "or its replies could not be told apart");
            let answer = f.from(&DB, WEB, Payload::udp(7946, port));
            let reply = lab.send(&DB, &answer);
            assert_eq!(
                (reply.packet().source, ports(&reply)),
                (VIP.at(f), (7946, 7946))
            );
            assert_eq!(ports(&lab.send(&WEB, &direct)), (7946, 7946));
            assert_eq!(ports(&lab.send(&WEB, &through)).0, port);
        }
    }
}

#[test]
fn a_service_that_comes_later_takes_over_what_waits_for_it() {
    for f in families() {
        let (mut lab, mut cluster) = lab(&[]);
        let query = f.from(&WEB, VIP, Payload::udp(40000, 53));
        let syn = f.from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
        for _ in 0..2 {
            assert!(lab.send(&WEB, &query).passed(), "the host stack's");
            assert!(lab.send(&WEB, &syn).passed());
        }
        cluster.apply(&service("s", VIP, &[DB.place])).unwrap();
        lab.update(&cluster).unwrap();
        for packet in [&query, &syn] {
            for _ in 0..2 {
                let verdict = lab.send(&WEB, packet);
                assert_eq!(verdict.packet().destination, DB.at(f));
            }
        }
        // A service that goes and comes back as well.
        cluster.state.services.clear();
        lab.update(&cluster).unwrap();
        assert!(lab.send(&WEB, &query).passed());
        cluster.apply(&service("s", VIP, &[DB2.place])).unwrap();
        lab.update(&cluster).unwrap();
        assert_eq!(lab.send(&WEB, &query).packet().destination, DB2.at(f));
    }
}

#[test]
fn an_opening_that_nobody_answered_leaves_a_dead_backend() {
    for f in families() {
        let (mut lab, mut cluster) = lab(&[service("s", VIP, &[DB.place])]);
        let syn = f.from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
        assert_eq!(lab.send(&WEB, &syn).packet().destination, DB.at(f));
        cluster.apply(&service("s", VIP, &[DB2.place])).unwrap();
        lab.update(&cluster).unwrap();
        for _ in 0..2 {
            assert_eq!(lab.send(&WEB, &syn).packet().destination, DB2.at(f));
        }
    }
}

#[test]
fn a_clock_that_another_cpu_read_later_ends_no_flow() {
    for f in families() {
        let (mut lab, _) = lab(&[
            service("s", VIP, &[DB.place, DB2.place]),
            db_opens_nothing(),
        ]);
        let there = f.from(&WEB, DB, Payload::tcp(40000, 80, SYN));
        let back = f.from(&DB, WEB, Payload::tcp(80, 40000, ACK));
        let service = f.from(&WEB, VIP, Payload::tcp(40001, 80, ACK));
        assert!(lab.send(&WEB, &there).redirected());
        let backend = lab.send(&WEB, &service).packet().destination;
        for _ in 0..8 {
            for mut entry in lab.flows().unwrap() {
                entry.flow.last_seen = entry.flow.last_seen.wrapping_add(HZ);
                lab.set_flow(&entry).unwrap();
            }
            assert!(lab.send(&DB, &back).redirected());
            assert_eq!(lab.send(&WEB, &service).packet().destination, backend);
        }
    }
}

#[test]
fn nobody_speaks_in_a_services_name() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        if !lab.takes_ingress(&WEB) {
            return;
        }
        let there = |flags| f.from(&WEB, VIP, Payload::tcp(40000, 80, flags));
        for flags in [SYN, ACK] {
            assert!(lab.send(&WEB, &there(flags)).redirected());
        }
        for flags in [SYN, SYN | ACK, ACK, RST] {
            let packet = f.packet(VIP, WEB, Payload::tcp(80, 40000, flags));
            let verdict = lab.receive(&WEB, UPLINK, &packet);
            assert_eq!(verdict, dropped(DropReason::Spoofed), "{flags:#x}");
        }
        assert_eq!(lab.send(&WEB, &there(ACK)).packet().destination, DB.at(f));
    }
}

#[test]
fn the_own_nodes_privilege_is_not_to_be_had() {
    for f in families() {
        let deny = policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
        let (mut lab, mut cluster) = lab(&[deny]);
        let probe = f.packet(NODE, DB, Payload::tcp(50000, 80, SYN));
        assert!(lab.receive(&DB, 0, &probe).passed());
        let answer = f.from(&DB, NODE, Payload::tcp(80, 50000, SYN | ACK));
        assert!(lab.send(&DB, &answer).passed());
        // A pod of the same tuple but for its address, by the stack or directly.
        let other = f.from(&WEB, DB, Payload::tcp(50000, 80, SYN));
        assert_eq!(lab.send(&WEB, &other), dropped(DropReason::PolicyEgress));
        let forwards = lab.takes_ingress(&DB);
        if forwards {
            let ingress = lab.interface(&WEB);
            assert_eq!(
                lab.receive(&DB, ingress, &other),
                dropped(DropReason::PolicyEgress)
            );
        }
        // The pod cannot turn the flow around, nor a later epoch.
        let turned = f.from(&DB, NODE, Payload::tcp(80, 50000, SYN));
        assert_eq!(lab.send(&DB, &turned), dropped(DropReason::PolicyEgress));
        cluster
            .apply(&policy("more", "{podSelector: {}, policyTypes: [Ingress]}"))
            .unwrap();
        lab.update(&cluster).unwrap();
        assert_eq!(lab.send(&DB, &turned), dropped(DropReason::PolicyEgress));
        assert!(lab.send(&DB, &answer).passed(), "replies still pass");
        // What was forwarded did not come from the node, whatever it says.
        let forged = f.packet(NODE, DB, Payload::tcp(50001, 80, SYN));
        if forwards {
            for ingress in [UPLINK, lab.interface(&WEB)] {
                assert_eq!(
                    lab.receive(&DB, ingress, &forged),
                    dropped(DropReason::Spoofed)
                );
            }
        }
        // Nor the address by which a pod knows itself.
        if forwards {
            let gateway = f.packet(hairpin(f), DB, Payload::tcp(50002, 80, SYN));
            assert!(matches!(
                lab.receive(&DB, UPLINK, &gateway),
                Verdict::Drop(_)
            ));
        }
    }
}

#[test]
fn an_address_that_is_anothers_now_has_nothing_of_its_old_owners() {
    for f in families() {
        let only_web = policy(
            "db",
            "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
            ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
        );
        let (mut lab, mut cluster) = lab(&[only_web]);
        let data = f.from(&WEB, DB, Payload::tcp(40000, 80, ACK));
        assert!(lab.send(&WEB, &data).redirected());
        // The pod goes; another one gets its address, and another interface.
        let mut heir = cluster.state.endpoints.remove("web").unwrap();
        cluster.state.pods.retain(|key, _| key.name != "web");
        lab.update(&cluster).unwrap();
        assert_eq!(lab.send(&WEB, &data), dropped(DropReason::Spoofed));
        let reply = f.from(&DB, WEB, Payload::tcp(80, 40000, ACK));
        assert_eq!(lab.send(&DB, &reply), dropped(DropReason::NoEndpoint));
        heir.ifindex = UPLINK;
        heir.mac = [2, 0, 0, 0, 9, 9];
        heir.pod.name = "heir".to_owned();
        heir.container_id = "heir".to_owned();
        cluster.apply(&pod("heir", WEB.place)).unwrap();
        cluster.state.endpoints.insert("heir".to_owned(), heir);
        lab.update(&cluster).unwrap();
        assert_eq!(
            lab.send(&WEB, &data),
            dropped(DropReason::Spoofed),
            "the old interface"
        );
        let context = weft_tests::packet::Context {
            ifindex: UPLINK,
            ..Default::default()
        };
        let data = data.sent_by([2, 0, 0, 0, 9, 9]);
        let verdict = lab.run("from_container", context, &data.to_bytes());
        // Test runs want an interface that is there: the new one is not.
        if let Ok(verdict) = verdict {
            assert_eq!(verdict, dropped(DropReason::PolicyIngress));
        }
        assert_eq!(
            lab.send(&DB, &reply),
            dropped(DropReason::PolicyIngress),
            "the reply to what is not allowed any more"
        );
    }
}

#[test]
fn losing_one_half_of_a_service_flow_heals() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        let there = f.from(&WEB, VIP, Payload::tcp(40000, 80, ACK));
        let back = f.from(&DB, WEB, Payload::tcp(8080, 40000, ACK));
        assert!(lab.send(&WEB, &there).redirected());
        let entry = flow_with(&lab, FLOW_BACK);
        lab.evict_flow(&entry).unwrap();
        // The next beat finds it missing.
        lab.idle(20).unwrap();
        assert!(lab.send(&WEB, &there).redirected());
        assert_eq!(lab.send(&DB, &back).packet().source, VIP.at(f));
        let entry = flow_with(&lab, FLOW_FRONT);
        lab.evict_flow(&entry).unwrap();
        assert_eq!(lab.send(&WEB, &there).packet().destination, DB.at(f));
        assert_eq!(lab.send(&DB, &back).packet().source, VIP.at(f));
        assert_eq!(lab.flows().unwrap().len(), 2);
    }
}
