//! Out of the cluster and back: masquerading, native routing, and what else passes the uplinks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_abi::{
    MARK_FORWARDED, MARK_RESUMED,
    config::{CONFIG_MASQUERADE_V4, Uplink},
    drop::DropReason,
    flow::{FLOW_BACK, FLOW_FRONT, FLOW_MASQUERADE, HOP_ENDPOINT, HOP_UPLINK},
};
use weft_tests::packet::{
    Context, Family, OVERLAY_PORT, Overlay, ROUTER_MAC, Setup, Somewhere as _, UPLINK_MAC, Verdict,
    Wire,
    bytes::{ACK, Extension, FIN, IcmpError, Packet, Payload, RST, SYN},
    frames,
    scene::{
        DB, DB2, ELSEWHERE, NODE, OTHER_NODE, OUTSIDE, OUTSIDE_NETWORKS, PODS, REMOTE, ROUTER, VIP,
        WEB, cluster, dropped, families, lab_with, native_lab, node_place, outside, service,
        uplink_lab,
    },
};

use crate::support::{answer, delivered, in_range, leaves, masqueraded, payloads};

#[test]
fn a_pod_reaches_the_outside_with_its_nodes_address() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for payload in payloads() {
            lab.forget_flows().unwrap();
            let sent = f.from(&WEB, OUTSIDE, payload);
            let left = masqueraded(&mut lab, &WEB, &sent);
            assert_eq!(left.destination, OUTSIDE.at(f));
            let port = left.payload.source_port();
            assert_eq!(left.payload, sent.payload.clone().with_source_port(port));

            let came = delivered(&mut lab, &WEB, &answer(&left));
            assert_eq!(came.source, OUTSIDE.at(f));
            assert_eq!(came.payload, sent.payload.answer());

            // Whatever follows is of the same flow.
            let again = masqueraded(&mut lab, &WEB, &sent);
            assert_eq!(again.payload, left.payload);

            let flows = lab.flows().unwrap();
            let flags = |flag| {
                let with = flows
                    .iter()
                    .filter(move |entry| entry.flow.flags & flag != 0);
                with.count()
            };
            assert_eq!(flows.len(), 2, "{flows:#?}");
            assert_eq!(
                (flags(FLOW_FRONT), flags(FLOW_BACK), flags(FLOW_MASQUERADE)),
                (1, 1, 2)
            );
            for entry in &flows {
                let (pod, outside) = (entry.initiator(), entry.responder());
                assert_eq!((pod.hop, outside.hop), (HOP_ENDPOINT, HOP_UPLINK));
                assert_eq!(outside.ifindex, lab.uplink());
                let ((source, source_port), (destination, _)) = entry.translation();
                if entry.flow.flags & FLOW_FRONT != 0 {
                    assert_eq!((source, source_port), (NODE.at(f), port));
                } else {
                    assert_eq!((source, destination), (OUTSIDE.at(f), WEB.at(f)));
                }
            }
        }
    }
}

#[test]
fn an_established_masqueraded_flow_costs_one_lookup() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        let sent = f.from(&WEB, OUTSIDE, Payload::tcp(40000, 80, ACK));
        let left = masqueraded(&mut lab, &WEB, &sent);
        let reply = answer(&left);
        delivered(&mut lab, &WEB, &reply);
        // As for services: now and then a packet visits the flow's other entry as well.
        let mut least = [[u64::MAX; 5]; 2];
        for _ in 0..4 {
            for (index, least) in least.iter_mut().enumerate() {
                let before = lab.lookups().unwrap();
                if index == 0 {
                    masqueraded(&mut lab, &WEB, &sent);
                } else {
                    delivered(&mut lab, &WEB, &reply);
                }
                let after = lab.lookups().unwrap();
                let cost = std::array::from_fn(|table| after[table] - before[table]);
                *least = cost.min(*least);
            }
        }
        assert_eq!(least, [[1, 0, 0, 0, 0]; 2]);
    }
}

#[test]
fn pods_that_use_the_same_port_stay_apart() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for payload in payloads() {
            let mut ports = BTreeSet::new();
            let left = PODS.map(|pod| {
                let sent = f.from(&pod, OUTSIDE, payload.clone());
                let left = masqueraded(&mut lab, &pod, &sent);
                ports.insert(left.payload.source_port());
                (pod, left)
            });
            assert_eq!(ports.len(), PODS.len(), "{ports:?}");
            for (pod, left) in left {
                let came = delivered(&mut lab, &pod, &answer(&left));
                assert_eq!(came.payload, payload.answer());
            }
        }
    }
}

#[test]
fn one_port_reaches_several_destinations() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for payload in payloads() {
            let left = [OUTSIDE, ELSEWHERE]
                .map(|to| masqueraded(&mut lab, &WEB, &f.from(&WEB, to, payload.clone())));
            for left in left {
                let came = delivered(&mut lab, &WEB, &answer(&left));
                assert_eq!(came.source, left.destination);
                assert_eq!(came.payload, payload.answer());
            }
        }
    }
}

#[test]
fn thousands_of_flows_to_one_destination() {
    const FLOWS: u16 = 5_000;
    let setup = Setup {
        flows: Some(65_536),
        ..Setup::uplink()
    };
    let (mut lab, _) = lab_with(&setup, cluster(&[]));
    for f in families() {
        let mut left = Vec::new();
        for index in 0..FLOWS {
            let pod = PODS[usize::from(index) % PODS.len()];
            let sent = f.from(&pod, OUTSIDE, Payload::tcp(30_000 + index, 443, SYN));
            left.push((pod, sent.clone(), masqueraded(&mut lab, &pod, &sent)));
        }
        let ports: BTreeSet<_> = left
            .iter()
            .map(|(_, _, left)| left.payload.source_port())
            .collect();
        assert_eq!(ports.len(), usize::from(FLOWS), "no two share a port");
        for (pod, sent, left) in &left {
            let came = delivered(&mut lab, pod, &answer(left));
            assert_eq!(came.payload, sent.payload.answer());
        }
    }
}

#[test]
fn a_port_is_free_again_when_its_flow_has_ended() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        lab.configure(|config| {
            config.masquerade_first = 2_000;
            config.masquerade_ports = 1;
        })
        .unwrap();
        for (payload, end) in [
            (Payload::udp(40000, 53), None),
            (Payload::tcp(40000, 80, SYN), Some(RST | ACK)),
        ] {
            let first = masqueraded(&mut lab, &WEB, &f.from(&WEB, OUTSIDE, payload.clone()));
            assert_eq!(first.payload.source_port(), 2_000);
            // There is no other.
            let second = f.from(&DB, OUTSIDE, payload.clone());
            assert_eq!(lab.send(&DB, &second), dropped(DropReason::NoPort));
            // But the port is another destination's as well.
            masqueraded(&mut lab, &DB, &f.from(&DB, ELSEWHERE, payload.clone()));
            if let Some(flags) = end {
                let (source, destination) = first.payload.answer().ports();
                let end = Payload::tcp(source, destination, flags);
                delivered(&mut lab, &WEB, &f.packet(OUTSIDE, NODE, end));
            } else {
                lab.idle(200).unwrap();
            }
            let left = masqueraded(&mut lab, &DB, &second);
            let came = delivered(&mut lab, &DB, &answer(&left));
            assert_eq!(came.payload, payload.answer());
            lab.forget_flows().unwrap();
        }
    }
}

#[test]
fn a_connection_that_ended_is_followed_by_another_from_the_same_port() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for end in [RST, FIN | ACK] {
            let there = |flags| f.from(&WEB, OUTSIDE, Payload::tcp(40000, 80, flags));
            let mut port = 0;
            for flags in [SYN, ACK, end] {
                let left = masqueraded(&mut lab, &WEB, &there(flags));
                if flags != SYN {
                    assert_eq!(left.payload.source_port(), port);
                }
                port = left.payload.source_port();
            }
            let back = |port, flags| f.packet(OUTSIDE, NODE, Payload::tcp(80, port, flags));
            // The other end closes as well; its last packets still arrive.
            for flags in [FIN | ACK, ACK] {
                delivered(&mut lab, &WEB, &back(port, flags));
            }
            let left = masqueraded(&mut lab, &WEB, &there(SYN));
            let port = left.payload.source_port();
            delivered(&mut lab, &WEB, &back(port, SYN | ACK));
            masqueraded(&mut lab, &WEB, &there(ACK));
            // Quiet, but not over.
            lab.idle(600).unwrap();
            delivered(&mut lab, &WEB, &back(port, ACK));
            lab.forget_flows().unwrap();
        }
    }
}

#[test]
fn a_new_epoch_keeps_a_translation_while_its_address_is_there() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for payload in payloads() {
            let sent = f.from(&WEB, OUTSIDE, payload.clone());
            let left = masqueraded(&mut lab, &WEB, &sent);
            for _ in 0..2 {
                lab.bump().unwrap();
                assert_eq!(masqueraded(&mut lab, &WEB, &sent).payload, left.payload);
                lab.bump().unwrap();
                let came = delivered(&mut lab, &WEB, &answer(&left));
                assert_eq!(came.payload, payload.answer());
            }
            // The node's address changes.
            let other = node_place(77);
            lab.set_uplink(Some(Uplink {
                v4: other.v4.into(),
                v6: other.v6.into(),
                mtu: 1500,
            }))
            .unwrap();
            let left = leaves(&mut lab, &WEB, &sent);
            assert_eq!(left.source, other.at(f), "an address that is still there");
            assert!(in_range(&left.payload));
            let came = delivered(&mut lab, &WEB, &answer(&left));
            assert_eq!(came.payload, payload.answer());
            lab.set_uplink(Some(Uplink {
                v4: NODE.v4.into(),
                v6: NODE.v6.into(),
                mtu: 1500,
            }))
            .unwrap();
            lab.forget_flows().unwrap();
        }
    }
}

#[test]
fn a_policy_change_reaches_a_masqueraded_flow() {
    let deny =
        weft_tests::packet::scene::policy("deny", "{podSelector: {}, policyTypes: [Egress]}");
    for f in families() {
        let (mut lab, mut cluster) = uplink_lab(&[]);
        let sent = f.from(&WEB, OUTSIDE, Payload::tcp(40000, 80, ACK));
        let left = masqueraded(&mut lab, &WEB, &sent);
        cluster.apply(&deny).unwrap();
        lab.update(&cluster).unwrap();
        let denied = dropped(DropReason::PolicyEgress);
        assert_eq!(lab.send(&WEB, &sent), denied);
        assert_eq!(lab.arrive(&answer(&left)), denied, "replies as well");
        cluster.state.policies.clear();
        lab.update(&cluster).unwrap();
        assert_eq!(masqueraded(&mut lab, &WEB, &sent).payload, left.payload);
    }
}

#[test]
fn networks_and_families_that_are_not_masqueraded() {
    for f in families() {
        let mut cluster = cluster(&[]);
        cluster.state.settings.non_masquerade = vec![
            crate::support::network(OUTSIDE, Family::V4),
            crate::support::network(OUTSIDE, Family::V6),
        ];
        let (mut lab, _) = lab_with(&Setup::uplink(), cluster);
        for payload in payloads() {
            let sent = f.from(&WEB, OUTSIDE, payload.clone());
            let left = leaves(&mut lab, &WEB, &sent);
            assert_eq!((left.source, &left.payload), (WEB.at(f), &payload));
            let came = delivered(&mut lab, &WEB, &answer(&left));
            assert_eq!(came.payload, payload.answer());
            masqueraded(&mut lab, &WEB, &f.from(&WEB, ELSEWHERE, payload));
        }
    }
    let setup = Setup {
        masquerade: CONFIG_MASQUERADE_V4,
        ..Setup::uplink()
    };
    let (mut lab, _) = lab_with(&setup, cluster(&[]));
    for f in families() {
        let sent = f.from(&WEB, OUTSIDE, Payload::udp(40000, 53));
        let left = leaves(&mut lab, &WEB, &sent);
        let source = f.pick(NODE.at(f), WEB.at(f));
        assert_eq!(left.source, source);
        let came = delivered(&mut lab, &WEB, &answer(&left));
        assert_eq!(came.payload, sent.payload.answer());
    }
}

#[test]
fn native_routing_keeps_addresses_within_the_cluster() {
    for f in families() {
        let (mut lab, _) = native_lab(&[service("s", VIP, &[REMOTE])]);
        for payload in payloads() {
            for to in [REMOTE, OTHER_NODE] {
                let sent = f.from(&WEB, to, payload.clone());
                let left = leaves(&mut lab, &WEB, &sent);
                assert_eq!((left.source, left.destination), (WEB.at(f), to.at(f)));
                assert_eq!(left.payload, payload);
                let came = delivered(&mut lab, &WEB, &answer(&left));
                assert_eq!((came.source, came.payload), (to.at(f), payload.answer()));
            }
            masqueraded(&mut lab, &WEB, &f.from(&WEB, OUTSIDE, payload.clone()));
        }
        // What a pod and a node there open.
        for (from, port) in [(REMOTE, 41000), (OTHER_NODE, 42000)] {
            let opened = f.packet(from, DB, Payload::tcp(port, 8080, SYN));
            delivered(&mut lab, &DB, &opened);
            let back = f.from(&DB, from, opened.payload.answer());
            let left = leaves(&mut lab, &DB, &back);
            assert_eq!((left.source, left.destination), (DB.at(f), from.at(f)));
        }
        // A service's backend there.
        let sent = f.from(&WEB, VIP, Payload::tcp(43000, 80, SYN));
        let left = leaves(&mut lab, &WEB, &sent);
        assert_eq!((left.source, left.destination), (WEB.at(f), REMOTE.at(f)));
        assert_eq!(left.payload, Payload::tcp(43000, 8080, SYN));
        let came = delivered(&mut lab, &WEB, &answer(&left));
        assert_eq!(
            (came.source, came.payload),
            (VIP.at(f), sent.payload.answer())
        );
    }
}

#[test]
fn a_service_whose_backend_is_outside() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[service("s", VIP, &[OUTSIDE])]);
        for (payload, port) in [
            (Payload::tcp(40000, 80, SYN), 8080),
            (Payload::udp(40000, 53), 5353),
        ] {
            let sent = f.from(&WEB, VIP, payload.clone());
            let left = masqueraded(&mut lab, &WEB, &sent);
            assert_eq!(left.destination, OUTSIDE.at(f));
            assert_eq!(left.payload.ports().1, port);
            let came = delivered(&mut lab, &WEB, &answer(&left));
            assert_eq!((came.source, came.payload), (VIP.at(f), payload.answer()));
            // Directly, from the same port: another flow, although the backend is the same.
            let (source, _) = payload.ports();
            let direct = match payload {
                Payload::Tcp { .. } => Payload::tcp(source, port, SYN),
                _ => Payload::udp(source, port),
            };
            let direct = f.from(&WEB, OUTSIDE, direct);
            let other = masqueraded(&mut lab, &WEB, &direct);
            assert_ne!(other.payload.source_port(), left.payload.source_port());
            let came = delivered(&mut lab, &WEB, &answer(&other));
            assert_eq!(came.source, OUTSIDE.at(f));
            let came = delivered(&mut lab, &WEB, &answer(&left));
            assert_eq!(came.source, VIP.at(f));
        }
    }
}

#[test]
fn nobody_else_answers_for_the_other_end() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        let sent = f.from(&WEB, OUTSIDE, Payload::udp(40000, 53));
        let left = masqueraded(&mut lab, &WEB, &sent);
        let port = left.payload.source_port();
        for strange in [
            f.packet(ELSEWHERE, NODE, Payload::udp(53, port)),
            f.packet(OUTSIDE, NODE, Payload::udp(54, port)),
            f.packet(OUTSIDE, NODE, Payload::udp(53, port ^ 1)),
            f.packet(OUTSIDE, NODE, Payload::tcp(53, port, ACK)),
        ] {
            assert_eq!(
                lab.arrive(&strange),
                Verdict::Pass(strange.to_bytes(), 0),
                "the host stack's: {strange:?}"
            );
        }
        delivered(&mut lab, &WEB, &answer(&left));
    }
}

/// Frames for the node itself, for others and for nobody: everything but what Weft has to do with.
fn not_ours() -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut add = |name: &str, frame: Vec<u8>| frames.push((name.to_owned(), frame));
    for f in families() {
        let to_node = |payload| {
            let mut packet = f.packet(OUTSIDE, NODE, payload).sent_by(ROUTER_MAC);
            packet.destination_mac = UPLINK_MAC;
            packet
        };
        for payload in [
            Payload::tcp(50000, 22, SYN),
            Payload::tcp(443, 50000, SYN | ACK),
            Payload::tcp(443, 50000, RST),
            // In the range of ports, and of no flow.
            Payload::tcp(443, 2_000, ACK),
            Payload::udp(53, 2_000),
            Payload::udp(50000, OVERLAY_PORT),
            Payload::echo(true, 7),
            Payload::echo(false, 7),
            Payload::echo(false, 2_000),
        ] {
            add("for the node", to_node(payload).to_bytes());
        }
        // IGMP, IP in IP, GRE, ESP, AH, OSPF, VRRP, SCTP, UDP-Lite, reserved.
        for protocol in [2, 4, 41, 47, 50, 51, 89, 112, 132, 136, 255] {
            let data = vec![0; 24];
            if !(f == Family::V6 && protocol == 51) {
                add(
                    "protocol",
                    to_node(Payload::Other { protocol, data }).to_bytes(),
                );
            }
        }
        let whole = to_node(Payload::udp_with(53, 2_000, vec![7; 3_000]));
        for piece in whole.split(1_400, 99) {
            add("fragment", piece.to_bytes());
        }
        let quoted = f.packet(NODE, OUTSIDE, Payload::udp(50000, 53));
        for cut in [0, 8, usize::MAX] {
            let error = quoted.error(ROUTER.at(f), IcmpError::PortUnreachable, cut);
            add("error about the node's own", error.to_bytes());
        }
        let error = Payload::Icmp {
            kind: f.pick(3, 1),
            code: 0,
            rest: [0; 4],
            data: vec![0xff; 3],
        };
        add("error that quotes nothing", to_node(error).to_bytes());
        // What is passing through to somebody else.
        let transit = f.packet(OUTSIDE, node_place(200), Payload::tcp(1, 2, SYN));
        add("for another", transit.to_bytes());
        let bytes = to_node(Payload::tcp(443, 2_000, ACK)).to_bytes();
        for length in 14 + f.header()..bytes.len() {
            add("cut", bytes[..length].to_vec());
        }
        let mut lie = bytes.clone();
        for first in f.pick(&[0x40, 0x4f, 0x65, 0x05][..], &[0x40, 0x05]) {
            lie[14] = *first;
            add("wrong first byte", lie.clone());
        }
        add("in a VLAN", frames::tagged(7, &bytes));
        add("in a VLAN, priority only", frames::tagged(0xe000, &bytes));
    }
    let broadcast = IpAddr::from([255; 4]);
    let dhcp = Packet::new(Ipv4Addr::UNSPECIFIED, broadcast, Payload::udp(68, 67));
    add("DHCP", dhcp.to_bytes());
    let mdns = Ipv4Addr::new(224, 0, 0, 251);
    let mdns = Packet::new(OUTSIDE.v4, mdns, Payload::udp(5353, 5353));
    add("multicast", mdns.to_bytes());
    for request in [true, false] {
        let arp = frames::arp(request, (ROUTER_MAC, ROUTER.v4), (UPLINK_MAC, NODE.v4));
        add("ARP", arp);
    }
    // Also about a pod's address: the node may answer for it, or not.
    let arp = frames::arp(true, (ROUTER_MAC, ROUTER.v4), (UPLINK_MAC, WEB.place.v4));
    add("ARP", arp);
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    for packet in [
        frames::neighbour_solicitation(ROUTER_MAC, link_local, NODE.v6),
        frames::neighbour_solicitation(ROUTER_MAC, Ipv6Addr::UNSPECIFIED, NODE.v6),
        frames::neighbour_advertisement(ROUTER_MAC, ROUTER.v6, NODE.v6),
        frames::neighbour_advertisement(ROUTER_MAC, ROUTER.v6, all),
        frames::router_solicitation(ROUTER_MAC, link_local),
        frames::router_advertisement(ROUTER_MAC, link_local),
        frames::redirect(ROUTER_MAC, link_local, NODE.v6, OUTSIDE.v6),
        frames::listener_report(ROUTER_MAC, link_local, all),
    ] {
        add("neighbour discovery", packet.to_bytes());
    }
    let options = Extension::Destination(vec![1, 4, 0, 0, 0, 0]);
    let chain = vec![options; 40];
    let long = Packet::new(OUTSIDE.v6, NODE.v6, Payload::tcp(443, 2_000, ACK));
    add("extension headers", long.with_extensions(&chain).to_bytes());
    add("LLDP", frames::lldp(ROUTER_MAC));
    let mut unknown = frames::lldp(ROUTER_MAC);
    for ether_type in [0x0004_u16, 0x8863, 0x8899, 0x88e5, 0x9000, 0xffff] {
        unknown[12..14].copy_from_slice(&ether_type.to_be_bytes());
        add("EtherType", unknown.clone());
    }
    frames
}

#[test]
fn what_is_the_hosts_passes_untouched() {
    let (mut lab, _) = uplink_lab(&[service("s", VIP, &[DB.place])]);
    for (name, frame) in not_ours() {
        let verdict = lab.arrive_frame(&frame);
        assert_eq!(
            verdict,
            Verdict::Pass(frame.clone(), 0),
            "{name}: {frame:02x?}"
        );
        // On its way out as well.
        let context = Context {
            ifindex: lab.uplink(),
            ..Context::default()
        };
        let verdict = lab.run("to_netdev", context, &frame).unwrap();
        assert_eq!(
            verdict,
            Verdict::Pass(frame.clone(), 0),
            "{name}: {frame:02x?}"
        );
    }
    assert_eq!(lab.flows().unwrap(), [], "nothing is remembered of them");
}

#[test]
fn pods_of_this_node_and_of_the_overlay_do_not_arrive_at_an_uplink() {
    let spoofed = dropped(DropReason::Spoofed);
    for f in families() {
        let (mut vxlan, _) = uplink_lab(&[]);
        let (mut native, _) = native_lab(&[]);
        for payload in payloads() {
            for source in [DB.place, WEB.place, NODE] {
                let packet = f.packet(source, WEB, payload.clone());
                assert_eq!(vxlan.arrive(&packet), spoofed, "{source:?}");
                assert_eq!(native.arrive(&packet), spoofed, "{source:?}");
            }
            // An address of this node's pods that nobody has.
            let nobody = weft_tests::packet::scene::pod_place(1, 200);
            let packet = f.packet(nobody, WEB, payload.clone());
            assert_eq!(vxlan.arrive(&packet), spoofed);
            let packet = f.packet(REMOTE, WEB, payload.clone());
            assert_eq!(vxlan.arrive(&packet), spoofed, "the overlay leads there");
            delivered(&mut native, &WEB, &packet);
        }
        // A flow that is known does not help.
        let sent = f.from(&WEB, DB, Payload::udp(40000, 53));
        assert!(vxlan.send(&WEB, &sent).redirected());
        let reply = f.packet(DB, WEB, Payload::udp(53, 40000));
        assert_eq!(vxlan.arrive(&reply), spoofed);
        let sent = f.from(&WEB, REMOTE, Payload::udp(40000, 53));
        assert!(vxlan.send(&WEB, &sent).redirected());
        let reply = f.packet(REMOTE, WEB, Payload::udp(53, 40000));
        assert_eq!(vxlan.arrive(&reply), spoofed);
    }
}

#[test]
fn pods_that_are_not_there_get_nothing_from_outside() {
    for f in families() {
        let (mut lab, _) = native_lab(&[]);
        let nobody = weft_tests::packet::scene::pod_place(1, 200);
        for payload in payloads() {
            let packet = f.packet(OUTSIDE, nobody, payload);
            let verdict = lab.arrive(&packet);
            assert!(!verdict.redirected(), "{verdict:?}");
        }
    }
}

#[test]
fn no_pod_address_leaves_that_nobody_can_answer() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for payload in payloads() {
            let leak = f.packet(WEB, OUTSIDE, payload.clone());
            assert_eq!(lab.leave(0, &leak), dropped(DropReason::NotMasqueraded));
            // Ours, and the mark does not leave the node.
            assert_eq!(
                lab.leave(MARK_FORWARDED, &leak),
                Verdict::Pass(leak.to_bytes(), 0)
            );
            // Other marks are the operator's, and mean nothing.
            for mark in [1, MARK_RESUMED] {
                assert_eq!(lab.leave(mark, &leak), dropped(DropReason::NotMasqueraded));
            }
            // The node itself, and what it forwards for others.
            for source in [NODE, ELSEWHERE] {
                let own = f.packet(source, OUTSIDE, payload.clone());
                assert_eq!(lab.leave(0, &own), Verdict::Pass(own.to_bytes(), 0));
                assert_eq!(lab.leave(7, &own), Verdict::Pass(own.to_bytes(), 7));
            }
        }
        // Where pods keep their addresses they may leave, also by the host stack.
        let (mut native, _) = native_lab(&[]);
        for to in [REMOTE, OTHER_NODE] {
            let packet = f.packet(WEB, to, Payload::udp(1, 2));
            assert_eq!(
                native.leave(0, &packet),
                Verdict::Pass(packet.to_bytes(), 0)
            );
        }
        let mut cluster = cluster(&[]);
        let networks = OUTSIDE_NETWORKS.map(|network| network.parse().unwrap());
        cluster.state.settings.non_masquerade = networks.to_vec();
        let (mut lab, _) = lab_with(&Setup::uplink(), cluster);
        let packet = f.packet(WEB, OUTSIDE, Payload::udp(1, 2));
        assert_eq!(lab.leave(0, &packet), Verdict::Pass(packet.to_bytes(), 0));
    }
}

#[test]
fn what_belongs_to_a_link_stays_there() {
    let (mut lab, _) = uplink_lab(&[]);
    let link_local = dropped(DropReason::LinkLocal);
    let own = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let gateway = Ipv6Addr::from(weft_abi::GATEWAY_V6);
    for packet in [
        frames::neighbour_solicitation(WEB.mac, own, gateway),
        frames::neighbour_solicitation(WEB.mac, WEB.place.v6, gateway),
        frames::neighbour_solicitation(WEB.mac, WEB.place.v6, DB.place.v6),
        frames::neighbour_solicitation(WEB.mac, Ipv6Addr::UNSPECIFIED, WEB.place.v6),
        frames::neighbour_advertisement(WEB.mac, DB.place.v6, all),
        frames::neighbour_advertisement(WEB.mac, WEB.place.v6, gateway),
        frames::router_solicitation(WEB.mac, own),
        frames::router_advertisement(WEB.mac, own),
        frames::redirect(WEB.mac, own, gateway, OUTSIDE.v6),
        frames::listener_report(WEB.mac, own, all),
        Packet::new(WEB.place.v6, all, Payload::udp(1, 2)).sent_by(WEB.mac),
    ] {
        assert_eq!(lab.send(&WEB, &packet), link_local, "{packet:?}");
    }
    for (source, to) in [
        (WEB.place.v4, [255, 255, 255, 255]),
        (Ipv4Addr::UNSPECIFIED, [255, 255, 255, 255]),
        (WEB.place.v4, [224, 0, 0, 1]),
        (WEB.place.v4, [224, 0, 0, 251]),
        (WEB.place.v4, [239, 255, 255, 250]),
        (WEB.place.v4, [127, 0, 0, 1]),
        (WEB.place.v4, [0, 0, 0, 0]),
    ] {
        let packet = Packet::new(source, Ipv4Addr::from(to), Payload::udp(1, 2)).sent_by(WEB.mac);
        assert_eq!(lab.send(&WEB, &packet), link_local, "{packet:?}");
    }
    assert_eq!(lab.flows().unwrap(), []);
    // Sent to a pod it may be forwarded: with a hop fewer it says nothing (RFC 4861, section 7.1).
    for packet in [
        frames::neighbour_advertisement(WEB.mac, WEB.place.v6, DB.place.v6),
        frames::redirect(WEB.mac, WEB.place.v6, DB.place.v6, OUTSIDE.v6),
    ] {
        match lab.send(&WEB, &packet) {
            Verdict::Drop(_) => {}
            verdict => assert!(verdict.packet().ttl < 255, "{verdict:?}"),
        }
    }
}

#[test]
fn only_nodes_speak_at_the_overlays_port() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        for to in [NODE, OTHER_NODE] {
            let packet = f.from(&WEB, to, Payload::udp(40000, OVERLAY_PORT));
            assert_eq!(lab.send(&WEB, &packet), dropped(DropReason::OverlayPort));
            // Nor in pieces.
            let long = Payload::udp_with(40000, OVERLAY_PORT, vec![1; 2_000]);
            let first = f.from(&WEB, to, long).split(1_000, 5).swap_remove(0);
            assert_eq!(lab.send(&WEB, &first), dropped(DropReason::OverlayPort));
            // The same port of TCP is nobody's.
            let packet = f.from(&WEB, to, Payload::tcp(40000, OVERLAY_PORT, SYN));
            assert!(!matches!(lab.send(&WEB, &packet), Verdict::Drop(_)));
        }
        let packet = f.from(&WEB, DB, Payload::udp(40000, OVERLAY_PORT));
        assert!(lab.send(&WEB, &packet).redirected());
    }
}

#[test]
fn a_masqueraded_packet_goes_its_whole_way() {
    let mut cluster = cluster(&[]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for payload in payloads() {
            let sent = f.from(&WEB, OUTSIDE, payload);
            wire.send(&WEB, &sent).unwrap();
            let left = wire.outside().unwrap();
            assert_eq!(
                (left.source_mac, left.destination_mac),
                (UPLINK_MAC, ROUTER_MAC)
            );
            assert_eq!((left.source, left.destination), (NODE.at(f), OUTSIDE.at(f)));
            assert_eq!(left.ttl, 63, "decremented once");
            assert!(in_range(&left.payload));
            wire.arrive(&answer(&left)).unwrap();
            let came = wire.at_pod(&WEB).unwrap();
            assert_eq!((came.source, came.destination), (OUTSIDE.at(f), WEB.at(f)));
            assert_eq!(came.payload, sent.payload.answer());
            assert_eq!((came.destination_mac, came.ttl), (WEB.mac, 63));
        }
    }
}

#[test]
fn the_host_answers_for_itself() {
    let mut cluster = cluster(&[]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        // From outside, and from a pod.
        let ping = f.packet(OUTSIDE, NODE, Payload::echo(true, 7));
        wire.arrive(&ping).unwrap();
        let left = wire.outside().unwrap();
        assert_eq!((left.source, left.destination), (NODE.at(f), OUTSIDE.at(f)));
        assert_eq!(left.payload, Payload::echo(false, 7));
        wire.send(&WEB, &f.from(&WEB, NODE, Payload::echo(true, 8)))
            .unwrap();
        let came = wire.at_pod(&WEB).unwrap();
        assert_eq!(
            (came.source, came.payload),
            (NODE.at(f), Payload::echo(false, 8))
        );
    }
}

#[test]
fn the_overlay_has_one_number() {
    let mut cluster = cluster(&[]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for (vni, reason) in [
            (2, Some(DropReason::UnknownTunnel)),
            (0, Some(DropReason::UnknownTunnel)),
            (1, None),
        ] {
            let packet = Overlay {
                source: OTHER_NODE.v4.into(),
                destination: NODE.v4.into(),
                vni,
                inner: f.packet(REMOTE, WEB, Payload::udp(40000, 53)),
            };
            match reason {
                Some(reason) => wire
                    .drops(reason, |wire| wire.arrive_by_overlay(&packet))
                    .unwrap(),
                None => {
                    wire.arrive_by_overlay(&packet).unwrap();
                    assert_eq!(wire.at_pod(&WEB).unwrap().payload, Payload::udp(40000, 53));
                }
            }
        }
    }
}

#[test]
fn a_pod_does_not_reach_what_another_pod_masquerades() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[]);
        let left = masqueraded(
            &mut lab,
            &WEB,
            &f.from(&WEB, OUTSIDE, Payload::udp(40000, 53)),
        );
        // DB2 answers in the name of the outside, at the node's address and at the pod's.
        let (source, port) = left.payload.answer().ports();
        for to in [NODE, WEB.place] {
            let forged = f
                .packet(OUTSIDE, to, Payload::udp(source, port))
                .sent_by(DB2.mac);
            assert_eq!(lab.send(&DB2, &forged), dropped(DropReason::Spoofed));
        }
        // And with its own address it reaches the host.
        let own = f.from(&DB2, NODE, Payload::udp(source, port));
        assert!(lab.send(&DB2, &own).passed());
        let outsider = f.packet(outside(99), NODE, Payload::udp(source, port));
        assert!(lab.arrive(&outsider).passed());
    }
}
