//! Maglev: every node finds the same endpoint for the same flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread;

use weft_tests::packet::{
    Cluster, FAMILIES, Family, Lab, LocalPod, Place, Setup, Somewhere as _,
    bytes::{ACK, Payload, SYN},
    scene::{
        DB, DB2, ELSEWHERE, NODE, OTHER_NODE, OUTSIDE, PODS, REMOTE, REMOTE2, WEB, families,
        lab_with, other_pod, pod_place,
    },
    services::{Address, Balanced, requests, services_cluster, services_lab},
};

use crate::support::served;

/// Flows of each client.
const FLOWS: u16 = 300;

/// Endpoints on both nodes.
const ENDPOINTS: [Place; 5] = [DB.place, DB2.place, REMOTE, REMOTE2, pod_place(2, 12)];

fn maglev(endpoints: &[Place]) -> Balanced {
    Balanced::with(endpoints).annotated("load-balancing", "maglev")
}

/// The endpoints that flows from outside get, at the load balancer's address and at a node's, by
/// client, family and what they sent.
type Choices = BTreeMap<(IpAddr, String), IpAddr>;

fn choices(lab: &mut Lab, node: Place) -> Choices {
    let mut choices = Choices::new();
    lab.forget_flows().unwrap();
    for f in FAMILIES {
        for client in [OUTSIDE, ELSEWHERE] {
            for request in (50000..50000 + FLOWS).flat_map(requests) {
                let mut ask = |address: Address| {
                    let mut sent = address.asked_outside(f, client, request.clone());
                    if address == Address::NodePort {
                        sent.destination = node.at(f);
                    }
                    let verdict = lab.arrive(&sent);
                    assert!(verdict.redirected(), "{verdict:?}");
                    let endpoint = verdict.packet().destination;
                    let flow = (client.at(f), format!("{:?}", sent.payload));
                    choices.insert(flow, endpoint);
                };
                ask(Address::LoadBalancer);
                ask(Address::NodePort);
            }
        }
    }
    choices
}

/// A node's choices, on a thread of its own: its namespace is that thread's.
fn on_node(cluster: &Cluster, pods: &[LocalPod]) -> Choices {
    let setup = Setup {
        flows: Some(65_536),
        ..Setup::uplink()
    };
    thread::scope(|scope| {
        let node = scope.spawn(|| {
            let mut lab = Lab::new(&mut cluster.clone(), pods, &setup).unwrap();
            let here = cluster.state.node_name == "n1";
            choices(&mut lab, if here { NODE } else { OTHER_NODE })
        });
        node.join().unwrap()
    })
}

#[test]
fn two_nodes_choose_alike() {
    let here = services_cluster(&[
        maglev(&ENDPOINTS).manifest(),
        other_pod("far2", ENDPOINTS[3]),
        other_pod("far3", ENDPOINTS[4]),
    ]);
    let mut there = here.clone();
    "n2".clone_into(&mut there.state.node_name);
    there.state.own_addresses = OTHER_NODE.addresses().into();
    let pods = ["far", "far2", "far3"].iter().zip(&ENDPOINTS[2..]);
    let pods = pods.map(|(name, place)| LocalPod {
        name,
        place: *place,
        mac: [2, 0, 0, 0, 2, place.v4.octets()[3]],
    });
    let pods: Vec<_> = pods.collect();
    let (here, there) = (on_node(&here, &PODS), on_node(&there, &pods));
    assert_eq!(here, there);
    // And all endpoints are used, about alike.
    for f in FAMILIES {
        for endpoint in ENDPOINTS {
            let endpoint = endpoint.at(f);
            let count = here.values().filter(|chosen| **chosen == endpoint).count();
            let all = here.len() / 2;
            assert!((all / 8..all / 3).contains(&count), "{endpoint}: {count}");
        }
    }
}

/// Objects come in another order, and with another history.
#[test]
fn what_a_node_saw_before_does_not_matter() {
    let setup = Setup {
        flows: Some(65_536),
        ..Setup::uplink()
    };
    let cluster = services_cluster(&[maglev(&ENDPOINTS[2..]).manifest()]);
    let (mut lab, mut cluster) = lab_with(&setup, cluster);
    let mut reversed = ENDPOINTS;
    reversed.reverse();
    for endpoints in [&ENDPOINTS[..3], &reversed] {
        cluster.apply(&maglev(endpoints).manifest()).unwrap();
        lab.update(&cluster).unwrap();
    }
    let old = choices(&mut lab, NODE);
    drop(lab);
    let fresh = on_node(&services_cluster(&[maglev(&ENDPOINTS).manifest()]), &PODS);
    assert_eq!(old, fresh);
}

#[test]
fn an_endpoint_that_goes_moves_few_others() {
    let before = on_node(&services_cluster(&[maglev(&ENDPOINTS).manifest()]), &PODS);
    let cluster = services_cluster(&[maglev(&ENDPOINTS[1..]).manifest()]);
    let after = on_node(&cluster, &PODS);
    let gone = FAMILIES.map(|f| ENDPOINTS[0].at(f));
    assert!(after.values().all(|endpoint| !gone.contains(endpoint)));
    let stayed = before
        .iter()
        .filter(|(_, endpoint)| !gone.contains(endpoint));
    let (mut all, mut moved) = (0, 0);
    for (flow, endpoint) in stayed {
        all += 1;
        moved += usize::from(after[flow] != *endpoint);
    }
    // By chance, three of four would.
    assert!(moved * 10 < all, "{moved} of {all}");
}

#[test]
fn a_flow_whose_entry_is_gone_finds_its_endpoint_again() {
    for f in families() {
        let (mut lab, _) = services_lab(&[maglev(&ENDPOINTS).manifest()]);
        let mut used = BTreeSet::new();
        for port in 40000..40100 {
            let packet = |flags| {
                let payload = Payload::tcp(port, 80, flags);
                Address::ClusterIp.asked_by(f, &WEB, payload)
            };
            let first = served(&mut lab, &WEB, &packet(SYN)).destination;
            lab.forget_flows().unwrap();
            let then = served(&mut lab, &WEB, &packet(ACK)).destination;
            assert_eq!(first, then);
            used.insert(first);
        }
        assert_eq!(used.len(), ENDPOINTS.len());
    }
}

#[test]
fn only_local_endpoints_where_only_those_serve() {
    let service = maglev(&ENDPOINTS).spec("externalTrafficPolicy: Local");
    let here = on_node(&services_cluster(&[service.manifest()]), &PODS);
    let local: BTreeSet<_> = [DB, DB2]
        .iter()
        .flat_map(|pod| FAMILIES.map(|f: Family| pod.at(f)))
        .collect();
    let used: BTreeSet<_> = here.into_values().collect();
    assert_eq!(used, local);
}
