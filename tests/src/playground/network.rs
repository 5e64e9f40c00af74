//! The wires: a bridge in the fabric's namespace and a veth to each node.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::netns::{self, Netns};

/// The bridge's name in the fabric's namespace.
const BRIDGE: &str = "fabric";

/// A node's uplink.
pub const UPLINK: &str = "eth0";

/// Makes the bridge and gives the fabric its address.
pub fn make_fabric(fabric: &Netns, address: Ipv4Addr, prefix: u8) -> Result<()> {
    configure(fabric, async move |handle: Handle| {
        up(&handle, "lo").await?;
        handle
            .link()
            .add(LinkBridge::new(BRIDGE).build())
            .execute()
            .await?;
        handle
            .address()
            .add(index(BRIDGE)?, address.into(), prefix)
            .execute()
            .await?;
        up(&handle, BRIDGE).await
    })
    .context("making the fabric's bridge")
}

/// Joins a node to the fabric: an uplink with the node's address and a default route.
pub fn join(
    fabric: &Netns,
    node: &Netns,
    port: &str,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Ipv4Addr,
) -> Result<()> {
    let inside: RawFd = netns::raw(node);
    configure(fabric, async move |handle: Handle| {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(UPLINK)
            .setns_by_fd(inside)
            .build();
        let veth = LinkVeth::new(port, UPLINK)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(index(BRIDGE)?)
            .up()
            .build();
        handle.link().add(veth).execute().await?;
        Ok(())
    })
    .with_context(|| format!("joining {} to the fabric", node.name()))?;
    configure(node, async move |handle: Handle| {
        up(&handle, "lo").await?;
        handle
            .address()
            .add(index(UPLINK)?, address.into(), prefix)
            .execute()
            .await?;
        up(&handle, UPLINK).await?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .build();
        handle.route().add(default).execute().await?;
        Ok(())
    })
    .with_context(|| format!("configuring the uplink of {}", node.name()))
}

/// Does what a container runtime does to a pod's new namespace: brings the loopback up, and lets
/// everyone ping and bind any port.
pub fn prepare_pod(netns: &Netns) -> Result<()> {
    configure(netns, async move |handle: Handle| up(&handle, "lo").await)
        .with_context(|| format!("bringing lo up in {}", netns.name()))?;
    netns.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    netns.sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
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
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::playground::{Node, cleanup};

    #[test]
    fn nodes_reach_each_other_and_the_fabric_and_leave_nothing() {
        let id = format!("net{:x}", std::process::id());
        let claim = cleanup::claim(&id).unwrap();
        assert!(cleanup::claim(&id).is_err(), "the id is taken");
        let gateway = Ipv4Addr::new(172, 30, 0, 1);
        let fabric = Netns::create(&cleanup::netns_name(&id, "fabric")).unwrap();
        make_fabric(&fabric, gateway, 16).unwrap();
        let nodes = [10, 11].map(|octet| {
            let (name, address) = (format!("n{octet}"), Ipv4Addr::new(172, 30, 0, octet));
            let node = Node::make(&id, &name, address, None).unwrap();
            join(&fabric, &node.netns, &name, address, 16, gateway).unwrap();
            node
        });
        for (place, address) in [(&*nodes[1].netns, nodes[1].address), (&fabric, gateway)] {
            let listener = place
                .run(|| TcpListener::bind((address, 7000)).unwrap())
                .unwrap();
            let target = listener.local_addr().unwrap();
            let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(5));
            let mut client = nodes[0].netns.run(connect).unwrap().unwrap();
            client.write_all(b"x").unwrap();
            let (_, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), nodes[0].address);
        }

        cleanup::remove_abandoned().unwrap();
        assert!(
            cleanup::dir(&id).exists(),
            "a playground in use is not abandoned"
        );
        drop((claim, nodes, fabric));
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
