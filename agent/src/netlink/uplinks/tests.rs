//! The rule that finds uplinks, on views of the kernel made by hand.

use super::*;

/// A node: `eth0` has its addresses, `eth1` leads to another node, `wan0` has a default route, and
/// much else is no uplink.
struct Node {
    observed: Observed,
    node: Vec<IpAddr>,
    peers: BTreeSet<IpAddr>,
    previous: BTreeMap<u32, Entry>,
    names: Vec<String>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn interface(index: u32, name: &str, addresses: &[&str]) -> Interface {
    let lasting = |text: &&str| Address {
        ip: ip(text),
        lasting: true,
    };
    Interface {
        link: Link {
            index,
            name: name.to_owned(),
            mtu: 1500,
            up: true,
            ethernet: true,
            ..Link::default()
        },
        addresses: addresses.iter().map(lasting).collect(),
    }
}

fn route(to: &str, interface: u32, gateway: Option<&str>) -> HostRoute {
    HostRoute {
        to: to.parse().expect("a network"),
        unicast: true,
        gateway: gateway.map(ip),
        interface,
        metric: 0,
    }
}

impl Node {
    fn new() -> Self {
        let mut lo = interface(1, "lo", &["127.0.0.1", "::1", "192.0.2.99"]);
        lo.link.loopback = true;
        lo.link.ethernet = false;
        let mut port = interface(7, "port0", &["198.51.100.7"]);
        port.link.master = Some(8);
        let mut down = interface(9, "down0", &["198.51.100.9"]);
        down.link.up = false;
        let mut ipvs = interface(10, "kube-ipvs0", &["10.96.0.1", "2001:db8:96::1"]);
        ipvs.link.up = false;
        let mut docker = interface(5, "docker0", &["172.17.0.1"]);
        docker.link.kind = "bridge".to_owned();
        let interfaces = [
            lo,
            interface(2, "eth0", &["fe80::2", "172.30.0.2", "2001:db8::2"]),
            interface(3, "eth1", &["10.9.0.2"]),
            interface(4, "wan0", &["198.51.100.4", "2001:db8:4::4"]),
            docker,
            interface(6, "bare0", &[]),
            port,
            interface(8, "br0", &["198.51.100.8"]),
            down,
            ipvs,
        ];
        Self {
            observed: Observed {
                interfaces: interfaces.map(|i| (i.link.index, i)).into(),
                routes: [
                    route("172.30.0.0/16", 2, None),
                    route("10.9.0.0/24", 3, None),
                    route("0.0.0.0/0", 4, Some("198.51.100.1")),
                    route("172.17.0.0/16", 5, None),
                    route("10.9.0.3/32", 6, None),
                    route("::/0", 7, Some("fe80::1")),
                    route("::/0", 9, Some("fe80::1")),
                    // By a router: not on this link.
                    route("10.9.0.0/16", 5, Some("172.17.0.9")),
                ]
                .into(),
                ..Observed::default()
            },
            node: vec![ip("172.30.0.2"), ip("2001:db8::2")],
            peers: [ip("10.9.0.3")].into(),
            previous: BTreeMap::new(),
            names: Vec::new(),
        }
    }

    fn select(&self) -> (Vec<Uplink>, BTreeSet<Problem>) {
        let criteria = Criteria {
            names: &self.names,
            node: &self.node,
            peers: &self.peers,
            previous: &self.previous,
        };
        select(&self.observed, &criteria)
    }

    fn names(&self) -> Vec<String> {
        let (uplinks, _) = self.select();
        uplinks.into_iter().map(|uplink| uplink.name).collect()
    }

    fn get(&mut self, index: u32) -> &mut Interface {
        self.observed.interfaces.get_mut(&index).expect("there")
    }
}

#[test]
fn what_leads_out_of_the_node_is_an_uplink() {
    let mut node = Node::new();
    assert_eq!(node.names(), ["eth0", "eth1", "wan0"]);
    assert_eq!(node.select().1, BTreeSet::new());
    // The other node leaves, and with it the reason for eth1; a bridge gets the default route.
    node.peers.clear();
    node.observed
        .routes
        .insert(route("::/0", 8, Some("fe80::1")));
    assert_eq!(node.names(), ["eth0", "wan0", "br0"]);
    let (uplinks, _) = node.select();
    let carries: Vec<bool> = uplinks.iter().map(|uplink| uplink.carries_node).collect();
    assert_eq!(carries, [true, false, false]);
}

#[test]
fn a_network_of_its_own_makes_no_uplink_and_a_card_in_one_is_told() {
    let mut node = Node::new();
    let told = |names: &[&str]| -> BTreeSet<Problem> {
        let names = names.iter();
        names.map(|n| Problem::NotNamed((*n).to_owned())).collect()
    };
    assert!(!node.names().contains(&"docker0".to_owned()));
    assert_eq!(node.select().1, told(&[]), "a bridge is nothing to tell");
    // A card in a storage network. Nobody is on br0's link: it has an address and no network.
    let storage = interface(10, "stor0", &["10.50.0.2", "fd50::2"]);
    node.observed.interfaces.insert(10, storage);
    for network in ["10.50.0.0/24", "fd50::/64"] {
        node.observed.routes.insert(route(network, 10, None));
    }
    for kind in ["", "vlan", "bond"] {
        kind.clone_into(&mut node.get(10).link.kind);
        assert_eq!(node.names(), ["eth0", "eth1", "wan0"]);
        assert_eq!(node.select().1, told(&["stor0"]), "{kind}");
    }
    for kind in ["veth", "dummy", "bridge"] {
        kind.clone_into(&mut node.get(10).link.kind);
        assert_eq!(node.select().1, told(&[]), "{kind}");
    }
    node.get(10).link.kind.clear();
    // A router of a network beyond makes no difference; another node does.
    let beyond = route("10.60.0.0/16", 10, Some("10.50.0.1"));
    node.observed.routes.insert(beyond);
    assert_eq!(node.select().1, told(&["stor0"]));
    node.peers.insert(ip("10.50.0.3"));
    assert_eq!(node.names(), ["eth0", "eth1", "wan0", "stor0"]);
    assert_eq!(node.select().1, told(&[]));
    // Naming decides, either way.
    node.peers.remove(&ip("10.50.0.3"));
    node.names = ["eth0", "stor0"].map(str::to_owned).into();
    assert_eq!(node.names(), ["eth0", "stor0"]);
    assert_eq!(node.select().1, told(&[]));
    node.names.pop();
    assert_eq!(node.names(), ["eth0"]);
    assert_eq!(node.select().1, told(&[]));
}

#[test]
fn named_interfaces_are_the_uplinks_and_no_others() {
    let mut node = Node::new();
    node.names = ["docker0", "down0", "nowhere"].map(str::to_owned).into();
    assert_eq!(node.names(), ["docker0"]);
    let missing = ["down0", "nowhere"].map(|name| Problem::Missing(name.to_owned()));
    assert_eq!(node.select().1, missing.into());
    node.get(5).link.ethernet = false;
    let (uplinks, problems) = node.select();
    assert_eq!(uplinks, []);
    assert!(problems.contains(&Problem::NotEthernet("docker0".to_owned())));
    assert!(problems.contains(&Problem::None));
}

#[test]
fn an_interface_without_ethernet_is_told_where_it_matters() {
    let mut node = Node::new();
    node.get(2).link.ethernet = false;
    node.get(5).link.ethernet = false;
    let (uplinks, problems) = node.select();
    assert_eq!(uplinks.len(), 2);
    assert_eq!(
        problems,
        [Problem::NotEthernet("eth0".to_owned())].into(),
        "docker0 would be none anyway"
    );
}

#[test]
fn packets_get_the_nodes_address_or_the_interfaces_first() {
    let mut node = Node::new();
    node.get(4).addresses.insert(
        0,
        Address {
            ip: ip("198.51.100.3"),
            lasting: false,
        },
    );
    let of = |node: &Node, name: &str| {
        let (uplinks, _) = node.select();
        let uplink = uplinks.into_iter().find(|uplink| uplink.name == name);
        let uplink = uplink.expect("an uplink");
        (
            uplink.v4.map(|v4| v4.to_string()).unwrap_or_default(),
            uplink.v6.map(|v6| v6.to_string()).unwrap_or_default(),
        )
    };
    let pair = |v4: &str, v6: &str| (v4.to_owned(), v6.to_owned());
    assert_eq!(of(&node, "eth0"), pair("172.30.0.2", "2001:db8::2"));
    assert_eq!(of(&node, "wan0"), pair("198.51.100.4", "2001:db8:4::4"));
    assert_eq!(of(&node, "eth1"), pair("10.9.0.2", ""));

    // A new address comes first in the kernel's list; connections keep theirs while it is there.
    let (uplinks, _) = node.select();
    node.previous = uplinks.iter().map(|u| (u.index, u.entry())).collect();
    let newer = Address {
        ip: ip("2001:db8:4::5"),
        lasting: true,
    };
    node.get(4).addresses.insert(0, newer.clone());
    assert_eq!(of(&node, "wan0").1, "2001:db8:4::4");
    node.get(4).addresses.truncate(1);
    assert_eq!(of(&node, "wan0").1, "2001:db8:4::5");

    // A node that is reached by routes alone has its address on loopback.
    node.node = vec![ip("192.0.2.99")];
    node.get(1).addresses.retain(|a| a.ip == ip("192.0.2.99"));
    assert_eq!(of(&node, "wan0").0, "192.0.2.99");
}

#[test]
fn own_addresses_are_those_that_others_may_use() {
    let own = Node::new().observed.own_addresses();
    let expected = [
        "192.0.2.99",
        "172.30.0.2",
        "2001:db8::2",
        "10.9.0.2",
        "198.51.100.4",
        "2001:db8:4::4",
        "172.17.0.1",
        "198.51.100.7",
        "198.51.100.8",
        "198.51.100.9",
    ];
    assert_eq!(own, expected.map(ip).into());
}
