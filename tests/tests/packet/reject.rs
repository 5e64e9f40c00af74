//! What is rejected: who asks is told at once, in a way that he believes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use weft_abi::drop::DropReason;
use weft_tests::packet::{
    Cluster, Context, Ends, Family, Setup, Somewhere as _, Verdict, Wire,
    bytes::{ACK, Extension, FIN, INIT, Packet, Payload, RST, SYN},
    scene::{DB, NODE, OUTSIDE, PODS, VIP, WEB, cluster, dropped, families, lab_with},
    services::{ADDRESSES, Address, Balanced, requests, services_cluster, services_lab},
};

use crate::support::{is_rejection, rejected, rejected_outside};

/// How long a socket waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// TCP segments of every kind, to the service's port.
fn segments(source: u16) -> Vec<Payload> {
    let with = |flags, length| Payload::Tcp {
        source,
        destination: 80,
        flags,
        data: vec![7; length],
    };
    vec![
        with(SYN, 0),
        // Fast open.
        with(SYN, 9),
        with(ACK, 0),
        with(ACK, 1_301),
        with(FIN | ACK, 3),
        with(FIN, 0),
        with(SYN | ACK, 0),
        with(0, 5),
    ]
}

#[test]
fn a_service_without_endpoints_rejects_pods() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[]).manifest()]);
        for address in ADDRESSES {
            let other = requests(40000).into_iter().skip(1);
            for payload in segments(40000).into_iter().chain(other) {
                let sent = address.asked_by(f, &WEB, payload);
                rejected(&mut lab, DropReason::NoBackend, &WEB, &sent);
            }
            assert!(lab.flows().unwrap().is_empty());
        }
    }
}

#[test]
fn a_service_without_endpoints_rejects_the_outside() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[]).manifest()]);
        for address in ADDRESSES {
            let other = requests(50000).into_iter().skip(1);
            for payload in segments(50000).into_iter().chain(other) {
                let sent = address.asked_outside(f, OUTSIDE, payload);
                rejected_outside(&mut lab, DropReason::NoBackend, &sent);
            }
            assert!(lab.flows().unwrap().is_empty());
        }
    }
}

#[test]
fn the_policy_of_local_endpoints_does_not_matter_without_any() {
    for f in families() {
        let service = Balanced::with(&[])
            .spec("externalTrafficPolicy: Local")
            .spec("internalTrafficPolicy: Local");
        let (mut lab, _) = services_lab(&[service.manifest()]);
        for address in ADDRESSES {
            for request in requests(40000) {
                let sent = address.asked_by(f, &WEB, request.clone());
                rejected(&mut lab, DropReason::NoBackend, &WEB, &sent);
                let sent = address.asked_outside(f, OUTSIDE, request);
                rejected_outside(&mut lab, DropReason::NoBackend, &sent);
            }
        }
    }
}

#[test]
fn the_length_of_what_is_rejected_does_not_matter() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[]).manifest()]);
        for length in [0, 1, 2, 3, 17, 1_000, 1_001, 3_000] {
            let sent = f.from(&WEB, VIP, Payload::udp_with(40000, 53, vec![9; length]));
            rejected(&mut lab, DropReason::NoBackend, &WEB, &sent);
        }
        // Without a checksum of its own, the quote has none either.
        if f == Family::V4 {
            let payload = Payload::Udp {
                source: 40000,
                destination: 53,
                checksum: false,
                data: vec![1; 40],
            };
            let sent = f.from(&WEB, VIP, payload);
            rejected(&mut lab, DropReason::NoBackend, &WEB, &sent);
        }
    }
}

#[test]
fn answers_are_not_answered() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[]).manifest()]);
        for flags in [RST, RST | ACK] {
            let payload = Payload::tcp(40000, 80, flags);
            let sent = f.from(&WEB, VIP, payload.clone());
            assert_eq!(lab.send(&WEB, &sent), dropped(DropReason::NoBackend));
            let sent = Address::NodePort.asked_outside(f, OUTSIDE, payload);
            assert_eq!(lab.arrive(&sent), dropped(DropReason::NoBackend));
        }
    }
}

#[test]
fn what_is_not_whole_is_not_answered() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[]).manifest()]);
        let long = f.from(&WEB, VIP, Payload::udp_with(40000, 53, vec![7; 3_000]));
        let first = long.split(1_400, 5).swap_remove(0);
        assert_eq!(lab.send(&WEB, &first), dropped(DropReason::NoBackend));
        // Nor is what has more headers than an answer could have.
        let mut odd = f.from(&WEB, VIP, Payload::udp(40000, 53));
        match f {
            Family::V4 => odd.options = vec![1; 8],
            Family::V6 => {
                odd = odd.with_extensions(&[Extension::Destination(vec![1, 4, 0, 0, 0, 0])]);
            }
        }
        assert_eq!(lab.send(&WEB, &odd), dropped(DropReason::NoBackend));
    }
}

#[test]
fn what_stands_for_many_packets_gets_one_answer() {
    let (mut lab, _) = services_lab(&[Balanced::with(&[]).manifest()]);
    for f in families() {
        for (payload, segment) in [
            (
                Payload::Tcp {
                    source: 40000,
                    destination: 80,
                    flags: ACK,
                    data: vec![3; 3_000],
                },
                1_000,
            ),
            (Payload::udp_with(40000, 53, vec![3; 3_000]), 1_000),
        ] {
            let sent = f.from(&WEB, VIP, payload);
            let context = Context {
                ifindex: lab.interface(&WEB),
                gso_size: segment,
                ..Context::default()
            };
            let verdict = lab
                .run("from_container", context, &sent.to_bytes())
                .unwrap();
            let Verdict::Redirect(frame, 0) = &verdict else {
                panic!("no answer: {verdict:?}")
            };
            is_rejection(&sent, frame);
        }
    }
}

#[test]
fn a_port_that_a_cluster_ip_does_not_have() {
    for f in families() {
        let (mut lab, _) = services_lab(&[Balanced::with(&[DB.place]).manifest()]);
        for payload in [
            Payload::tcp(40000, 81, SYN),
            Payload::tcp(40000, 81, ACK),
            // Its ports, but of other protocols; those of nodes, and of endpoints.
            Payload::tcp(40000, 53, SYN),
            Payload::udp(40000, 80),
            Payload::sctp(40000, 80, INIT),
            Payload::tcp(40000, 30080, SYN),
            Payload::tcp(40000, 8080, SYN),
            Payload::echo(true, 1),
        ] {
            let sent = f.from(&WEB, VIP, payload.clone());
            rejected(&mut lab, DropReason::NoServicePort, &WEB, &sent);
            let sent = f.packet(OUTSIDE, VIP, payload);
            rejected_outside(&mut lab, DropReason::NoServicePort, &sent);
        }
        let reset = f.from(&WEB, VIP, Payload::tcp(40000, 81, RST));
        assert_eq!(lab.send(&WEB, &reset), dropped(DropReason::NoServicePort));
        let reset = f.packet(OUTSIDE, VIP, Payload::tcp(40000, 81, RST));
        assert_eq!(lab.arrive(&reset), dropped(DropReason::NoServicePort));
        assert!(lab.flows().unwrap().is_empty());
    }
}

/// The same without a network of cluster IPs, as older API servers have it.
#[test]
fn a_port_that_a_cluster_ip_does_not_have_in_an_old_cluster() {
    for f in families() {
        let service = Balanced::with(&[DB.place]).manifest();
        let cluster = cluster(&[service]);
        let (mut lab, _) = lab_with(&Setup::uplink(), cluster);
        let payload = Payload::tcp(40000, 81, SYN);
        let sent = f.from(&WEB, VIP, payload.clone());
        rejected(&mut lab, DropReason::NoServicePort, &WEB, &sent);
        let sent = f.packet(OUTSIDE, VIP, payload);
        rejected_outside(&mut lab, DropReason::NoServicePort, &sent);
    }
}

/// Frames on wires: the answer gets to who asked.
#[test]
fn answers_arrive() {
    let mut cluster = services_cluster(&[Balanced::with(&[]).manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for address in ADDRESSES {
            for request in requests(40000) {
                let sent = address.asked_by(f, &WEB, request.clone());
                wire.send(&WEB, &sent).unwrap();
                let told = wire.at_pod(&WEB).unwrap();
                is_rejection_of(&sent, &told);
                assert_eq!(told.destination_mac, WEB.mac);
                let sent = address.asked_outside(f, OUTSIDE, request);
                wire.arrive(&sent).unwrap();
                is_rejection_of(&sent, &wire.outside().unwrap());
            }
        }
    }
}

/// What was sent and what came of it are each other's ends; the rest is proven elsewhere.
#[track_caller]
fn is_rejection_of(sent: &Packet, told: &Packet) {
    assert_eq!(
        (told.source, told.destination),
        (sent.destination, sent.source)
    );
    match &told.payload {
        Payload::Tcp { flags, .. } => assert_eq!(*flags, RST | ACK),
        Payload::Error { .. } => {
            let quoted = told.quoted();
            assert_eq!(
                (quoted.source, quoted.destination),
                (sent.source, sent.destination)
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Sockets in a pod, and outside. Their checksums are left to devices that there are none of, and
/// what they send at once is cut at the very end.
fn inhabited(service: &Balanced) -> (Wire, Cluster, Ends) {
    let mut cluster = services_cluster(&[service.manifest()]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    let ends = wire.inhabit(&WEB).unwrap();
    (wire, cluster, ends)
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(result: anyhow::Result<T>) {
    let error = result.unwrap_err();
    let error = error.downcast_ref::<io::Error>().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn sockets_believe_the_answer() {
    let (_wire, _, ends) = inhabited(&Balanced::with(&[]));
    for f in families() {
        let connect = |to| move || TcpStream::connect_timeout(&to, PATIENCE);
        let ask = |to: SocketAddr, length: usize, segment: Option<u16>| {
            move || {
                let socket = UdpSocket::bind((f.unspecified(), 0))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(to)?;
                if let Some(segment) = segment {
                    cut_into(&socket, segment)?;
                }
                socket.send(&vec![7; length])?;
                socket.recv(&mut [0; 16])
            }
        };
        for address in ADDRESSES {
            let to = |port| {
                let ports = address.payload(Payload::udp(1, port)).ports();
                (address.place(VIP).at(f), ports.1).into()
            };
            is_refused(ends.in_pod(connect(to(80))));
            is_refused(ends.in_pod(ask(to(53), 5, None)));
            is_refused(ends.in_pod(ask(to(53), 1_001, None)));
            // Several datagrams at once.
            is_refused(ends.in_pod(ask(to(53), 4_000, Some(1_000))));
        }
        let to = |port| (NODE.at(f), port).into();
        is_refused(ends.outside(connect(to(30080))));
        is_refused(ends.outside(ask(to(30053), 5, None)));
        is_refused(ends.outside(ask(to(30053), 4_000, Some(1_000))));
        // A port that the service does not have.
        let to = |port| (VIP.at(f), port).into();
        is_refused(ends.in_pod(connect(to(81))));
        is_refused(ends.in_pod(ask(to(81), 5, None)));
    }
}

/// Lets the kernel cut what is sent at once into datagrams of this many bytes.
fn cut_into(socket: &UdpSocket, segment: u16) -> io::Result<()> {
    Ok(setsockopt(socket, UdpGsoSegment, &i32::from(segment))?)
}

/// A connection whose flow is forgotten, to a service that has no endpoints any more: what it sends is
/// many segments at once.
#[test]
fn a_connection_that_nobody_has_any_more_is_reset() {
    for f in families() {
        let (mut wire, mut cluster, ends) = inhabited(&Balanced::with(&[NODE]));
        let listener = TcpListener::bind((NODE.at(f), 8080)).unwrap();
        let to = (VIP.at(f), 80).into();
        let connected = ends.in_pod(|| TcpStream::connect_timeout(&to, PATIENCE));
        let mut client = connected.unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        server.write_all(b"hello").unwrap();
        let mut hello = [0; 5];
        client.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        cluster.apply(&Balanced::with(&[]).manifest()).unwrap();
        wire.lab.update(&cluster).unwrap();
        // What is established is left alone.
        client.write_all(&[7; 20_000]).unwrap();
        let mut got = vec![0; 20_000];
        server.read_exact(&mut got).unwrap();
        wire.lab.forget_flows().unwrap();
        // The first write may be done before the answer is there.
        let written = client.write_all(&[7; 60_000]);
        let error = match written {
            Ok(()) => client.read(&mut [0; 1]).unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
