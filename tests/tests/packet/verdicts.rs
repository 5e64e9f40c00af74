//! Who may use a service, and which of its endpoints he gets: kube-proxy's verdicts.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weft_abi::drop::DropReason;
use weft_core::model::{NodePortAddresses, Routing};
use weft_tests::packet::{
    Context, Family, Lab, Place, Setup, Somewhere as _, Verdict,
    bytes::{ACK, INIT, Payload, SYN},
    scene::{
        DB, DB2, ELSEWHERE, NOBODYS_VIP, NODE, OTHER_NODE, OUTSIDE, OUTSIDE_NETWORKS, REMOTE,
        REMOTE2, VIP, WEB, dropped, families, lab_with, node_place,
    },
    services::{
        ADDRESSES, Address, Balanced, EXPOSED, LOAD_BALANCER, at_endpoint, requests,
        services_cluster, services_lab,
    },
};

use crate::support::{answer, delivered, masqueraded, served, served_outside};

/// How many flows are opened to see who gets them: with two endpoints, all go to one in a run of
/// 10^18.
const MANY: u16 = 60;

/// The endpoints that many flows of a pod get.
fn endpoints_of_pod(lab: &mut Lab, f: Family, address: Address) -> BTreeSet<IpAddr> {
    let ports = 40000..40000 + MANY;
    let flows = ports.map(|port| {
        let sent = address.asked_by(f, &WEB, Payload::tcp(port, 80, SYN));
        served(lab, &WEB, &sent).destination
    });
    flows.collect()
}

/// The same of somebody outside.
fn endpoints_of_outside(lab: &mut Lab, f: Family, address: Address) -> BTreeSet<IpAddr> {
    let ports = 50000..50000 + MANY;
    let flows = ports.map(|port| {
        let sent = address.asked_outside(f, OUTSIDE, Payload::tcp(port, 80, SYN));
        served_outside(lab, &sent).destination
    });
    flows.collect()
}

fn at(f: Family, places: &[Place]) -> BTreeSet<IpAddr> {
    places.iter().map(|place| place.at(f)).collect()
}

#[test]
fn without_a_policy_every_endpoint_serves() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place, REMOTE]).manifest()]);
        for address in ADDRESSES {
            lab.forget_flows().unwrap();
            let all = at(f, &[DB.place, REMOTE]);
            assert_eq!(endpoints_of_pod(&mut lab, f, address), all);
            assert_eq!(endpoints_of_outside(&mut lab, f, address), all);
        }
    }
}

#[test]
fn an_internal_policy_of_local_endpoints() {
    for f in families() {
        let local = "internalTrafficPolicy: Local";
        let (mut lab, mut cluster) =
            services_lab(&[Balanced::with(&[REMOTE]).spec(local).manifest()]);
        for request in requests(40000) {
            let sent = Address::ClusterIp.asked_by(f, &WEB, request.clone());
            assert_eq!(lab.send(&WEB, &sent), dropped(DropReason::NoLocalBackend));
            let sent = Address::ClusterIp.asked_outside(f, OUTSIDE, request.clone());
            assert_eq!(lab.arrive(&sent), dropped(DropReason::NoLocalBackend));
            // It is about cluster IPs.
            for address in EXPOSED {
                let sent = address.asked_by(f, &WEB, request.clone());
                assert_eq!(served(&mut lab, &WEB, &sent).destination, REMOTE.at(f));
                let sent = address.asked_outside(f, OUTSIDE, request.clone());
                assert_eq!(served_outside(&mut lab, &sent).destination, REMOTE.at(f));
                lab.forget_flows().unwrap();
            }
        }
        let both = Balanced::with(&[DB.place, REMOTE]).spec(local);
        cluster.apply(&both.manifest()).unwrap();
        lab.update(&cluster).unwrap();
        let here = at(f, &[DB.place]);
        assert_eq!(endpoints_of_pod(&mut lab, f, Address::ClusterIp), here);
        assert_eq!(endpoints_of_outside(&mut lab, f, Address::ClusterIp), here);
        lab.forget_flows().unwrap();
        assert_eq!(
            endpoints_of_pod(&mut lab, f, Address::NodePort),
            at(f, &[DB.place, REMOTE])
        );
    }
}

#[test]
fn an_external_policy_of_local_endpoints_without_any() {
    for f in families() {
        let service = Balanced::with(&[REMOTE]).spec("externalTrafficPolicy: Local");
        let (mut lab, _) = services_lab(&[service.manifest()]);
        for request in requests(50000) {
            for address in EXPOSED {
                let sent = address.asked_outside(f, OUTSIDE, request.clone());
                assert_eq!(lab.arrive(&sent), dropped(DropReason::NoLocalBackend));
                // As if it went out and came back by a node that has some.
                let sent = address.asked_by(f, &WEB, request.clone());
                let went = served(&mut lab, &WEB, &sent);
                assert_eq!((went.source, went.destination), (WEB.at(f), REMOTE.at(f)));
                assert_eq!(went.payload, at_endpoint(request.clone()));
                lab.forget_flows().unwrap();
            }
            let sent = Address::ClusterIp.asked_outside(f, OUTSIDE, request.clone());
            assert_eq!(served_outside(&mut lab, &sent).destination, REMOTE.at(f));
            let sent = Address::ClusterIp.asked_by(f, &WEB, request);
            assert_eq!(served(&mut lab, &WEB, &sent).destination, REMOTE.at(f));
            lab.forget_flows().unwrap();
        }
    }
}

#[test]
fn an_external_policy_of_local_endpoints() {
    for f in families() {
        let service = Balanced::with(&[DB.place, REMOTE, REMOTE2]);
        let service = service.spec("externalTrafficPolicy: Local");
        let (mut lab, _) = services_lab(&[service.manifest()]);
        let all = at(f, &[DB.place, REMOTE, REMOTE2]);
        for address in EXPOSED {
            lab.forget_flows().unwrap();
            // With the client's address: `served_outside` proves it.
            let here = endpoints_of_outside(&mut lab, f, address);
            assert_eq!(here, at(f, &[DB.place]));
            assert_eq!(endpoints_of_pod(&mut lab, f, address), all);
        }
        lab.forget_flows().unwrap();
        assert_eq!(endpoints_of_outside(&mut lab, f, Address::ClusterIp), all);
    }
}

#[test]
fn hints_choose_endpoints_for_the_cluster_and_not_for_local_policies() {
    // A slice as for topology: the endpoint on the other node is meant for this one.
    let hint = |node: &str| format!("ready: true}}, hints: {{forNodes: [{{name: {node}}}]");
    for f in families() {
        let service = Balanced::with(&[])
            .and(DB.place, &hint("n2"))
            .and(REMOTE, &hint("n1"))
            .spec("externalTrafficPolicy: Local");
        let (mut lab, _) = services_lab(&[service.manifest()]);
        assert_eq!(
            endpoints_of_pod(&mut lab, f, Address::ClusterIp),
            at(f, &[REMOTE])
        );
        assert_eq!(
            endpoints_of_outside(&mut lab, f, Address::NodePort),
            at(f, &[DB.place])
        );
    }
}

#[test]
fn an_address_that_no_service_has() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        for payload in [
            Payload::tcp(40000, 80, SYN),
            Payload::udp(40000, 53),
            Payload::sctp(40000, 9999, INIT),
            Payload::echo(true, 7),
        ] {
            let sent = f.from(&WEB, NOBODYS_VIP, payload.clone());
            assert_eq!(
                lab.send(&WEB, &sent),
                dropped(DropReason::UnallocatedAddress)
            );
            // From outside it is the host's, until that would forward it.
            let sent = f.packet(OUTSIDE, NOBODYS_VIP, payload);
            assert_eq!(lab.arrive(&sent), Verdict::Pass(sent.to_bytes(), 0));
        }
        assert!(lab.flows().unwrap().is_empty());
        // Of the node's own, what no program sees in a system call.
        for payload in [Payload::echo(true, 7), Payload::sctp(40000, 9999, INIT)] {
            let sent = f.packet(NODE, NOBODYS_VIP, payload.clone());
            assert_eq!(lab.leave(0, &sent), dropped(DropReason::UnallocatedAddress));
            let other = f.packet(NODE, ELSEWHERE, payload);
            assert_eq!(lab.leave(0, &other), Verdict::Pass(other.to_bytes(), 0));
        }
        if lab.takes_ingress(&WEB) {
            let context = Context {
                ifindex: lab.uplink(),
                ingress_ifindex: lab.uplink(),
                ..Context::default()
            };
            let sent = f.packet(OUTSIDE, NOBODYS_VIP, Payload::udp(50000, 53));
            assert_eq!(
                lab.run("to_netdev", context, &sent.to_bytes()).unwrap(),
                dropped(DropReason::UnallocatedAddress)
            );
            let other = f.packet(OUTSIDE, ELSEWHERE, Payload::udp(50000, 53));
            assert_eq!(
                lab.run("to_netdev", context, &other.to_bytes()).unwrap(),
                Verdict::Pass(other.to_bytes(), 0)
            );
        }
    }
}

#[test]
fn a_service_that_is_gone_leaves_an_address_that_nobody_has() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let udp = Address::ClusterIp.asked_by(f, &WEB, Payload::udp(40000, 53));
        served(&mut lab, &WEB, &udp);
        cluster.state.services.clear();
        cluster.state.slices.clear();
        lab.update(&cluster).unwrap();
        assert_eq!(
            lab.send(&WEB, &udp),
            dropped(DropReason::UnallocatedAddress)
        );
    }
}

/// Ranges of both families, as a manifest has them.
fn ranges(ranges: &[&str]) -> String {
    let quoted = ranges.iter().map(|range| format!("\"{range}\""));
    let quoted = quoted.collect::<Vec<_>>().join(", ");
    format!("loadBalancerSourceRanges: [{quoted}]")
}

/// Whether the service lets a pod, `OUTSIDE` and `ELSEWHERE` in at its load balancer's address. It
/// always does at others.
fn lets_in(lab: &mut Lab, f: Family) -> [bool; 3] {
    lab.forget_flows().unwrap();
    for request in requests(40001) {
        for address in ADDRESSES {
            if address != Address::LoadBalancer {
                let sent = address.asked_by(f, &WEB, request.clone());
                served(lab, &WEB, &sent);
                for client in [OUTSIDE, ELSEWHERE] {
                    let sent = address.asked_outside(f, client, request.clone());
                    served_outside(lab, &sent);
                }
                lab.forget_flows().unwrap();
            }
        }
    }
    let verdicts = requests(40000).map(|request| {
        let sent = Address::LoadBalancer.asked_by(f, &WEB, request.clone());
        let pod = lab.send(&WEB, &sent);
        let outside = [OUTSIDE, ELSEWHERE].map(|client| {
            let sent = Address::LoadBalancer.asked_outside(f, client, request.clone());
            lab.arrive(&sent)
        });
        let [outside, elsewhere] = outside;
        [pod, outside, elsewhere].map(|verdict| match verdict {
            Verdict::Redirect(..) => true,
            Verdict::Drop(DropReason::SourceRange) => false,
            other => panic!("{other:?}"),
        })
    });
    assert!(verdicts.iter().all(|same| *same == verdicts[0]));
    verdicts[0]
}

#[test]
fn load_balancer_source_ranges() {
    let host = |f: Family, place: Place| format!("{}/{}", place.at(f), f.bits());
    for f in families() {
        let other = f.pick(Family::V6, Family::V4);
        let pods = f.pick("10.244.1.0/24", "fd00:10:244:1::/64");
        let network = f.pick(OUTSIDE_NETWORKS[0], OUTSIDE_NETWORKS[1]);
        let halves = f.pick(["0.0.0.0/1", "128.0.0.0/1"], ["::/1", "8000::/1"]);
        let own = host(f, OUTSIDE);
        let spaced = format!(" {own}\t");
        let foreign = host(other, OUTSIDE);
        let (mut lab, mut cluster) = services_lab(&[]);
        for (given, expected) in [
            (vec![own.as_str()], [false, true, false]),
            (vec![&own, &foreign], [false, true, false]),
            (vec![&spaced], [false, true, false]),
            (vec![network], [false, true, true]),
            (vec![pods], [true, false, false]),
            (vec![pods, &own], [true, true, false]),
            (vec![&own, f.pick("0.0.0.0/0", "::/0")], [true; 3]),
            (halves.to_vec(), [true; 3]),
            (vec![&foreign], [true; 3]),
            (vec![f.pick("255.255.255.255/32", "ffff::/128")], [false; 3]),
        ] {
            println!("{given:?}");
            let service = Balanced::with(&[DB.place]).spec(&ranges(&given));
            cluster.apply(&service.manifest()).unwrap();
            lab.update(&cluster).unwrap();
            assert_eq!(lets_in(&mut lab, f), expected);
        }
    }
}

#[test]
fn source_ranges_hold_for_what_is_known_only_when_it_opens() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let packet =
            |flags| Address::LoadBalancer.asked_outside(f, OUTSIDE, Payload::tcp(50000, 80, flags));
        served_outside(&mut lab, &packet(SYN));
        served_outside(&mut lab, &packet(ACK));
        let service = Balanced::with(&[DB.place]);
        let service = service.spec(&ranges(&["255.255.255.255/32", "ffff::/128"]));
        cluster.apply(&service.manifest()).unwrap();
        lab.update(&cluster).unwrap();
        served_outside(&mut lab, &packet(ACK));
        assert_eq!(
            lab.arrive(&packet(SYN)),
            dropped(DropReason::SourceRange),
            "a new connection"
        );
    }
}

#[test]
fn a_load_balancer_that_is_a_proxy_gets_its_traffic() {
    for f in families() {
        let service = Balanced::with(&[DB.place]).ip_mode("Proxy");
        let (mut lab, mut cluster) = services_lab(&[service.manifest()]);
        for request in requests(40000) {
            let sent = Address::LoadBalancer.asked_by(f, &WEB, request.clone());
            let left = masqueraded(&mut lab, &WEB, &sent);
            assert_eq!(left.destination, LOAD_BALANCER.at(f));
            let came = delivered(&mut lab, &WEB, &answer(&left));
            assert_eq!(came.payload, sent.payload.answer());
            let sent = Address::LoadBalancer.asked_outside(f, OUTSIDE, request);
            assert_eq!(lab.arrive(&sent), Verdict::Pass(sent.to_bytes(), 0));
        }
        let service = Balanced::with(&[DB.place]).ip_mode("VIP");
        cluster.apply(&service.manifest()).unwrap();
        lab.update(&cluster).unwrap();
        for request in requests(40001) {
            let sent = Address::LoadBalancer.asked_by(f, &WEB, request);
            assert_eq!(served(&mut lab, &WEB, &sent).destination, DB.at(f));
        }
    }
}

#[test]
fn a_protocol_that_a_port_does_not_list_is_not_forwarded() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        for payload in [
            Payload::udp(40000, 30080),
            Payload::sctp(40000, 30080, INIT),
            Payload::tcp(40000, 30053, SYN),
            Payload::tcp(40000, 30099, SYN),
            // Nor the service's own ports, at the node.
            Payload::tcp(40000, 80, SYN),
            Payload::echo(true, 30080),
        ] {
            let sent = f.from(&WEB, NODE, payload.clone());
            assert_eq!(lab.send(&WEB, &sent), Verdict::Pass(sent.to_bytes(), 0));
            let sent = f.packet(OUTSIDE, NODE, payload);
            assert_eq!(lab.arrive(&sent), Verdict::Pass(sent.to_bytes(), 0));
        }
        for address in [Address::LoadBalancer, Address::ExternalIp] {
            for payload in [
                Payload::udp(40000, 80),
                Payload::tcp(40000, 53, SYN),
                Payload::tcp(40000, 30080, SYN),
                Payload::echo(true, 40000),
            ] {
                let place = address.place(VIP);
                let sent = f.from(&WEB, place, payload.clone());
                let left = masqueraded(&mut lab, &WEB, &sent);
                assert_eq!(left.destination, place.at(f), "somebody else may have it");
                let sent = f.packet(OUTSIDE, place, payload);
                assert_eq!(lab.arrive(&sent), Verdict::Pass(sent.to_bytes(), 0));
            }
        }
    }
}

#[test]
fn node_ports_are_where_the_operator_wants_them() {
    let second = node_place(77);
    let only = |f: Family| vec![second.at(f).into()];
    for f in families() {
        let mut cluster = services_cluster(&[Balanced::with(&[DB.place]).manifest()]);
        cluster.state.own_addresses.extend(second.addresses());
        let (mut lab, mut cluster) = lab_with(&Setup::uplink(), cluster);
        for (addresses, first_has, second_has) in [
            (NodePortAddresses::All, true, true),
            (NodePortAddresses::Primary, true, false),
            (NodePortAddresses::Cidrs(only(f)), false, true),
            (
                NodePortAddresses::Cidrs(only(f.pick(Family::V6, Family::V4))),
                true,
                true,
            ),
        ] {
            println!("{addresses:?}");
            cluster.state.settings.nodeport_addresses = addresses;
            lab.update(&cluster).unwrap();
            lab.forget_flows().unwrap();
            for (place, has) in [(NODE, first_has), (second, second_has)] {
                let payload = Payload::tcp(40000, 30080, SYN);
                let from_pod = f.from(&WEB, place, payload.clone());
                let from_outside = f.packet(OUTSIDE, place, payload);
                if has {
                    let came = served(&mut lab, &WEB, &from_pod);
                    assert_eq!(came.destination, DB.at(f));
                    let came = served_outside(&mut lab, &from_outside);
                    assert_eq!(came.destination, DB.at(f));
                } else {
                    let passed = Verdict::Pass(from_pod.to_bytes(), 0);
                    assert_eq!(lab.send(&WEB, &from_pod), passed);
                    let passed = Verdict::Pass(from_outside.to_bytes(), 0);
                    assert_eq!(lab.arrive(&from_outside), passed);
                }
            }
            // Whoever else has the number: another node, or a pod.
            let sent = f.from(&WEB, DB2, Payload::tcp(40000, 30080, SYN));
            assert_eq!(lab.send(&WEB, &sent).packet().destination, DB2.at(f));
        }
    }
}

#[test]
fn another_nodes_node_port_is_that_nodes() {
    for f in families() {
        for routing in [Routing::Vxlan, Routing::Native] {
            let mut cluster = services_cluster(&[Balanced::with(&[DB.place]).manifest()]);
            cluster.state.settings.routing = routing;
            let (mut lab, _) = lab_with(&Setup::uplink(), cluster);
            let node = OTHER_NODE;
            let sent = f.from(&WEB, node, Payload::tcp(40000, 30080, SYN));
            let verdict = lab.send(&WEB, &sent);
            assert!(verdict.redirected(), "{verdict:?}");
            let went = verdict.packet();
            assert_eq!((went.source, went.destination), (WEB.at(f), node.at(f)));
            assert_eq!(went.payload, sent.payload);
        }
    }
}
