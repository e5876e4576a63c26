//! Netlink messages: what nftables needs of them (include/uapi/linux/netlink.h, nfnetlink.h).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};

/// A message under construction: a header and attributes.
#[derive(Debug, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Begins a message of the netfilter family: header, then `nfgenmsg`.
    pub(super) fn new(kind: u16, flags: u16, family: u8, resource: u16, sequence: u32) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self { bytes }
    }

    /// Begins a message of the routing family, with the fixed part that its kind has.
    pub(super) fn route(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut message = Self::new(kind, flags | NLM_F_ACK, 0, 0, 1);
        message.bytes.truncate(NLMSG_HEADER);
        message.bytes.extend(fixed);
        message
    }

    /// Adds an attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("attributes of rules are short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a text with its final zero.
    pub(super) fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value)
    }

    /// Adds a number in network order, as nftables has them.
    pub(super) fn number(&mut self, kind: u16, number: u32) -> &mut Self {
        self.put(kind, &number.to_be_bytes())
    }

    /// Adds an attribute that holds attributes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend(0u16.to_ne_bytes());
        self.bytes.extend((kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("attributes of rules are short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// Sends a message of the routing family and waits for its answer.
///
/// # Errors
/// The error that the kernel answers.
pub(super) fn route(message: Message) -> io::Result<()> {
    exchange(SockProtocol::NetlinkRoute, vec![message], 1)
}

/// Sends messages of netfilter as one datagram and waits for the answer to each of them but the batch's own two.
///
/// # Errors
/// The first error that the kernel answers.
pub(super) fn transact(messages: Vec<Message>, answers: usize) -> io::Result<()> {
    exchange(SockProtocol::NetlinkNetFilter, messages, answers)
}

fn exchange(protocol: SockProtocol, messages: Vec<Message>, answers: usize) -> io::Result<()> {
    let socket = open(protocol)?;
    let datagram: Vec<u8> = messages.into_iter().flat_map(Message::finish).collect();
    sendto(
        socket.as_raw_fd(),
        &datagram,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut left = answers;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in split(&buffer[..length]) {
            if kind != NLMSG_ERROR {
                continue;
            }
            let code = body
                .get(..4)
                .and_then(|b| b.try_into().ok())
                .map_or(0, i32::from_ne_bytes);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            left -= 1;
        }
    }
    Ok(())
}

/// Asks for a list; the body of each answer behind its `nfgenmsg`.
///
/// # Errors
/// The error that the kernel answers.
pub(super) fn dump(message: Message) -> io::Result<Vec<Vec<u8>>> {
    let socket = open(SockProtocol::NetlinkNetFilter)?;
    sendto(
        socket.as_raw_fd(),
        &message.finish(),
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut out = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in split(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(out),
                NLMSG_ERROR => {
                    let code = body
                        .get(..4)
                        .and_then(|b| b.try_into().ok())
                        .map_or(0, i32::from_ne_bytes);
                    return if code == 0 {
                        Ok(out)
                    } else {
                        Err(io::Error::from_raw_os_error(-code))
                    };
                }
                _ => out.push(body.get(4..).unwrap_or_default().to_vec()),
            }
        }
    }
}

/// The attribute of a kind, of those that begin a body.
pub(super) fn attribute(body: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = body;
    while let Some(header) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !NLA_F_NESTED;
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn open(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// Messages of a datagram: kind and what stands behind the header.
fn split(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut out = Vec::new();
    while let Some(header) = bytes.get(..16) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = bytes.get(16..length) else { break };
        out.push((kind, body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

const NLMSG_HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLA_F_NESTED: u16 = 0x8000;
const NLMSG_ERROR: u16 = 0x2;
const NLMSG_DONE: u16 = 0x3;
