//! One netlink socket in one network namespace, and the requests that Weft makes over it.

use std::fmt;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt as _;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use nix::{getsockopt_impl, sockopt_impl};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec};
use thiserror::Error;
use tokio::task::JoinHandle;

use super::netns::NetNs;

/// A request that the kernel refused, or that could not be made.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel refused.
    #[error("cannot {what}: {error}")]
    Request {
        /// What was asked, with its object.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    /// An interface that must be there is not.
    #[error("there is no interface {0}")]
    NoLink(String),
}

impl NetlinkError {
    /// Whether the kernel's answer was this error number.
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Request { error, .. } if error.raw_os_error() == Some(errno))
    }
}

/// What Weft wants to know about an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address; shorter than 6 bytes for interfaces without one.
    pub mac: Vec<u8>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it does without ARP.
    pub noarp: bool,
    /// Whether its packets have Ethernet headers.
    pub ethernet: bool,
    /// Whether it is a loopback.
    pub loopback: bool,
    /// The interface that it is a port of: a bridge, a bond, ...
    pub master: Option<u32>,
    /// Its kind: `veth`, `vxlan`, ...; empty for physical ones.
    pub kind: String,
    /// The settings of a VXLAN device that cannot be changed later.
    pub vxlan: Option<Vxlan>,
}

/// The settings of a VXLAN device that cannot be changed later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    /// UDP port.
    pub port: u16,
    /// Whether the tunnel's addresses come with each packet.
    pub collect_metadata: bool,
    /// Whether it learns peers from packets.
    pub learning: bool,
}

/// A netlink socket. Its connection task ends with it.
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// A socket in the agent's own namespace. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made.
    pub fn host() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// A socket in another namespace. Must be called within a tokio runtime.
    ///
    /// A socket belongs for life to the namespace of the thread that made it.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered or the socket cannot be made.
    pub fn inside(netns: &NetNs) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = netns
            .run(move || {
                let _entered = runtime.enter();
                rtnetlink::new_connection()
            })
            .and_then(|result| result)
            .map_err(NetlinkError::Socket)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// The handle, for requests that only one module makes.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Every interface.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list the interfaces", error))?;
        Ok(messages.iter().map(Link::from).collect())
    }

    /// The interface of this name, if there is one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await;
        match found {
            Ok(message) => Ok(message.as_ref().map(Link::from)),
            Err(error) => {
                let error = failed(format!("look up interface {name}"), error);
                if error.is(libc::ENODEV) {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// The interface of this name.
    ///
    /// # Errors
    ///
    /// When there is none, or the kernel refuses.
    pub async fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        self.find_link(name)
            .await?
            .ok_or_else(|| NetlinkError::NoLink(name.to_owned()))
    }

    /// Makes an interface.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; `EEXIST` if there is one of this name.
    pub async fn add_link(&self, what: &str, message: LinkMessage) -> Result<(), NetlinkError> {
        let result = self.handle.link().add(message).execute().await;
        result.map_err(|error| failed(format!("make {what}"), error))
    }

    /// Changes an interface.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn set_link(&self, what: &str, message: LinkMessage) -> Result<(), NetlinkError> {
        let result = self.handle.link().set(message).execute().await;
        result.map_err(|error| failed(format!("set up {what}"), error))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn set_up(&self, link: &Link) -> Result<(), NetlinkError> {
        self.set_link(
            &link.name,
            LinkUnspec::new_with_index(link.index).up().build(),
        )
        .await
    }

    /// Keeps the kernel from giving the interface an IPv6 address by itself: it would send
    /// solicitations from it that nobody answers. Kernels without IPv6 refuse, and need it not.
    pub async fn no_automatic_ipv6(&self, link: &Link) {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let message = LinkUnspec::new_with_index(link.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![mode],
            )]))
            .build();
        if let Err(error) = self.set_link(&link.name, message).await {
            tracing::debug!(interface = link.name, %error, "IPv6 autoconfiguration stays on");
        }
    }

    /// Removes an interface; gone already is fine.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn delete_link(&self, link: &Link) -> Result<(), NetlinkError> {
        let result = self.handle.link().del(link.index).execute().await;
        match result.map_err(|error| failed(format!("remove interface {}", link.name), error)) {
            Err(error) if !error.is(libc::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives an interface another MTU, in bytes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
        self.set_link(&link.name, message).await
    }

    /// Makes a neighbour permanent, or replaces one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn set_neighbour(
        &self,
        link: &Link,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add(link.index, address);
        let result = request.link_layer_address(&mac).replace().execute().await;
        result.map_err(|error| {
            failed(
                format!("add neighbour {address} on interface {}", link.name),
                error,
            )
        })
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            noarp: flags.contains(LinkFlags::Noarp),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            loopback: flags.contains(LinkFlags::Loopback),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::LinkInfo(infos) => link.read_info(infos),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn read_info(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            match info {
                LinkInfo::Kind(InfoKind::Veth) => "veth".clone_into(&mut self.kind),
                LinkInfo::Kind(InfoKind::Vxlan) => "vxlan".clone_into(&mut self.kind),
                LinkInfo::Kind(other) => self.kind = format!("{other:?}"),
                LinkInfo::Data(InfoData::Vxlan(settings)) => {
                    let mut vxlan = Vxlan::default();
                    for setting in settings {
                        match setting {
                            InfoVxlan::Port(port) => vxlan.port = *port,
                            InfoVxlan::CollectMetadata(on) => vxlan.collect_metadata = *on,
                            InfoVxlan::Learning(on) => vxlan.learning = *on,
                            _ => {}
                        }
                    }
                    self.vxlan = Some(vxlan);
                }
                _ => {}
            }
        }
    }
}

/// The cookie of the network namespace that the calling thread is in.
///
/// # Errors
///
/// When the kernel has none for namespaces (before 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    Ok(getsockopt(&socket, NetnsCookie)?)
}

/// `include/uapi/asm-generic/socket.h`.
const SO_NETNS_COOKIE: i32 = 71;

sockopt_impl!(
    /// The cookie of a socket's network namespace.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    SO_NETNS_COOKIE,
    u64
);

/// The error with what was asked.
pub(super) fn failed(what: impl Into<String>, error: rtnetlink::Error) -> NetlinkError {
    let error = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    };
    NetlinkError::Request {
        what: what.into(),
        error,
    }
}
