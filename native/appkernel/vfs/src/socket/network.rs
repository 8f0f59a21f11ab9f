//! Names that sockets have in a network namespace: abstract unix names, ports.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use super::address::reaches;
use super::local::LocalSocket;
use crate::sync::Mutex;

const FIRST_EPHEMERAL: u16 = 32_768;
const LAST_EPHEMERAL: u16 = 60_999;
/// Names of one kind that a namespace holds at most.
const MAX_NAMES: usize = 65_536;

struct Holder {
    ip: IpAddr,
    socket: Weak<LocalSocket>,
}

#[derive(Default)]
struct Names {
    abstract_names: HashMap<Vec<u8>, Weak<LocalSocket>>,
    next_name: u32,
    /// (datagram, port).
    ports: HashMap<(bool, u16), Vec<Holder>>,
    next_port: u16,
}

/// The network of a pod: its own processes, at the loopback addresses.
#[derive(Default)]
pub struct Network {
    names: Mutex<Names>,
    /// Descriptors in inboxes.
    pub(super) in_flight: Arc<AtomicUsize>,
}

impl Network {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Take an abstract name. EADDRINUSE.
    pub(super) fn bind_abstract(&self, name: &[u8], socket: &Weak<LocalSocket>) -> Result<()> {
        let mut names = self.names.lock();
        prune(&mut names.abstract_names)?;
        let held = names.abstract_names.get(name).is_some_and(|holder| holder.strong_count() > 0);
        if held {
            return Err(Errno::ADDRINUSE);
        }
        names.abstract_names.insert(name.to_vec(), Weak::clone(socket));
        Ok(())
    }

    /// A free abstract name of five hexadecimal digits (unix(7), autobind).
    pub(super) fn bind_any_abstract(&self, socket: &Weak<LocalSocket>) -> Result<Vec<u8>> {
        for _ in 0..1 << 20 {
            let number = {
                let mut names = self.names.lock();
                names.next_name = (names.next_name + 1) & 0xf_ffff;
                names.next_name
            };
            let name = format!("{number:05x}").into_bytes();
            match self.bind_abstract(&name, socket) {
                Err(Errno::ADDRINUSE) => {}
                other => return other.map(|()| name),
            }
        }
        Err(Errno::NOSPC)
    }

    pub(super) fn abstract_socket(&self, name: &[u8]) -> Option<Arc<LocalSocket>> {
        self.names.lock().abstract_names.get(name).and_then(Weak::upgrade)
    }

    /// Take a port; 0: a free one. `shares`: whether that holder and the new one may both have it. EADDRINUSE.
    pub(super) fn bind_port(
        &self,
        datagram: bool,
        address: SocketAddr,
        socket: &Weak<LocalSocket>,
        shares: &dyn Fn(&LocalSocket) -> bool,
    ) -> Result<u16> {
        let mut names = self.names.lock();
        let port = if address.port() == 0 { names.free_port(datagram)? } else { address.port() };
        let holders = names.ports.entry((datagram, port)).or_default();
        holders.retain(|holder| holder.socket.strong_count() > 0);
        let overlaps = |ip: IpAddr| reaches(ip, address.ip()) || reaches(address.ip(), ip);
        let held = holders.iter().filter(|holder| overlaps(holder.ip));
        if held.filter_map(|holder| holder.socket.upgrade()).any(|other| !shares(&other)) {
            return Err(Errno::ADDRINUSE);
        }
        if holders.len() >= MAX_NAMES {
            return Err(Errno::NOBUFS);
        }
        holders.push(Holder { ip: address.ip(), socket: Weak::clone(socket) });
        Ok(port)
    }

    /// Whether a name or port is this socket's.
    pub(super) fn holds(&self, socket: &Weak<LocalSocket>) -> bool {
        let names = self.names.lock();
        let mut ports = names.ports.values().flatten();
        names.abstract_names.values().any(|other| other.ptr_eq(socket)) || ports.any(|one| one.socket.ptr_eq(socket))
    }

    /// Have a port again, beside whoever had it too.
    pub(super) fn hold_port(&self, datagram: bool, address: SocketAddr, socket: &Weak<LocalSocket>) {
        let holder = Holder { ip: address.ip(), socket: Weak::clone(socket) };
        self.names.lock().ports.entry((datagram, address.port())).or_default().push(holder);
    }

    /// The socket that gets what is sent to this address: the one with the exact address first.
    pub(super) fn holder(
        &self,
        datagram: bool,
        to: SocketAddr,
        fits: &dyn Fn(&LocalSocket) -> bool,
    ) -> Option<Arc<LocalSocket>> {
        let names = self.names.lock();
        let holders = names.ports.get(&(datagram, to.port()))?;
        let mut found: Vec<&Holder> = holders.iter().filter(|holder| reaches(to.ip(), holder.ip)).collect();
        found.sort_by_key(|holder| holder.ip.is_unspecified());
        let sockets: Vec<_> = found.iter().filter_map(|holder| holder.socket.upgrade()).collect();
        drop(names);
        sockets.into_iter().find(|socket| fits(socket))
    }
}

impl Names {
    /// EADDRINUSE when all ports are taken (ip(7), ip_local_port_range).
    fn free_port(&mut self, datagram: bool) -> Result<u16> {
        for _ in FIRST_EPHEMERAL..=LAST_EPHEMERAL {
            let next = self.next_port.max(FIRST_EPHEMERAL);
            self.next_port = if next >= LAST_EPHEMERAL { FIRST_EPHEMERAL } else { next + 1 };
            let holders = self.ports.get(&(datagram, next));
            if holders.is_none_or(|all| all.iter().all(|holder| holder.socket.strong_count() == 0)) {
                return Ok(next);
            }
        }
        Err(Errno::ADDRINUSE)
    }
}

fn prune(names: &mut HashMap<Vec<u8>, Weak<LocalSocket>>) -> Result<()> {
    if names.len() >= 64 && names.len().is_power_of_two() || names.len() >= MAX_NAMES {
        names.retain(|_, socket| socket.strong_count() > 0);
    }
    (names.len() < MAX_NAMES).then_some(()).ok_or(Errno::NOBUFS)
}
