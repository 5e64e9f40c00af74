//! Network stacks at the ends of a wire: sockets instead of frames.
//!
//! ```text
//!    the pod's namespace      the lab's namespace          the outer namespace
//!    peer0  the pod  ~~~~~~~~ pod0          uplink0 ~~~~~~ outside0  everything outside
//! ```

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::{Handle, LinkUnspec};
use weft_abi::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};

use super::interfaces::{
    UPLINK_MAC, UPLINK_PEER, namespace, neighbour, pod_peer, quiet, route, sysctl, up,
    with_netlink, within,
};
use super::scene::{NODE, OUTSIDE};
use super::{FAMILIES, Family, LocalPod, Somewhere as _, Wire};

/// A pod and the outside, where sockets can be opened. A socket stays where it was made, whoever
/// uses it.
#[derive(Debug)]
pub struct Ends {
    pod: File,
    outside: File,
}

impl Ends {
    /// Runs work in the pod.
    ///
    /// # Errors
    ///
    /// Those of the work, and of entering the namespace.
    pub fn in_pod<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        within(&self.pod, || Ok(work()?))
    }

    /// Runs work outside, where the address is that of `scene::OUTSIDE`.
    ///
    /// # Errors
    ///
    /// Those of the work, and of entering the namespace.
    pub fn outside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        within(&self.outside, || Ok(work()?))
    }
}

impl Wire {
    /// Gives a pod a network stack, and the outside another. The pod's end of the wire moves into a
    /// namespace of its own: what comes to it is for its sockets, and for no tap.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn inhabit(&self, pod: &LocalPod) -> Result<Ends> {
        let mut pods = self.lab.pods().iter();
        let index = pods.position(|known| known.name == pod.name);
        let peer = pod_peer(index.context("no such pod")?);
        let ends = Ends {
            pod: namespace(quiet)?,
            outside: self.lab.interfaces.outer.try_clone()?,
        };
        within(&ends.outside, || {
            sysctl(&format!("ipv6/conf/{UPLINK_PEER}/disable_ipv6"), "0")?;
            with_netlink(async |handle| {
                let moved = LinkUnspec::new_with_index(if_nametoindex(&*peer)?)
                    .setns_by_fd(ends.pod.as_raw_fd())
                    .build();
                handle.link().set(moved).execute().await?;
                let ifindex = if_nametoindex(UPLINK_PEER)?;
                for family in FAMILIES {
                    own(handle, ifindex, OUTSIDE.at(family)).await?;
                    let node = NODE.at(family);
                    neighbour(handle, ifindex, node, UPLINK_MAC).await?;
                    let towards = route(node, family.bits(), None, ifindex);
                    handle.route().add(towards).execute().await?;
                }
                Ok(())
            })
        })
        .context("cannot inhabit the outside")?;
        within(&ends.pod, || {
            with_netlink(async |handle| {
                up(handle, &peer).await?;
                let ifindex = if_nametoindex(&*peer)?;
                for family in FAMILIES {
                    own(handle, ifindex, pod.at(family)).await?;
                    let gateway = gateway(family);
                    neighbour(handle, ifindex, gateway, GATEWAY_MAC).await?;
                    let towards = route(gateway, family.bits(), None, ifindex);
                    handle.route().add(towards).execute().await?;
                    let everywhere = route(family.unspecified(), 0, Some(gateway), ifindex);
                    handle.route().add(everywhere).execute().await?;
                }
                Ok(())
            })
        })
        .context("cannot inhabit the pod")?;
        Ok(ends)
    }
}

/// The gateway of every pod.
fn gateway(family: Family) -> IpAddr {
    family.pick(
        Ipv4Addr::from(GATEWAY_V4).into(),
        Ipv6Addr::from(GATEWAY_V6).into(),
    )
}

/// Gives an interface an address, at once.
pub(super) async fn own(handle: &Handle, ifindex: u32, address: IpAddr) -> Result<()> {
    let bits = Family::of(address).bits();
    let mut add = handle.address().add(ifindex, address, bits);
    if address.is_ipv6() {
        // Nobody is asked whether it is taken.
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        add.message_mut().attributes.push(flags);
    }
    Ok(add.execute().await?)
}
