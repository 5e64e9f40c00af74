//! Tells when somebody changes the node's network: interfaces, addresses, routes, queueing
//! disciplines.
//!
//! Only that something changed is told, not what: who hears of it looks at the kernel again. So
//! notifications that the kernel had no room for cost nothing, they are one more reason to look.

use std::fmt;
use std::io;

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tracing::debug;

use super::socket::NetlinkError;

/// The multicast groups: links, queueing disciplines, addresses and routes of both families
/// (`RTMGRP_*` of `linux/rtnetlink.h`).
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_TC
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// A message is cut to this length: nobody reads it.
const MESSAGE: usize = 64;

/// A subscription to changes in the namespace of the thread that made it.
pub struct Monitor {
    socket: TokioSocket,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes. What changes from now on is told. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When there is no socket to be had.
    pub fn new() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            let groups = SocketAddr::new(0, GROUPS.cast_unsigned());
            socket.socket_mut().bind(&groups)?;
            Ok(Self { socket })
        };
        open().map_err(NetlinkError::Socket)
    }

    /// Waits for the next change, and takes all that were told by then.
    ///
    /// # Errors
    ///
    /// When the socket is of no use any more.
    pub async fn changed(&self) -> Result<(), NetlinkError> {
        let mut message = [0; MESSAGE];
        let first = self.socket.recv(&mut message.as_mut_slice()).await;
        taken(first.map(|()| 0))
            .and_then(|_| self.drain())
            .map_err(NetlinkError::Socket)?;
        Ok(())
    }

    /// Takes all that was told until now; whether that was anything.
    ///
    /// # Errors
    ///
    /// When the socket is of no use any more.
    pub fn drain(&self) -> io::Result<bool> {
        let mut found = false;
        loop {
            let mut message = [0; MESSAGE];
            let socket = self.socket.socket_ref();
            if !taken(socket.recv(&mut message.as_mut_slice(), libc::MSG_DONTWAIT))? {
                return Ok(found);
            }
            found = true;
        }
    }
}

/// Whether something was told.
fn taken(received: io::Result<usize>) -> io::Result<bool> {
    match received {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            // The socket goes on with what comes next.
            debug!("the kernel had more to tell than the socket takes; looking at it all");
            Ok(true)
        }
        Err(error) => Err(error),
    }
}
