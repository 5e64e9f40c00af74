//! Session affinity: who had an endpoint gets it again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_tests::packet::{
    Family, Lab, Place, Somewhere as _,
    bytes::{Payload, SYN},
    scene::{DB, DB2, OUTSIDE, REMOTE, REMOTE2, WEB, families, outside},
    services::{ADDRESSES, Address, Balanced, EXPOSED, services_lab},
};

use crate::support::{served, served_outside};

/// How long clients are remembered, in seconds.
const TIMEOUT: u32 = 60;

/// Endpoints on both nodes.
const ENDPOINTS: [Place; 4] = [DB.place, DB2.place, REMOTE, REMOTE2];

fn sticky(service: Balanced) -> Balanced {
    let timeout = format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {TIMEOUT}}}}}");
    service.spec("sessionAffinity: ClientIP").spec(&timeout)
}

/// Enough clients that what is left to chance shows: all of them being at the same endpoint twice has
/// a chance of one in 2^100.
fn clients() -> impl Iterator<Item = Place> {
    (101..=150).map(outside)
}

/// The endpoint that a new flow of a client gets.
#[track_caller]
fn asks(lab: &mut Lab, f: Family, client: Place, port: u16, address: Address) -> IpAddr {
    let sent = address.asked_outside(f, client, Payload::tcp(port, 80, SYN));
    served_outside(lab, &sent).destination
}

/// What all clients get with a new flow from this port.
fn all(lab: &mut Lab, f: Family, port: u16) -> BTreeMap<IpAddr, IpAddr> {
    let all = clients().map(|client| {
        let endpoint = asks(lab, f, client, port, Address::LoadBalancer);
        (client.at(f), endpoint)
    });
    all.collect()
}

#[test]
fn a_client_keeps_its_endpoint_at_every_address() {
    for f in families() {
        let (mut lab, _) = services_lab(&[sticky(Balanced::with(&ENDPOINTS)).manifest()]);
        let mut first = None;
        for port in 40000..40030 {
            for address in ADDRESSES {
                lab.forget_flows().unwrap();
                let sent = address.asked_by(f, &WEB, Payload::tcp(port, 80, SYN));
                let endpoint = served(&mut lab, &WEB, &sent).destination;
                assert_eq!(*first.get_or_insert(endpoint), endpoint, "{address:?}");
            }
        }
        let mut first = None;
        for port in 50000..50030 {
            for address in ADDRESSES {
                lab.forget_flows().unwrap();
                let endpoint = asks(&mut lab, f, OUTSIDE, port, address);
                assert_eq!(*first.get_or_insert(endpoint), endpoint, "{address:?}");
            }
        }
    }
}

#[test]
fn clients_spread_over_all_endpoints() {
    for f in families() {
        let (mut lab, _) = services_lab(&[sticky(Balanced::with(&ENDPOINTS)).manifest()]);
        let used: BTreeSet<_> = all(&mut lab, f, 50000).into_values().collect();
        let endpoints: BTreeSet<_> = ENDPOINTS.iter().map(|place| place.at(f)).collect();
        assert_eq!(used, endpoints);
        // A client has an endpoint of each port of the service: not the same one for all.
        let dns: Vec<_> = clients()
            .map(|client| {
                let request = Payload::udp(50000, 53);
                let sent = Address::LoadBalancer.asked_outside(f, client, request);
                served_outside(&mut lab, &sent).destination
            })
            .collect();
        let tcp: Vec<_> = all(&mut lab, f, 50001).into_values().collect();
        assert_ne!(dns, tcp);
    }
}

#[test]
fn a_client_is_remembered_since_its_last_flow() {
    for f in families() {
        let (mut lab, _) = services_lab(&[sticky(Balanced::with(&ENDPOINTS)).manifest()]);
        let first = all(&mut lab, f, 50000);
        for port in 50001..50004 {
            lab.stay_away(TIMEOUT - 1).unwrap();
            assert_eq!(all(&mut lab, f, port), first, "within the time");
        }
        lab.stay_away(TIMEOUT).unwrap();
        let then = all(&mut lab, f, 50004);
        assert_ne!(then, first, "they are clients like any other");
        assert_eq!(all(&mut lab, f, 50005), then);
    }
}

#[test]
fn what_a_flow_sends_later_does_not_count() {
    for f in families() {
        let (mut lab, _) = services_lab(&[sticky(Balanced::with(&ENDPOINTS)).manifest()]);
        let first = all(&mut lab, f, 50000);
        lab.stay_away(TIMEOUT - 1).unwrap();
        // Of the same flows.
        assert_eq!(all(&mut lab, f, 50000), first);
        lab.stay_away(1).unwrap();
        assert_ne!(all(&mut lab, f, 50001), first);
    }
}

#[test]
fn an_endpoint_that_takes_no_new_flows_is_given_up() {
    for f in families() {
        for away in [
            Balanced::with(&ENDPOINTS[1..]),
            Balanced::with(&ENDPOINTS[1..]).and_terminating(DB.place),
            Balanced::with(&ENDPOINTS[1..]).and(DB.place, "ready: false"),
        ] {
            let (mut lab, mut cluster) =
                services_lab(&[sticky(Balanced::with(&ENDPOINTS)).manifest()]);
            let first = all(&mut lab, f, 50000);
            cluster.apply(&sticky(away).manifest()).unwrap();
            lab.update(&cluster).unwrap();
            let then = all(&mut lab, f, 50001);
            for (client, endpoint) in &first {
                if *endpoint == DB.at(f) {
                    assert_ne!(then[client], DB.at(f));
                } else {
                    assert_eq!(then[client], *endpoint, "others stay");
                }
            }
            assert_eq!(all(&mut lab, f, 50002), then, "and have another one now");
        }
    }
}

#[test]
fn only_local_endpoints_count_where_only_those_serve() {
    for f in families() {
        let service = sticky(Balanced::with(&ENDPOINTS)).spec("externalTrafficPolicy: Local");
        let (mut lab, _) = services_lab(&[service.manifest()]);
        let here = [DB, DB2].map(|pod| pod.at(f));
        for (index, client) in clients().enumerate() {
            let any = asks(&mut lab, f, client, 50000, Address::ClusterIp);
            let address = EXPOSED[index % EXPOSED.len()];
            let local = asks(&mut lab, f, client, 50001, address);
            assert!(here.contains(&local));
            if here.contains(&any) {
                assert_eq!(local, any, "the one it had");
            }
            let again = asks(&mut lab, f, client, 50002, Address::ClusterIp);
            assert_eq!(again, local, "the last one it had");
        }
    }
}

#[test]
fn affinity_goes_before_the_place_in_a_table() {
    for f in families() {
        let service = sticky(Balanced::with(&ENDPOINTS)).annotated("load-balancing", "maglev");
        let (mut lab, _) = services_lab(&[service.manifest()]);
        let first = all(&mut lab, f, 50000);
        for port in 50001..50010 {
            assert_eq!(all(&mut lab, f, port), first);
        }
    }
}

#[test]
fn without_affinity_nobody_is_remembered() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[sticky(Balanced::with(&ENDPOINTS)).manifest()]);
        let first = all(&mut lab, f, 50000);
        cluster
            .apply(&Balanced::with(&ENDPOINTS).manifest())
            .unwrap();
        lab.update(&cluster).unwrap();
        assert_ne!(all(&mut lab, f, 50001), first);
    }
}
