//! The far end of an interface: frames go in and come out as bytes.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind,
    recv, send, setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::interfaces::within;

/// How long a frame may take from one end of a wire to the other.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A raw socket on an interface. It does not see what it sends itself.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    name: String,
}

impl Tap {
    /// Opens the interface of that name in a namespace.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn open(namespace: &File, name: &str) -> Result<Self> {
        let socket = within(namespace, || {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )?;
            bind(socket.as_raw_fd(), &address_of(name)?)?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
            Ok(socket)
        });
        Ok(Self {
            socket: socket.with_context(|| format!("cannot tap {name}"))?,
            name: name.to_owned(),
        })
    }

    /// Sends a frame into the wire.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .with_context(|| format!("cannot send into {}", self.name))?;
        Ok(())
    }

    /// The next frame that comes out of the wire and that `wanted` takes.
    ///
    /// # Errors
    ///
    /// When none comes; says which others came.
    pub fn receive<T>(&self, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        let mut others = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        while Instant::now() < end {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let frame = &buffer[..length];
                    if let Some(found) = wanted(frame) {
                        return Ok(found);
                    }
                    others.push(format!("{:02x?}", &frame[..length.min(80)]));
                }
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(anyhow!(
            "nothing came out of {}, but for {others:#?}",
            self.name
        ))
    }

    /// Every frame that has come out so far.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn drain(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => frames.push(buffer[..length].to_vec()),
                Err(nix::Error::EAGAIN) => return Ok(frames),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The link-layer address of an interface of this namespace, which also has its index.
fn address_of(name: &str) -> Result<LinkAddr> {
    for interface in getifaddrs()? {
        let Some(address) = interface.address else {
            continue;
        };
        if interface.interface_name == name
            && address.family() == Some(AddressFamily::Packet)
            && let Some(link) = address.as_link_addr()
        {
            return Ok(*link);
        }
    }
    Err(anyhow!("no interface {name}"))
}
