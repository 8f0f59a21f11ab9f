//! Netlink (netlink(7)): a request, and the kernel's messages in answer to it.

use rustix::net::{recv, send, socket_with, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::OwnedFd;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
pub const REPLACE: u16 = 0x100;
pub const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16; // nlmsg_len u32, nlmsg_type u16, nlmsg_flags u16, nlmsg_seq u32, nlmsg_pid u32
const ALIGNMENT: usize = 4;

pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// What the kernel tells, without the header.
pub type Message = Vec<u8>;

impl Netlink {
    /// To rtnetlink(7).
    pub fn route() -> io::Result<Self> {
        Self::open(None)
    }

    /// To sock_diag(7).
    pub fn diag() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::SOCK_DIAG))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Asks for a change; the kernel's error, if it has one.
    pub fn change(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.ask(kind, flags | ACK, body).map(drop)
    }

    /// Asks for a list.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Message>> {
        self.ask(kind, DUMP, body)
    }

    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Message>> {
        self.sequence += 1;
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        send(&self.socket, &bytes, SendFlags::empty())?;
        let (mut found, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let (count, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            if take(&buffer[..count], self.sequence, &mut found)? {
                return Ok(found);
            }
        }
    }
}

/// The messages of a packet; whether the answer is whole.
fn take(mut packet: &[u8], sequence: u32, found: &mut Vec<Message>) -> io::Result<bool> {
    while packet.len() >= HEADER {
        let (size, kind) = (u32_at(packet, 0) as usize, u16_at(packet, 4));
        if size < HEADER || size > packet.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let body = &packet[HEADER..size];
        if u32_at(packet, 8) == sequence {
            match kind {
                ERROR | DONE => return finish(body).map(|()| true),
                _ => found.push(body.to_vec()),
            }
        }
        packet = &packet[size.next_multiple_of(ALIGNMENT).min(packet.len())..];
    }
    Ok(false)
}

/// ERROR and DONE begin with a negated errno, or 0.
fn finish(body: &[u8]) -> io::Result<()> {
    match body.get(..4).map_or(0, |_| u32_at(body, 0) as i32) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// Appends an attribute: struct rtattr, its value, and zeroes up to the next multiple of four.
pub fn put_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(ALIGNMENT), 0);
}

/// The value of an attribute, after a header of `skip` bytes.
pub fn attribute(message: &[u8], skip: usize, kind: u16) -> Option<&[u8]> {
    let mut rest = message.get(skip..)?;
    while rest.len() >= 4 {
        let size = u16_at(rest, 0) as usize;
        let value = rest.get(4..size)?;
        if u16_at(rest, 2) == kind {
            return Some(value);
        }
        rest = rest.get(size.next_multiple_of(ALIGNMENT)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_again() {
        let mut body = vec![9; 8];
        put_attribute(&mut body, 1, b"abc");
        put_attribute(&mut body, 2, b"");
        put_attribute(&mut body, 3, &[7; 4]);
        assert_eq!(body.len() % 4, 0);
        let of = |kind| attribute(&body, 8, kind);
        assert_eq!(
            (of(1), of(2), of(3), of(4)),
            (Some(b"abc".as_slice()), Some([].as_slice()), Some([7; 4].as_slice()), None)
        );
        assert_eq!(attribute(&[0; 3], 8, 1), None);
    }

    #[test]
    fn lists_and_errors_of_the_kernel() {
        let mut netlink = Netlink::route().unwrap();
        let links = netlink.dump(libc::RTM_GETLINK, &[0; 16]).unwrap();
        let is_lo = |one: &Message| attribute(one, 16, libc::IFLA_IFNAME) == Some(b"lo\0");
        assert!(links.iter().any(is_lo));
        let missing = [&[0; 4][..], &i32::MAX.to_ne_bytes(), &[0; 8]].concat();
        assert!(netlink.change(libc::RTM_SETLINK, 0, &missing).is_err());
    }
}
