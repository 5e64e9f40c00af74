//! Networks that a node is in and that lead nowhere: no uplinks, so the host routes between them and
//! pods, and nobody's address is changed.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::IpNet;
use rtnetlink::{LinkBridge, LinkUnspec, RouteMessageBuilder};
use serde_json::json;
use weft_tests::netns::Netns;
use weft_tests::playground::families::{FIRST_NODE, SECOND};
use weft_tests::playground::{Family, PATIENCE, Routing, cleanup, network, wait};

use crate::{Cluster, HOST_TCP, inside, links, names, plan};

/// Connects to a listener at that address; the client's address as it is seen there.
fn connect(from: &Netns, to: &Netns, address: IpAddr) -> Result<IpAddr> {
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
    let target = listener.local_addr()?;
    from.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(1)))??;
    Ok(listener.accept()?.1.ip())
}

#[track_caller]
fn reach_each_other(one: (&Netns, IpAddr), other: (&Netns, IpAddr)) {
    for ((from, own), (to, address)) in [(one, other), (other, one)] {
        let done = wait(&format!("{own} reaches {address}"), PATIENCE, || {
            let seen = connect(from, to, address)?;
            ensure!(seen == own, "as {seen}");
            Ok(())
        });
        done.unwrap_or_else(|error| panic!("{error:#}"));
    }
}

fn add_route(machine: &Netns, to: IpNet, gateway: IpAddr) {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.addr(), to.prefix_len())
        .and_then(|route| route.gateway(gateway));
    let route = route.unwrap().build();
    inside(machine, async |handle| {
        handle.route().add(route).execute().await.unwrap();
    });
}

fn pod_netns(cluster: &Cluster, name: &str) -> Arc<Netns> {
    let nodes = cluster.playground.nodes().iter();
    let mut sandboxes = nodes.filter_map(|node| node.sandboxes.get("ways", name));
    Arc::clone(&sandboxes.next().unwrap().netns)
}

/// The one uplink is `eth0`, as the agent says and as the programs are.
#[track_caller]
fn assert_one_uplink(cluster: &Cluster) {
    let status = cluster.status("node1").unwrap();
    let uplinks = status["network"]["uplinks"].as_array().unwrap();
    let found: Vec<_> = uplinks.iter().map(|uplink| &uplink["name"]).collect();
    assert_eq!(found, [&json!("eth0")]);
    let dir = cluster.playground.node("node1").unwrap().bpf_dir();
    let mut pins = names(&dir.join("weft/links"));
    pins.retain(|pin| pin.ends_with("_netdev"));
    pins.sort();
    assert_eq!(pins, ["eth0-from_netdev", "eth0-to_netdev"]);
}

fn assert_routed(routing: Routing, name: &str) {
    let cluster = Cluster::start(plan(name, routing).second_uplink());
    assert_one_uplink(&cluster);
    let machine = cluster.playground.second_machine().unwrap();
    let pod = pod_netns(&cluster, "a");
    for family in Family::BOTH {
        let (own, address) = (cluster.pod("a", family), machine.address(family));
        // Nothing stands for the pod, and the machine knows no way to it.
        assert!(connect(&pod, machine.netns(), address).is_err());
        let node = SECOND.host(family, FIRST_NODE);
        add_route(machine.netns(), own.into(), node);
        reach_each_other((&pod, own), (machine.netns(), address));
        // Weft does not see what comes in by it, so hostPorts are not served there.
        let host_port = SocketAddr::new(node, HOST_TCP);
        let refused = || TcpStream::connect_timeout(&host_port, Duration::from_secs(1));
        assert!(machine.netns().run(refused).unwrap().is_err());
    }
    cluster.outside_reaches_and_is_reached();
}

#[test]
fn a_network_without_a_router_is_reached_by_the_hosts_routing_over_vxlan() {
    assert_routed(Routing::Vxlan, "routed");
}

#[test]
fn a_network_without_a_router_is_reached_by_the_hosts_routing_in_native_routing() {
    assert_routed(Routing::Native, "routedn");
}

#[test]
fn containers_behind_a_bridge_of_the_node_are_reached_as_they_are() {
    let cluster = Cluster::start(plan("bridge", Routing::Vxlan));
    let playground = &cluster.playground;
    let node = cluster.netns("node1");
    inside(node, async |handle| {
        let bridge = LinkBridge::new("docker0").build();
        handle.link().add(bridge).execute().await.unwrap();
    });
    let index = links(node)["docker0"].0;
    inside(node, async |handle| {
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().set(up).execute().await.unwrap();
    });
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let gateways = [net("172.17.0.1/16"), net("fd17::1/64")];
    let own = [net("172.17.0.2/16"), net("fd17::2/64")];
    for gateway in gateways {
        network::add_address(node, "docker0", gateway).unwrap();
    }
    // The playground removes it with its other names.
    let container = Netns::create(&cleanup::netns_name(playground.id(), "container")).unwrap();
    network::join(node, "docker0", "port0", &container, "eth0", &own).unwrap();
    for (gateway, all) in gateways.into_iter().zip([net("0.0.0.0/0"), net("::/0")]) {
        add_route(&container, all, gateway.addr());
    }
    let pod = pod_netns(&cluster, "a");
    for (family, own) in Family::BOTH.into_iter().zip(own) {
        let address = cluster.pod("a", family);
        reach_each_other((&pod, address), (&container, own.addr()));
    }
    assert_one_uplink(&cluster);
    cluster.outside_reaches_and_is_reached();
    container.delete().unwrap();
}
