//! Socket options and the error queue, the same for both families.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, recvmsg, setsockopt, sockopt,
};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// How IPv4 datagrams that are too big are handled.
    Ipv4MtuDiscover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    /// How IPv6 datagrams that are too big are handled.
    Ipv6MtuDiscover,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    /// The path MTU of a connected socket.
    Ipv6Mtu,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);

/// Bytes of datagrams that wait for a process: seconds of what tests send, where the default holds a
/// quarter of one.
const WAITING: usize = 8 << 20;

/// Keeps every datagram until the process comes to it: what is counted as lost was lost by the network,
/// and not by a process that had to wait for a processor.
pub fn keep_datagrams(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &WAITING).map_err(io::Error::from)
}

/// An ICMP error as a socket hears of it.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Who sent it.
    pub from: Option<IpAddr>,
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The next hop's MTU of a packet that was too big.
    pub info: u32,
}

/// Lets a socket keep ICMP errors with their senders.
pub fn keep_errors(socket: &UdpSocket, is_v4: bool) -> io::Result<()> {
    if is_v4 {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(())
}

/// The next ICMP error; `None` when there is none. Never waits. Errors of the socket's own machine,
/// such as a datagram that does not fit its route, have no type.
pub fn next_error(socket: &UdpSocket) -> io::Result<Option<Report>> {
    let mut payload = [0; 2048];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let mut control = nix::cmsg_space!([u8; 256]);
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_ERRQUEUE,
    );
    let message = match received {
        Err(nix::Error::EAGAIN) => return Ok(None),
        message => message?,
    };
    for part in message.cmsgs()? {
        let (error, from) = match part {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                let address = |from: libc::sockaddr_in| u32::from_be(from.sin_addr.s_addr);
                (error, from.map(|from| IpAddr::V4(address(from).into())))
            }
            ControlMessageOwned::Ipv6RecvErr(error, from) => (
                error,
                from.map(|from| IpAddr::V6(from.sin6_addr.s6_addr.into())),
            ),
            _ => continue,
        };
        return Ok(Some(Report {
            from: from.filter(|from| !from.is_unspecified()),
            kind: error.ee_type,
            code: error.ee_code,
            info: error.ee_info,
        }));
    }
    Ok(None)
}

/// Sets the TTL or hop limit.
pub fn set_hops(socket: &UdpSocket, is_v4: bool, hops: u8) -> io::Result<()> {
    if is_v4 {
        setsockopt(socket, sockopt::Ipv4Ttl, &i32::from(hops))?;
    } else {
        setsockopt(socket, sockopt::Ipv6Ttl, &i32::from(hops))?;
    }
    Ok(())
}

/// Forbids everyone to fragment what the socket sends, its own machine included.
pub fn forbid_fragments(socket: &UdpSocket, is_v4: bool) -> io::Result<()> {
    if is_v4 {
        setsockopt(socket, Ipv4MtuDiscover, &libc::IP_PMTUDISC_DO)?;
    } else {
        setsockopt(socket, Ipv6MtuDiscover, &libc::IPV6_PMTUDISC_DO)?;
        setsockopt(socket, sockopt::Ipv6DontFrag, &true)?;
    }
    Ok(())
}

/// The path MTU to a connected socket's peer, in bytes of IP packet.
pub fn path_mtu(socket: &UdpSocket, is_v4: bool) -> io::Result<i32> {
    Ok(if is_v4 {
        getsockopt(socket, sockopt::IpMtu)?
    } else {
        getsockopt(socket, Ipv6Mtu)?
    })
}

/// Allows this process as many descriptors as it may have.
pub fn allow_many_sockets() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(())
}
