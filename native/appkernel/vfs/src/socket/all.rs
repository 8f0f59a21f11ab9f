//! What the core asks of every socket, of the pod's own and of the host's.

use std::sync::Arc;

use drupe_appkernel_abi::Result;

use super::local::LocalSocket;
use super::{Address, Caller, Outgoing, Received, SocketKind, MSG_PEEK};
use crate::file::Context;
use crate::open::{OpenFile, OpenFlags};

/// A socket. Nothing here waits: EAGAIN, and EINPROGRESS or EALREADY of a connection on its way.
pub trait Socket {
    fn kind(&self) -> SocketKind;

    fn bind(&self, caller: &Caller<'_>, address: &Address) -> Result<()>;

    fn listen(&self, context: &Context, backlog: u32) -> Result<()>;

    fn connect(&self, caller: &Caller<'_>, address: &Address) -> Result<()>;

    /// accept4(2): the connection and who made it; `flags`: O_NONBLOCK or nothing.
    fn accept(&self, context: &Context, flags: OpenFlags) -> Result<(Arc<OpenFile>, Address)>;

    fn name(&self) -> Result<Address>;

    fn peer_name(&self) -> Result<Address>;

    fn shutdown(&self, how: u32) -> Result<()>;

    /// getsockopt(2) of a value of at most `room` bytes. ENOPROTOOPT.
    fn option(&self, level: u32, name: u32, room: usize) -> Result<Vec<u8>>;

    fn set_option(&self, level: u32, name: u32, value: &[u8]) -> Result<()>;

    fn send(&self, context: &Context, data: &[u8], outgoing: Outgoing<'_>) -> Result<usize>;

    fn receive(&self, context: &Context, out: &mut [u8], flags: u32) -> Result<Received>;
}

impl Socket for LocalSocket {
    fn kind(&self) -> SocketKind {
        self.kind
    }

    fn bind(&self, caller: &Caller<'_>, address: &Address) -> Result<()> {
        LocalSocket::bind(self, caller, address)
    }

    fn listen(&self, context: &Context, backlog: u32) -> Result<()> {
        LocalSocket::listen(self, context, backlog)
    }

    fn connect(&self, caller: &Caller<'_>, address: &Address) -> Result<()> {
        LocalSocket::connect(self, caller, address)
    }

    fn accept(&self, context: &Context, flags: OpenFlags) -> Result<(Arc<OpenFile>, Address)> {
        LocalSocket::accept(self, context, flags)
    }

    fn name(&self) -> Result<Address> {
        Ok(LocalSocket::name(self))
    }

    fn peer_name(&self) -> Result<Address> {
        LocalSocket::peer_name(self)
    }

    fn shutdown(&self, how: u32) -> Result<()> {
        LocalSocket::shutdown(self, how)
    }

    fn option(&self, level: u32, name: u32, _: usize) -> Result<Vec<u8>> {
        LocalSocket::option(self, level, name)
    }

    fn set_option(&self, level: u32, name: u32, value: &[u8]) -> Result<()> {
        LocalSocket::set_option(self, level, name, value)
    }

    fn send(&self, context: &Context, data: &[u8], outgoing: Outgoing<'_>) -> Result<usize> {
        LocalSocket::send(self, context, data, outgoing)
    }

    fn receive(&self, context: &Context, out: &mut [u8], flags: u32) -> Result<Received> {
        LocalSocket::receive(self, context, out, flags & MSG_PEEK)
    }
}
