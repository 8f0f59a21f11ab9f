//! bind(2), listen(2), connect(2), accept(2).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use super::address::canonical;
use super::local::{LocalSocket, Stage};
use super::{Address, Caller, Family, PeerCredentials};
use crate::cred::{CAP_NET_BIND_SERVICE, MAY_WRITE};
use crate::dentry::Path;
use crate::file::Context;
use crate::kind::FileType;
use crate::open::{OpenFile, OpenFlags};
use crate::wait;
use crate::walk::How;

/// net.core.somaxconn.
const MAX_BACKLOG: usize = 4096;

/// What a socket file leads to, in its inode's attachment.
struct Bound(Weak<LocalSocket>);

fn own_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// Sending to no address is sending to this machine.
fn reached(address: SocketAddr) -> SocketAddr {
    let address = canonical(address);
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), address.port()),
        _ => address,
    }
}

impl LocalSocket {
    /// EINVAL when it has a name; EADDRINUSE, EADDRNOTAVAIL, EACCES; EAFNOSUPPORT.
    pub fn bind(&self, caller: &Caller<'_>, address: &Address) -> Result<()> {
        if self.state.lock().name != Address::unbound(self.family) {
            return Err(Errno::INVAL);
        }
        match (self.family, address) {
            (Family::Unix, Address::Unnamed) => self.bind_abstract(None),
            (Family::Unix, Address::Abstract(name)) => self.bind_abstract(Some(name)),
            (Family::Unix, Address::Path(path)) => self.bind_path(caller, path),
            (Family::V4, Address::Inet(to @ SocketAddr::V4(_))) => self.bind_port(Some(caller), *to),
            (Family::V6, Address::Inet(to @ SocketAddr::V6(_))) => self.bind_port(Some(caller), *to),
            (Family::Unix, _) => Err(Errno::INVAL),
            _ => Err(Errno::AFNOSUPPORT),
        }
    }

    fn bind_abstract(&self, name: Option<&Vec<u8>>) -> Result<()> {
        let name = match name {
            Some(name) => self.network.bind_abstract(name, &self.own).map(|()| name.clone())?,
            None => self.network.bind_any_abstract(&self.own)?,
        };
        self.state.lock().name = Address::Abstract(name);
        Ok(())
    }

    fn bind_path(&self, caller: &Caller<'_>, path: &[u8]) -> Result<()> {
        let mode = FileType::Socket.mode_bits() | 0o777;
        let made = caller.view.mknod(caller.working, path, mode, 0).map_err(|error| match error {
            Errno::EXIST => Errno::ADDRINUSE,
            other => other,
        })?;
        self.be_found_at(&made);
        let mut state = self.state.lock();
        state.name = Address::Path(path.to_vec());
        state.bound = Some(made);
        Ok(())
    }

    /// Who connects to this socket file reaches it.
    pub(super) fn be_found_at(&self, path: &Path) {
        *path.inode().attachment().object.lock() = Some(Arc::new(Bound(Weak::clone(&self.own))));
    }

    fn bind_port(&self, caller: Option<&Caller<'_>>, address: SocketAddr) -> Result<()> {
        let privileged = caller.is_none_or(|caller| caller.view.context.credentials.capable(CAP_NET_BIND_SERVICE));
        if super::is_privileged_port(address.port()) && !privileged {
            return Err(Errno::ACCES);
        }
        let bound = canonical(address);
        if !own_machine(bound.ip()) {
            return Err(Errno::ADDRNOTAVAIL);
        }
        let (reuse, reuse_port) = {
            let options = &self.state.lock().options;
            (options.reuses_address(), options.reuses_port())
        };
        let shares = |other: &Self| {
            let other = other.state.lock();
            let address = reuse && other.options.reuses_address() && other.stage != Stage::Listening;
            address || reuse_port && other.options.reuses_port()
        };
        let port = self.network.bind_port(!self.kind.connects(), bound, &self.own, &shares)?;
        self.state.lock().name = Address::Inet(SocketAddr::new(address.ip(), port));
        Ok(())
    }

    /// Have a port if there is none yet: of `listen`, `connect` and the first datagram.
    pub(super) fn bind_any_port(&self) -> Result<()> {
        let unbound = self.family != Family::Unix && self.state.lock().name == Address::unbound(self.family);
        match Address::unbound(self.family) {
            Address::Inet(any) if unbound => self.bind_port(None, any),
            _ => Ok(()),
        }
    }

    /// EOPNOTSUPP for datagrams; EINVAL for a unix socket without a name, or a connected one.
    pub fn listen(&self, context: &Context, backlog: u32) -> Result<()> {
        if !self.kind.connects() {
            return Err(Errno::NOTSUP);
        }
        self.bind_any_port()?;
        let mut state = self.state.lock();
        if state.name == Address::Unnamed || state.stage == Stage::Connected {
            return Err(Errno::INVAL);
        }
        state.stage = Stage::Listening;
        state.backlog = (backlog as usize).min(MAX_BACKLOG);
        state.peer_credentials = Some(PeerCredentials::of(context));
        Ok(())
    }

    /// ECONNREFUSED; EISCONN; ENETUNREACH beyond this machine; EAGAIN while the other's backlog is full.
    pub fn connect(&self, caller: &Caller<'_>, address: &Address) -> Result<()> {
        let stage = self.state.lock().stage;
        match (stage, address) {
            (_, Address::None) if !self.kind.connects() => return self.disconnect(),
            (Stage::Listening, _) => return Err(Errno::INVAL),
            (Stage::Connected, _) if self.kind.connects() => return Err(Errno::ISCONN),
            _ => {}
        }
        let target = self.target(caller, address)?;
        self.bind_any_port()?;
        if self.kind.connects() {
            return self.connect_stream(caller.view.context, &target, address);
        }
        self.join(&target, PeerCredentials::of(caller.view.context));
        self.told_where(address);
        Ok(())
    }

    fn disconnect(&self) -> Result<()> {
        let mut state = self.state.lock();
        (state.stage, state.peer, state.peer_name) = (Stage::Fresh, Weak::new(), Address::None);
        Ok(())
    }

    /// The peer's address is the one that was asked for, and the own one lies on the same machine.
    fn told_where(&self, address: &Address) {
        let Address::Inet(to) = address else { return };
        let mut state = self.state.lock();
        let to = reached(*to);
        if let Address::Inet(name) = &mut state.name {
            if name.ip().is_unspecified() {
                *name = SocketAddr::new(to.ip(), name.port());
            }
        }
        state.peer_name = Address::Inet(to).seen_by(self.family);
    }

    fn connect_stream(&self, context: &Context, listener: &Arc<Self>, address: &Address) -> Result<()> {
        let own = self.own.upgrade().ok_or(Errno::BADF)?;
        let mut state = listener.state.lock();
        if state.stage != Stage::Listening {
            return Err(Errno::CONNREFUSED);
        }
        if state.pending.len() > state.backlog {
            state.waiting.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&self.own));
            state.waiting.push(Weak::clone(&self.own));
            return Err(Errno::AGAIN);
        }
        let (name, credentials) = (state.name.clone(), state.peer_credentials.unwrap_or_default());
        drop(state);
        let accepted = Self::new(&self.network, listener.family, self.kind)?;
        accepted.state.lock().name = match address {
            Address::Inet(to) => Address::Inet(reached(*to)),
            _ => name,
        };
        self.join(&accepted, credentials);
        self.told_where(address);
        accepted.join(&own, PeerCredentials::of(context));
        listener.state.lock().pending.push_back(accepted);
        listener.queue.wake(wait::READABLE);
        self.queue.wake(wait::WRITABLE);
        Ok(())
    }

    /// accept4(2): the connection and who made it. EAGAIN; EINVAL for a socket that does not listen.
    pub fn accept(&self, context: &Context, flags: OpenFlags) -> Result<(Arc<OpenFile>, Address)> {
        let mut state = self.state.lock();
        match (self.kind.connects(), state.stage) {
            (false, _) => return Err(Errno::NOTSUP),
            (true, Stage::Listening) => {}
            _ => return Err(Errno::INVAL),
        }
        let accepted = state.pending.pop_front().ok_or(Errno::AGAIN)?;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.wake_waiting(waiting);
        let peer = accepted.state.lock().peer_name.clone();
        Ok((accepted.open(context, flags), peer))
    }

    /// The socket that has this address. ECONNREFUSED, ENOENT, EACCES, EPROTOTYPE.
    pub(super) fn target(&self, caller: &Caller<'_>, address: &Address) -> Result<Arc<Self>> {
        let found = match (self.family, address) {
            (Family::Unix, Address::Abstract(name)) => self.network.abstract_socket(name),
            (Family::Unix, Address::Path(path)) => Some(at_path(caller, path)?),
            (Family::V4 | Family::V6, Address::Inet(to)) => self.at_port(*to)?,
            (Family::Unix, _) => return Err(Errno::INVAL),
            _ => return Err(Errno::AFNOSUPPORT),
        };
        let found = found.ok_or(Errno::CONNREFUSED)?;
        (found.kind == self.kind).then_some(found).ok_or(Errno::PROTOTYPE)
    }

    fn at_port(&self, to: SocketAddr) -> Result<Option<Arc<Self>>> {
        let to = reached(to);
        if !own_machine(to.ip()) {
            return Err(Errno::NETUNREACH);
        }
        let stream = self.kind.connects();
        let fits = |socket: &Self| !stream || socket.state.lock().stage == Stage::Listening;
        Ok(self.network.holder(!stream, to, &fits))
    }
}

fn at_path(caller: &Caller<'_>, path: &[u8]) -> Result<Arc<LocalSocket>> {
    let at: Path = caller.view.walk(caller.working, path, How::FOLLOW)?;
    caller.view.access(&at, MAY_WRITE)?;
    let object = at.inode().attachment().object.lock().clone();
    let bound = object.and_then(|object| object.downcast::<Bound>().ok()).ok_or(Errno::CONNREFUSED)?;
    bound.0.upgrade().ok_or(Errno::CONNREFUSED)
}
