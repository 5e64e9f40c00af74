//! Policy: what passes, in which direction, and when it ends.

use weft_abi::drop::DropReason;
use weft_tests::packet::{
    Lab, Place, Setup, Somewhere as _,
    bytes::{ACK, FIN, IcmpError, Payload, RST, SYN},
    scene::{
        DB, ELSEWHERE, NODE, OTHER_VIP, OUTSIDE, REMOTE, VIP, WEB, cluster, dropped, families, lab,
        policy, service,
    },
};

#[test]
fn ingress_policy_lets_in_what_it_lists() {
    for f in families() {
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
            let verdict = lab.send(&WEB, &f.from(&WEB, DB, Payload::tcp(40000, port, SYN)));
            assert_eq!(verdict.redirected(), allowed, "TCP {port}: {verdict:?}");
        }
        let verdict = lab.send(&WEB, &f.from(&WEB, DB, Payload::udp(40000, 5432)));
        assert_eq!(verdict, denied, "a port means TCP");
        let verdict = lab.send(&WEB, &f.from(&WEB, DB, Payload::echo(true, 1)));
        assert_eq!(verdict, denied, "ports list no ICMP");
        // Replies belong to their flow; the isolated pod may still open flows of its own.
        let reply = Payload::tcp(5432, 40000, SYN | ACK);
        assert!(lab.send(&DB, &f.from(&DB, WEB, reply)).redirected());
        let own = Payload::tcp(41000, 9999, SYN);
        assert!(lab.send(&DB, &f.from(&DB, WEB, own)).redirected());
        // Traffic of the pod's own node is always let in, whatever the policy.
        let probe = f.packet(NODE, DB, Payload::tcp(50000, 1, SYN));
        assert!(lab.receive(&DB, 0, &probe).passed());
        let answer = f.from(&DB, NODE, Payload::tcp(1, 50000, SYN | ACK));
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
        let verdict = lab.send(&WEB, &f.from(&WEB, DB, Payload::tcp(42000, 5432, SYN)));
        assert_eq!(verdict, denied);
    }
}

#[test]
fn egress_policy_sees_the_backend_of_a_service() {
    for f in families() {
        let spec = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress],
        egress: [{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 8080}]}]}";
        let manifests = [
            service("s", VIP, &[DB.place]),
            service("t", OTHER_VIP, &[REMOTE]),
            policy("web", spec),
        ];
        let (mut lab, _) = lab(&manifests);
        let denied = dropped(DropReason::PolicyEgress);
        let syn = |vip: Place| f.from(&WEB, vip, Payload::tcp(40000, 80, SYN));
        assert!(lab.send(&WEB, &syn(VIP)).redirected());
        assert_eq!(lab.send(&WEB, &syn(OTHER_VIP)), denied);
        assert_eq!(
            lab.send(&WEB, &syn(DB.place)),
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
            lab.send(&DB, &f.from(&DB, REMOTE, Payload::tcp(1, 2, SYN)))
                .redirected()
        );
    }
}

#[test]
fn a_policy_change_reaches_a_live_connection() {
    for f in families() {
        let (mut lab, mut cluster) = lab(&[service("s", VIP, &[DB.place])]);
        let there = f.from(&WEB, VIP, Payload::tcp(40000, 80, ACK));
        let back = f.from(&DB, WEB, Payload::tcp(8080, 40000, ACK));
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
        assert_eq!(packet.source, VIP.at(f), "the translation outlived it");
    }
}

#[test]
fn a_pod_that_is_not_programmed_passes_nothing_but_its_nodes_traffic() {
    for f in families() {
        let mut cluster = cluster(&[]);
        cluster.state.pods.retain(|key, _| key.name != "web");
        let mut lab = Lab::new(&mut cluster, &[WEB, DB], &Setup::default()).unwrap();
        let not_ready = dropped(DropReason::EndpointNotReady);
        for destination in [DB.place, REMOTE, OUTSIDE] {
            let verdict = lab.send(&WEB, &f.from(&WEB, destination, Payload::tcp(1, 2, SYN)));
            assert_eq!(verdict, not_ready, "{destination:?}");
        }
        let verdict = lab.send(&DB, &f.from(&DB, WEB, Payload::tcp(3, 4, SYN)));
        assert_eq!(verdict, not_ready);
        let probe = f.packet(NODE, WEB, Payload::tcp(5, 6, SYN));
        assert!(lab.receive(&WEB, 0, &probe).passed());
        let reply = f.from(&WEB, NODE, Payload::tcp(6, 5, SYN | ACK));
        assert!(lab.send(&WEB, &reply).passed());
    }
}

#[test]
fn what_the_stack_forwards_to_a_pod_is_judged() {
    for f in families() {
        let block = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
        ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/32]}},
                           {ipBlock: {cidr: '2001:db8:7::/64', except: ['2001:db8:7::8/128']}}]}]}";
        let (mut lab, _) = lab(&[policy("db", block)]);
        let uplink = 77;
        let syn = |source: Place| f.packet(source, DB, Payload::tcp(40000, 80, SYN));
        if !lab.takes_ingress(&DB) {
            return;
        }
        assert!(lab.receive(&DB, uplink, &syn(OUTSIDE)).passed());
        let excepted = ELSEWHERE;
        assert_eq!(
            lab.receive(&DB, uplink, &syn(excepted)),
            dropped(DropReason::PolicyIngress)
        );
        // Addresses that cannot be out there.
        for source in [WEB.place, REMOTE, NODE] {
            let verdict = lab.receive(&DB, uplink, &syn(source));
            assert_eq!(verdict, dropped(DropReason::Spoofed), "{source:?}");
        }
    }
}

#[test]
fn icmp_errors_belong_to_the_flow_they_quote() {
    for f in families() {
        let deny = policy(
            "deny",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
        );
        let (mut lab, _) = lab(&[deny]);
        let sent = f.from(&WEB, DB, Payload::udp(40000, 9));
        assert!(lab.send(&WEB, &sent).redirected());
        let quoted = sent.quote(usize::MAX);
        let error = |quote| Payload::Error {
            error: IcmpError::PortUnreachable,
            quote,
        };
        let verdict = lab.send(&DB, &f.from(&DB, WEB, error(quoted.clone())));
        assert!(verdict.redirected(), "about a known flow: {verdict:?}");
        let mut other = quoted;
        other[f.header()] ^= 1;
        let verdict = lab.send(&DB, &f.from(&DB, WEB, error(other)));
        assert_eq!(verdict, dropped(DropReason::PolicyIngress), "about no flow");
    }
}

#[test]
fn a_reply_is_no_opening() {
    for f in families() {
        let deny = policy(
            "deny",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
        );
        let (mut lab, _) = lab(&[deny]);
        let there = f.from(&WEB, DB, Payload::tcp(40000, 80, SYN));
        assert!(lab.send(&WEB, &there).redirected());
        // The same tuple, opened from the other end: a new flow, and denied.
        let syn = f.from(&DB, WEB, Payload::tcp(80, 40000, SYN));
        assert_eq!(lab.send(&DB, &syn), dropped(DropReason::PolicyIngress));
        let reply = f.from(&DB, WEB, Payload::tcp(80, 40000, SYN | ACK));
        assert!(lab.send(&DB, &reply).redirected());
        // Crossing pings with one identifier stay apart.
        assert!(
            lab.send(&WEB, &f.from(&WEB, DB, Payload::echo(true, 5)))
                .redirected()
        );
        let ping = f.from(&DB, WEB, Payload::echo(true, 5));
        assert_eq!(lab.send(&DB, &ping), dropped(DropReason::PolicyIngress));
        assert!(
            lab.send(&DB, &f.from(&DB, WEB, Payload::echo(false, 5)))
                .redirected()
        );
    }
}

#[test]
fn an_unknown_reply_is_judged_as_new() {
    for f in families() {
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
            let verdict = lab.send(&DB, &f.from(&DB, WEB, payload.clone()));
            assert_eq!(verdict, dropped(DropReason::PolicyIngress), "{payload:?}");
        }
    }
}

#[test]
fn a_lost_flow_opens_nothing() {
    for f in families() {
        let spec = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}";
        let (mut lab, _) = lab(&[policy("db", spec)]);
        assert!(
            lab.send(&WEB, &f.from(&WEB, DB, Payload::tcp(40000, 80, SYN)))
                .redirected()
        );
        let reply = f.from(&DB, WEB, Payload::tcp(80, 40000, ACK));
        assert!(lab.send(&DB, &reply).redirected());
        lab.forget_flows().unwrap();
        assert_eq!(lab.send(&DB, &reply), dropped(DropReason::PolicyEgress));
    }
}
