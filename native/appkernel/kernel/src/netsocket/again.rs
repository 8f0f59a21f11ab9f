//! Sockets of the host written down, and made again in another network namespace: who listens there listens here; a
//! connection that there was is one that its peer has reset.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use drupe_appkernel_abi::coded;
use drupe_appkernel_hostsys::{net, poll};
use drupe_appkernel_vfs::socket::SocketKind;
use drupe_appkernel_vfs::{wait, Context, OpenFile};

use super::{HostSocket, AF_INET, AF_INET6, AF_NETLINK};
use crate::streams::Watched;

const SOL_SOCKET: u32 = 1;
const TCP: u32 = 6;
const IPV6: u32 = 41;
const ACCEPTS: (u32, u32) = (SOL_SOCKET, 30);
const LINGER: (i32, i32) = (1, 13);
/// Options with one number that count when a socket is bound, or that its peer never hears of: reuseaddr, broadcast, keepalive,
/// reuseport; nodelay and keepalive's times, defer_accept; v6only.
const OPTIONS: [(u32, u32); 10] = [
    (SOL_SOCKET, 2),
    (SOL_SOCKET, 6),
    (SOL_SOCKET, 9),
    (SOL_SOCKET, 15),
    (TCP, 1),
    (TCP, 4),
    (TCP, 5),
    (TCP, 6),
    (TCP, 9),
    (IPV6, 26),
];
/// What listen(2) takes; the host cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

coded! {
    /// name and peer: struct sockaddr, empty where there is none. limits: SO_RCVTIMEO, SO_SNDTIMEO.
    pub struct SavedSocket {
        domain: u64,
        streams: bool,
        protocol: i32,
        listens: bool,
        name: Vec<u8>,
        peer: Vec<u8>,
        options: Vec<((u32, u32), Vec<u8>)>,
        limits: Vec<(u32, Vec<u8>)>,
    }
}

fn number(fd: BorrowedFd<'_>, (level, name): (u32, u32)) -> Option<Vec<u8>> {
    net::option(fd, level as i32, name as i32, 4).ok().filter(|value| value.len() == 4)
}

impl HostSocket {
    pub fn save(&self) -> SavedSocket {
        let fd = self.fd.as_fd();
        let protocol =
            number(fd, (SOL_SOCKET, 38)).and_then(|value| value.try_into().ok()).map_or(0, i32::from_ne_bytes);
        let listens = number(fd, ACCEPTS).is_some_and(|value| value.iter().any(|byte| *byte != 0));
        let of_tcp = |(level, _): &(u32, u32)| *level != TCP || self.kind == SocketKind::Stream;
        let of_v6 = |(level, _): &(u32, u32)| *level != IPV6 || self.domain == AF_INET6;
        let options = OPTIONS.into_iter().filter(of_tcp).filter(of_v6);
        SavedSocket {
            domain: self.domain,
            streams: self.kind == SocketKind::Stream,
            protocol,
            listens,
            name: net::name(fd).unwrap_or_default(),
            peer: net::peer_name(fd).unwrap_or_default(),
            options: options.filter_map(|option| Some((option, number(fd, option)?))).collect(),
            limits: self.limits.lock().iter().map(|(name, value)| (*name, value.clone())).collect(),
        }
    }
}

/// The port of a struct sockaddr of the internet, and whether it is all addresses or the loopback.
fn place(name: &[u8]) -> Option<(u16, bool)> {
    let port = u16::from_be_bytes(*name.get(2..4)?.first_chunk()?);
    let general = match name.len() {
        16 => matches!(name[4..8], [0, 0, 0, 0] | [127, ..]),
        28 => name[8..23].iter().all(|byte| *byte == 0) && name[23] <= 1,
        _ => return None,
    };
    Some((port, general))
}

/// A reason names the address.
pub fn restore(context: &Context, watched: &Arc<Watched>, saved: &SavedSocket) -> Result<Arc<OpenFile>, String> {
    if ![AF_INET, AF_INET6, AF_NETLINK].contains(&saved.domain) {
        return Err(String::from("the snapshot is damaged: a socket"));
    }
    let kind = if saved.streams { SocketKind::Stream } else { SocketKind::Datagram };
    let fd = match saved.streams && !saved.peer.is_empty() {
        true => lost(saved.domain).map_err(|error| format!("a connection that was reset: {error}"))?,
        false => plain(saved)?,
    };
    let file = HostSocket::wrap(context, watched, fd, (saved.domain, kind), 0);
    if let Some(socket) = file.downcast::<HostSocket>() {
        socket.limits.lock().extend(saved.limits.iter().cloned());
    }
    Ok(file)
}

fn plain(saved: &SavedSocket) -> Result<OwnedFd, String> {
    let number = match (saved.domain, saved.streams) {
        (AF_NETLINK, _) => libc::SOCK_RAW,
        (_, true) => libc::SOCK_STREAM,
        _ => libc::SOCK_DGRAM,
    };
    let protocol = if saved.domain == AF_NETLINK { 0 } else { saved.protocol };
    let fd = net::socket(saved.domain as i32, number, protocol).map_err(|error| format!("a socket: {error}"))?;
    for ((level, name), value) in saved.options.iter().filter(|(option, _)| OPTIONS.contains(option)) {
        let _default = net::set_option(fd.as_fd(), *level as i32, *name as i32, value);
    }
    if let Some((port, general)) = place(&saved.name).filter(|(port, _)| *port != 0) {
        let done = match general {
            true => net::bind(fd.as_fd(), &saved.name),
            false => Err(std::io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
        };
        done.map_err(|error| format!("a socket cannot be bound to port {port} again: {error}"))?;
    }
    if saved.listens {
        net::listen(fd.as_fd(), BACKLOG).map_err(|error| format!("a socket cannot listen again: {error}"))?;
    }
    if !saved.streams && !saved.peer.is_empty() && saved.domain != AF_NETLINK {
        let _unreachable = net::connect(fd.as_fd(), &saved.peer); // then it is one that sends by address
    }
    Ok(fd)
}

/// A connection whose peer, a socket of our own, has reset it.
fn lost(domain: u64) -> std::io::Result<OwnedFd> {
    let loopback: &[u8] = match domain {
        AF_INET => &[2, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        _ => &[10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1, 0, 0, 0, 0],
    };
    let listener = net::socket(domain as i32, libc::SOCK_STREAM, 0)?;
    net::bind(listener.as_fd(), loopback)?;
    net::listen(listener.as_fd(), 1)?;
    let ours = net::socket(domain as i32, libc::SOCK_STREAM, 0)?;
    match net::connect(ours.as_fd(), &net::name(listener.as_fd())?) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    poll::is_readable(listener.as_raw_fd(), 1000);
    let (theirs, _) = net::accept(listener.as_fd())?;
    let at_once = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    net::set_option(theirs.as_fd(), LINGER.0, LINGER.1, &at_once)?;
    drop(theirs);
    poll::ready(ours.as_raw_fd(), wait::IN);
    Ok(ours)
}
