//! The wire: a lab whose programs are attached, with real frames on real interfaces.
//!
//! ```text
//!    the lab's namespace                        the outer namespace
//!    pod0  from_container, to_container  ~~~~~  peer0      a tap: the pod web
//!    pod1  ...                           ~~~~~  peer1      a tap: the pod db
//!    uplink0  from_netdev, to_netdev     ~~~~~  outside0   a tap: router, other nodes, the outside
//!    overlay0  from_overlay, to_overlay ──┘
//! ```

use std::net::IpAddr;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::programs::tc::{self, TcAttachType};
use aya::util::KernelVersion;
use weft_abi::{OVERLAY_MAC, OVERLAY_PEER_MAC, drop::DropReason, maps::programs};
use weft_agent::netlink::{Netlink, qdisc};

use super::interfaces::{
    self, OVERLAY, OVERLAY_PORT, ROUTER_MAC, UPLINK, UPLINK_MAC, UPLINK_PEER, pod_interface,
    pod_peer,
};
use super::tap::{PATIENCE, Tap};
use super::{
    Cluster, Lab, LocalPod, Setup,
    bytes::{Packet, Payload},
};

/// A node whose packets go their whole way.
pub struct Wire {
    /// The lab.
    pub lab: Lab,
    pods: Vec<Tap>,
    outside: Tap,
}

/// A packet in the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The node that sends it.
    pub source: IpAddr,
    /// The node that it is for.
    pub destination: IpAddr,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The packet.
    pub inner: Packet,
}

impl Wire {
    /// Attaches the datapath of a node with these pods.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: root is needed.
    pub fn new(cluster: &mut Cluster, pods: &[LocalPod]) -> Result<Self> {
        let setup = Setup {
            wired: true,
            ..Setup::uplink()
        };
        let mut lab = Lab::new(cluster, pods, &setup)?;
        for index in 0..pods.len() {
            let interface = pod_interface(index);
            attach(
                &mut lab,
                &interface,
                programs::FROM_CONTAINER,
                TcAttachType::Ingress,
            )?;
            attach(
                &mut lab,
                &interface,
                programs::TO_CONTAINER,
                TcAttachType::Egress,
            )?;
        }
        attach(
            &mut lab,
            OVERLAY,
            programs::FROM_OVERLAY,
            TcAttachType::Ingress,
        )?;
        attach(
            &mut lab,
            OVERLAY,
            programs::TO_OVERLAY,
            TcAttachType::Egress,
        )?;
        attach(
            &mut lab,
            UPLINK,
            programs::FROM_NETDEV,
            TcAttachType::Ingress,
        )?;
        attach(&mut lab, UPLINK, programs::TO_NETDEV, TcAttachType::Egress)?;
        let outer = &lab.interfaces.outer;
        let taps = (0..pods.len()).map(|index| Tap::open(outer, &pod_peer(index)));
        Ok(Self {
            pods: taps.collect::<Result<_>>()?,
            outside: Tap::open(outer, UPLINK_PEER)?,
            lab,
        })
    }

    /// Lets a pod send a packet.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn send(&self, pod: &LocalPod, packet: &Packet) -> Result<()> {
        self.pod(pod)?.send(&packet.to_bytes())
    }

    /// Lets a packet of outside arrive at the uplink.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn arrive(&self, packet: &Packet) -> Result<()> {
        let mut packet = packet.clone().sent_by(ROUTER_MAC);
        packet.destination_mac = UPLINK_MAC;
        self.outside.send(&packet.to_bytes())
    }

    /// Lets any frame arrive at the uplink.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn arrive_frame(&self, frame: &[u8]) -> Result<()> {
        self.outside.send(frame)
    }

    /// Lets a packet of the overlay arrive at the uplink.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn arrive_by_overlay(&self, overlay: &Overlay) -> Result<()> {
        let mut inner = overlay.inner.clone().sent_by(OVERLAY_PEER_MAC);
        inner.destination_mac = OVERLAY_MAC;
        let mut data = vec![8, 0, 0, 0];
        data.extend((overlay.vni << 8).to_be_bytes());
        data.extend(inner.to_bytes());
        let outer = Payload::udp_with(50_000, OVERLAY_PORT, data);
        self.arrive(&Packet::new(overlay.source, overlay.destination, outer))
    }

    /// Gives the uplink another queueing discipline. Whether the kernel has it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason.
    pub fn queue(&self, kind: &str) -> Result<bool> {
        interfaces::queue(self.lab.uplink(), kind)
    }

    /// Whether the agent finds that the uplink sends packets at their departure times.
    ///
    /// # Errors
    ///
    /// When it cannot find out.
    pub fn sends_at_departure_times(&self) -> Result<bool> {
        let uplinks = [self.lab.uplink()];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let netlink = Netlink::host()?;
            Ok(qdisc::send_at_departure_times(&netlink, &uplinks).await?)
        })
    }

    /// What a pod receives next.
    ///
    /// # Errors
    ///
    /// When it receives nothing, or a broken packet.
    pub fn at_pod(&self, pod: &LocalPod) -> Result<Packet> {
        self.pod(pod)?.receive(packet)?
    }

    /// What leaves by the uplink next, and is not of the overlay.
    ///
    /// # Errors
    ///
    /// When nothing does, or a broken packet.
    pub fn outside(&self) -> Result<Packet> {
        self.outside.receive(|frame| {
            packet(frame).filter(|packet| !packet.as_ref().is_ok_and(is_overlay))
        })?
    }

    /// What leaves by the overlay next.
    ///
    /// # Errors
    ///
    /// When nothing does, or a broken packet.
    pub fn overlay(&self) -> Result<Overlay> {
        let (outer, vni, inner) = self.encapsulated()?;
        let inner = Packet::parse(&inner);
        Ok(Overlay {
            source: outer.source,
            destination: outer.destination,
            vni,
            inner: inner.map_err(|error| anyhow!("inside of the overlay: {error}"))?,
        })
    }

    /// The frame that leaves by the overlay next: of a socket, whose checksum is not finished there.
    ///
    /// # Errors
    ///
    /// When nothing does.
    pub fn overlay_frame(&self) -> Result<Vec<u8>> {
        Ok(self.encapsulated()?.2)
    }

    /// Forgets what has left by the uplink so far. What nobody reads fills the tap, and then it takes
    /// nothing more.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forget_outside(&self) -> Result<()> {
        self.outside.drain().map(drop)
    }

    /// What leaves by the overlay next: the outer packet, the VNI, and the frame inside.
    fn encapsulated(&self) -> Result<(Packet, u32, Vec<u8>)> {
        let outer = self
            .outside
            .receive(|frame| packet(frame)?.ok().filter(is_overlay))?;
        let Payload::Udp { data, .. } = &outer.payload else {
            return Err(anyhow!("no UDP"));
        };
        ensure!(data.starts_with(&[8, 0, 0, 0]), "no VXLAN: {data:02x?}");
        let vni = data.get(4..8).context("no VNI")?;
        let vni = u32::from_be_bytes([0, vni[0], vni[1], vni[2]]);
        let inner = data[8..].to_vec();
        Ok((outer, vni, inner))
    }

    /// Sends something and waits until it is dropped for this reason. Nothing comes out anywhere.
    ///
    /// # Errors
    ///
    /// When something else happens.
    pub fn drops(&self, reason: DropReason, send: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.forget()?;
        let before = self.lab.drops(reason)?;
        send(self)?;
        let end = Instant::now() + PATIENCE;
        while self.lab.drops(reason)? == before {
            if Instant::now() > end {
                let came = self.forget()?;
                return Err(anyhow!("no drop as {}, but {came:#?}", reason.name()));
            }
            thread::yield_now();
        }
        let came = self.forget()?;
        ensure!(came.is_empty(), "dropped, and yet there came {came:#?}");
        Ok(())
    }

    /// Reads what has come out anywhere.
    fn forget(&self) -> Result<Vec<Packet>> {
        let mut packets = Vec::new();
        for tap in self.pods.iter().chain([&self.outside]) {
            for frame in tap.drain()? {
                packets.extend(packet(&frame).transpose()?);
            }
        }
        Ok(packets)
    }

    fn pod(&self, pod: &LocalPod) -> Result<&Tap> {
        let mut pods = self.lab.pods().iter().zip(&self.pods);
        let found = pods.find(|(known, _)| known.name == pod.name);
        Ok(found.context("no such pod")?.1)
    }
}

/// The packet in a frame; none in what the host stack says to its link by itself.
fn packet(frame: &[u8]) -> Option<Result<Packet>> {
    if frame.get(12..14) == Some(&[0x08, 0x06]) {
        return None;
    }
    match Packet::parse(frame) {
        Ok(packet) => match packet.payload {
            Payload::Icmp {
                kind: 130..=143, ..
            } => None,
            _ => Some(Ok(packet)),
        },
        Err(error) => Some(Err(anyhow!("{error} in {frame:02x?}"))),
    }
}

fn is_overlay(packet: &Packet) -> bool {
    matches!(packet.payload, Payload::Udp { destination, .. } if destination == OVERLAY_PORT)
}

fn attach(lab: &mut Lab, interface: &str, name: &str, direction: TcAttachType) -> Result<()> {
    let tcx = KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0));
    if !tcx {
        // The second program of an interface finds it there.
        let _ = tc::qdisc_add_clsact(interface);
    }
    lab.program(name)?
        .attach(interface, direction)
        .with_context(|| format!("cannot attach {name} to {interface}"))?;
    Ok(())
}
