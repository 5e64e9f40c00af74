//! The node's own processes: a service's address becomes an endpoint's in the socket.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use aya::util::KernelVersion;
use weft_abi::drop::DropReason;
use weft_tests::packet::{
    Family, Lab, Place, Sockets, Somewhere as _,
    scene::{NOBODYS_VIP, NODE, OUTSIDE, REMOTE, VIP, families, node_place, service, uplink_lab},
    services::{ADDRESSES, Address, Balanced, services_lab},
};

use crate::support::skipped;

/// How long a socket waits for another.
const PATIENCE: Duration = Duration::from_secs(10);

/// The socket programs of a lab, unless this kernel cannot tell whose sockets they are for.
fn attach(lab: &mut Lab) -> Option<Sockets> {
    if !lab.knows_its_namespace() {
        skipped("this kernel numbers no namespaces: sockets are those of its first one");
        return None;
    }
    Some(lab.attach_sockets().unwrap())
}

/// Runs work as a process of the node: the programs see only that thread's sockets.
fn in_process<T: Send>(sockets: &Sockets, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let process = scope.spawn(|| {
            sockets.enter().unwrap();
            work()
        });
        process.join().unwrap()
    })
}

/// Where the service has its TCP and its UDP port.
fn ports(f: Family, address: Address) -> [SocketAddr; 2] {
    let ports = match address {
        Address::NodePort => [30080, 30053],
        _ => [80, 53],
    };
    ports.map(|port| (address.place(VIP).at(f), port).into())
}

#[test]
fn a_process_of_the_node_reaches_a_service() {
    // An endpoint in the node's network, as the API server's are.
    let (mut lab, _) = uplink_lab(&[service("s", VIP, &[NODE])]);
    let Some(sockets) = attach(&mut lab) else {
        return;
    };
    for f in families() {
        reaches(
            &sockets,
            f,
            [(VIP.at(f), 80).into(), (VIP.at(f), 53).into()],
        );
    }
}

#[test]
fn and_does_so_at_each_of_its_addresses() {
    for policy in ["Cluster", "Local"] {
        let service = Balanced::with(&[NODE])
            .spec(&format!("externalTrafficPolicy: {policy}"))
            .spec(&format!("internalTrafficPolicy: {policy}"));
        let (mut lab, _) = services_lab(&[service.manifest()]);
        let Some(sockets) = attach(&mut lab) else {
            return;
        };
        for f in families() {
            for address in ADDRESSES {
                reaches(&sockets, f, ports(f, address));
            }
        }
    }
}

/// A process reaches these ports of a service that the node itself serves, by TCP and UDP.
fn reaches(sockets: &Sockets, f: Family, [tcp, udp]: [SocketAddr; 2]) {
    let node = NODE.at(f);
    let listener = TcpListener::bind((node, 8080)).unwrap();
    let server = UdpSocket::bind((node, 5353)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        let process = scope.spawn(|| {
            sockets.enter().unwrap();
            let mut stream = TcpStream::connect_timeout(&tcp, PATIENCE).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), tcp);
            stream.write_all(b"hello").unwrap();

            let client = UdpSocket::bind((node, 0)).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(b"question", udp).unwrap();
            let mut answer = [0; 16];
            let (length, from) = client.recv_from(&mut answer).unwrap();
            assert_eq!(&answer[..length], b"answer");
            assert_eq!(from, udp, "it sees whom it asked");
        });
        let mut question = [0; 16];
        let (length, client) = server.recv_from(&mut question).unwrap();
        assert_eq!(&question[..length], b"question");
        server.send_to(b"answer", client).unwrap();
        process.join().unwrap();
    });
    let mut hello = String::new();
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_to_string(&mut hello).unwrap();
    assert_eq!(hello, "hello");
}

/// The error of a call that the programs refuse, on this kernel.
fn error_of(call: Call, wanted: i32) -> i32 {
    // From 6.1 on they choose it. Before, they can lead a TCP connection to where nobody listens.
    let chooses = KernelVersion::current().unwrap() >= KernelVersion::new(6, 1, 0);
    if chooses || (call == Call::Tcp && wanted == libc::ECONNREFUSED) {
        wanted
    } else {
        libc::EPERM
    }
}

/// The calls that say where to go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Tcp,
    UdpConnect,
    UdpSend,
}

impl Call {
    /// What comes of it; what it sends, if it sends, is lost.
    fn run(self, f: Family, to: SocketAddr) -> io::Result<()> {
        if self == Call::Tcp {
            // Not waited for: what is not refused may be answered by nobody.
            let stream = TcpStream::connect_timeout(&to, Duration::from_millis(1));
            return match stream {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(()),
                other => other.map(drop),
            };
        }
        let socket = UdpSocket::bind((f.unspecified(), 0))?;
        match self {
            Call::UdpConnect => socket.connect(to),
            _ => socket.send_to(b"hello", to).map(drop),
        }
    }
}

/// Every call to these is refused for this reason.
#[track_caller]
fn refused(lab: &Lab, sockets: &Sockets, to: [SocketAddr; 2], reason: DropReason, wanted: i32) {
    let [tcp, udp] = to;
    for (call, to) in [
        (Call::Tcp, tcp),
        (Call::UdpConnect, udp),
        (Call::UdpSend, udp),
    ] {
        let before = lab.drops(reason).unwrap();
        let f = Family::of(to.ip());
        let error = in_process(sockets, || call.run(f, to)).unwrap_err();
        let expected = error_of(call, wanted);
        assert_eq!(error.raw_os_error(), Some(expected), "{call:?} {to}");
        let after = lab.drops(reason).unwrap();
        assert_eq!(after, before + 1, "{call:?} {to}: {}", reason.name());
    }
}

/// No call to these is refused.
#[track_caller]
fn let_go(sockets: &Sockets, [tcp, udp]: [SocketAddr; 2]) {
    for (call, to) in [
        (Call::Tcp, tcp),
        (Call::UdpConnect, udp),
        (Call::UdpSend, udp),
    ] {
        let f = Family::of(to.ip());
        let result = in_process(sockets, || call.run(f, to));
        assert!(result.is_ok(), "{call:?} {to}: {result:?}");
    }
}

#[test]
fn a_service_without_endpoints_refuses() {
    let (mut lab, _) = services_lab(&[Balanced::with(&[]).manifest()]);
    let Some(sockets) = attach(&mut lab) else {
        return;
    };
    for f in families() {
        for address in ADDRESSES {
            let to = ports(f, address);
            let reason = DropReason::NoBackend;
            refused(&lab, &sockets, to, reason, libc::ECONNREFUSED);
        }
    }
}

#[test]
fn without_an_endpoint_here_where_the_policy_wants_one() {
    let service = Balanced::with(&[REMOTE])
        .spec("internalTrafficPolicy: Local")
        .spec("externalTrafficPolicy: Local");
    let (mut lab, _) = services_lab(&[service.manifest()]);
    let Some(sockets) = attach(&mut lab) else {
        return;
    };
    for f in families() {
        let to = ports(f, Address::ClusterIp);
        let reason = DropReason::NoLocalBackend;
        refused(&lab, &sockets, to, reason, libc::EHOSTUNREACH);
        // The external policy is not about this node's own processes.
        for address in [
            Address::NodePort,
            Address::LoadBalancer,
            Address::ExternalIp,
        ] {
            let_go(&sockets, ports(f, address));
        }
    }
}

#[test]
fn addresses_and_ports_that_no_service_has() {
    let (mut lab, _) = services_lab(&[Balanced::with(&[NODE]).manifest()]);
    let Some(sockets) = attach(&mut lab) else {
        return;
    };
    for f in families() {
        let at = |place: Place, port| [(place.at(f), port).into(); 2];
        refused(
            &lab,
            &sockets,
            at(NOBODYS_VIP, 80),
            DropReason::UnallocatedAddress,
            libc::EHOSTUNREACH,
        );
        refused(
            &lab,
            &sockets,
            at(VIP, 81),
            DropReason::NoServicePort,
            libc::ECONNREFUSED,
        );
        // Everybody else's.
        let_go(&sockets, at(OUTSIDE, 80));
    }
}

#[test]
fn source_ranges_are_for_the_node_too() {
    let (mut lab, mut cluster) = services_lab(&[]);
    let Some(sockets) = attach(&mut lab) else {
        return;
    };
    for (ranges, lets_in) in [
        ("192.0.2.0/24, \"2001:db8:7::/64\"", false),
        ("172.30.0.0/24, \"fd00:172:30::/64\"", true),
        ("0.0.0.0/0, \"::/0\"", true),
    ] {
        let ranges = format!("loadBalancerSourceRanges: [{ranges}]");
        let service = Balanced::with(&[REMOTE]).spec(&ranges);
        cluster.apply(&service.manifest()).unwrap();
        lab.update(&cluster).unwrap();
        for f in families() {
            let to = ports(f, Address::LoadBalancer);
            if lets_in {
                let_go(&sockets, to);
            } else {
                let reason = DropReason::SourceRange;
                refused(&lab, &sockets, to, reason, libc::EPERM);
            }
            for address in [Address::ClusterIp, Address::NodePort, Address::ExternalIp] {
                let_go(&sockets, ports(f, address));
            }
        }
    }
}

#[test]
fn all_processes_of_the_node_are_one_client() {
    let second = node_place(77);
    let service = Balanced::with(&[NODE, second])
        .spec("sessionAffinity: ClientIP")
        .spec("sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}");
    let (mut lab, mut cluster) = services_lab(&[service.manifest()]);
    let Some(sockets) = attach(&mut lab) else {
        return;
    };
    lab.add_address(second).unwrap();
    for f in families() {
        // The endpoint that a process gets which asks at this address.
        let servers = [NODE, second].map(|place| {
            let server = UdpSocket::bind((place.at(f), 5353)).unwrap();
            server.set_nonblocking(true).unwrap();
            server
        });
        let ask = |address: Address| -> IpAddr {
            let [_, to] = ports(f, address);
            in_process(&sockets, || Call::UdpSend.run(f, to)).unwrap();
            // Delivered by the loopback device before the call returns.
            let mut got = servers
                .iter()
                .filter(|server| server.recv(&mut [0; 16]).is_ok());
            let server = got.next().expect("one of them got it");
            assert!(got.next().is_none(), "and only one");
            server.local_addr().unwrap().ip()
        };
        let first = ask(Address::ClusterIp);
        for _ in 0..20 {
            for address in ADDRESSES {
                assert_eq!(ask(address), first);
            }
        }
        let other = if first == NODE.at(f) { second } else { NODE };
        let gone = Balanced::with(&[other])
            .spec("sessionAffinity: ClientIP")
            .spec("sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}");
        cluster.apply(&gone.manifest()).unwrap();
        lab.update(&cluster).unwrap();
        assert_eq!(ask(Address::NodePort), other.at(f));
        cluster.apply(&service.manifest()).unwrap();
        lab.update(&cluster).unwrap();
        for _ in 0..20 {
            assert_eq!(ask(Address::NodePort), other.at(f), "it has that now");
        }
    }
}
