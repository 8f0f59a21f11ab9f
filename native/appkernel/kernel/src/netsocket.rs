//! TCP and UDP as sockets of the host, in the network namespace that the kernel's process is in: what listens there is reached
//! from the pod's own loopback and from outside alike. And NETLINK_ROUTE, as far as it only asks.

mod again;

use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::netoptions::{may_get, may_send_control, may_set, SOL_SOCKET};
use drupe_appkernel_hostsys::{net, poll};
use drupe_appkernel_vfs::anonymous::AnonymousInode;
use drupe_appkernel_vfs::cred::CAP_NET_BIND_SERVICE;
use drupe_appkernel_vfs::ioctl;
use drupe_appkernel_vfs::socket::{
    control_messages, is_privileged_port, Address, Caller, Outgoing, Received, Socket, SocketKind, MSG_TRUNC,
    SO_RCVTIMEO, SO_SNDTIMEO,
};
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{Context, Events, File, FileType, Inode, Metadata, OpenFile, OpenFlags, WaitQueue};

use crate::machine::errno;
use crate::streams::Watched;

const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const UDP_LITE: u64 = 136;
const AF_NETLINK: u64 = 16;
const AF_PACKET: u64 = 17;
const SIOCGIFCONF: u32 = 0x8912;
/// OOB, PEEK, DONTROUTE, TRUNC, EOR, CONFIRM, ERRQUEUE, MORE, FASTOPEN; waiting and SIGPIPE are the core's.
const FLAGS: u32 = 0x1 | 0x2 | 0x4 | 0x20 | 0x80 | 0x800 | 0x2000 | 0x8000 | 0x2000_0000;
/// What NETLINK_ROUTE may be asked: links, addresses, routes, neighbours, rules (rtnetlink(7)).
const QUESTIONS: [u16; 5] = [18, 22, 26, 30, 34];

pub use again::{restore, SavedSocket};

/// A socket of the host's.
pub struct HostSocket {
    fd: OwnedFd,
    domain: u64,
    kind: SocketKind,
    queue: WaitQueue,
    watched: Arc<Watched>,
    word: Option<u64>,
    /// SO_RCVTIMEO and SO_SNDTIMEO: the host's socket never waits.
    limits: Mutex<BTreeMap<u32, Vec<u8>>>,
    inode: Arc<AnonymousInode>,
}

/// socket(2) in the host's network. EAFNOSUPPORT, EPERM, EPROTONOSUPPORT, ESOCKTNOSUPPORT.
pub fn open(context: &Context, watched: &Arc<Watched>, domain: u64, kind: u64, protocol: u64) -> Result<Arc<OpenFile>> {
    let nonblock = kind as u32 & OpenFlags::NONBLOCK;
    let kind = check(domain, kind & !u64::from(OpenFlags::NONBLOCK), protocol)?;
    let number = match (domain, kind) {
        (AF_NETLINK, _) => libc::SOCK_RAW,
        (_, SocketKind::Stream) => libc::SOCK_STREAM,
        _ => libc::SOCK_DGRAM,
    };
    let fd = net::socket(domain as i32, number, protocol as i32).map_err(errno)?;
    Ok(HostSocket::wrap(context, watched, fd, (domain, kind), nonblock))
}

fn check(domain: u64, kind: u64, protocol: u64) -> Result<SocketKind> {
    match (domain, kind, protocol) {
        (AF_INET | AF_INET6, 1, 0 | 6) => Ok(SocketKind::Stream),
        (AF_INET | AF_INET6, 2, 0 | 17 | UDP_LITE) | (AF_INET, 2, 1) | (AF_INET6, 2, 58) => Ok(SocketKind::Datagram),
        (AF_NETLINK, 2 | 3, 0) => Ok(SocketKind::Datagram),
        (AF_NETLINK, 2 | 3, _) => Err(Errno::PROTONOSUPPORT),
        (AF_INET | AF_INET6, 3, _) | (AF_PACKET, ..) => Err(Errno::PERM),
        (AF_INET | AF_INET6, 1 | 2, _) => Err(Errno::PROTONOSUPPORT),
        (AF_INET | AF_INET6, ..=10, _) => Err(Errno::SOCKTNOSUPPORT),
        (AF_INET | AF_INET6, ..) => Err(Errno::INVAL),
        _ => Err(Errno::AFNOSUPPORT),
    }
}

impl HostSocket {
    fn wrap(
        context: &Context,
        watched: &Arc<Watched>,
        fd: OwnedFd,
        (domain, kind): (u64, SocketKind),
        nonblock: u32,
    ) -> Arc<OpenFile> {
        let inode = AnonymousInode::new(context, FileType::Socket, 0o777);
        let path = inode.path(&format!("socket:[{}]", inode.number()));
        let queue = WaitQueue::new();
        let word = watched.add(fd.as_raw_fd(), &queue);
        let (watched, limits) = (Arc::clone(watched), Mutex::default());
        let socket = Arc::new(HostSocket { fd, domain, kind, queue, watched, word, limits, inode });
        OpenFile::new(socket, Some(path), OpenFlags(OpenFlags::RDWR | nonblock))
    }

    /// The address as the host takes it: of the socket's own family.
    fn encoded(&self, address: &Address) -> Result<Vec<u8>> {
        match (self.domain, address) {
            (AF_INET | AF_INET6, Address::None) => Ok(vec![0; 16]),
            (AF_INET | AF_INET6, Address::Inet(_)) | (AF_NETLINK, Address::Netlink { .. }) => Ok(address.encode()),
            _ => Err(Errno::AFNOSUPPORT),
        }
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        if let Some(word) = self.word {
            self.watched.remove(self.fd.as_raw_fd(), word);
        }
    }
}

fn decoded(bytes: &[u8]) -> Address {
    Address::decode(bytes).unwrap_or_default()
}

/// Netlink messages that only ask.
fn check_questions(mut data: &[u8]) -> Result<()> {
    while data.len() >= 16 {
        let length = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]) as usize;
        let kind = u16::from_ne_bytes([data[4], data[5]]);
        if length < 16 || length > data.len() {
            break; // as the host does: what follows is no message
        }
        if !QUESTIONS.contains(&kind) {
            return Err(Errno::PERM);
        }
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

impl Socket for HostSocket {
    fn kind(&self) -> SocketKind {
        self.kind
    }

    fn bind(&self, caller: &Caller<'_>, address: &Address) -> Result<()> {
        if let Address::Inet(to) = address {
            let privileged = caller.view.context.credentials.capable(CAP_NET_BIND_SERVICE);
            if is_privileged_port(to.port()) && !privileged {
                return Err(Errno::ACCES);
            }
        }
        net::bind(self.fd.as_fd(), &self.encoded(address)?).map_err(errno)
    }

    fn listen(&self, _: &Context, backlog: u32) -> Result<()> {
        net::listen(self.fd.as_fd(), backlog as i32).map_err(errno)
    }

    fn connect(&self, _: &Caller<'_>, address: &Address) -> Result<()> {
        net::connect(self.fd.as_fd(), &self.encoded(address)?).map_err(errno)
    }

    fn accept(&self, context: &Context, flags: OpenFlags) -> Result<(Arc<OpenFile>, Address)> {
        let (fd, peer) = net::accept(self.fd.as_fd()).map_err(errno)?;
        let nonblock = flags.0 & OpenFlags::NONBLOCK;
        let file = HostSocket::wrap(context, &self.watched, fd, (self.domain, self.kind), nonblock);
        Ok((file, decoded(&peer)))
    }

    fn name(&self) -> Result<Address> {
        Ok(decoded(&net::name(self.fd.as_fd()).map_err(errno)?))
    }

    fn peer_name(&self) -> Result<Address> {
        Ok(decoded(&net::peer_name(self.fd.as_fd()).map_err(errno)?))
    }

    fn shutdown(&self, how: u32) -> Result<()> {
        net::shutdown(self.fd.as_fd(), how as i32).map_err(errno)
    }

    fn option(&self, level: u32, name: u32, room: usize) -> Result<Vec<u8>> {
        if level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO) {
            return Ok(self.limits.lock().get(&name).cloned().unwrap_or_else(|| vec![0; 16]));
        }
        if !may_get(level, name) {
            return Err(Errno::NOPROTOOPT);
        }
        net::option(self.fd.as_fd(), level as i32, name as i32, room.min(1024)).map_err(errno)
    }

    fn set_option(&self, level: u32, name: u32, value: &[u8]) -> Result<()> {
        if level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO) {
            let value = value.get(..16).ok_or(Errno::INVAL)?;
            self.limits.lock().insert(name, value.to_vec());
            return Ok(());
        }
        if !may_set(level, name) {
            return Err(Errno::NOPROTOOPT);
        }
        net::set_option(self.fd.as_fd(), level as i32, name as i32, value).map_err(errno)
    }

    fn send(&self, _: &Context, data: &[u8], outgoing: Outgoing<'_>) -> Result<usize> {
        if !outgoing.files.is_empty() {
            return Err(Errno::INVAL);
        }
        if self.domain == AF_NETLINK {
            check_questions(data)?;
        }
        let to = outgoing.to.map_or(Ok(Vec::new()), |(_, address)| self.encoded(address))?;
        let mut messages = control_messages(outgoing.control)?.into_iter();
        if !messages.all(|message| may_send_control(message.level, message.kind)) {
            return Err(Errno::INVAL);
        }
        let flags = (outgoing.flags & FLAGS) as i32;
        net::send(self.fd.as_fd(), data, &to, outgoing.control, flags).map_err(errno)
    }

    fn receive(&self, _: &Context, out: &mut [u8], flags: u32) -> Result<Received> {
        // The whole length of a datagram, always: the core cuts it.
        let whole = if self.kind == SocketKind::Stream { flags & MSG_TRUNC } else { MSG_TRUNC };
        let got = net::receive(self.fd.as_fd(), out, (flags & FLAGS & !MSG_TRUNC | whole) as i32).map_err(errno)?;
        Ok(Received {
            count: got.count.min(out.len()),
            full_length: got.count,
            from: (!got.from.is_empty()).then(|| decoded(&got.from)),
            control: got.control,
            flags: got.flags & !libc::MSG_CMSG_CLOEXEC as u32,
            ..Received::default()
        })
    }
}

impl File for HostSocket {
    fn read(&self, context: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        self.receive(context, out, 0).map(|received| received.count)
    }

    fn write(&self, context: &Context, _: u64, data: &[u8]) -> Result<usize> {
        self.send(context, data, Outgoing::default())
    }

    fn poll(&self, interest: Events) -> Events {
        poll::ready(self.fd.as_raw_fd(), interest)
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        self.inode.metadata()
    }

    fn ioctl(&self, _: &Context, request: u32, _: u64, data: &mut Vec<u8>) -> Result<i64> {
        match request {
            SIOCGIFCONF => *data = net::interfaces(self.fd.as_fd()).map_err(errno)?,
            _ if net::INTERFACE_REQUESTS.contains(&request) => {
                let ifreq = data.first_chunk_mut::<40>().ok_or(Errno::FAULT)?;
                net::interface(self.fd.as_fd(), request, ifreq).map_err(errno)?;
            }
            0x8900..=0x89ff if request != 0x8905 => return Err(Errno::PERM),
            _ => ioctl::put_i32(data, net::count(self.fd.as_fd(), request).map_err(errno)?),
        }
        Ok(0)
    }

    fn as_socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
