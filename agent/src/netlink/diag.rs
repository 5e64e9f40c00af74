//! Ends UDP sockets of the node's own processes: those that are connected to an address that nobody
//! serves any more.
//!
//! A process that connected a UDP socket to a service sends to one backend until it connects again,
//! and most never do: nothing tells them that the backend is gone. So the kernel is asked to abort the
//! socket, and the process's next call fails with `ECONNABORTED`. kube-proxy reaches the same by
//! removing the connection's entry in conntrack.
//!
//! Kernels have it since 4.9, if built with `CONFIG_INET_DIAG_DESTROY`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use thiserror::Error;

use super::raw::{Raw, u32_at};

/// `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `TCP_ESTABLISHED` as a bit: what a connected UDP socket is too.
const CONNECTED: u32 = 1 << 1;
/// Where `struct inet_diag_msg` and `inet_diag_req_v2` of `linux/inet_diag.h` have the
/// `inet_diag_sockid`, and its length.
const ANSWER_ID: usize = 4;
const ID: usize = 48;

/// Why sockets could not be ended.
#[derive(Debug, Error)]
pub enum DiagError {
    /// The kernel cannot end sockets, or not list them.
    #[error(
        "the kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY, CONFIG_INET_UDP_DIAG): processes of \
            this node with UDP sockets that are connected to a service must connect again by \
            themselves when their backend goes"
    )]
    Unsupported,
    /// The kernel refused.
    #[error("cannot {0}: {1}")]
    Refused(&'static str, io::Error),
}

/// A connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connected {
    /// Its cookie.
    pub cookie: u64,
    /// What it is connected to.
    pub to: SocketAddr,
}

/// Ends those of these UDP sockets that are connected there, and returns how many there were. One that
/// is closed meanwhile, or connected elsewhere, is none of them.
///
/// # Errors
///
/// When the kernel cannot list or end sockets; others were ended then.
pub fn end_udp(sockets: &BTreeSet<Connected>) -> Result<usize, DiagError> {
    if sockets.is_empty() {
        return Ok(0);
    }
    let refused = |what| {
        move |error: io::Error| match error.raw_os_error() {
            // What inet_diag says without its part for UDP, and sock_diag without inet_diag.
            Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT) => DiagError::Unsupported,
            _ => DiagError::Refused(what, error),
        }
    };
    let mut netlink = Raw::open(NETLINK_SOCK_DIAG).map_err(refused("open a diagnosis socket"))?;
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let Ok(family) = u8::try_from(family) else {
            continue;
        };
        let all = request(family, CONNECTED, &[0; ID]);
        let listed = netlink.dump(SOCK_DIAG_BY_FAMILY, &all);
        for answer in listed.map_err(refused("list the UDP sockets"))? {
            let Some(id) = answer.get(ANSWER_ID..ANSWER_ID + ID) else {
                continue;
            };
            if !connected(family, id).is_some_and(|found| sockets.contains(&found)) {
                continue;
            }
            match netlink.request(SOCK_DESTROY, &request(family, CONNECTED, id)) {
                Ok(()) => ended += 1,
                // Closed or connected anew since it was listed.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                }
                Err(error) => return Err(refused("end a UDP socket")(error)),
            }
        }
    }
    Ok(ended)
}

/// A `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8]) -> Vec<u8> {
    let udp = libc::IPPROTO_UDP.to_le_bytes()[0];
    let mut request = vec![family, udp, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request
}

/// What a `struct inet_diag_sockid` tells: ports and addresses in network byte order.
fn connected(family: u8, id: &[u8]) -> Option<Connected> {
    let port = u16::from_be_bytes(*id.get(2..)?.first_chunk()?);
    let address: IpAddr = if i32::from(family) == libc::AF_INET {
        Ipv4Addr::from(*id.get(20..)?.first_chunk::<4>()?).into()
    } else {
        Ipv6Addr::from(*id.get(20..)?.first_chunk::<16>()?).to_canonical()
    };
    let (low, high) = (u32_at(id, 40)?, u32_at(id, 44)?);
    Some(Connected {
        cookie: u64::from(high) << 32 | u64::from(low),
        to: SocketAddr::new(address, port),
    })
}
