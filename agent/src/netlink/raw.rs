//! Netlink protocols that rtnetlink does not speak: messages as bytes, one request at a time.
//!
//! Every request is answered within the call that sends it, so nothing here waits for anybody.

use std::io;
use std::iter;

use rtnetlink::sys::{Socket, SocketAddr};

/// `linux/netlink.h`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A socket in the network namespace of the thread that made it.
pub struct Raw {
    socket: Socket,
    sequence: u32,
}

impl Raw {
    /// Opens a socket of a netlink protocol.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks for everything of a kind; the messages without their headers. What changes meanwhile may
    /// be among it or not.
    pub fn dump(&mut self, kind: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.exchange(kind, NLM_F_DUMP, payload)
    }

    /// Has the kernel do something.
    pub fn request(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.exchange(kind, NLM_F_ACK, payload).map(drop)
    }

    fn exchange(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let message = message(kind, flags | NLM_F_REQUEST, self.sequence, payload)?;
        self.send(&message)
    }

    /// Sends messages that have the last sequence number; what is answered to the first that is.
    pub(super) fn send(&self, messages: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.socket.send(messages, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (header, body) in self::messages(&datagram) {
                if header.sequence != self.sequence {
                    continue;
                }
                match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = body.first_chunk().copied().map(i32::from_ne_bytes);
                        return match code.unwrap_or_default() {
                            code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                            _ => Ok(answers),
                        };
                    }
                    _ => answers.push(body.to_vec()),
                }
            }
        }
    }
}

/// A message with its header.
pub(super) fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + payload.len());
    let length = u32::try_from(HEADER + payload.len()).map_err(io::Error::other)?;
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(payload);
    message.resize(message.len().next_multiple_of(4), 0);
    Ok(message)
}

struct Header {
    kind: u16,
    sequence: u32,
}

/// The messages of a datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let header = Header {
            kind: u16_at(datagram, 4)?,
            sequence: u32_at(datagram, 8)?,
        };
        let body = datagram.get(HEADER..length)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some((header, body))
    })
}

/// The attributes at the end of a message: type and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The text of a value that ends with a zero.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

/// A number in the kernel's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in the kernel's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_end_where_they_say() {
        let message = |kind, body| message(kind, 0, 7, body).expect("short");
        let datagram = [message(20, b"abcde"), message(3, b"")].concat();
        let found: Vec<_> = messages(&datagram)
            .map(|(header, body)| (header.kind, header.sequence, body))
            .collect();
        assert_eq!(found, [(20, 7, b"abcde".as_slice()), (3, 7, b"")]);
        // Cut anywhere, nothing is made up.
        for end in 0..datagram.len() {
            assert!(messages(&datagram[..end]).count() < 2);
        }
        let mut attribute = Vec::new();
        attribute.extend(9_u16.to_ne_bytes());
        attribute.extend(0x8003_u16.to_ne_bytes());
        attribute.extend(b"name\0\0\0\0");
        attribute.extend(4_u16.to_ne_bytes());
        attribute.extend(5_u16.to_ne_bytes());
        let found: Vec<_> = attributes(&attribute).collect();
        assert_eq!(found, [(3, b"name\0".as_slice()), (5, b"")]);
        assert_eq!(text(found[0].1), "name");
    }
}
