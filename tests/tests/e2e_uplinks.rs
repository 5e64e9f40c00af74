//! Uplinks and routing while they change: MTUs, addresses, nodes that come and go, a second uplink,
//! agents that are killed, and the other way of routing. Both families throughout.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

#[path = "e2e_uplinks/clsact.rs"]
mod clsact;
#[path = "e2e_uplinks/networks.rs"]
mod networks;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use serde_json::{Value, json};
use weft_tests::netns::Netns;
use weft_tests::playground::families::{FIRST_NODE, NODES, SECOND};
use weft_tests::playground::{
    Background, Builder, Families, Family, PATIENCE, Playground, Routing, wait,
};

/// What every pod serves, and the hostPorts of `a` that lead there.
const TCP: u16 = 7000;
const UDP: u16 = 5300;
const HOST_TCP: u16 = 8001;
const HOST_UDP: u16 = 8002;

/// The number that the kernel keeps with routes of Weft.
const PROTOCOL: u8 = 87;

/// Someone who sends.
#[derive(Clone, Copy, Debug)]
enum Place {
    Pod(&'static str),
    Host(&'static str),
    Outside,
    Second,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Pod(name) => write!(f, "pod {name}"),
            Place::Host(name) => write!(f, "a process of {name}"),
            Place::Outside => f.write_str("the outside"),
            Place::Second => f.write_str("the machine of the second network"),
        }
    }
}

/// A cluster with pod `a` on the first node, and `c` on the second.
struct Cluster {
    playground: Playground,
}

fn manifest(name: &str, node: &str, host_ports: bool) -> String {
    let ports = if host_ports {
        format!(
            "[{{ containerPort: {TCP}, hostPort: {HOST_TCP} }},\
             {{ containerPort: {UDP}, hostPort: {HOST_UDP}, protocol: UDP }}]"
        )
    } else {
        "[]".to_owned()
    };
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: ways }}
spec:
  nodeName: {node}
  containers:
    - name: main
      image: weft/testpod
      args: [serve, --tcp, "{TCP}", --udp, "{UDP}"]
      ports: {ports}
      readinessProbe: {{ tcpSocket: {{ port: {TCP} }} }}
"#
    )
}

impl Cluster {
    fn start(plan: Builder) -> Self {
        Self::on(plan.start().unwrap())
    }

    /// In a playground whose agents are ready.
    fn on(playground: Playground) -> Self {
        playground
            .apply("{ apiVersion: v1, kind: Namespace, metadata: { name: ways } }")
            .unwrap();
        let pods = [manifest("a", "node1", true), manifest("c", "node2", false)];
        playground.apply(&pods.concat()).unwrap();
        playground.wait_all_ready("ways").unwrap();
        let cluster = Cluster { playground };
        cluster.pods_reach_each_other();
        cluster
    }

    fn pod(&self, name: &str, family: Family) -> IpAddr {
        let nodes = self.playground.nodes().iter();
        let mut sandboxes = nodes.filter_map(|node| node.sandboxes.get("ways", name));
        let addresses = sandboxes.next().unwrap().addresses.clone();
        let mut addresses = addresses.into_iter();
        addresses.find(|ip| Family::of(*ip) == family).unwrap()
    }

    fn node(&self, name: &str, family: Family) -> IpAddr {
        let node = self.playground.node(name).unwrap();
        node.addresses.of(family).unwrap()
    }

    fn netns(&self, node: &str) -> &Netns {
        &self.playground.node(node).unwrap().netns
    }

    fn run(&self, from: Place, args: &[&str]) -> Result<Output> {
        match from {
            Place::Pod(name) => self.playground.exec("ways", name, args),
            Place::Host(name) => self.playground.exec_host(name, args),
            Place::Outside => self.playground.outside().exec(args),
            Place::Second => self.playground.second_machine()?.exec(args),
        }
    }

    /// Waits until a server answers under its name and sees the client by that address; with more
    /// payload than fits in any one packet as well.
    #[track_caller]
    fn expect(&self, from: Place, protocol: &str, to: SocketAddr, seen: (&str, IpAddr)) {
        let to = to.to_string();
        let sizes: &[&str] = if protocol == "tcp" {
            &["0", "200000"]
        } else {
            &["0", "1000"]
        };
        for size in sizes {
            let done = wait(&format!("{from} reaches {protocol} {to}"), PATIENCE, || {
                let mut args = vec!["connect", protocol, &to, "--size", size];
                let source = seen.1.to_string();
                if let Place::Outside = from {
                    // It has several.
                    args.extend(["--source", &source]);
                }
                let output = self.run(from, &args)?;
                ensure!(output.status.success(), "{output:?}");
                let answer = String::from_utf8_lossy(&output.stdout).into_owned();
                let mut words = answer.split_whitespace();
                let server = words.next().context("no name")?;
                let client: SocketAddr = words.next().context("no client")?.parse()?;
                ensure!(
                    (server, client.ip()) == seen,
                    "{answer:?} instead of {seen:?}"
                );
                Ok(())
            });
            done.unwrap_or_else(|error| panic!("{error:#}"));
        }
    }

    /// Pods of different nodes, both ways, and processes of a node with pods of the other one: all by
    /// their own addresses.
    #[track_caller]
    fn pods_reach_each_other(&self) {
        for family in Family::BOTH {
            let (a, c) = (self.pod("a", family), self.pod("c", family));
            for (protocol, port) in [("tcp", TCP), ("udp", UDP)] {
                let to = |ip| SocketAddr::new(ip, port);
                self.expect(Place::Pod("a"), protocol, to(c), ("c", a));
                self.expect(Place::Pod("c"), protocol, to(a), ("a", c));
                let host = self.node("node1", family);
                self.expect(Place::Host("node1"), protocol, to(c), ("c", host));
                let host = self.node("node2", family);
                self.expect(Place::Host("node2"), protocol, to(a), ("a", host));
            }
        }
    }

    /// Pod `a` reaches the outside with its node's address, and is reached by its hostPorts.
    #[track_caller]
    fn outside_reaches_and_is_reached(&self) {
        let _server = self.serve_outside();
        for family in Family::BOTH {
            let outside = self.playground.outside().address(family);
            let node = self.node("node1", family);
            let ports = [("tcp", TCP, HOST_TCP), ("udp", UDP, HOST_UDP)];
            for (protocol, port, host_port) in ports {
                let out = SocketAddr::new(outside, port);
                self.expect(Place::Pod("a"), protocol, out, ("outside", node));
                let into = SocketAddr::new(node, host_port);
                self.expect(Place::Outside, protocol, into, ("a", outside));
            }
        }
    }

    fn serve_outside(&self) -> Background {
        let outside = self.playground.outside();
        outside
            .spawn(&serve("outside", &outside_addresses(&outside)))
            .unwrap()
    }

    /// A stream that must lose nothing until it ends by itself.
    fn stream(&self, from: Place, protocol: &str, to: SocketAddr) -> Background {
        let to = to.to_string();
        let args = ["stream", protocol, &to, "--rate", "300", "--duration", "6"];
        match from {
            Place::Pod(name) => self.playground.spawn("ways", name, &args),
            Place::Host(name) => self.playground.spawn_host(name, &args),
            Place::Outside => self.playground.outside().spawn(&args),
            Place::Second => self.playground.second_machine().unwrap().spawn(&args),
        }
        .unwrap()
    }

    fn status(&self, node: &str) -> Result<Value> {
        let output = self.playground.ask_agent(node, &["status", "-o", "json"])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn restart_agents(&mut self, routing: Routing) {
        self.playground.set_routing(routing);
        for node in ["node1", "node2"] {
            self.playground.kill_agent(node).unwrap();
            self.playground.start_agent(node).unwrap();
        }
        for node in ["node1", "node2"] {
            self.playground.wait_agent_ready(node).unwrap();
        }
    }

    /// Where a node's routes of Weft to other nodes' pods lead, by what they lead to: a gateway, or
    /// the name of an interface.
    fn routes(&self, node: &str) -> BTreeMap<IpNet, String> {
        let links = links(self.netns(node));
        let mut found = BTreeMap::new();
        inside(self.netns(node), async |handle| {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let mut filter = RouteMessage::default();
                filter.header.address_family = family;
                let all = handle.route().get(filter).execute();
                let all: Vec<RouteMessage> = all.try_collect().await.unwrap();
                found.extend(all.iter().filter_map(|route| way(route, &links)));
            }
        });
        found
    }

    /// The routes that a node has to have in native routing: by the other nodes.
    fn native_routes(&self, node: &str) -> BTreeMap<IpNet, String> {
        let others = self
            .playground
            .nodes()
            .iter()
            .filter(|other| other.name != node);
        let mut routes = BTreeMap::new();
        for other in others {
            let number: u8 = other.name.strip_prefix("node").unwrap().parse().unwrap();
            for (family, cidr) in self.pod_cidrs(&other.name) {
                let gateway = self.node(&other.name, family).to_string();
                assert!(number > 0, "{cidr}");
                routes.insert(cidr, gateway);
            }
        }
        routes
    }

    fn pod_cidrs(&self, node: &str) -> Vec<(Family, IpNet)> {
        let api: kube::Api<k8s_openapi::api::core::v1::Node> =
            kube::Api::all(self.playground.client());
        let node = self.playground.block_on(api.get(node)).unwrap();
        let cidrs = node.spec.unwrap().pod_cidrs.unwrap().into_iter();
        let cidrs = cidrs.map(|cidr| cidr.parse::<IpNet>().unwrap());
        cidrs.map(|cidr| (Family::of(cidr.addr()), cidr)).collect()
    }

    #[track_caller]
    fn wait_for_native_routes(&self) {
        for node in self.playground.nodes() {
            let wanted = self.native_routes(&node.name);
            let done = wait(&format!("{} has its routes", node.name), PATIENCE, || {
                let found = self.routes(&node.name);
                ensure!(found == wanted, "{found:?} instead of {wanted:?}");
                Ok(())
            });
            done.unwrap_or_else(|error| panic!("{error:#}"));
        }
    }
}

fn outside_addresses(machine: &weft_tests::playground::Machine<'_>) -> String {
    Family::BOTH
        .map(|family| machine.address(family).to_string())
        .join(",")
}

/// The arguments of a server of that name at these addresses.
fn serve<'a>(name: &'a str, addresses: &'a str) -> [&'a str; 9] {
    [
        "serve",
        "--name",
        name,
        "--tcp",
        "7000",
        "--udp",
        "5300",
        "--address",
        addresses,
    ]
}

fn inside<F: Future<Output = ()> + Send>(netns: &Netns, work: impl FnOnce(Handle) -> F + Send) {
    let done = netns.run_async(|| async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        let connection = tokio::spawn(connection);
        work(handle).await;
        connection.abort();
    });
    done.unwrap();
}

/// Interfaces of a namespace: index and MTU by name.
fn links(netns: &Netns) -> BTreeMap<String, (u32, u32)> {
    let mut links = BTreeMap::new();
    inside(netns, async |handle| {
        let all: Vec<_> = handle.link().get().execute().try_collect().await.unwrap();
        for link in all {
            let (mut name, mut mtu) = (String::new(), 0);
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(found) => name = found,
                    LinkAttribute::Mtu(found) => mtu = found,
                    _ => {}
                }
            }
            links.insert(name, (link.header.index, mtu));
        }
    });
    links
}

/// A route of Weft that leads to other nodes' pods.
fn way(route: &RouteMessage, links: &BTreeMap<String, (u32, u32)>) -> Option<(IpNet, String)> {
    let (mut to, mut gateway, mut device) = (None, None, None);
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    let length = route.header.destination_prefix_length;
    let to = IpNet::new(to?, length).ok()?;
    let is_pod = usize::from(length) == if to.addr().is_ipv4() { 32 } else { 128 };
    let unicast = route.header.kind == rtnetlink::packet_route::route::RouteType::Unicast;
    if u8::from(route.header.protocol) != PROTOCOL || is_pod || !unicast {
        return None;
    }
    let name = links.iter().find(|(_, (index, _))| Some(*index) == device);
    let way = gateway
        .map(|ip| ip.to_string())
        .or(name.map(|(name, _)| name.clone()));
    Some((to, way?))
}

fn plan(name: &str, routing: Routing) -> Builder {
    let plan = Playground::builder().name(name).nodes(2);
    plan.families(Families::Dual).routing(routing)
}

/// Both ends of a pod's interface, the overlay if there is one, and what the agent says.
fn assert_mtus_follow(routing: Routing, name: &str) {
    let cluster = Cluster::start(plan(name, routing));
    let overhead = if routing == Routing::Vxlan { 50 } else { 0 };
    let streams = Family::BOTH.map(|family| {
        let to = SocketAddr::new(cluster.pod("c", family), TCP);
        cluster.stream(Place::Pod("a"), "tcp", to)
    });
    let node = cluster.playground.node("node1").unwrap();
    let sandbox = node.sandboxes.get("ways", "a").unwrap();
    for mtu in [1400, 1500] {
        cluster.playground.set_uplink_mtu("node1", mtu).unwrap();
        let wanted = mtu - overhead;
        wait(&format!("MTU {mtu} is followed"), PATIENCE, || {
            let (host, pod) = (links(&node.netns), links(&sandbox.netns));
            ensure!(pod["eth0"].1 == wanted, "in the pod: {pod:?}");
            let ends = host.iter().filter(|(name, _)| name.starts_with("weft"));
            let mut seen = BTreeSet::new();
            for (name, (_, mtu)) in ends {
                ensure!(*mtu == wanted, "on the node: {host:?}");
                seen.insert(name == "weft_vxlan");
            }
            let overlay = routing == Routing::Vxlan;
            ensure!(
                seen.contains(&false) && seen.contains(&true) == overlay,
                "{host:?}"
            );
            let status = cluster.status("node1")?;
            ensure!(status["mtu"] == wanted, "{status}");
            let told = &status["network"]["overlay_mtu"];
            ensure!(
                *told == if overlay { json!(wanted) } else { Value::Null },
                "{status}"
            );
            ensure!(status["network"]["uplinks"][0]["mtu"] == mtu, "{status}");
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
        cluster.pods_reach_each_other();
        cluster.outside_reaches_and_is_reached();
    }
    for stream in streams {
        let output = stream.finish().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_changed_mtu_is_followed_over_vxlan() {
    assert_mtus_follow(Routing::Vxlan, "mtu");
}

#[test]
fn a_changed_mtu_is_followed_in_native_routing() {
    assert_mtus_follow(Routing::Native, "mtun");
}

fn assert_addresses_follow(routing: Routing, name: &str) {
    let cluster = Cluster::start(plan(name, routing));
    cluster.outside_reaches_and_is_reached();
    for family in Family::BOTH {
        let new = NODES.host(family, 77);
        let old = cluster.playground.readdress("node1", new).unwrap();
        assert_eq!(cluster.node("node1", family), new);
        assert_ne!(old, new);
        cluster.pods_reach_each_other();
        cluster.outside_reaches_and_is_reached();
        wait("the agent says so", PATIENCE, || {
            let status = cluster.status("node1")?;
            let own = status["network"]["addresses"].as_array().context("none")?;
            ensure!(
                own.contains(&json!(new)) && !own.contains(&json!(old)),
                "{own:?}"
            );
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
        if routing == Routing::Native {
            cluster.wait_for_native_routes();
        }
    }
}

#[test]
fn a_nodes_new_address_is_followed_over_vxlan() {
    assert_addresses_follow(Routing::Vxlan, "move");
}

#[test]
fn a_nodes_new_address_is_followed_in_native_routing() {
    assert_addresses_follow(Routing::Native, "moven");
}

#[test]
fn routes_come_and_go_with_nodes() {
    let mut cluster = Cluster::start(plan("joins", Routing::Native));
    cluster.wait_for_native_routes();
    let name = cluster.playground.add_node().unwrap();
    assert_eq!(name, "node3");
    cluster.wait_for_native_routes();
    cluster
        .playground
        .apply(&manifest("n", "node3", false))
        .unwrap();
    cluster.playground.wait_all_ready("ways").unwrap();
    for family in Family::BOTH {
        let (a, c, n) = (
            cluster.pod("a", family),
            cluster.pod("c", family),
            cluster.pod("n", family),
        );
        for (protocol, port) in [("tcp", TCP), ("udp", UDP)] {
            cluster.expect(
                Place::Pod("a"),
                protocol,
                SocketAddr::new(n, port),
                ("n", a),
            );
            cluster.expect(
                Place::Pod("n"),
                protocol,
                SocketAddr::new(c, port),
                ("c", n),
            );
        }
    }
    let before = cluster.routes("node1").len();
    cluster.playground.remove_node("node3").unwrap();
    cluster.wait_for_native_routes();
    assert_eq!(
        cluster.routes("node1").len() + 2,
        before,
        "one route of each family"
    );
    cluster.pods_reach_each_other();
}

#[test]
fn each_uplink_has_its_own_address() {
    // The second network leads to no node and to no router, so that it has to be named.
    let flags = ["--uplink=eth0", "--uplink=eth1"];
    let plan = plan("second", Routing::Vxlan).second_uplink();
    let cluster = Cluster::start(plan.agent_flags(&flags));
    let machine = cluster.playground.second_machine().unwrap();
    let addresses = outside_addresses(&machine);
    let _server = machine.spawn(&serve("second", &addresses)).unwrap();
    for family in Family::BOTH {
        let (peer, own) = (machine.address(family), SECOND.host(family, FIRST_NODE));
        let ports = [("tcp", TCP, HOST_TCP), ("udp", UDP, HOST_UDP)];
        for (protocol, port, host_port) in ports {
            let out = SocketAddr::new(peer, port);
            cluster.expect(Place::Pod("a"), protocol, out, ("second", own));
            // The machine knows no other way than back by the link that it came from.
            let into = SocketAddr::new(own, host_port);
            cluster.expect(Place::Second, protocol, into, ("a", peer));
        }
    }
    cluster.outside_reaches_and_is_reached();
    cluster.pods_reach_each_other();
}

fn assert_killed_agents_lose_nothing(routing: Routing, cluster: &mut Cluster) {
    cluster.outside_reaches_and_is_reached();
    let server = cluster.serve_outside();
    let mut streams = Vec::new();
    for family in Family::BOTH {
        let outside = cluster.playground.outside().address(family);
        let node = cluster.node("node1", family);
        let far = cluster.pod("c", family);
        for (from, to) in [
            (Place::Pod("a"), SocketAddr::new(outside, TCP)),
            (Place::Outside, SocketAddr::new(node, HOST_TCP)),
            (Place::Host("node2"), SocketAddr::new(node, HOST_TCP)),
            (Place::Pod("a"), SocketAddr::new(far, TCP)),
        ] {
            streams.push((from, to, cluster.stream(from, "tcp", to)));
        }
        let to = SocketAddr::new(outside, UDP);
        streams.push((
            Place::Pod("a"),
            to,
            cluster.stream(Place::Pod("a"), "udp", to),
        ));
    }
    cluster.restart_agents(routing);
    for (from, to, stream) in streams {
        let output = stream.finish().unwrap();
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{from} to {to}: {report}");
    }
    drop(server);
    cluster.outside_reaches_and_is_reached();
}

#[test]
fn killed_agents_lose_nothing_over_vxlan() {
    let mut cluster = Cluster::start(plan("killed", Routing::Vxlan));
    assert_killed_agents_lose_nothing(Routing::Vxlan, &mut cluster);
}

#[test]
fn killed_agents_lose_nothing_in_native_routing() {
    let mut cluster = Cluster::start(plan("killedn", Routing::Native));
    assert_killed_agents_lose_nothing(Routing::Native, &mut cluster);
}

#[test]
fn routing_can_be_switched_and_back() {
    let mut cluster = Cluster::start(plan("switch", Routing::Vxlan));
    let over_vxlan = cluster.routes("node1");
    assert_eq!(over_vxlan.len(), 2, "{over_vxlan:?}");
    assert!(
        over_vxlan.values().all(|way| way == "weft_vxlan"),
        "{over_vxlan:?}"
    );

    cluster.restart_agents(Routing::Native);
    cluster.wait_for_native_routes();
    wait("the overlay is gone", PATIENCE, || {
        for node in ["node1", "node2"] {
            let there = links(cluster.netns(node));
            ensure!(!there.contains_key("weft_vxlan"), "{there:?}");
            let dir = cluster.playground.node(node)?.bpf_dir().join("weft/links");
            let left = names(&dir)
                .into_iter()
                .find(|name| name.contains("overlay"));
            ensure!(left.is_none(), "{left:?}");
        }
        Ok(())
    })
    .unwrap();
    cluster.pods_reach_each_other();
    cluster.outside_reaches_and_is_reached();
    assert_eq!(cluster.status("node1").unwrap()["mtu"], 1500);

    cluster.restart_agents(Routing::Vxlan);
    wait("the routes lead through the overlay", PATIENCE, || {
        let found = cluster.routes("node1");
        let expected: BTreeMap<_, _> = over_vxlan
            .keys()
            .map(|to| (*to, "weft_vxlan".to_owned()))
            .collect();
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
    .unwrap();
    cluster.pods_reach_each_other();
    cluster.outside_reaches_and_is_reached();
    assert_eq!(cluster.status("node1").unwrap()["mtu"], 1450);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// A kernel setting as a process of the namespace reads it.
fn setting(netns: &Netns, name: &str) -> String {
    let path = Path::new("/proc/sys").join(name);
    let content = netns.run(|| fs::read_to_string(path)).unwrap().unwrap();
    content.trim().to_owned()
}

#[test]
fn a_node_that_begins_to_forward_keeps_listening_to_its_routers() {
    let plan = plan("settings", Routing::Vxlan).nodes(1).second_uplink();
    let mut playground = plan.without_agents().start().unwrap();
    let conf = |interface: &str, name: &str| format!("net/ipv6/conf/{interface}/{name}");
    let netns = Netns::open(playground.node("node1").unwrap().netns.name()).unwrap();
    // A node as distributions set it up: a host, whose second uplink takes no advertisements.
    netns.sysctl("net/ipv4/ip_forward", "0").unwrap();
    netns.sysctl(&conf("all", "forwarding"), "0").unwrap();
    for (uplink, value) in [("eth0", "1"), ("eth1", "0")] {
        netns.sysctl(&conf(uplink, "accept_ra"), value).unwrap();
    }
    playground.start_agent("node1").unwrap();
    playground.wait_agent_ready("node1").unwrap();
    let settings = |names: &[String]| -> Vec<String> {
        names.iter().map(|name| setting(&netns, name)).collect()
    };
    let watched = [
        conf("eth0", "accept_ra"),
        conf("eth1", "accept_ra"),
        conf("all", "forwarding"),
        "net/ipv4/ip_forward".to_owned(),
    ];
    assert_eq!(settings(&watched), ["2", "0", "1", "1"]);

    // What was decided since then is the operator's, also for the next agent.
    netns.sysctl(&watched[0], "0").unwrap();
    playground.kill_agent("node1").unwrap();
    playground.start_agent("node1").unwrap();
    playground.wait_agent_ready("node1").unwrap();
    assert_eq!(settings(&watched), ["0", "0", "1", "1"]);
}
