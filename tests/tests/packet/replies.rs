//! Whatever an endpoint says, in whatever state its connection is, has the service's address.

use weft_abi::drop::DropReason;
use weft_core::model::Routing;
use weft_tests::packet::{
    Cluster, Family, Lab, LocalPod, Place, Setup, Somewhere as _,
    bytes::{ACK, FIN, Packet, Payload, RST, SYN},
    scene::{DB, DB2, NODE, OUTSIDE, REMOTE, VIP, WEB, dropped, families, lab_with},
    services::{Address, Balanced, services_cluster, services_lab},
};

use crate::support::{answer, served, served_outside};

/// What nobody expects of a connection, in an order that ends it several times.
const STRAYS: [u8; 9] = [
    SYN | ACK,
    ACK,
    RST,
    ACK,
    FIN | ACK,
    RST | ACK,
    FIN,
    FIN | ACK,
    ACK,
];

/// What becomes of a service: step by step, nothing is left of it.
fn steps(endpoint: Place) -> Vec<Option<Balanced>> {
    vec![
        Some(Balanced::with(&[endpoint])),
        Some(Balanced::with(&[DB2.place]).and_terminating(endpoint)),
        Some(Balanced::with(&[DB2.place])),
        Some(Balanced::with(&[])),
        None,
    ]
}

fn step(lab: &mut Lab, cluster: &mut Cluster, service: Option<&Balanced>) {
    match service {
        Some(service) => cluster.apply(&service.manifest()).unwrap(),
        None => {
            cluster.state.services.clear();
            cluster.state.slices.clear();
        }
    }
    lab.update(cluster).unwrap();
}

/// A segment of the endpoint's.
fn segment(to_client: &Packet, flags: u8) -> Packet {
    let mut packet = to_client.clone();
    if let Payload::Tcp { flags: old, .. } = &mut packet.payload {
        *old = flags;
    }
    packet
}

/// What came of the endpoint's packet is of whom the client asked.
#[track_caller]
fn is_of_service(asked: &Packet, came: &Packet) {
    assert_eq!(
        (came.source, came.destination),
        (asked.destination, asked.source)
    );
    let (source, destination) = asked.payload.ports();
    assert_eq!(came.payload.ports(), (destination, source));
}

#[test]
fn to_pods_of_the_node() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let asked = Address::ClusterIp.asked_by(f, &WEB, Payload::tcp(40000, 80, SYN));
        let went = served(&mut lab, &WEB, &asked);
        let back = answer(&went).sent_by(DB.mac);
        for service in steps(DB.place) {
            step(&mut lab, &mut cluster, service.as_ref());
            for flags in STRAYS {
                let came = lab.send(&DB, &segment(&back, flags)).packet();
                is_of_service(&asked, &came);
                assert_eq!(came.destination_mac, WEB.mac);
            }
        }
    }
}

#[test]
fn to_the_outside() {
    for f in families() {
        for address in [Address::NodePort, Address::LoadBalancer] {
            let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
            let asked = address.asked_outside(f, OUTSIDE, Payload::tcp(50000, 80, SYN));
            let came = served_outside(&mut lab, &asked);
            let back = answer(&came).sent_by(DB.mac);
            for service in steps(DB.place) {
                step(&mut lab, &mut cluster, service.as_ref());
                for flags in STRAYS {
                    let left = lab.send(&DB, &segment(&back, flags)).packet();
                    is_of_service(&asked, &left);
                }
            }
        }
    }
}

#[test]
fn of_other_nodes() {
    for f in families() {
        let mut cluster = services_cluster(&[Balanced::with(&[REMOTE]).manifest()]);
        cluster.state.settings.routing = Routing::Native;
        let (mut lab, mut cluster) = lab_with(&Setup::uplink(), cluster);
        let asked = Address::NodePort.asked_outside(f, OUTSIDE, Payload::tcp(50000, 80, SYN));
        let went = served_outside(&mut lab, &asked);
        let inside = Address::ClusterIp.asked_by(f, &WEB, Payload::tcp(40000, 80, SYN));
        let inside_went = served(&mut lab, &WEB, &inside);
        for service in steps(REMOTE) {
            step(&mut lab, &mut cluster, service.as_ref());
            for flags in STRAYS {
                let left = lab.arrive(&segment(&answer(&went), flags)).packet();
                is_of_service(&asked, &left);
                let came = lab.arrive(&segment(&answer(&inside_went), flags)).packet();
                is_of_service(&inside, &came);
                assert_eq!(came.destination_mac, WEB.mac);
            }
        }
    }
}

#[test]
fn of_the_nodes_own_processes() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[NODE]).manifest()]);
        let asked = Address::NodePort.asked_outside(f, OUTSIDE, Payload::tcp(50000, 80, SYN));
        let verdict = lab.arrive(&asked);
        assert!(verdict.passed());
        let back = answer(&verdict.packet());
        for service in steps(NODE) {
            step(&mut lab, &mut cluster, service.as_ref());
            for flags in STRAYS {
                let verdict = lab.leave(0, &segment(&back, flags));
                assert!(verdict.passed(), "{verdict:?}");
                is_of_service(&asked, &verdict.packet());
            }
        }
    }
}

/// Sends a segment of a client with these flags; what it sends, and what the endpoint gets.
type Ask = fn(&mut Lab, Family, u8) -> (Packet, Packet);

/// The client's port is used again, for another endpoint.
#[test]
fn of_an_endpoint_that_the_client_has_left() {
    for f in families() {
        let (mut lab, mut cluster) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let asks: [Ask; 2] = [
            |lab, f, flags| {
                let asked = f.from(&WEB, VIP, Payload::tcp(40000, 80, flags));
                let went = served(lab, &WEB, &asked);
                (asked, went)
            },
            |lab, f, flags| {
                let payload = Payload::tcp(50000, 80, flags);
                let asked = Address::NodePort.asked_outside(f, OUTSIDE, payload);
                let went = served_outside(lab, &asked);
                (asked, went)
            },
        ];
        let old = asks.map(|ask| ask(&mut lab, f, SYN));
        for ask in asks {
            ask(&mut lab, f, RST);
        }
        step(&mut lab, &mut cluster, Some(&Balanced::with(&[DB2.place])));
        let new = asks.map(|ask| ask(&mut lab, f, SYN));
        let say = |lab: &mut Lab, pod: &LocalPod, (asked, went): &(Packet, Packet), flags| {
            let back = segment(&answer(went), flags).sent_by(pod.mac);
            let came = lab.send(pod, &back).packet();
            is_of_service(asked, &came);
        };
        for (old, new) in old.iter().zip(&new) {
            assert_eq!(
                (old.1.destination, new.1.destination),
                (DB.at(f), DB2.at(f))
            );
            for flags in STRAYS {
                say(&mut lab, &DB, old, flags);
                say(&mut lab, &DB2, new, ACK);
            }
        }
        for ask in asks {
            assert_eq!(ask(&mut lab, f, ACK).1.destination, DB2.at(f));
        }
    }
}

/// In the name of a service nobody speaks but its endpoints.
#[test]
fn of_nobody_else() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        let asked = Address::NodePort.asked_outside(f, OUTSIDE, Payload::tcp(50000, 80, SYN));
        served_outside(&mut lab, &asked);
        // Another pod with the address of the endpoint.
        let false_endpoint = f.from(&DB, OUTSIDE, Payload::tcp(8080, 50000, ACK));
        let false_endpoint = false_endpoint.sent_by(DB2.mac);
        let verdict = lab.send(&DB2, &false_endpoint);
        assert_eq!(verdict, dropped(DropReason::Spoofed));
        // Somebody outside with the node's.
        let own = f.packet(NODE, DB, Payload::tcp(50000, 8080, SYN));
        let verdict = lab.arrive(&own);
        assert_eq!(verdict, dropped(DropReason::Spoofed));
    }
}
