//! Packets that do not fit, or have come to the end of their time: the host stack answers those.

use weft_abi::{MARK_ENCAPSULATED, MARK_FORWARDED, drop::DropReason};
use weft_tests::packet::{
    Context, Family, Lab, OVERLAY_MTU, Place, Somewhere as _, UPLINK_MTU, Verdict,
    bytes::{ACK, Packet, Payload, SYN},
    scene::{
        DB, OTHER_VIP, OUTSIDE, REMOTE, VIP, WEB, dropped, families, native_lab, service,
        uplink_lab,
    },
};

/// A packet of that length, IP header included.
fn of_length(f: Family, to: Place, port: u16, length: u32) -> Packet {
    let data = usize::try_from(length).unwrap() - f.header() - 8;
    f.from(&WEB, to, Payload::udp_with(40000, port, vec![7; data]))
}

/// A packet that stands for several, each with that many bytes of TCP data.
fn large(f: Family, to: Place) -> Packet {
    let mut payload = Payload::tcp(41000, 80, ACK);
    if let Payload::Tcp { data, .. } = &mut payload {
        data.resize(2_800, 7);
    }
    f.from(&WEB, to, payload)
}

fn send_large(lab: &mut Lab, packet: &Packet, gso_size: u32) -> Verdict {
    let context = Context {
        ifindex: lab.interface(&WEB),
        gso_size,
        ..Context::default()
    };
    lab.run("from_container", context, &packet.to_bytes())
        .unwrap()
}

#[test]
fn what_does_not_fit_goes_to_the_stack() {
    for f in families() {
        let services = [
            service("s", VIP, &[REMOTE]),
            service("t", OTHER_VIP, &[OUTSIDE]),
        ];
        let (mut vxlan, _) = uplink_lab(&services);
        let (mut native, _) = native_lab(&services);
        // Where the source stays as it is the stack gets the packet translated, because that is where
        // it has a route to; where not, as it came.
        for (is_native, to, port, mtu, mark, seen) in [
            (
                false,
                REMOTE,
                9,
                OVERLAY_MTU,
                MARK_ENCAPSULATED,
                Some((REMOTE, 9)),
            ),
            (
                false,
                VIP,
                53,
                OVERLAY_MTU,
                MARK_ENCAPSULATED,
                Some((REMOTE, 5353)),
            ),
            (false, OUTSIDE, 9, UPLINK_MTU, MARK_FORWARDED, None),
            (false, OTHER_VIP, 53, UPLINK_MTU, MARK_FORWARDED, None),
            (
                true,
                REMOTE,
                9,
                UPLINK_MTU,
                MARK_FORWARDED,
                Some((REMOTE, 9)),
            ),
            (
                true,
                VIP,
                53,
                UPLINK_MTU,
                MARK_FORWARDED,
                Some((REMOTE, 5353)),
            ),
        ] {
            let lab = if is_native { &mut native } else { &mut vxlan };
            // The first packet of a flow, and one of a flow that is known.
            for _ in 0..2 {
                let large = of_length(f, to, port, mtu + 1);
                let verdict = lab.send(&WEB, &large);
                let Verdict::Pass(_, 0) = &verdict else {
                    panic!("{to:?}, {} bytes: {verdict:?}", mtu + 1)
                };
                let passed = verdict.packet();
                assert_eq!(passed.ttl, 64, "the stack forwards it");
                if let Some((destination, port)) = seen {
                    assert_eq!(passed.source, WEB.at(f));
                    assert_eq!(passed.destination, destination.at(f));
                    assert_eq!(passed.payload.ports(), (40000, port));
                } else {
                    assert_eq!(passed, large, "to {to:?}");
                }
                let fits = of_length(f, to, port, mtu);
                let verdict = lab.send(&WEB, &fits);
                assert!(
                    matches!(verdict, Verdict::Redirect(_, m) if m == mark),
                    "{to:?}, {mtu} bytes: {verdict:?}"
                );
            }
        }
    }
}

#[test]
fn within_the_node_everything_fits() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[service("s", VIP, &[DB.place])]);
        for (to, port) in [(DB.place, 9), (VIP, 53)] {
            let verdict = lab.send(&WEB, &of_length(f, to, port, 3_000));
            assert!(verdict.redirected(), "{verdict:?}");
        }
    }
}

#[test]
fn a_packet_that_stands_for_several_is_as_large_as_each() {
    for f in families() {
        let (mut lab, _) = uplink_lab(&[service("s", VIP, &[REMOTE])]);
        let headers = u32::try_from(f.header()).unwrap() + 20;
        for (to, mtu) in [
            (REMOTE, OVERLAY_MTU),
            (VIP, OVERLAY_MTU),
            (OUTSIDE, UPLINK_MTU),
        ] {
            for _ in 0..2 {
                let verdict = send_large(&mut lab, &large(f, to), mtu - headers);
                assert!(verdict.redirected(), "{to:?}: {verdict:?}");
                assert!(verdict.packet().source_mac != WEB.mac || to == OUTSIDE);
                let verdict = send_large(&mut lab, &large(f, to), mtu - headers + 1);
                assert!(verdict.passed(), "{to:?}: {verdict:?}");
            }
        }
        let verdict = send_large(&mut lab, &large(f, DB.place), 1_448);
        assert!(verdict.redirected(), "{verdict:?}");
    }
}

#[test]
fn a_time_to_live_that_ends_here_is_the_stacks() {
    for f in families() {
        let services = [
            service("s", VIP, &[DB.place]),
            service("t", OTHER_VIP, &[OUTSIDE]),
        ];
        let (mut lab, _) = uplink_lab(&services);
        for ttl in [1, 0] {
            for (to, port, seen) in [
                (DB.place, 9, (DB.place, 9)),
                (REMOTE, 9, (REMOTE, 9)),
                (OUTSIDE, 9, (OUTSIDE, 9)),
                (VIP, 53, (DB.place, 5353)),
                // Masqueraded as well, so that its source would change: as it came.
                (OTHER_VIP, 53, (OTHER_VIP, 53)),
            ] {
                for _ in 0..2 {
                    let mut sent = f.from(&WEB, to, Payload::udp(40000, port));
                    sent.ttl = ttl;
                    let mut expected = f.from(&WEB, seen.0, Payload::udp(40000, seen.1));
                    expected.ttl = ttl;
                    assert_eq!(
                        lab.send(&WEB, &sent),
                        Verdict::Pass(expected.to_bytes(), 0),
                        "to {to:?}"
                    );
                }
            }
        }
        // What comes from outside with its last hop is the stack's as well, and no pod's.
        let sent = f.from(&WEB, OUTSIDE, Payload::tcp(40001, 80, SYN));
        let left = crate::support::masqueraded(&mut lab, &WEB, &sent);
        let mut reply = crate::support::answer(&left);
        reply.ttl = 1;
        let verdict = lab.arrive(&reply);
        assert!(verdict.passed(), "{verdict:?}");
    }
}

#[test]
fn policy_is_asked_before_the_stack() {
    let deny =
        weft_tests::packet::scene::policy("deny", "{podSelector: {}, policyTypes: [Egress]}");
    for f in families() {
        let (mut lab, _) = uplink_lab(std::slice::from_ref(&deny));
        for to in [DB.place, REMOTE, OUTSIDE] {
            let mut over = f.from(&WEB, to, Payload::udp(40000, 9));
            over.ttl = 1;
            let large = of_length(f, to, 9, UPLINK_MTU + 1);
            for packet in [over, large] {
                assert_eq!(lab.send(&WEB, &packet), dropped(DropReason::PolicyEgress));
            }
        }
    }
}
