//! Asks the kernel for network devices and queueing disciplines, to learn whether it has them.
//!
//! The few rtnetlink messages are written by hand: a probe needs no more of the protocol, and
//! xtask compiles before everything else. All of it concerns the calling thread's network
//! namespace.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        socket,
    },
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWQDISC: u16 = 36;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const CHANGE: u16 = 0x1 | 0x4;
/// And `NLM_F_EXCL | NLM_F_CREATE`.
const CREATE: u16 = CHANGE | 0x200 | 0x400;
const NLMSG_ERROR: u16 = 2;

const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const TCA_KIND: u16 = 1;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const IFF_UP: u32 = 1;
/// The index of `lo` in every network namespace.
const LOOPBACK: i32 = 1;

const HEADER: usize = 16;

/// A netlink socket in the calling thread's network namespace.
pub struct Route {
    socket: OwnedFd,
}

impl Route {
    /// Opens the socket.
    pub fn open() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .context("cannot open a netlink socket")?;
        Ok(Self { socket })
    }

    /// Creates a device of `kind` with the kernel's defaults.
    pub fn create_link(&self, kind: &str) -> Result<()> {
        // struct ifinfomsg: any family, any index, no flags.
        self.request(
            RTM_NEWLINK,
            CREATE,
            &[0; 16],
            &attribute(IFLA_LINKINFO, &link_info(kind)),
        )
    }

    /// Brings the loopback device up.
    pub fn raise_loopback(&self) -> Result<()> {
        // struct ifinfomsg: family, padding and type, index, flags, mask of flags to change.
        let mut message = [0; 16];
        message[4..8].copy_from_slice(&LOOPBACK.to_ne_bytes());
        message[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        message[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, CHANGE, &message, &[])
    }

    /// Attaches clsact to the loopback device.
    pub fn attach_clsact(&self) -> Result<()> {
        // struct tcmsg: family and padding, index, handle, parent, info.
        let mut message = [0; 20];
        message[4..8].copy_from_slice(&LOOPBACK.to_ne_bytes());
        message[8..12].copy_from_slice(&CLSACT_HANDLE.to_ne_bytes());
        message[12..16].copy_from_slice(&TC_H_CLSACT.to_ne_bytes());
        self.request(
            RTM_NEWQDISC,
            CREATE,
            &message,
            &attribute(TCA_KIND, b"clsact\0"),
        )
    }

    fn request(&self, kind: u16, flags: u16, header: &[u8], attributes: &[u8]) -> Result<()> {
        let length = u32::try_from(HEADER + header.len() + attributes.len())?;
        let mut message = Vec::new();
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]); // Sequence number and port: one request at a time needs neither.
        message.extend(header);
        message.extend(attributes);
        let fd = self.socket.as_raw_fd();
        sendto(fd, &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut reply = [0; 4096];
        let length = recv(fd, &mut reply, MsgFlags::empty())?;
        acknowledged(&reply[..length])
    }
}

fn link_info(kind: &str) -> Vec<u8> {
    let mut info = attribute(IFLA_INFO_KIND, format!("{kind}\0").as_bytes());
    if kind == "vxlan" {
        info.extend(attribute(
            IFLA_INFO_DATA,
            &attribute(IFLA_VXLAN_COLLECT_METADATA, &[1]),
        ));
    }
    info
}

/// One attribute, padded to four bytes. Callers pass a handful of bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = Vec::new();
    attribute.extend(length.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// Reads the acknowledgement that ends every request.
fn acknowledged(reply: &[u8]) -> Result<()> {
    ensure!(
        reply.len() >= HEADER + 4 && reply[4..6] == NLMSG_ERROR.to_ne_bytes(),
        "the kernel sent a netlink reply that is no acknowledgement"
    );
    let code = i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]);
    match Errno::from_raw(-code) {
        _ if code == 0 => Ok(()),
        errno => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_tell_their_unpadded_length() {
        let bytes = attribute(IFLA_INFO_KIND, b"veth\0");
        assert_eq!(bytes.len(), 12);
        assert_eq!(bytes[..2], 9_u16.to_ne_bytes());
    }

    #[test]
    fn an_acknowledgement_carries_the_error() {
        let mut reply = [0; 36];
        reply[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        acknowledged(&reply).expect("code zero is success");
        reply[16..20].copy_from_slice(&(-95_i32).to_ne_bytes());
        let error = acknowledged(&reply).expect_err("95 is EOPNOTSUPP");
        assert_eq!(error.downcast_ref(), Some(&Errno::EOPNOTSUPP));
        assert!(acknowledged(&[0; 4]).is_err());
    }
}
