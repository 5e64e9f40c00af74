//! The baseline: namespaces like pods, in the same nodes, joined by nothing but the kernel's routing.
//!
//! ```text
//!   client ─veth─┐                                  ┌─veth─ other
//!                ├─ node 1's stack ── fabric ── node 2's stack
//!   same ───veth─┘
//! ```
//!
//! No Weft program is on any of these interfaces, and no overlay between the nodes: they route to each
//! other's bare networks over the fabric.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::netns::{self, Netns};

/// A node that gets bare namespaces.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its namespace.
    pub netns: &'a Netns,
    /// Its address on the fabric.
    pub address: Ipv4Addr,
}

/// A namespace behind plain routing; removed when dropped.
#[derive(Debug)]
pub struct BarePod {
    /// Its namespace.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The baseline's namespaces.
#[derive(Debug)]
pub struct Baseline {
    /// On the first node.
    pub client: BarePod,
    /// On the first node too.
    pub same: BarePod,
    /// On the second.
    pub other: BarePod,
}

impl Baseline {
    /// Makes the namespaces in these two nodes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; what was made is removed.
    pub fn new(nodes: [Node<'_>; 2]) -> Result<Self> {
        for (node, peer, network) in [(nodes[0], nodes[1], 1), (nodes[1], nodes[0], 0)] {
            node.netns
                .sysctl("net/ipv4/ip_forward", "1")
                .context("enabling forwarding")?;
            let destination = Ipv4Addr::new(198, 18, network, 0);
            configure(node.netns, async move |handle| {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(destination, 24)
                    .gateway(peer.address)
                    .build();
                Ok(handle.route().add(route).replace().execute().await?)
            })
            .with_context(|| format!("routing between the nodes in {}", node.netns.name()))?;
        }
        Ok(Self {
            client: BarePod::new(nodes[0].netns, 0, 0)?,
            same: BarePod::new(nodes[0].netns, 0, 1)?,
            other: BarePod::new(nodes[1].netns, 1, 0)?,
        })
    }
}

impl BarePod {
    /// Makes the `index`-th namespace of a node, in a network of its own of the addresses that are
    /// set aside for benchmarks (RFC 2544).
    fn new(node: &Netns, network: u8, index: u8) -> Result<Self> {
        let gateway = Ipv4Addr::new(198, 18, network, 4 * index + 1);
        let address = Ipv4Addr::new(198, 18, network, 4 * index + 2);
        let name = format!("{}-bare{index}", node.name());
        let netns = Netns::create(&name).with_context(|| format!("making {name}"))?;
        let pod = Self { netns, address };

        let outside = format!("bare{index}");
        let inside = netns::raw(&pod.netns);
        configure(node, async move |handle: Handle| {
            let peer = LinkMessageBuilder::<LinkUnspec>::new()
                .name("eth0")
                .setns_by_fd(inside)
                .build();
            let veth = LinkVeth::new(&outside, "eth0")
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .build();
            handle.link().add(veth).execute().await?;
            set_up(&handle, &outside, gateway).await
        })
        .with_context(|| format!("joining {name} to its node"))?;
        configure(&pod.netns, async move |handle: Handle| {
            set_up(&handle, "eth0", address).await?;
            let default = RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(gateway)
                .build();
            Ok(handle.route().add(default).execute().await?)
        })
        .with_context(|| format!("configuring {name}"))?;
        Ok(pod)
    }
}

impl Drop for BarePod {
    fn drop(&mut self) {
        // The playground removes what is named after its nodes, should this fail.
        let _ = netns::delete(self.netns.name());
    }
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

async fn set_up(handle: &Handle, name: &str, address: Ipv4Addr) -> Result<()> {
    let index = if_nametoindex(name).with_context(|| format!("no interface {name}"))?;
    handle
        .address()
        .add(index, address.into(), 30)
        .execute()
        .await?;
    let link = LinkUnspec::new_with_index(index).up().build();
    Ok(handle.link().set(link).execute().await?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::load::{Cpus, Ends, Workload};

    /// Two nodes joined by a wire.
    struct Wire {
        nodes: [Netns; 2],
        addresses: [Ipv4Addr; 2],
    }

    impl Wire {
        fn new() -> Self {
            let name = |node| format!("weft-test-bare-{}-{node}", std::process::id());
            let wire = Self {
                nodes: [1, 2].map(|node| Netns::create(&name(node)).unwrap()),
                addresses: [1, 2].map(|host| Ipv4Addr::new(192, 0, 2, host)),
            };
            let [first, second] = &wire.nodes;
            let inside = netns::raw(second);
            configure(first, async move |handle: Handle| {
                let peer = LinkMessageBuilder::<LinkUnspec>::new()
                    .name("eth0")
                    .setns_by_fd(inside)
                    .build();
                let veth = LinkVeth::new("eth0", "eth0")
                    .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                    .build();
                Ok(handle.link().add(veth).execute().await?)
            })
            .unwrap();
            for (node, address) in [(first, wire.addresses[0]), (second, wire.addresses[1])] {
                configure(node, async move |handle: Handle| {
                    set_up(&handle, "eth0", address).await
                })
                .unwrap();
            }
            wire
        }
    }

    impl Drop for Wire {
        fn drop(&mut self) {
            for node in &self.nodes {
                let _ = netns::delete(node.name());
            }
        }
    }

    #[test]
    fn every_workload_gets_through_the_baseline() {
        let wire = Wire::new();
        let [first, second] = [0, 1].map(|index| Node {
            netns: &wire.nodes[index],
            address: wire.addresses[index],
        });
        let baseline = Baseline::new([first, second]).unwrap();
        for (server, cpus) in [
            (&baseline.same, Cpus::Shared),
            (&baseline.other, Cpus::Apart),
        ] {
            for workload in Workload::ALL {
                let ends = Ends {
                    client: &baseline.client.netns,
                    server: &server.netns,
                    address: server.address,
                    service: false,
                };
                let sample = workload.run(ends, cpus, Duration::from_millis(20)).unwrap();
                assert!(sample.rate() > 0.0, "{workload:?}: {sample:?}");
                assert!(
                    sample.total >= sample.operations,
                    "{workload:?}: {sample:?}"
                );
            }
        }
        let nobody = Ends {
            client: &baseline.client.netns,
            server: &baseline.same.netns,
            address: Ipv4Addr::new(198, 18, 0, 1),
            service: false,
        };
        let refused = Workload::RequestResponse.run(nobody, Cpus::Shared, Duration::from_millis(1));
        assert!(refused.is_err(), "nobody listens there");
    }
}
