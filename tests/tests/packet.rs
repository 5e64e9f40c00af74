//! The shipped ELF on single packets: what each program does with them, and what it remembers.
//!
//! Maps are filled by the real compiler from the manifests below. Every packet that goes on has its
//! checksums proven by `Verdict::packet`.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::net::Ipv4Addr;

use weft_abi::{
    GATEWAY_MAC, MARK_ENCAPSULATED, OVERLAY_MAC, OVERLAY_PEER_MAC,
    drop::DropReason,
    flow::{FLOW_BACK, FLOW_FRONT},
};
use weft_tests::packet::{
    Context, Lab, Verdict,
    bytes::{ACK, FIN, Packet, Payload, RST, SYN},
    scene::{
        DB, NODE, OTHER_NODE, OTHER_VIP, OUTSIDE, REMOTE, VIP, WEB, cluster, dropped, from, lab,
        policy, service,
    },
};

#[test]
fn a_pod_reaches_a_pod_of_its_node_and_gets_its_reply() {
    let (mut lab, _) = lab(&[]);
    for (there, back) in [
        (
            Payload::tcp(40000, 80, SYN),
            Payload::tcp(80, 40000, SYN | ACK),
        ),
        (Payload::udp(40000, 53), Payload::udp(53, 40000)),
        (Payload::echo(true, 7), Payload::echo(false, 7)),
    ] {
        let verdict = lab.send(&WEB, &from(&WEB, DB.address, there.clone()));
        assert!(verdict.redirected(), "{verdict:?}");
        let packet = verdict.packet();
        assert_eq!(
            (packet.destination_mac, packet.source_mac),
            (DB.mac, GATEWAY_MAC)
        );
        assert_eq!(packet.ttl, 63);
        assert_eq!(
            (packet.source, packet.destination),
            (WEB.address, DB.address)
        );
        assert_eq!(packet.payload, there);

        let verdict = lab.send(&DB, &from(&DB, WEB.address, back.clone()));
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

#[test]
fn a_pod_cannot_claim_what_is_not_its_own() {
    let (mut lab, _) = lab(&[]);
    let syn = || Payload::tcp(40000, 80, SYN);
    let spoofed = dropped(DropReason::Spoofed);
    // Another pod's address, an address of nobody, the wrong MAC address.
    let packet = Packet::new(DB.address, REMOTE, syn()).sent_by(WEB.mac);
    assert_eq!(lab.send(&WEB, &packet), spoofed);
    let packet = Packet::new(OUTSIDE, DB.address, syn()).sent_by(WEB.mac);
    assert_eq!(lab.send(&WEB, &packet), spoofed);
    let packet = from(&WEB, DB.address, syn()).sent_by(DB.mac);
    assert_eq!(lab.send(&WEB, &packet), spoofed);
    // Nor join a flow of another pod, once that is known.
    assert!(lab.send(&WEB, &from(&WEB, REMOTE, syn())).redirected());
    let packet = Packet::new(WEB.address, REMOTE, syn()).sent_by(WEB.mac);
    assert_eq!(lab.send(&DB, &packet), spoofed);
    let packet = from(&WEB, REMOTE, syn()).sent_by(DB.mac);
    assert_eq!(lab.send(&WEB, &packet), spoofed);
}

#[test]
fn a_pod_of_another_node_is_reached_through_the_overlay() {
    let (mut lab, _) = lab(&[]);
    let verdict = lab.send(&WEB, &from(&WEB, REMOTE, Payload::tcp(40000, 80, SYN)));
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
        (WEB.address, REMOTE, 63)
    );
    // So is the node itself.
    let verdict = lab.send(&WEB, &from(&WEB, OTHER_NODE, Payload::tcp(40000, 22, SYN)));
    assert!(verdict.redirected(), "{verdict:?}");
}

#[test]
fn the_host_and_the_outside_are_the_stacks() {
    let (mut lab, _) = lab(&[]);
    for destination in [NODE, OUTSIDE] {
        let sent = from(&WEB, destination, Payload::tcp(40000, 80, SYN));
        let verdict = lab.send(&WEB, &sent);
        assert_eq!(verdict, Verdict::Pass(sent.to_bytes(), 0), "untouched");
    }
}

#[test]
fn an_address_of_the_nodes_own_pods_without_a_pod_is_dropped() {
    let (mut lab, _) = lab(&[]);
    let nobody = Ipv4Addr::new(10, 244, 1, 200);
    let verdict = lab.send(&WEB, &from(&WEB, nobody, Payload::tcp(40000, 80, SYN)));
    assert_eq!(verdict, dropped(DropReason::NoEndpoint));
}

#[test]
fn a_service_is_translated_there_and_back() {
    for (backend, remote) in [(DB.address, false), (REMOTE, true)] {
        let (mut lab, _) = lab(&[service("s", VIP, &[backend])]);
        for (there, seen) in [
            (Payload::tcp(40000, 80, SYN), Payload::tcp(40000, 8080, SYN)),
            (Payload::tcp(40000, 80, ACK), Payload::tcp(40000, 8080, ACK)),
            (Payload::udp(40001, 53), Payload::udp(40001, 5353)),
        ] {
            let verdict = lab.send(&WEB, &from(&WEB, VIP, there));
            assert!(verdict.redirected(), "{verdict:?}");
            let packet = verdict.packet();
            assert_eq!((packet.source, packet.destination), (WEB.address, backend));
            assert_eq!(packet.payload, seen);
        }
        if !remote {
            for (back, seen) in [
                (
                    Payload::tcp(8080, 40000, SYN | ACK),
                    Payload::tcp(80, 40000, SYN | ACK),
                ),
                (Payload::udp(5353, 40001), Payload::udp(53, 40001)),
            ] {
                let verdict = lab.send(&DB, &from(&DB, WEB.address, back));
                assert!(verdict.redirected(), "{verdict:?}");
                let packet = verdict.packet();
                assert_eq!((packet.source, packet.destination), (VIP, WEB.address));
                assert_eq!(packet.destination_mac, WEB.mac);
                assert_eq!(packet.payload, seen);
            }
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address])]);
    let payload = Payload::Udp {
        source: 40000,
        destination: 53,
        checksum: false,
        data: vec![7; 9],
    };
    let verdict = lab.send(&WEB, &from(&WEB, VIP, payload));
    let Payload::Udp {
        destination: 5353,
        checksum: false,
        data,
        ..
    } = verdict.packet().payload
    else {
        panic!("{verdict:?}")
    };
    assert_eq!(data, vec![7; 9]);
}

#[test]
fn every_backend_is_chosen_and_a_connection_keeps_its_own() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address, REMOTE])]);
    let mut counts = [0; 2];
    for port in 40000..40200 {
        let first = lab
            .send(&WEB, &from(&WEB, VIP, Payload::tcp(port, 80, SYN)))
            .packet();
        let then = lab
            .send(&WEB, &from(&WEB, VIP, Payload::tcp(port, 80, ACK)))
            .packet();
        assert_eq!(first.destination, then.destination);
        counts[usize::from(first.destination == REMOTE)] += 1;
    }
    // 200 fair coins: fewer than 50 of one kind has a chance below one in 10^12.
    assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
}

#[test]
fn a_port_or_protocol_that_a_service_does_not_list_is_not_translated() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address])]);
    for payload in [
        Payload::tcp(40000, 81, SYN),
        Payload::tcp(40000, 53, SYN),
        Payload::udp(40000, 80),
        Payload::echo(true, 1),
    ] {
        let sent = from(&WEB, VIP, payload);
        assert_eq!(lab.send(&WEB, &sent), Verdict::Pass(sent.to_bytes(), 0));
    }
}

#[test]
fn a_service_without_backends_drops() {
    let (mut lab, mut cluster) = lab(&[service("s", VIP, &[])]);
    let syn = from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
    assert_eq!(lab.send(&WEB, &syn), dropped(DropReason::NoBackend));
    assert!(
        lab.flows().unwrap().is_empty(),
        "nothing is left to blackhole what comes"
    );
    cluster.apply(&service("s", VIP, &[DB.address])).unwrap();
    lab.update(&cluster).unwrap();
    assert!(lab.send(&WEB, &syn).redirected());
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    let deny = policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    for manifests in [vec![], vec![deny]] {
        let manifests = [vec![service("s", VIP, &[WEB.address])], manifests].concat();
        let (mut lab, _) = lab(&manifests);
        let packet = lab
            .send(&WEB, &from(&WEB, VIP, Payload::tcp(40000, 80, SYN)))
            .packet();
        assert_eq!(
            (packet.destination, packet.destination_mac),
            (WEB.address, WEB.mac)
        );
        assert_ne!(
            packet.source, WEB.address,
            "or the pod would answer itself, untranslated"
        );
        assert_eq!(packet.payload, Payload::tcp(40000, 8080, SYN));
        let reply = from(&WEB, packet.source, Payload::tcp(8080, 40000, SYN | ACK));
        let verdict = lab.send(&WEB, &reply);
        assert!(verdict.redirected(), "{verdict:?}");
        let packet = verdict.packet();
        assert_eq!((packet.source, packet.destination), (VIP, WEB.address));
        assert_eq!(packet.destination_mac, WEB.mac);
        assert_eq!(packet.payload, Payload::tcp(80, 40000, SYN | ACK));
    }
}

#[test]
fn two_services_with_one_backend_do_not_cross() {
    let (mut lab, _) = lab(&[
        service("s", VIP, &[DB.address]),
        service("t", OTHER_VIP, &[DB.address]),
    ]);
    let mut ports = Vec::new();
    for vip in [VIP, OTHER_VIP] {
        let packet = lab
            .send(&WEB, &from(&WEB, vip, Payload::tcp(40000, 80, SYN)))
            .packet();
        let Payload::Tcp {
            source,
            destination: 8080,
            ..
        } = packet.payload
        else {
            panic!("{packet:?}")
        };
        ports.push(source);
    }
    assert_ne!(
        ports[0], ports[1],
        "the second connection gets a port of its own"
    );
    for (vip, port) in [VIP, OTHER_VIP].into_iter().zip(ports) {
        let reply = from(&DB, WEB.address, Payload::tcp(8080, port, SYN | ACK));
        let packet = lab.send(&DB, &reply).packet();
        assert_eq!(
            (packet.source, packet.payload),
            (vip, Payload::tcp(80, 40000, SYN | ACK))
        );
    }
}

#[test]
fn a_udp_flow_leaves_a_dead_backend_and_a_tcp_connection_stays() {
    let (mut lab, mut cluster) = lab(&[service("s", VIP, &[DB.address])]);
    let udp = from(&WEB, VIP, Payload::udp(40000, 53));
    let tcp = from(&WEB, VIP, Payload::tcp(40000, 80, ACK));
    assert_eq!(lab.send(&WEB, &udp).packet().destination, DB.address);
    assert_eq!(lab.send(&WEB, &tcp).packet().destination, DB.address);
    cluster.apply(&service("s", VIP, &[REMOTE])).unwrap();
    lab.update(&cluster).unwrap();
    assert_eq!(lab.send(&WEB, &udp).packet().destination, REMOTE);
    assert_eq!(lab.send(&WEB, &tcp).packet().destination, DB.address);
    // A new connection from the same port is a new choice.
    let syn = from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
    assert_eq!(lab.send(&WEB, &syn).packet().destination, REMOTE);
}

#[test]
fn ingress_policy_lets_in_what_it_lists() {
    let spec = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
        ingress: [{from: [{podSelector: {matchLabels: {app: web}}}],
                   ports: [{port: sql}, {port: 6000, endPort: 6100}]}]}";
    let (mut lab, mut cluster) = lab(&[policy("db", spec)]);
    let denied = dropped(DropReason::PolicyIngress);
    for (port, allowed) in [
        (5432, true),
        (5433, false),
        (5999, false),
        (6000, true),
        (6100, true),
        (6101, false),
    ] {
        let verdict = lab.send(
            &WEB,
            &from(&WEB, DB.address, Payload::tcp(40000, port, SYN)),
        );
        assert_eq!(verdict.redirected(), allowed, "TCP {port}: {verdict:?}");
    }
    let verdict = lab.send(&WEB, &from(&WEB, DB.address, Payload::udp(40000, 5432)));
    assert_eq!(verdict, denied, "a port means TCP");
    let verdict = lab.send(&WEB, &from(&WEB, DB.address, Payload::echo(true, 1)));
    assert_eq!(verdict, denied, "ports list no ICMP");
    // Replies belong to their flow; the isolated pod may still open flows of its own.
    let reply = Payload::tcp(5432, 40000, SYN | ACK);
    assert!(lab.send(&DB, &from(&DB, WEB.address, reply)).redirected());
    let own = Payload::tcp(41000, 9999, SYN);
    assert!(lab.send(&DB, &from(&DB, WEB.address, own)).redirected());
    // Traffic of the pod's own node is always let in, whatever the policy.
    let probe = Packet::new(NODE, DB.address, Payload::tcp(50000, 1, SYN));
    assert!(lab.receive(&DB, 0, &probe).passed());
    let answer = from(&DB, NODE, Payload::tcp(1, 50000, SYN | ACK));
    assert!(lab.send(&DB, &answer).passed());
    // Without the label it is over.
    cluster
        .state
        .pods
        .values_mut()
        .find(|pod| pod.key.name == "web")
        .unwrap()
        .labels
        .clear();
    lab.update(&cluster).unwrap();
    let verdict = lab.send(
        &WEB,
        &from(&WEB, DB.address, Payload::tcp(42000, 5432, SYN)),
    );
    assert_eq!(verdict, denied);
}

#[test]
fn egress_policy_sees_the_backend_of_a_service() {
    let spec = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress],
        egress: [{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 8080}]}]}";
    let manifests = [
        service("s", VIP, &[DB.address]),
        service("t", OTHER_VIP, &[REMOTE]),
        policy("web", spec),
    ];
    let (mut lab, _) = lab(&manifests);
    let denied = dropped(DropReason::PolicyEgress);
    let syn = |vip| from(&WEB, vip, Payload::tcp(40000, 80, SYN));
    assert!(lab.send(&WEB, &syn(VIP)).redirected());
    assert_eq!(lab.send(&WEB, &syn(OTHER_VIP)), denied);
    assert_eq!(
        lab.send(&WEB, &syn(DB.address)),
        denied,
        "port 80 is the service's"
    );
    assert_eq!(lab.send(&WEB, &syn(OUTSIDE)), denied);
    assert_eq!(
        lab.send(&WEB, &syn(NODE)),
        denied,
        "egress to the own node is judged"
    );
    assert!(
        lab.send(&DB, &from(&DB, REMOTE, Payload::tcp(1, 2, SYN)))
            .redirected()
    );
}

#[test]
fn a_policy_change_reaches_a_live_connection() {
    let (mut lab, mut cluster) = lab(&[service("s", VIP, &[DB.address])]);
    let there = from(&WEB, VIP, Payload::tcp(40000, 80, ACK));
    let back = from(&DB, WEB.address, Payload::tcp(8080, 40000, ACK));
    assert!(lab.send(&WEB, &there).redirected());
    assert!(lab.send(&DB, &back).redirected());

    cluster
        .apply(&policy("deny", "{podSelector: {}, policyTypes: [Ingress]}"))
        .unwrap();
    lab.update(&cluster).unwrap();
    assert_eq!(lab.send(&WEB, &there), dropped(DropReason::PolicyIngress));
    assert_eq!(
        lab.send(&DB, &back),
        dropped(DropReason::PolicyIngress),
        "replies as well"
    );

    cluster.state.policies.clear();
    lab.update(&cluster).unwrap();
    assert!(lab.send(&WEB, &there).redirected());
    let packet = lab.send(&DB, &back).packet();
    assert_eq!(packet.source, VIP, "the translation outlived it");
}

#[test]
fn a_pod_that_is_not_programmed_passes_nothing_but_its_nodes_traffic() {
    let mut cluster = cluster(&[]);
    cluster.state.pods.retain(|key, _| key.name != "web");
    let mut lab = Lab::new(&mut cluster, &[WEB, DB]).unwrap();
    let not_ready = dropped(DropReason::EndpointNotReady);
    for destination in [DB.address, REMOTE, OUTSIDE] {
        let verdict = lab.send(&WEB, &from(&WEB, destination, Payload::tcp(1, 2, SYN)));
        assert_eq!(verdict, not_ready, "{destination}");
    }
    let verdict = lab.send(&DB, &from(&DB, WEB.address, Payload::tcp(3, 4, SYN)));
    assert_eq!(verdict, not_ready);
    let probe = Packet::new(NODE, WEB.address, Payload::tcp(5, 6, SYN));
    assert!(lab.receive(&WEB, 0, &probe).passed());
    let reply = from(&WEB, NODE, Payload::tcp(6, 5, SYN | ACK));
    assert!(lab.send(&WEB, &reply).passed());
}

#[test]
fn what_the_stack_forwards_to_a_pod_is_judged() {
    let block = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
        ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/32]}}]}]}";
    let (mut lab, _) = lab(&[policy("db", block)]);
    let uplink = 77;
    let probe = Context {
        ingress_ifindex: uplink,
        ..Context::default()
    };
    let syn = |source| Packet::new(source, DB.address, Payload::tcp(40000, 80, SYN));
    if lab
        .run("to_container", probe, &syn(OUTSIDE).to_bytes())
        .is_err()
    {
        // ingress_ifindex as an input of test runs came with Linux 5.19 (commit 9b2b09717e18).
        println!("skipped: this kernel's BPF_PROG_TEST_RUN takes no ingress_ifindex");
        return;
    }
    assert!(lab.receive(&DB, uplink, &syn(OUTSIDE)).passed());
    let excepted = Ipv4Addr::new(192, 0, 2, 8);
    assert_eq!(
        lab.receive(&DB, uplink, &syn(excepted)),
        dropped(DropReason::PolicyIngress)
    );
    // Addresses that cannot be out there.
    for source in [WEB.address, REMOTE, NODE] {
        let verdict = lab.receive(&DB, uplink, &syn(source));
        assert_eq!(verdict, dropped(DropReason::Spoofed), "{source}");
    }
}

#[test]
fn icmp_errors_belong_to_the_flow_they_quote() {
    let deny = policy(
        "deny",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
    );
    let (mut lab, _) = lab(&[deny]);
    let sent = from(&WEB, DB.address, Payload::udp(40000, 9));
    assert!(lab.send(&WEB, &sent).redirected());
    let quoted = sent.to_bytes()[14..].to_vec();
    let error = |data| Payload::Icmp {
        kind: 3,
        code: 3,
        rest: [0; 4],
        data,
    };
    let verdict = lab.send(&DB, &from(&DB, WEB.address, error(quoted.clone())));
    assert!(verdict.redirected(), "about a known flow: {verdict:?}");
    let mut other = quoted;
    other[20] ^= 1;
    let verdict = lab.send(&DB, &from(&DB, WEB.address, error(other)));
    assert_eq!(verdict, dropped(DropReason::PolicyIngress), "about no flow");
}

#[test]
fn a_reply_is_no_opening() {
    let deny = policy(
        "deny",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
    );
    let (mut lab, _) = lab(&[deny]);
    let there = from(&WEB, DB.address, Payload::tcp(40000, 80, SYN));
    assert!(lab.send(&WEB, &there).redirected());
    // The same tuple, opened from the other end: a new flow, and denied.
    let syn = from(&DB, WEB.address, Payload::tcp(80, 40000, SYN));
    assert_eq!(lab.send(&DB, &syn), dropped(DropReason::PolicyIngress));
    let reply = from(&DB, WEB.address, Payload::tcp(80, 40000, SYN | ACK));
    assert!(lab.send(&DB, &reply).redirected());
    // Crossing pings with one identifier stay apart.
    assert!(
        lab.send(&WEB, &from(&WEB, DB.address, Payload::echo(true, 5)))
            .redirected()
    );
    let ping = from(&DB, WEB.address, Payload::echo(true, 5));
    assert_eq!(lab.send(&DB, &ping), dropped(DropReason::PolicyIngress));
    assert!(
        lab.send(&DB, &from(&DB, WEB.address, Payload::echo(false, 5)))
            .redirected()
    );
}

#[test]
fn an_unknown_reply_is_judged_as_new() {
    let deny = policy(
        "deny",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
    );
    let (mut lab, _) = lab(&[deny]);
    for payload in [
        Payload::tcp(80, 40000, SYN | ACK),
        Payload::tcp(80, 40000, ACK),
        Payload::tcp(80, 40000, RST),
        Payload::tcp(80, 40000, FIN | ACK),
        Payload::udp(53, 40000),
        Payload::echo(false, 5),
    ] {
        let verdict = lab.send(&DB, &from(&DB, WEB.address, payload.clone()));
        assert_eq!(verdict, dropped(DropReason::PolicyIngress), "{payload:?}");
    }
}

#[test]
fn a_lost_flow_opens_nothing() {
    let spec = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}";
    let (mut lab, _) = lab(&[policy("db", spec)]);
    assert!(
        lab.send(&WEB, &from(&WEB, DB.address, Payload::tcp(40000, 80, SYN)))
            .redirected()
    );
    let reply = from(&DB, WEB.address, Payload::tcp(80, 40000, ACK));
    assert!(lab.send(&DB, &reply).redirected());
    lab.forget_flows().unwrap();
    assert_eq!(lab.send(&DB, &reply), dropped(DropReason::PolicyEgress));
}

#[test]
fn time_to_live_that_ends_here_goes_to_the_stack_untranslated() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address])]);
    for destination in [DB.address, REMOTE, VIP] {
        let mut sent = from(&WEB, destination, Payload::tcp(40000, 80, SYN));
        sent.ttl = 1;
        assert_eq!(
            lab.send(&WEB, &sent),
            Verdict::Pass(sent.to_bytes(), 0),
            "{destination}"
        );
    }
}

#[test]
fn ip_options_are_walked() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address])]);
    let mut sent = from(&WEB, VIP, Payload::tcp(40000, 80, SYN));
    sent.options = vec![1; 8];
    let packet = lab.send(&WEB, &sent).packet();
    assert_eq!((packet.destination, packet.options.len()), (DB.address, 8));
    assert_eq!(packet.payload, Payload::tcp(40000, 8080, SYN));
}

#[test]
fn what_weft_does_not_forward_is_dropped_and_named() {
    let (mut lab, _) = lab(&[]);
    let mut fragment = from(&WEB, DB.address, Payload::udp(1, 2));
    fragment.fragment = 185;
    assert_eq!(lab.send(&WEB, &fragment), dropped(DropReason::Fragment));
    let other = from(
        &WEB,
        DB.address,
        Payload::Other {
            protocol: 47,
            data: vec![0; 40],
        },
    );
    assert_eq!(
        lab.send(&WEB, &other),
        dropped(DropReason::UnsupportedProtocol)
    );
    let context = Context {
        ifindex: lab.interface(&WEB),
        ..Context::default()
    };
    let mut arp = from(&WEB, DB.address, Payload::udp(1, 2)).to_bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let verdict = lab.run("from_container", context, &arp).unwrap();
    assert_eq!(verdict, dropped(DropReason::UnsupportedEtherType));
}

#[test]
fn a_packet_cut_anywhere_is_dropped_or_whole() {
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address])]);
    let context = Context {
        ifindex: lab.interface(&WEB),
        ..Context::default()
    };
    for payload in [
        Payload::tcp(1, 80, SYN),
        Payload::udp(1, 53),
        Payload::echo(true, 1),
    ] {
        let whole = from(&WEB, VIP, payload.clone()).to_bytes();
        // Test runs refuse what is shorter than an IP header.
        for length in 34..whole.len() {
            let verdict = lab
                .run("from_container", context, &whole[..length])
                .unwrap();
            let header = if matches!(payload, Payload::Tcp { .. }) {
                20
            } else {
                8
            };
            if length < 34 + header {
                assert_eq!(
                    verdict,
                    dropped(DropReason::Malformed),
                    "{payload:?} cut to {length}"
                );
            }
        }
    }
    let mut lies = from(&WEB, DB.address, Payload::udp(1, 2)).to_bytes();
    for version_and_length in [0x44, 0x00, 0x65, 0x4f] {
        lies[14] = version_and_length;
        let verdict = lab.run("from_container", context, &lies).unwrap();
        assert_eq!(
            verdict,
            dropped(DropReason::Malformed),
            "{version_and_length:#x}"
        );
    }
}

#[test]
fn the_overlay_takes_only_what_a_node_sent() {
    let (mut lab, _) = lab(&[]);
    // Test runs have no tunnel metadata: to the datapath, nobody known sent this.
    let packet = Packet::new(REMOTE, WEB.address, Payload::tcp(40000, 80, SYN));
    let verdict = lab
        .run("from_overlay", Context::default(), &packet.to_bytes())
        .unwrap();
    assert_eq!(verdict, dropped(DropReason::UnknownTunnel));
    let packet = Packet::new(DB.address, WEB.address, Payload::tcp(40000, 80, SYN));
    let verdict = lab
        .run("from_overlay", Context::default(), &packet.to_bytes())
        .unwrap();
    assert_eq!(verdict, dropped(DropReason::UnknownTunnel));
}

#[test]
fn the_host_stacks_way_into_the_overlay() {
    let (mut lab, _) = lab(&[]);
    let packet = Packet::new(NODE, REMOTE, Payload::udp(1, 2));
    let verdict = lab
        .run("to_overlay", Context::default(), &packet.to_bytes())
        .unwrap();
    assert!(verdict.passed(), "{verdict:?}");
    assert_eq!(verdict.packet().destination_mac, OVERLAY_MAC);
    let mut fragment = packet.clone();
    fragment.fragment = 185;
    let verdict = lab
        .run("to_overlay", Context::default(), &fragment.to_bytes())
        .unwrap();
    assert!(
        verdict.passed(),
        "fragments need no ports here: {verdict:?}"
    );
    let nowhere = Packet::new(NODE, OUTSIDE, Payload::udp(1, 2));
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

#[test]
fn an_established_flow_costs_one_lookup() {
    let deny = "{podSelector: {}, policyTypes: [Ingress, Egress],
        ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}";
    let (mut lab, _) = lab(&[service("s", VIP, &[DB.address]), policy("p", deny)]);
    for (destination, port) in [(DB.address, 80), (REMOTE, 80), (VIP, 80)] {
        let packet = from(&WEB, destination, Payload::tcp(40000, port, ACK));
        assert!(lab.send(&WEB, &packet).redirected());
        // Every few seconds a packet of a service flow also refreshes the flow's other entry; two
        // packets on either side of such a beat are one lookup more, so the least of some counts.
        let cost = (0..4).map(|_| {
            let before = lab.lookups().unwrap();
            assert!(lab.send(&WEB, &packet).redirected());
            let after = lab.lookups().unwrap();
            std::array::from_fn::<u64, 5, _>(|index| after[index] - before[index])
        });
        assert_eq!(cost.min().unwrap(), [1, 0, 0, 0, 0], "to {destination}");
    }
    let flows = lab.flows().unwrap();
    let with = |flag| {
        flows
            .iter()
            .filter(|(_, flow)| flow.flags & flag != 0)
            .count()
    };
    assert_eq!((flows.len(), with(FLOW_FRONT), with(FLOW_BACK)), (4, 1, 1));
}
