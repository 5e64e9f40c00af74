//! The node's network against the real kernel, in network namespaces that end with the test.
//!
//! Needs root; without it the tests say so and pass.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use weft_abi::{GATEWAY_MAC, OVERLAY_MAC};
use weft_agent::netlink::routes::{self, Outcome, Route, Via};
use weft_agent::netlink::veth::{self, Pair};
use weft_agent::netlink::{NetNs, Netlink, overlay, sysctl};

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 30, 0, 2));
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 7));

/// Runs a test in a network namespace of its own, which is a node: loopback is up and has the
/// node's address. The namespace ends with the thread.
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Netlink) -> F + Send + 'static) {
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
        runtime.block_on(async move {
            let netlink = Netlink::host().expect("a socket");
            let lo = netlink.link("lo").await.expect("loopback");
            netlink.set_up(&lo).await.expect("set up");
            add_address(lo.index, NODE).await;
            test(netlink).await;
        });
    });
    thread.join().expect("the test passes");
}

async fn add_address(index: u32, address: IpAddr) {
    let (connection, handle, _) = rtnetlink::new_connection().expect("a socket");
    let connection = tokio::spawn(connection);
    handle
        .address()
        .add(index, address, 32)
        .execute()
        .await
        .expect("an address");
    connection.abort();
}

/// A pod: a thread in a namespace of its own, which answers one TCP connection and ends with
/// `stop`.
struct PodProcess {
    netns: PathBuf,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl PodProcess {
    fn start() -> Self {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            let tid = nix::unistd::gettid();
            let path = PathBuf::from(format!("/proc/self/task/{tid}/ns/net"));
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).expect("listens");
            std::thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    let peer = stream.peer_addr().expect("a peer");
                    let _ = write!(stream, "{}", peer.ip());
                }
            });
            tell.send(path).expect("the test waits");
            // Ends when the test drops the sender.
            let _ = stopped.recv();
        });
        let netns = told.recv().expect("the pod starts");
        Self {
            netns,
            stop,
            thread,
        }
    }

    fn end(self) {
        drop(self.stop);
        self.thread.join().expect("the pod ends");
    }
}

fn ask(address: IpAddr) -> String {
    let address = SocketAddr::new(address, 8080);
    let mut stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connects");
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a timeout");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn the_overlay_device_is_made_once_and_repaired() {
    on_a_node(|netlink| async move {
        let made = overlay::ensure(&netlink, 1450).await.expect("made");
        assert_eq!((made.mtu, made.up, made.noarp), (1450, false, true));
        overlay::activate(&netlink, &made).await.expect("set up");
        let made = netlink.link(overlay::DEVICE).await.expect("there");
        assert!(made.up);
        assert_eq!(made.mac, OVERLAY_MAC);
        let again = overlay::ensure(&netlink, 1450).await.expect("there");
        assert_eq!(again, made);
        let smaller = overlay::ensure(&netlink, 1400).await.expect("changed");
        assert_eq!((smaller.index, smaller.mtu), (made.index, 1400));

        netlink.delete_link(&smaller).await.expect("removed");
        netlink.delete_link(&smaller).await.expect("gone is fine");
        let other = rtnetlink::LinkVxlan::new(overlay::DEVICE, 9)
            .port(8472)
            .build();
        netlink
            .add_link("another device of the name", other)
            .await
            .expect("made");
        let wrong = netlink.link(overlay::DEVICE).await.expect("there");
        let right = overlay::ensure(&netlink, 1450).await.expect("made anew");
        assert_ne!(right.index, wrong.index);
        assert_eq!(right.vxlan, made.vxlan);
    });
}

#[test]
fn routes_follow_what_is_wanted_and_others_stay() {
    on_a_node(|netlink| async move {
        let device = overlay::ensure(&netlink, 1450).await.expect("made");
        overlay::activate(&netlink, &device).await.expect("set up");
        let device = device.index;
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        let through = |to: &str| Route {
            to: net(to),
            via: Via::Interface {
                index: device,
                source: NODE,
            },
        };
        let own = Route {
            to: net("10.244.0.0/24"),
            via: Via::Unreachable,
        };
        let first = BTreeSet::from([through("10.244.1.0/24"), through("10.244.2.0/24"), own]);
        let then = BTreeSet::from([through("10.244.2.0/24"), through("10.244.3.0/24"), own]);
        // A pod's route, which a reconciliation must not take for a stale one.
        let lo = netlink.link("lo").await.expect("loopback").index;
        let pod = Route {
            to: net("10.244.0.9/32"),
            via: Via::Interface {
                index: lo,
                source: NODE,
            },
        };
        routes::add(&netlink, &pod).await.expect("added");

        let reconcile = |wanted| routes::reconcile(&netlink, device, wanted);
        let outcome = |added, removed| Outcome {
            added,
            removed,
            failed: 0,
        };
        assert_eq!(reconcile(&first).await.expect("applied"), outcome(3, 0));
        assert_eq!(reconcile(&first).await.expect("applied"), outcome(0, 0));
        assert_eq!(reconcile(&then).await.expect("applied"), outcome(1, 1));
        assert_eq!(
            reconcile(&BTreeSet::new()).await.expect("applied"),
            outcome(0, 3)
        );
        // Present already: adding it again changes nothing, removing it was nobody's doing.
        routes::add(&netlink, &pod).await.expect("replaced");
    });
}

#[test]
fn a_pod_is_reached_and_sees_the_nodes_address() {
    on_a_node(|netlink| async move {
        sysctl::enable_forwarding();
        let process = PodProcess::start();
        let netns = NetNs::open_pod(&process.netns).expect("a namespace");
        let pair = Pair::new("container", "eth0", 1400);

        let link = veth::create(&netlink, &netns, &pair).await.expect("made");
        assert_eq!(
            (link.mac.as_slice(), link.mtu, link.up),
            (&GATEWAY_MAC[..], 1400, false)
        );
        veth::configure_pod(&netns, &pair, &[POD])
            .await
            .expect("configured");
        veth::activate_host(&netlink, &link, pair.mac, &[POD], NODE)
            .await
            .expect("activated");
        assert_eq!(ask(POD), NODE.to_string());

        let inside = Netlink::inside(&netns).expect("a socket");
        let eth0 = inside.link("eth0").await.expect("there");
        assert_eq!(
            (eth0.mac.as_slice(), eth0.mtu, eth0.up),
            (&pair.mac[..], 1400, true)
        );
        assert!(inside.link("lo").await.expect("there").up);

        // Another interface of that name in the pod is refused.
        let second = Pair {
            host: "weftsecond".to_owned(),
            ..pair.clone()
        };
        let error = veth::create(&netlink, &netns, &second)
            .await
            .expect_err("taken");
        assert!(error.is(libc::EEXIST), "{error}");
        assert_eq!(
            netlink.find_link("weftsecond").await.expect("looked up"),
            None
        );

        // Again from the beginning, as after an ADD that failed half-way.
        let link = veth::create(&netlink, &netns, &pair)
            .await
            .expect("made again");
        veth::configure_pod(&netns, &pair, &[POD])
            .await
            .expect("configured");
        veth::configure_pod(&netns, &pair, &[POD])
            .await
            .expect("twice");
        for _ in 0..2 {
            veth::activate_host(&netlink, &link, pair.mac, &[POD], NODE)
                .await
                .expect("activated");
        }
        assert_eq!(ask(POD), NODE.to_string());

        netlink.delete_link(&link).await.expect("removed");
        assert_eq!(inside.find_link("eth0").await.expect("looked up"), None);
        process.end();
    });
}
