//! Ways: to pods of this node and of another, to the host and the outside, and what they cost.

use weft_abi::{
    GATEWAY_MAC, MARK_ENCAPSULATED, OVERLAY_MAC, OVERLAY_PEER_MAC,
    drop::DropReason,
    flow::{FLOW_BACK, FLOW_FRONT},
};
use weft_tests::packet::{
    Context, Somewhere as _, Verdict,
    bytes::{ACK, Fragment, Payload, SYN},
    scene::{
        DB, NODE, OTHER_NODE, OUTSIDE, REMOTE, VIP, WEB, dropped, families, lab, pod_place, policy,
        service,
    },
};

#[test]
fn a_pod_reaches_a_pod_of_its_node_and_gets_its_reply() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        for (there, back) in [
            (
                Payload::tcp(40000, 80, SYN),
                Payload::tcp(80, 40000, SYN | ACK),
            ),
            (Payload::udp(40000, 53), Payload::udp(53, 40000)),
            (Payload::echo(true, 7), Payload::echo(false, 7)),
        ] {
            let verdict = lab.send(&WEB, &f.from(&WEB, DB, there.clone()));
            assert!(verdict.redirected(), "{verdict:?}");
            let packet = verdict.packet();
            assert_eq!(
                (packet.destination_mac, packet.source_mac),
                (DB.mac, GATEWAY_MAC)
            );
            assert_eq!(packet.ttl, 63);
            assert_eq!((packet.source, packet.destination), (WEB.at(f), DB.at(f)));
            assert_eq!(packet.payload, there);

            let verdict = lab.send(&DB, &f.from(&DB, WEB, back.clone()));
            assert!(verdict.redirected(), "{verdict:?}");
            assert_eq!(verdict.packet().destination_mac, WEB.mac);
            assert_eq!(verdict.packet().payload, back);
        }
        assert_eq!(
            lab.flows().unwrap().len(),
            3,
            "one entry per flow serves both directions"
        );
    }
}

#[test]
fn a_pod_of_another_node_is_reached_through_the_overlay() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        let verdict = lab.send(&WEB, &f.from(&WEB, REMOTE, Payload::tcp(40000, 80, SYN)));
        let Verdict::Redirect(_, mark) = &verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(*mark, MARK_ENCAPSULATED);
        let packet = verdict.packet();
        assert_eq!(
            (packet.destination_mac, packet.source_mac),
            (OVERLAY_MAC, OVERLAY_PEER_MAC)
        );
        assert_eq!(
            (packet.source, packet.destination, packet.ttl),
            (WEB.at(f), REMOTE.at(f), 63)
        );
        // So is the node itself.
        let verdict = lab.send(
            &WEB,
            &f.from(&WEB, OTHER_NODE, Payload::tcp(40000, 22, SYN)),
        );
        assert!(verdict.redirected(), "{verdict:?}");
    }
}

#[test]
fn the_host_and_the_outside_are_the_stacks() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        for destination in [NODE, OUTSIDE] {
            let sent = f.from(&WEB, destination, Payload::tcp(40000, 80, SYN));
            let verdict = lab.send(&WEB, &sent);
            assert_eq!(verdict, Verdict::Pass(sent.to_bytes(), 0), "untouched");
        }
    }
}

#[test]
fn an_address_of_the_nodes_own_pods_without_a_pod_is_dropped() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        let nobody = pod_place(1, 200);
        let verdict = lab.send(&WEB, &f.from(&WEB, nobody, Payload::tcp(40000, 80, SYN)));
        assert_eq!(verdict, dropped(DropReason::NoEndpoint));
    }
}

#[test]
fn the_overlay_takes_only_what_a_node_sent() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        // Test runs have no tunnel metadata: to the datapath, nobody known sent this.
        let packet = f.packet(REMOTE, WEB, Payload::tcp(40000, 80, SYN));
        let verdict = lab
            .run("from_overlay", Context::default(), &packet.to_bytes())
            .unwrap();
        assert_eq!(verdict, dropped(DropReason::UnknownTunnel));
        let packet = f.packet(DB, WEB, Payload::tcp(40000, 80, SYN));
        let verdict = lab
            .run("from_overlay", Context::default(), &packet.to_bytes())
            .unwrap();
        assert_eq!(verdict, dropped(DropReason::UnknownTunnel));
    }
}

#[test]
fn the_host_stacks_way_into_the_overlay() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        let packet = f.packet(NODE, REMOTE, Payload::udp(1, 2));
        let verdict = lab
            .run("to_overlay", Context::default(), &packet.to_bytes())
            .unwrap();
        assert!(verdict.passed(), "{verdict:?}");
        assert_eq!(verdict.packet().destination_mac, OVERLAY_MAC);
        let fragment = packet.clone().with_fragment(Fragment {
            id: 1,
            offset: 1_480,
            more: false,
        });
        let verdict = lab
            .run("to_overlay", Context::default(), &fragment.to_bytes())
            .unwrap();
        assert!(
            verdict.passed(),
            "fragments need no ports here: {verdict:?}"
        );
        let nowhere = f.packet(NODE, OUTSIDE, Payload::udp(1, 2));
        let verdict = lab
            .run("to_overlay", Context::default(), &nowhere.to_bytes())
            .unwrap();
        assert_eq!(verdict, dropped(DropReason::NoRoute));
        // What another program encapsulated passes as it is, and loses its mark.
        let marked = Context {
            mark: MARK_ENCAPSULATED,
            ..Context::default()
        };
        let verdict = lab.run("to_overlay", marked, &nowhere.to_bytes()).unwrap();
        assert_eq!(verdict, Verdict::Pass(nowhere.to_bytes(), 0));
    }
}

#[test]
fn time_to_live_that_ends_here_goes_to_the_stack_with_its_source() {
    for f in families() {
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place])]);
        // What is sent to a service goes as one of its backend: towards that the stack has a route.
        for (destination, seen) in [
            (DB.place, (DB.place, 80)),
            (REMOTE, (REMOTE, 80)),
            (VIP, (DB.place, 8080)),
        ] {
            let mut sent = f.from(&WEB, destination, Payload::tcp(40000, 80, SYN));
            sent.ttl = 1;
            let mut expected = f.from(&WEB, seen.0, Payload::tcp(40000, seen.1, SYN));
            expected.ttl = 1;
            assert_eq!(
                lab.send(&WEB, &sent),
                Verdict::Pass(expected.to_bytes(), 0),
                "{destination:?}"
            );
        }
    }
}

#[test]
fn protocols_without_ports_have_flows_too() {
    for f in families() {
        let (mut lab, _) = lab(&[]);
        let gre = Payload::Other {
            protocol: 47,
            data: vec![0; 40],
        };
        assert!(lab.send(&WEB, &f.from(&WEB, DB, gre.clone())).redirected());
        assert!(lab.send(&DB, &f.from(&DB, WEB, gre)).redirected());
        assert_eq!(lab.flows().unwrap().len(), 1);
    }
}

#[test]
fn an_established_flow_costs_one_lookup() {
    for f in families() {
        let deny = "{podSelector: {}, policyTypes: [Ingress, Egress],
        ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}";
        let (mut lab, _) = lab(&[service("s", VIP, &[DB.place]), policy("p", deny)]);
        for (destination, port) in [(DB.place, 80), (REMOTE, 80), (VIP, 80)] {
            let packet = f.from(&WEB, destination, Payload::tcp(40000, port, ACK));
            assert!(lab.send(&WEB, &packet).redirected());
            // Every few seconds a packet of a service flow also refreshes the flow's other entry; two
            // packets on either side of such a beat are one lookup more, so the least of some counts.
            let cost = (0..4).map(|_| {
                let before = lab.lookups().unwrap();
                assert!(lab.send(&WEB, &packet).redirected());
                let after = lab.lookups().unwrap();
                std::array::from_fn::<u64, 5, _>(|index| after[index] - before[index])
            });
            assert_eq!(cost.min().unwrap(), [1, 0, 0, 0, 0], "to {destination:?}");
        }
        let flows = lab.flows().unwrap();
        let with = |flag| {
            flows
                .iter()
                .filter(|entry| entry.flow.flags & flag != 0)
                .count()
        };
        assert_eq!((flows.len(), with(FLOW_FRONT), with(FLOW_BACK)), (4, 1, 1));
    }
}
