//! Sockets of the node's own processes, against the real kernel: in network namespaces that end with
//! the test. Needs root; without it the tests say so and pass.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};
use weft_agent::netlink::Netlink;
use weft_agent::netlink::diag::{self, Connected};

sockopt_impl!(
    /// The cookie of a socket.
    Cookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_COOKIE,
    u64
);

/// Runs a test in a network namespace of its own, with loopback up.
fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a network namespace needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let netlink = Netlink::host().expect("a socket");
            let lo = netlink.link("lo").await.expect("loopback");
            netlink.set_up(&lo).await.expect("set up");
        });
        test();
    });
    thread.join().expect("the test passes");
}

/// A socket of this family that is connected to an address; what is known of it.
fn connect(bind: &str, to: SocketAddr) -> (UdpSocket, Connected) {
    let socket = UdpSocket::bind(bind).expect("a socket");
    socket.connect(to).expect("connects");
    let cookie = getsockopt(&socket, Cookie).expect("a cookie");
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    (socket, Connected { cookie, to })
}

/// Whether the socket still is what it was.
fn lives(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).expect("set");
    let received = socket.recv(&mut [0]).expect_err("nobody sends");
    match received.kind() {
        ErrorKind::WouldBlock => socket.peer_addr().is_ok(),
        ErrorKind::ConnectionAborted => {
            socket.peer_addr().expect_err("is connected no more");
            false
        }
        other => panic!("{other}"),
    }
}

#[test]
fn exactly_the_named_sockets_are_ended() {
    in_a_namespace(|| {
        // Somebody listens, so that no answer of the kernel is mistaken for an end.
        let servers = ["127.0.0.1:0", "[::1]:0"].map(|at| UdpSocket::bind(at).expect("listens"));
        let [v4, v6] = servers
            .each_ref()
            .map(|server| server.local_addr().expect("an address"));
        let mapped = format!("[::ffff:127.0.0.1]:{}", v4.port());
        let mapped = mapped.parse().expect("an address");
        let gone = [
            connect("127.0.0.1:0", v4),
            connect("[::1]:0", v6),
            connect("[::]:0", mapped),
        ];
        let others = [
            connect("127.0.0.1:0", v4),
            connect("[::1]:0", v6),
            connect("[::]:0", mapped),
        ];
        assert_eq!(diag::end_udp(&BTreeSet::new()).expect("nothing to do"), 0);
        // The cookie of one socket, the destination of another.
        let mixed = Connected {
            cookie: others[0].1.cookie,
            to: v6,
        };
        assert_eq!(diag::end_udp(&[mixed].into()).expect("none"), 0);
        assert!(gone.iter().chain(&others).all(|(socket, _)| lives(socket)));

        let named: BTreeSet<_> = gone.iter().map(|(_, known)| *known).collect();
        assert_eq!(diag::end_udp(&named).expect("ends"), 3);
        assert!(gone.iter().all(|(socket, _)| !lives(socket)));
        assert!(others.iter().all(|(socket, _)| lives(socket)));
        assert_eq!(diag::end_udp(&named).expect("none left"), 0);

        // The process goes on with the same socket, if it likes.
        let (socket, _) = &gone[0];
        socket.connect(v4).expect("connects");
        socket.send(b"!").expect("sends");
    });
}
