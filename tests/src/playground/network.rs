//! The wires: the fabric with its bridges, the nodes' uplinks, the router and what is behind it.
//!
//! ```text
//!   node1 eth0 ──┐ bridge `nodes`           router
//!   node2 eth0 ──┤ fabric: routes ── transit: transit, lan ── outside: eth0
//!   node1 eth1 ──┐ bridge `second`, not routed
//!   node2 eth1 ──┴ second: eth0
//! ```
//!
//! Nobody here knows of pods: the fabric and the router have routes to the networks of this plan only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use super::families::{
    Family, NODES, OUTSIDE, OUTSIDE_ADDRESSES, ROUTER, SECOND, SECOND_MACHINE, TRANSIT,
    TRANSIT_ROUTER,
};
use crate::netns::{self, Netns};

/// The bridge of the nodes' network, in the fabric's namespace.
pub const BRIDGE: &str = "nodes";

/// The bridge of the second network, in the fabric's namespace.
pub const SECOND_BRIDGE: &str = "second";

/// The fabric's and the router's ends of the link between them.
pub const TRANSIT_LINK: &str = "transit";

/// The router's interface towards the outside.
const LAN: &str = "lan";

/// A node's uplink.
pub const UPLINK: &str = "eth0";

/// A node's second uplink.
pub const SECOND_UPLINK: &str = "eth1";

/// Makes the bridge of the nodes and gives the fabric its addresses in both families.
///
/// # Errors
///
/// When the kernel refuses any of it.
pub fn make_fabric(fabric: &Netns) -> Result<()> {
    forward(fabric)?;
    configure(fabric, async move |handle: Handle| {
        up(&handle, "lo").await?;
        bridge(&handle, BRIDGE).await
    })
    .context("making the fabric's bridge")?;
    expect_no_duplicates(fabric, BRIDGE)?;
    configure(fabric, async move |handle: Handle| {
        up(&handle, BRIDGE).await?;
        for family in Family::BOTH {
            add_to(&handle, BRIDGE, NODES.interface(family, ROUTER)).await?;
        }
        Ok(())
    })
    .context("configuring the fabric's bridge")
}

/// Makes the second network: a bridge, and the one machine that is not a node.
///
/// # Errors
///
/// When the kernel refuses any of it.
pub fn make_second(fabric: &Netns, machine: &Netns) -> Result<()> {
    configure(fabric, async move |handle: Handle| {
        bridge(&handle, SECOND_BRIDGE).await?;
        up(&handle, SECOND_BRIDGE).await
    })
    .context("making the second network's bridge")?;
    let addresses = Family::BOTH.map(|family| SECOND.interface(family, SECOND_MACHINE));
    join(
        fabric,
        SECOND_BRIDGE,
        "machine",
        machine,
        UPLINK,
        &addresses,
    )
}

/// Makes the world outside: a router behind the fabric, and a namespace behind that.
///
/// # Errors
///
/// When the kernel refuses any of it.
pub fn make_outside(fabric: &Netns, router: &Netns, outside: &Netns) -> Result<()> {
    forward(router)?;
    wire(fabric, TRANSIT_LINK, router, TRANSIT_LINK)?;
    wire(router, LAN, outside, UPLINK)?;
    configure(fabric, async move |handle: Handle| {
        for family in Family::BOTH {
            add_to(&handle, TRANSIT_LINK, TRANSIT.interface(family, ROUTER)).await?;
            let next = TRANSIT.host(family, TRANSIT_ROUTER);
            route(&handle, OUTSIDE.of(family), next).await?;
        }
        Ok(())
    })
    .context("routing from the fabric to the outside")?;
    configure(router, async move |handle: Handle| {
        up(&handle, "lo").await?;
        for family in Family::BOTH {
            let transit = TRANSIT.interface(family, TRANSIT_ROUTER);
            add_to(&handle, TRANSIT_LINK, transit).await?;
            add_to(&handle, LAN, OUTSIDE.interface(family, ROUTER)).await?;
            route(&handle, NODES.of(family), TRANSIT.host(family, ROUTER)).await?;
        }
        Ok(())
    })
    .context("configuring the outside's router")?;
    configure(outside, async move |handle: Handle| {
        up(&handle, "lo").await?;
        for family in Family::BOTH {
            for number in OUTSIDE_ADDRESSES {
                add_to(&handle, UPLINK, OUTSIDE.interface(family, number)).await?;
            }
            // No default route: an answer to a pod's own address has no way.
            for subnet in [NODES, TRANSIT] {
                route(&handle, subnet.of(family), OUTSIDE.host(family, ROUTER)).await?;
            }
        }
        Ok(())
    })
    .context("configuring the outside")
}

/// Joins a machine to one of the fabric's bridges: an interface with these addresses.
///
/// # Errors
///
/// When the kernel refuses any of it.
pub fn join(
    fabric: &Netns,
    bridge: &'static str,
    port: &str,
    machine: &Netns,
    interface: &'static str,
    addresses: &[IpNet],
) -> Result<()> {
    wire(fabric, port, machine, interface)?;
    configure(fabric, async move |handle: Handle| {
        let link = LinkUnspec::new_with_index(index(port)?)
            .controller(index(bridge)?)
            .build();
        handle.link().set(link).execute().await?;
        Ok(())
    })
    .with_context(|| format!("joining {port} to {bridge}"))?;
    configure(machine, async move |handle: Handle| {
        up(&handle, "lo").await?;
        for address in addresses {
            add_to(&handle, interface, *address).await?;
        }
        Ok(())
    })
    .with_context(|| format!("configuring {interface} of {}", machine.name()))
}

/// Takes a machine off the fabric.
///
/// # Errors
///
/// When there is no such port.
pub fn unplug(fabric: &Netns, port: &str) -> Result<()> {
    configure(fabric, async move |handle: Handle| {
        handle.link().del(index(port)?).execute().await?;
        Ok(())
    })
    .with_context(|| format!("removing the fabric's port {port}"))
}

/// Whether a namespace has an interface of that name.
///
/// # Errors
///
/// When the namespace cannot be entered.
pub fn has_interface(netns: &Netns, name: &str) -> Result<bool> {
    Ok(netns.run(|| if_nametoindex(name).is_ok())?)
}

/// Gives a machine its default route over the fabric.
///
/// # Errors
///
/// When there is one already, or the fabric is not in a network of the machine's.
pub fn set_default_route(machine: &Netns, family: Family) -> Result<()> {
    configure(machine, async move |handle: Handle| {
        let all: IpNet = match family {
            Family::V4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            Family::V6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        };
        route(&handle, all, NODES.host(family, ROUTER)).await
    })
    .with_context(|| format!("the default route of {}", machine.name()))
}

/// Gives a machine a route, in place of the one that it has to there, if any.
///
/// # Errors
///
/// When the gateway is not in a network of the machine's.
pub fn set_route(machine: &Netns, to: IpNet, gateway: IpAddr) -> Result<()> {
    configure(machine, async move |handle: Handle| {
        let request = handle.route().add(route_message(to, gateway)?);
        Ok(request.replace().execute().await?)
    })
    .with_context(|| format!("routing {to} via {gateway} in {}", machine.name()))
}

/// Sets an interface's MTU, in bytes of IP packet.
///
/// # Errors
///
/// When there is no such interface or it cannot have this MTU.
pub fn set_mtu(netns: &Netns, interface: &str, mtu: u32) -> Result<()> {
    configure(netns, async move |handle: Handle| {
        let link = LinkUnspec::new_with_index(index(interface)?)
            .mtu(mtu)
            .build();
        handle.link().set(link).execute().await?;
        Ok(())
    })
    .with_context(|| format!("setting the MTU of {interface} in {}", netns.name()))
}

/// Adds an address to an interface; an IPv6 one is usable at once.
///
/// # Errors
///
/// When there is no such interface or it has the address.
pub fn add_address(netns: &Netns, interface: &str, address: IpNet) -> Result<()> {
    configure(netns, async move |handle: Handle| {
        add_to(&handle, interface, address).await
    })
    .with_context(|| format!("adding {address} to {interface} in {}", netns.name()))
}

/// Removes an address from whatever interface has it.
///
/// # Errors
///
/// When none has it.
pub fn remove_address(netns: &Netns, address: IpAddr) -> Result<()> {
    configure(netns, async move |handle: Handle| {
        let mut all = handle.address().get().execute();
        while let Some(message) = all.try_next().await? {
            let is_it = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(local) => *local == address,
                // IPv6 has no separate local address.
                AddressAttribute::Address(found) => *found == address && address.is_ipv6(),
                _ => false,
            };
            if message.attributes.iter().any(is_it) {
                return Ok(handle.address().del(message).execute().await?);
            }
        }
        bail!("no interface has it")
    })
    .with_context(|| format!("removing {address} in {}", netns.name()))
}

/// Does what a container runtime does to a pod's new namespace: brings the loopback up, and lets
/// everyone ping and bind any port.
///
/// # Errors
///
/// When the kernel refuses any of it.
pub fn prepare_pod(netns: &Netns) -> Result<()> {
    configure(netns, async move |handle: Handle| up(&handle, "lo").await)
        .with_context(|| format!("bringing lo up in {}", netns.name()))?;
    netns.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    netns.sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
    Ok(())
}

/// Makes a machine forward packets of both families.
///
/// # Errors
///
/// When the kernel does not have it.
pub fn forward(netns: &Netns) -> Result<()> {
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        netns
            .sysctl(key, "1")
            .with_context(|| format!("setting {key} in {}", netns.name()))?;
    }
    Ok(())
}

/// Makes a pair of interfaces, one in each namespace, both up.
fn wire(one: &Netns, one_name: &str, other: &Netns, other_name: &'static str) -> Result<()> {
    let inside: RawFd = netns::raw(other);
    configure(one, async move |handle: Handle| {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(other_name)
            .setns_by_fd(inside)
            .build();
        let veth = LinkVeth::new(one_name, other_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        handle.link().add(veth).execute().await?;
        Ok(())
    })
    .with_context(|| format!("wiring {} to {}", one.name(), other.name()))?;
    for (netns, name) in [(one, one_name), (other, other_name)] {
        expect_no_duplicates(netns, name)?;
        configure(netns, async move |handle: Handle| up(&handle, name).await)
            .with_context(|| format!("wiring {}", netns.name()))?;
    }
    Ok(())
}

/// Lets an interface use its link-local address from the start, as one that has long been up does.
/// Before the kernel knows that nobody else has it, it forwards nothing over IPv6. Other interfaces,
/// such as those that an agent makes, are as they are by default.
fn expect_no_duplicates(netns: &Netns, interface: &str) -> Result<()> {
    for what in ["all", interface] {
        let key = format!("net/ipv6/conf/{what}/accept_dad");
        netns
            .sysctl(&key, "0")
            .with_context(|| format!("setting {key} in {}", netns.name()))?;
    }
    Ok(())
}

/// Runs netlink work inside a namespace.
fn configure(netns: &Netns, work: impl AsyncFnOnce(Handle) -> Result<()> + Send) -> Result<()> {
    netns.run_async(|| async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let done = work(handle).await;
        connection.abort();
        done
    })?
}

async fn bridge(handle: &Handle, name: &str) -> Result<()> {
    let bridge = LinkBridge::new(name).build();
    Ok(handle.link().add(bridge).execute().await?)
}

async fn add_to(handle: &Handle, interface: &str, address: IpNet) -> Result<()> {
    let mut request = handle
        .address()
        .add(index(interface)?, address.addr(), address.prefix_len());
    if address.addr().is_ipv6() {
        // The plan has no duplicates, and a tentative address cannot be bound to.
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
    }
    request
        .execute()
        .await
        .with_context(|| format!("adding {address} to {interface}"))
}

fn route_message(to: IpNet, gateway: IpAddr) -> Result<RouteMessage> {
    Ok(match (to, gateway) {
        (IpNet::V4(to), IpAddr::V4(gateway)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .gateway(gateway)
            .build(),
        (IpNet::V6(to), IpAddr::V6(gateway)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .gateway(gateway)
            .build(),
        _ => bail!("{to} and {gateway} are of different families"),
    })
}

async fn route(handle: &Handle, to: IpNet, gateway: IpAddr) -> Result<()> {
    handle
        .route()
        .add(route_message(to, gateway)?)
        .execute()
        .await
        .with_context(|| format!("routing {to} via {gateway}"))
}

async fn up(handle: &Handle, name: &str) -> Result<()> {
    let link = LinkUnspec::new_with_index(index(name)?).up().build();
    handle
        .link()
        .set(link)
        .execute()
        .await
        .with_context(|| format!("bringing {name} up"))
}

/// An interface's index in the calling thread's namespace.
fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).with_context(|| format!("no interface {name}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::playground::families::FIRST_NODE;
    use crate::playground::{Node, cleanup};

    #[test]
    fn nodes_reach_each_other_the_fabric_and_the_outside_and_leave_nothing() {
        let id = format!("net{:x}", std::process::id());
        let claim = cleanup::claim(&id).unwrap();
        assert!(cleanup::claim(&id).is_err(), "the id is taken");
        let make = |what| Netns::create(&cleanup::netns_name(&id, what)).unwrap();
        let (fabric, router, outside) = (make("fabric"), make("router"), make("outside"));
        make_fabric(&fabric).unwrap();
        make_outside(&fabric, &router, &outside).unwrap();
        let nodes = [0, 1].map(|index| {
            let (name, number) = (format!("n{index}"), FIRST_NODE + index);
            let addresses = Family::BOTH.map(|family| NODES.interface(family, number));
            let own = addresses.iter().map(IpNet::addr).collect();
            let node = Node::make(&id, &name, own, None).unwrap();
            join(&fabric, BRIDGE, &name, &node.netns, UPLINK, &addresses).unwrap();
            for family in Family::BOTH {
                set_default_route(&node.netns, family).unwrap();
            }
            node
        });
        for family in Family::BOTH {
            let own = NODES.host(family, FIRST_NODE);
            for (place, address) in [
                (&*nodes[1].netns, NODES.host(family, FIRST_NODE + 1)),
                (&fabric, NODES.host(family, ROUTER)),
                (&outside, OUTSIDE.host(family, 12)),
            ] {
                let listener = place
                    .run(|| TcpListener::bind(SocketAddr::new(address, 7000)).unwrap())
                    .unwrap();
                let target = listener.local_addr().unwrap();
                let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(5));
                let mut client = nodes[0].netns.run(connect).unwrap().unwrap();
                client.write_all(b"x").unwrap();
                let (_, from) = listener.accept().unwrap();
                assert_eq!(from.ip(), own);
            }
        }

        cleanup::remove_abandoned().unwrap();
        assert!(
            cleanup::dir(&id).exists(),
            "a playground in use is not abandoned"
        );
        drop((claim, nodes, fabric, router, outside));
        cleanup::remove_by_id(&id).unwrap();
        assert!(!cleanup::dir(&id).exists());
        assert!(!cleanup::cgroup_dir(&id).unwrap().exists());
        let prefix = cleanup::netns_name(&id, "");
        assert!(
            !netns::names()
                .unwrap()
                .iter()
                .any(|name| name.starts_with(&prefix))
        );
    }
}
