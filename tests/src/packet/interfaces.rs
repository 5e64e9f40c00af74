//! The interfaces of a lab: one veth per pod, an uplink, and for a wire the overlay device. Their
//! other ends are in a namespace of their own, the *outer* one, because a packet is redirected to a
//! peer only in another namespace.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::thread;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder};
use weft_abi::OVERLAY_MAC;

use super::bytes::Mac;
use super::scene::{NODE, ROUTER, pod_place};
use super::{FAMILIES, LocalPod, Somewhere as _};

/// The MAC address of the node's uplink: that to which [`super::bytes::Packet`]s are sent if nobody says
/// otherwise.
pub const UPLINK_MAC: Mac = weft_abi::GATEWAY_MAC;
/// The MAC address of the router behind it, and of everyone else there.
pub const ROUTER_MAC: Mac = [2, 0, 0, 0, 0xff, 2];
/// The uplink's name.
pub const UPLINK: &str = "uplink0";
/// The name of its other end.
pub const UPLINK_PEER: &str = "outside0";
/// The overlay device.
pub const OVERLAY: &str = "overlay0";
/// MTU of the uplink.
pub const UPLINK_MTU: u32 = 1500;
/// MTU of the overlay: 50 bytes of outer headers less.
pub const OVERLAY_MTU: u32 = 1450;
/// MTU of pods: beyond what goes any further, so that packets too big can be sent.
const POD_MTU: u32 = 4_000;
/// The overlay's UDP port.
pub const OVERLAY_PORT: u16 = 4789;

/// What to make.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// An uplink with the node's addresses and default routes.
    pub uplink: bool,
    /// Routes to the pods, their gateway's MAC address, and an overlay device.
    pub wired: bool,
    /// The pods of the other node are behind it, and not behind the overlay.
    pub native: bool,
}

/// What was made.
#[derive(Debug)]
pub struct Interfaces {
    /// The interface of each pod.
    pub pods: Vec<u32>,
    /// The uplink, or 0.
    pub uplink: u32,
    /// The overlay device, or 0.
    pub overlay: u32,
    /// The namespace of the other ends.
    pub outer: File,
}

/// The name of a pod's interface.
pub fn pod_interface(index: usize) -> String {
    format!("pod{index}")
}

/// The name of its other end.
pub fn pod_peer(index: usize) -> String {
    format!("peer{index}")
}

/// Moves the calling thread into a namespace of its own, and makes the interfaces there.
pub fn make(pods: &[LocalPod], wanted: Wanted) -> Result<Interfaces> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run as root")?;
    quiet()?;
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        sysctl(family, "1")?;
    }
    // Wires carry packets of everywhere.
    for device in ["all", "default"] {
        sysctl(&format!("ipv4/conf/{device}/rp_filter"), "0")?;
    }
    // Nothing there speaks by itself.
    let outer = namespace(|| sysctl("ipv6/conf/default/disable_ipv6", "1"))?;
    let (indices, uplink, overlay) =
        with_netlink(async |handle| configure(handle, pods, wanted, &outer).await)?;
    // Only now: the end of a veth that comes first cannot be up before the other.
    within(&outer, || {
        with_netlink(async |handle| {
            for index in 0..pods.len() {
                up(handle, &pod_peer(index)).await?;
            }
            if uplink != 0 {
                up(handle, UPLINK_PEER).await?;
            }
            Ok(())
        })
    })?;
    Ok(Interfaces {
        pods: indices,
        uplink,
        overlay,
        outer,
    })
}

/// Runs netlink work in the thread's namespace.
pub fn with_netlink<T>(work: impl AsyncFnOnce(&Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let done = work(&handle).await;
        connection.abort();
        done
    })
}

/// Runs work on a thread in a namespace.
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A new namespace, after `prepare` ran in it.
pub fn namespace(prepare: fn() -> io::Result<()>) -> Result<File> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            prepare()?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Interfaces made from now on in the thread's namespace speak as little as possible.
pub fn quiet() -> io::Result<()> {
    for (key, value) in [("accept_dad", "0"), ("router_solicitations", "0")] {
        sysctl(&format!("ipv6/conf/default/{key}"), value)?;
    }
    // No link-local addresses either: nothing is announced.
    sysctl("ipv6/conf/default/addr_gen_mode", "1")
}

/// Sets a sysctl of the thread's namespace, named below `net`.
pub fn sysctl(key: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/{key}"), value)
}

async fn configure(
    handle: &Handle,
    pods: &[LocalPod],
    wanted: Wanted,
    outer: &File,
) -> Result<(Vec<u32>, u32, u32)> {
    up(handle, "lo").await?;
    let mut indices = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let (name, peer) = (pod_interface(index), pod_peer(index));
        let ifindex = veth(
            handle,
            POD_MTU,
            (&name, weft_abi::GATEWAY_MAC),
            (&peer, pod.mac),
            outer,
        )
        .await?;
        if wanted.wired {
            for family in FAMILIES {
                let address = pod.at(family);
                handle
                    .route()
                    .add(route(address, family.bits(), None, ifindex))
                    .execute()
                    .await?;
                neighbour(handle, ifindex, address, pod.mac).await?;
            }
        }
        indices.push(ifindex);
    }
    let mut uplink = 0;
    if wanted.uplink || wanted.wired {
        uplink = veth(
            handle,
            UPLINK_MTU,
            (UPLINK, UPLINK_MAC),
            (UPLINK_PEER, ROUTER_MAC),
            outer,
        )
        .await?;
        for family in FAMILIES {
            let prefix = family.pick(24, 64);
            handle
                .address()
                .add(uplink, NODE.at(family), prefix)
                .execute()
                .await?;
            let router = ROUTER.at(family);
            neighbour(handle, uplink, router, ROUTER_MAC).await?;
            neighbour(
                handle,
                uplink,
                super::scene::OTHER_NODE.at(family),
                ROUTER_MAC,
            )
            .await?;
            handle
                .route()
                .add(route(family.unspecified(), 0, Some(router), uplink))
                .execute()
                .await?;
            if wanted.native {
                let network = pod_place(2, 0).at(family);
                let node = super::scene::OTHER_NODE.at(family);
                handle
                    .route()
                    .add(route(network, prefix, Some(node), uplink))
                    .execute()
                    .await?;
            }
        }
    }
    let mut overlay = 0;
    if wanted.wired {
        let device = LinkVxlan::new(OVERLAY, 0)
            .port(OVERLAY_PORT)
            .collect_metadata(true)
            .learning(false)
            .address(OVERLAY_MAC.to_vec())
            .mtu(OVERLAY_MTU)
            .arp(false)
            .up()
            .build();
        handle
            .link()
            .add(device)
            .execute()
            .await
            .context("cannot make a VXLAN device")?;
        overlay = if_nametoindex(OVERLAY)?;
        for family in FAMILIES.into_iter().filter(|_| !wanted.native) {
            let network = pod_place(2, 0).at(family);
            let prefix = family.pick(24, 64);
            handle
                .route()
                .add(route(network, prefix, None, overlay))
                .execute()
                .await?;
        }
    }
    Ok((indices, uplink, overlay))
}

/// Makes a veth with one end here and the other in the outer namespace, both up.
async fn veth(
    handle: &Handle,
    mtu: u32,
    (name, mac): (&str, Mac),
    (peer, peer_mac): (&str, Mac),
    outer: &File,
) -> Result<u32> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(peer)
        .address(peer_mac.to_vec())
        .mtu(mtu)
        .setns_by_fd(outer.as_raw_fd())
        .build();
    let pair = LinkVeth::new(name, "")
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(mac.to_vec())
        .mtu(mtu)
        .up()
        .build();
    let added = handle.link().add(pair).execute().await;
    added.with_context(|| format!("cannot make the veth {name}"))?;
    Ok(if_nametoindex(name)?)
}

/// Sets an interface up.
pub async fn up(handle: &Handle, name: &str) -> Result<()> {
    let link = LinkUnspec::new_with_index(if_nametoindex(name)?)
        .up()
        .build();
    Ok(handle.link().set(link).execute().await?)
}

/// Makes a permanent neighbour.
pub async fn neighbour(handle: &Handle, ifindex: u32, address: IpAddr, mac: Mac) -> Result<()> {
    let add = handle.neighbours().add(ifindex, address);
    let add = add
        .link_layer_address(&mac)
        .state(NeighbourState::Permanent)
        .replace();
    Ok(add.execute().await?)
}

/// A route: by a gateway, or to what is on the link itself.
pub fn route(network: IpAddr, prefix: u8, gateway: Option<IpAddr>, ifindex: u32) -> RouteMessage {
    match (network, gateway) {
        (IpAddr::V4(network), gateway) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(network, prefix)
                .output_interface(ifindex);
            match gateway {
                Some(IpAddr::V4(gateway)) => route.gateway(gateway).build(),
                _ => route
                    .scope(rtnetlink::packet_route::route::RouteScope::Link)
                    .build(),
            }
        }
        (IpAddr::V6(network), gateway) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(network, prefix)
                .output_interface(ifindex);
            match gateway {
                Some(IpAddr::V6(gateway)) => route.gateway(gateway).build(),
                _ => route.build(),
            }
        }
    }
}

/// Gives an interface another queueing discipline. Whether the kernel has it.
pub fn queue(ifindex: u32, kind: &str) -> Result<bool> {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    with_netlink(async |handle| {
        let mut answers = handle.clone().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                let error = error.to_io();
                if error.raw_os_error() == Some(libc::ENOENT) {
                    return Ok(false);
                }
                return Err(error).with_context(|| format!("cannot queue by {kind}"));
            }
        }
        Ok(true)
    })
}
