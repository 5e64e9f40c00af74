//! The node's setup against the real kernel: uplinks, MTUs, routing modes and kernel settings, in
//! network namespaces that end with the test.
//!
//! Needs root; without it the tests say so and pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use weft_agent::cli::BandwidthMode;
use weft_agent::config::Masquerade;
use weft_agent::endpoints::{Endpoints, Record};
use weft_agent::ipam::Owner;
use weft_agent::netlink::monitor::Monitor;
use weft_agent::netlink::routes::{self, Route, Via};
use weft_agent::netlink::uplinks::{self, Criteria, Uplink};
use weft_agent::netlink::veth::{self, Pair};
use weft_agent::netlink::{NetNs, Netlink, ROUTE_PROTOCOL, overlay, sysctl};
use weft_agent::node::{NodeNetwork, NodeOptions, NodeSetup, Wanted};
use weft_core::model::{ClusterState, Node, Routing};

/// How long a change may take to be told.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node in a namespace of its own.
struct Lab {
    netlink: Netlink,
    /// For what only tests do.
    handle: Handle,
    dir: tempfile::TempDir,
    state: ClusterState,
}

fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
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
            let (connection, handle, _) = rtnetlink::new_connection().expect("a socket");
            tokio::spawn(connection);
            let lab = Lab {
                netlink: Netlink::host().expect("a socket"),
                handle,
                dir: tempfile::tempdir().expect("tempdir"),
                state: ClusterState {
                    node_name: "a".to_owned(),
                    ..ClusterState::default()
                },
            };
            lab.up("lo").await;
            test(lab).await;
        });
    });
    thread.join().expect("the test passes");
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

impl Lab {
    async fn index(&self, name: &str) -> u32 {
        self.netlink.link(name).await.expect("there").index
    }

    async fn up(&self, name: &str) {
        let link = self.netlink.link(name).await.expect("there");
        self.netlink.set_up(&link).await.expect("set up");
    }

    /// A wire: the interface and its other end, both up.
    async fn wire(&self, name: &str) {
        // Names are not longer than 15 characters.
        let other = format!("p{}", name.trim_start_matches("weft"));
        let pair = LinkVeth::new(name, &other).build();
        self.netlink.add_link(name, pair).await.expect("made");
        self.up(&other).await;
        self.up(name).await;
    }

    async fn bridge(&self, name: &str, port: &str) {
        let bridge = LinkBridge::new(name).build();
        self.netlink.add_link(name, bridge).await.expect("made");
        self.up(name).await;
        let (port, master) = (self.index(port).await, self.index(name).await);
        let message = LinkUnspec::new_with_index(port).controller(master).build();
        self.netlink
            .set_link("the port", message)
            .await
            .expect("joined");
    }

    async fn address(&self, name: &str, address: &str) {
        let address: IpNet = address.parse().expect("an address");
        let index = self.index(name).await;
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        request.execute().await.expect("an address");
    }

    fn route(to: &str, gateway: &str) -> RouteMessage {
        let to = net(to);
        RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .and_then(|builder| builder.gateway(ip(gateway)))
            .expect("one family")
            .build()
    }

    async fn add_route(&self, to: &str, gateway: &str) {
        let request = self.handle.route().add(Self::route(to, gateway));
        request.execute().await.expect("a route");
    }

    async fn remove_route(&self, to: &str, gateway: &str) {
        let request = self.handle.route().del(Self::route(to, gateway));
        request.execute().await.expect("a route");
    }

    async fn set_mtu(&self, name: &str, mtu: u32) {
        let link = self.netlink.link(name).await.expect("there");
        self.netlink.set_mtu(&link, mtu).await.expect("an MTU");
    }

    fn add_node(&mut self, name: &str, addresses: &[&str], cidrs: &[&str]) {
        let node = Node {
            name: name.to_owned(),
            internal_ips: addresses.iter().map(|address| ip(address)).collect(),
            pod_cidrs: cidrs.iter().map(|cidr| net(cidr)).collect(),
            labels: BTreeMap::default(),
            leaving: false,
        };
        self.state.nodes.insert(name.to_owned(), node);
    }

    fn setup(&self, routing: Routing) -> Setup {
        let options = NodeOptions {
            path: self.dir.path().join("node.json"),
            mtu: None,
            routing,
            uplinks: Vec::new(),
            masquerade: Masquerade {
                v4: true,
                v6: true,
                first_port: 1024,
                last_port: 29_999,
            },
            bandwidth: BandwidthMode::Auto,
        };
        Setup {
            setup: NodeSetup::new(options).expect("a socket"),
            endpoints: Endpoints::open(&self.dir.path().join("endpoints")).expect("a directory"),
            attached: 0,
        }
    }

    /// One of Weft's routes through an interface.
    fn device_route(to: &str, index: u32) -> RouteMessage {
        let to = net(to);
        RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .expect("a network")
            .output_interface(index)
            .protocol(ROUTE_PROTOCOL.into())
            .scope(RouteScope::Link)
            .build()
    }

    /// Weft's routes to other nodes' pods and to its own.
    async fn routes(&self) -> BTreeSet<Route> {
        let (observed, _) = uplinks::observe(&self.netlink).await.expect("listed");
        observed.own_routes
    }
}

struct Setup {
    setup: NodeSetup,
    endpoints: Endpoints,
    /// How often the overlay got its programs.
    attached: usize,
}

impl Setup {
    /// Applies the state of the lab; the network if it changed.
    async fn apply(&mut self, lab: &Lab) -> Option<NodeNetwork> {
        let view = self.setup.observe().await.expect("listed");
        let wanted = Wanted::of(&lab.state, &[]).expect("known");
        let attached = &mut self.attached;
        let mut attach = || {
            *attached += 1;
            Ok(())
        };
        let outcome = self
            .setup
            .apply(
                &wanted,
                &view,
                &BTreeMap::new(),
                &self.endpoints,
                &mut attach,
            )
            .await
            .expect("applied");
        if let Some(error) = outcome.failure {
            panic!("{error:#}");
        }
        outcome.network
    }

    /// Applies until there is nothing left to do: what was applied is seen by the next one.
    async fn settle(&mut self, lab: &Lab) {
        for _ in 0..3 {
            self.apply(lab).await;
            let view = self.setup.observe().await.expect("listed");
            if self.setup.is_current(&view) {
                return;
            }
        }
        panic!("there is no end to what is to do");
    }
}

async fn told(monitor: &Monitor) {
    tokio::time::timeout(PATIENCE, monitor.changed())
        .await
        .expect("told in time")
        .expect("told");
}

fn setting(name: &str) -> String {
    let content = fs::read_to_string(format!("/proc/sys/net/{name}")).expect("a setting");
    content.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn set(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{name}"), value).expect("a setting");
}

#[test]
fn uplinks_are_found_among_much_else() {
    on_a_node(|lab| async move {
        for name in ["eth0", "eth1", "eth2", "eth3", "weft0123456789a"] {
            lab.wire(name).await;
        }
        lab.bridge("br0", "eth1").await;
        lab.bridge("docker0", "eth3").await;
        lab.address("eth0", "172.30.0.2/24").await;
        lab.address("eth0", "2001:db8::2/64").await;
        lab.address("br0", "198.51.100.2/24").await;
        lab.address("eth1", "198.51.100.3/32").await;
        lab.address("docker0", "172.17.0.1/16").await;
        lab.address("eth2", "10.9.0.2/24").await;
        lab.address("weft0123456789a", "203.0.113.1/32").await;
        lab.add_route("0.0.0.0/0", "198.51.100.1").await;
        overlay::ensure(&lab.netlink, 1450).await.expect("made");

        let select = async |peers: &[&str]| {
            let (observed, pods) = uplinks::observe(&lab.netlink).await.expect("listed");
            assert_eq!(pods.keys().collect::<Vec<_>>(), ["weft0123456789a"]);
            assert!(
                !observed.own_addresses().contains(&ip("203.0.113.1")),
                "a pod's"
            );
            assert!(!observed.own_addresses().contains(&ip("127.0.0.1")));
            assert!(observed.own_addresses().contains(&ip("172.17.0.1")));
            let criteria = Criteria {
                names: &[],
                node: &[ip("172.30.0.2"), ip("2001:db8::2")],
                peers: &peers.iter().map(|peer| ip(peer)).collect(),
                previous: &BTreeMap::new(),
            };
            uplinks::select(&observed, &criteria).0
        };
        let names = |uplinks: &[Uplink]| {
            let names = uplinks.iter().map(|uplink| uplink.name.clone());
            names.collect::<BTreeSet<_>>()
        };
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();

        let uplinks = select(&["10.9.0.3"]).await;
        assert_eq!(names(&uplinks), set(&["eth0", "br0", "eth2"]));
        let eth0 = uplinks.iter().find(|u| u.name == "eth0").expect("there");
        let expected = (
            Some(Ipv4Addr::new(172, 30, 0, 2)),
            Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
            1500,
        );
        assert_eq!((eth0.v4, eth0.v6, eth0.mtu), expected);

        lab.remove_route("0.0.0.0/0", "198.51.100.1").await;
        assert_eq!(names(&select(&[]).await), set(&["eth0"]));
    });
}

#[test]
fn whatever_changes_is_told_even_when_it_is_too_much() {
    on_a_node(|lab| async move {
        let monitor = Monitor::new().expect("a socket");
        lab.wire("eth0").await;
        told(&monitor).await;
        assert!(!monitor.drain().expect("readable"), "all was taken");
        lab.address("eth0", "172.30.0.2/24").await;
        told(&monitor).await;
        lab.add_route("10.1.0.0/16", "172.30.0.1").await;
        told(&monitor).await;
        lab.set_mtu("eth0", 1400).await;
        told(&monitor).await;
        lab.address("eth0", "2001:db8::2/64").await;
        told(&monitor).await;
        monitor.drain().expect("readable");

        // More than the socket's buffer takes: the kernel drops what is too much, and says so once.
        for round in 0..1500 {
            lab.set_mtu("eth0", 1400 + round % 2).await;
        }
        told(&monitor).await;
        monitor.drain().expect("readable");
        assert!(!monitor.drain().expect("readable"));
        lab.set_mtu("eth0", 1300).await;
        told(&monitor).await;
    });
}

#[test]
fn the_overlay_leads_to_both_families_over_one() {
    on_a_node(|mut lab| async move {
        lab.wire("eth0").await;
        lab.address("eth0", "172.30.0.2/24").await;
        lab.add_node("a", &["172.30.0.2"], &["10.244.0.0/24", "fd01::/64"]);
        lab.add_node("b", &["172.30.0.3"], &["10.244.1.0/24", "fd01:0:0:1::/64"]);
        lab.add_node("c", &["2001:db8::4"], &["10.244.2.0/24"]);
        let mut setup = lab.setup(Routing::Vxlan);

        let network = setup.apply(&lab).await.expect("new");
        assert_eq!(setup.attached, 1, "programs come before the device is up");
        assert_eq!((network.mtu, network.overlay_mtu), (1450, 1450));
        let device = lab.netlink.link(overlay::DEVICE).await.expect("made");
        assert!(device.up);
        assert_eq!(network.overlay, device.index);
        let unreachable = |to: &str| Route {
            to: net(to),
            via: Via::Unreachable,
        };
        let through = |to: &str, source: Option<&str>| Route {
            to: net(to),
            via: Via::out_of(device.index, source.map(ip)),
        };
        let own = [unreachable("10.244.0.0/24"), unreachable("fd01::/64")];
        let b = [
            through("10.244.1.0/24", Some("172.30.0.2")),
            through("fd01:0:0:1::/64", None),
        ];
        let expected: BTreeSet<Route> = own.into_iter().chain(b).collect();
        assert_eq!(
            lab.routes().await,
            expected,
            "c has no address of our family"
        );
        setup.settle(&lab).await;
        assert_eq!(setup.attached, 1);

        // Somebody takes a route away: it is seen, and repaired, and counts as a change of the ways.
        let lost = Lab::device_route("10.244.1.0/24", device.index);
        lab.handle.route().del(lost).execute().await.expect("gone");
        let view = setup.setup.observe().await.expect("listed");
        assert!(!setup.setup.is_current(&view));
        let repaired = setup.apply(&lab).await.expect("other ways");
        assert!(repaired.ways > network.ways);
        assert_eq!(lab.routes().await, expected);

        // An IPv6 underlay beside it: now c is in reach, and every packet must fit in its tunnel.
        lab.address("eth0", "2001:db8::2/64").await;
        lab.add_node(
            "a",
            &["172.30.0.2", "2001:db8::2"],
            &["10.244.0.0/24", "fd01::/64"],
        );
        let network = setup.apply(&lab).await.expect("another");
        assert_eq!((network.mtu, network.overlay_mtu), (1430, 1430));
        let routes = lab.routes().await;
        assert!(routes.contains(&through("10.244.2.0/24", Some("172.30.0.2"))));
        assert!(routes.contains(&through("fd01:0:0:1::/64", Some("2001:db8::2"))));

        lab.state.nodes.remove("b");
        setup.settle(&lab).await;
        let left = lab.routes().await;
        assert!(!left.iter().any(|route| route.to == net("10.244.1.0/24")));
        assert!(!left.iter().any(|route| route.to == net("fd01:0:0:1::/64")));
    });
}

#[test]
fn native_routes_lead_to_neighbours_and_come_and_go_with_them() {
    on_a_node(|mut lab| async move {
        lab.wire("eth0").await;
        lab.address("eth0", "172.30.0.2/24").await;
        lab.address("eth0", "2001:db8::2/64").await;
        lab.add_route("0.0.0.0/0", "172.30.0.1").await;
        lab.add_node("a", &["172.30.0.2", "2001:db8::2"], &["10.244.0.0/24"]);
        lab.add_node(
            "b",
            &["172.30.0.3", "2001:db8::3"],
            &["10.244.1.0/24", "fd01:0:0:1::/64"],
        );
        lab.add_node("c", &["192.0.2.4"], &["10.244.2.0/24"]);
        lab.add_node("d", &["172.30.0.5"], &["10.244.3.0/24", "fd01:0:0:3::/64"]);

        // An earlier agent used the overlay.
        lab.setup(Routing::Vxlan).apply(&lab).await.expect("new");
        let overlay = lab.index(overlay::DEVICE).await;
        assert!(lab.routes().await.len() > 4);

        let mut setup = lab.setup(Routing::Native);
        let network = setup.apply(&lab).await.expect("new");
        assert_eq!((network.overlay, network.mtu, setup.attached), (0, 1500, 0));
        let eth0 = lab.index("eth0").await;
        let by = |to: &str, gateway: &str| Route {
            to: net(to),
            via: Via::Gateway {
                index: eth0,
                gateway: ip(gateway),
            },
        };
        let own = Route {
            to: net("10.244.0.0/24"),
            via: Via::Unreachable,
        };
        let expected = BTreeSet::from([
            own,
            by("10.244.1.0/24", "172.30.0.3"),
            by("fd01:0:0:1::/64", "2001:db8::3"),
            by("10.244.3.0/24", "172.30.0.5"),
        ]);
        assert_eq!(
            lab.routes().await,
            expected,
            "c is behind a router, d has no IPv6"
        );
        assert!(
            network
                .problems
                .iter()
                .any(|problem| problem.contains("node d"))
        );
        // Flows may still go through it: the device goes when they do not.
        assert_eq!(lab.index(overlay::DEVICE).await, overlay);
        assert!(setup.setup.remove_overlay().await.expect("removed"));
        assert!(!setup.setup.remove_overlay().await.expect("gone already"));
        setup.settle(&lab).await;

        lab.state.nodes.remove("b");
        lab.add_node("d", &["172.30.0.6"], &["10.244.3.0/24"]);
        let moved = setup.apply(&lab).await.expect("other ways");
        assert!(moved.ways > network.ways);
        let expected = BTreeSet::from([own, by("10.244.3.0/24", "172.30.0.6")]);
        assert_eq!(lab.routes().await, expected);

        // And back.
        let mut setup = lab.setup(Routing::Vxlan);
        let network = setup.apply(&lab).await.expect("new");
        let routes = lab.routes().await;
        let to_others = routes.iter().filter(|route| route.via != Via::Unreachable);
        let devices: BTreeSet<_> = to_others.map(|route| route.via.interface()).collect();
        assert_eq!(devices, [Some(network.overlay)].into());
    });
}

#[test]
fn a_lookup_tells_neighbours_from_what_is_behind_routers() {
    on_a_node(|lab| async move {
        lab.wire("eth0").await;
        lab.address("eth0", "172.30.0.2/24").await;
        lab.address("eth0", "2001:db8::2/64").await;
        lab.add_route("192.0.2.0/24", "172.30.0.1").await;
        let eth0 = lab.index("eth0").await;
        let lookup = async |to: &str| {
            let hop = routes::lookup(&lab.netlink, ip(to)).await.expect("asked");
            hop.map(|hop| (hop.interface, hop.gateway))
        };
        assert_eq!(lookup("172.30.0.9").await, Some((eth0, None)));
        assert_eq!(lookup("2001:db8::9").await, Some((eth0, None)));
        assert_eq!(
            lookup("192.0.2.9").await,
            Some((eth0, Some(ip("172.30.0.1"))))
        );
        assert_eq!(lookup("172.30.0.2").await, None, "it is the node itself");
        assert_eq!(lookup("203.0.113.9").await, None);
        assert_eq!(lookup("2001:db8:1::9").await, None);
    });
}

/// A pod's namespace, which ends with its thread.
struct PodNamespace {
    path: PathBuf,
    _stop: mpsc::Sender<()>,
}

impl PodNamespace {
    fn new() -> Self {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            let tid = nix::unistd::gettid();
            tell.send(PathBuf::from(format!("/proc/self/task/{tid}/ns/net")))
                .expect("the test waits");
            // Ends when the test drops the sender.
            let _ = stopped.recv();
        });
        Self {
            path: told.recv().expect("the pod starts"),
            _stop: stop,
        }
    }
}

#[test]
fn mtus_follow_the_uplinks_down_to_the_pods() {
    on_a_node(|mut lab| async move {
        lab.wire("eth0").await;
        lab.address("eth0", "172.30.0.2/24").await;
        lab.add_node("a", &["172.30.0.2"], &["10.244.0.0/24"]);
        lab.add_node("b", &["172.30.0.3"], &["10.244.1.0/24"]);
        let mut setup = lab.setup(Routing::Vxlan);
        let network = setup.apply(&lab).await.expect("new");

        let mut pods = Vec::new();
        for (n, mtu) in [(1, network.mtu), (2, 1300), (3, network.mtu)] {
            let process = PodNamespace::new();
            let netns = NetNs::open_pod(&process.path).expect("a namespace");
            let pair = Pair::new(&format!("c{n}"), "eth0", mtu);
            let link = veth::create(&lab.netlink, &netns, &pair)
                .await
                .expect("made");
            let gone = n == 3;
            let record = record(n, &pair, link.index, &process);
            setup.endpoints.insert(record).expect("written");
            if gone {
                // Its interface is left, its namespace cannot be found any more.
                let mut record = setup.endpoints.get(&pair.host).expect("there");
                record.netns = "/nowhere".to_owned();
                setup.endpoints.insert(record).expect("written");
            }
            pods.push((process, netns, pair));
        }
        let ends = async |n: usize| {
            let (_, netns, pair) = &pods[n];
            let inside = Netlink::inside(netns).expect("a socket");
            let end = inside.link("eth0").await.expect("there");
            let host = lab.netlink.link(&pair.host).await.expect("there");
            (host.mtu, end.mtu)
        };
        setup.settle(&lab).await;

        let monitor = Monitor::new().expect("a socket");
        for (uplink, expected) in [(1400, 1350), (9000, 8950)] {
            lab.set_mtu("peth0", uplink).await;
            lab.set_mtu("eth0", uplink).await;
            told(&monitor).await;
            let view = setup.setup.observe().await.expect("listed");
            assert!(!setup.setup.is_current(&view));
            let network = setup.apply(&lab).await.expect("another");
            assert_eq!((network.mtu, network.overlay_mtu), (expected, expected));
            assert_eq!(network.uplinks[0].mtu, uplink);
            let device = lab.netlink.link(overlay::DEVICE).await.expect("there");
            assert_eq!(device.mtu, expected);
            assert_eq!(ends(0).await, (expected, expected));
            assert_eq!(ends(1).await, (1300, 1300), "its configuration says so");
            assert_eq!(ends(2).await, (1450, 1450), "nothing but a warning");
            let told = network
                .problems
                .iter()
                .find(|p| p.contains("pod shop/pod-3"));
            assert!(told.is_some(), "{:?}", network.problems);
        }

        // The next agent: pods that were given an MTU by this one follow it as well.
        let mut next = lab.setup(Routing::Vxlan);
        lab.set_mtu("eth0", 1500).await;
        next.apply(&lab).await.expect("new");
        assert_eq!(ends(0).await, (1450, 1450));
    });
}

fn record(n: u8, pair: &Pair, ifindex: u32, process: &PodNamespace) -> Record {
    let record = serde_json::json!({
        "container_id": format!("c{n}"),
        "ifname": "eth0",
        "namespace": "shop",
        "pod": format!("pod-{n}"),
        "uid": null,
        "netns": process.path,
        "interface": pair.host,
        "ifindex": ifindex,
        "mac": pair.mac,
        "mtu": pair.mtu,
        "addresses": [format!("10.244.0.{n}")],
        "host_ports": [],
    });
    let record: Record = serde_json::from_value(record).expect("a record");
    let owner = Owner {
        container_id: format!("c{n}"),
        ifname: "eth0".to_owned(),
    };
    assert_eq!(record.owner, owner);
    record
}

#[test]
fn what_is_known_serves_while_the_api_is_away() {
    on_a_node(|mut lab| async move {
        lab.wire("eth0").await;
        lab.address("eth0", "172.30.0.2/24").await;
        lab.address("eth0", "2001:db8::2/64").await;
        lab.add_node("a", &["172.30.0.2", "2001:db8::2"], &["10.244.0.0/24"]);
        lab.add_node("b", &["2001:db8::3"], &["10.244.1.0/24"]);
        for routing in [Routing::Vxlan, Routing::Native] {
            let mut setup = lab.setup(routing);
            let before = setup.apply(&lab).await.expect("new");
            setup.settle(&lab).await;
            let routes = lab.routes().await;

            let mut next = lab.setup(routing);
            let remembered = next.setup.remembered().expect("kept");
            let mut attach = || panic!("the overlay is up, and has programs");
            let restored = next
                .setup
                .restore(remembered, &BTreeMap::new(), &mut attach)
                .await
                .expect("restored");
            assert_eq!(restored.facts, before.facts);
            assert_eq!(
                (restored.overlay, restored.mtu, restored.uplinks),
                (before.overlay, before.mtu, before.uplinks)
            );
            assert_eq!(lab.routes().await, routes, "nobody knows better");
        }
    });
}

#[test]
fn kernel_settings_make_a_router_that_still_listens() {
    on_a_node(|mut lab| async move {
        lab.wire("eth0").await;
        lab.wire("eth1").await;
        lab.address("eth0", "172.30.0.2/24").await;
        lab.address("eth1", "10.9.0.2/24").await;
        set("ipv4/ip_forward", "0");
        set("ipv6/conf/eth0/accept_ra", "1");
        set("ipv6/conf/eth1/accept_ra", "0");
        set("ipv4/conf/eth0/rp_filter", "1");
        set("ipv4/ip_local_reserved_ports", "8080,20000-20010");
        set("ipv4/ip_local_port_range", "20000 60999");
        lab.add_node("a", &["172.30.0.2"], &["10.244.0.0/24"]);
        lab.add_node("b", &["10.9.0.3"], &["10.244.1.0/24"]);
        lab.setup(Routing::Vxlan).apply(&lab).await.expect("new");
        assert_eq!(setting("ipv4/ip_forward"), "1");
        assert_eq!(setting("ipv6/conf/all/forwarding"), "0", "no pod has IPv6");
        assert_eq!(setting("ipv6/conf/eth0/accept_ra"), "1");
        assert_eq!(
            setting("ipv4/ip_local_reserved_ports"),
            "8080,20000-29999",
            "what is masqueraded with and what sockets pick; what others reserved stays"
        );
        assert_eq!(setting("ipv4/conf/eth0/rp_filter"), "1", "the owner's");

        lab.add_node("a", &["172.30.0.2"], &["10.244.0.0/24", "fd01::/64"]);
        lab.setup(Routing::Vxlan).apply(&lab).await.expect("new");
        assert_eq!(setting("ipv6/conf/all/forwarding"), "1");
        assert_eq!(setting("ipv6/conf/eth0/accept_ra"), "2");
        assert_eq!(
            setting("ipv6/conf/eth1/accept_ra"),
            "0",
            "it listened to none before"
        );

        // A node that was a router before: its owner decided what it listens to.
        set("ipv6/conf/eth0/accept_ra", "1");
        sysctl::enable_ipv6_forwarding(["eth0"]);
        assert_eq!(setting("ipv6/conf/eth0/accept_ra"), "1");
    });
}
