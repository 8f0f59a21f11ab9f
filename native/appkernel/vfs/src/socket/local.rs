//! A socket, as a file.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use super::inbox::Inbox;
use super::network::Network;
use super::options::{Options, BUFFER_BYTES};
use super::{Address, Family, Outgoing, PeerCredentials, SocketKind, SHUT_RD, SHUT_RDWR, SHUT_WR};
use crate::anonymous::AnonymousInode;
use crate::dentry::Path;
use crate::file::{Context, File, Metadata};
use crate::ioctl;
use crate::kind::FileType;
use crate::open::{OpenFile, OpenFlags};
use crate::sync::Mutex;
use crate::wait::{self, answer, when, Events, WaitQueue};

const SIOCOUTQ: u32 = 0x5411;
pub(super) const CANNOT_RECEIVE: u8 = 1;
pub(super) const CANNOT_SEND: u8 = 2;
const BOTH: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Fresh,
    Listening,
    Connected,
}

pub(super) struct State {
    pub name: Address,
    /// The socket file that it is bound to, kept so that it is found there.
    pub bound: Option<Path>,
    pub stage: Stage,
    pub peer: Weak<LocalSocket>,
    pub peer_name: Address,
    pub peer_credentials: Option<PeerCredentials>,
    pub backlog: usize,
    /// Connections that nobody has accepted.
    pub pending: VecDeque<Arc<LocalSocket>>,
    pub inbox: Inbox,
    pub shut: u8,
    pub error: Option<Errno>,
    /// Those who wait for room here.
    pub waiting: Vec<Weak<LocalSocket>>,
    pub options: Options,
}

/// A socket.
pub struct LocalSocket {
    pub(super) own: Weak<LocalSocket>,
    pub(super) network: Arc<Network>,
    pub(super) family: Family,
    pub(super) kind: SocketKind,
    pub(super) state: Mutex<State>,
    pub(super) queue: WaitQueue,
    metadata: Mutex<Option<Arc<AnonymousInode>>>,
}

impl PeerCredentials {
    pub(super) fn of(context: &Context) -> Self {
        let credentials = context.credentials;
        Self { pid: context.pid, uid: credentials.uid, gid: credentials.gid }
    }
}

impl LocalSocket {
    /// socket(2). ESOCKTNOSUPPORT.
    pub fn new(network: &Arc<Network>, family: Family, kind: SocketKind) -> Result<Arc<Self>> {
        if family != Family::Unix && kind == SocketKind::SeqPacket {
            return Err(Errno::SOCKTNOSUPPORT);
        }
        let state = State {
            name: Address::unbound(family),
            bound: None,
            stage: Stage::Fresh,
            peer: Weak::new(),
            peer_name: Address::None,
            peer_credentials: None,
            backlog: 0,
            pending: VecDeque::new(),
            inbox: Inbox::default(),
            shut: 0,
            error: None,
            waiting: Vec::new(),
            options: Options::default(),
        };
        Ok(Arc::new_cyclic(|own| Self {
            own: own.clone(),
            network: Arc::clone(network),
            family,
            kind,
            state: Mutex::new(state),
            queue: WaitQueue::new(),
            metadata: Mutex::default(),
        }))
    }

    /// The socket as an open file; `flags`: O_NONBLOCK or nothing.
    pub fn open(self: Arc<Self>, context: &Context, flags: OpenFlags) -> Arc<OpenFile> {
        let inode = AnonymousInode::new(context, FileType::Socket, 0o777);
        let path = inode.path(&format!("socket:[{}]", inode.number()));
        *self.metadata.lock() = Some(inode);
        OpenFile::new(self, Some(path), OpenFlags(OpenFlags::RDWR | flags.0 & OpenFlags::NONBLOCK))
    }

    /// socketpair(2), of unix sockets.
    pub fn pair(context: &Context, network: &Arc<Network>, kind: SocketKind) -> Result<(Arc<Self>, Arc<Self>)> {
        let (one, two) = (Self::new(network, Family::Unix, kind)?, Self::new(network, Family::Unix, kind)?);
        let credentials = PeerCredentials::of(context);
        one.join(&two, credentials);
        two.join(&one, credentials);
        Ok((one, two))
    }

    /// From now on `peer` is the other end.
    pub(super) fn join(&self, peer: &Arc<Self>, credentials: PeerCredentials) {
        let peer_name = peer.state.lock().name.seen_by(self.family);
        let mut state = self.state.lock();
        state.stage = Stage::Connected;
        state.peer = Arc::downgrade(peer);
        state.peer_name = peer_name;
        state.peer_credentials = Some(credentials);
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn kind(&self) -> SocketKind {
        self.kind
    }

    /// getsockname(2).
    pub fn name(&self) -> Address {
        self.state.lock().name.seen_by(self.family)
    }

    /// getpeername(2). ENOTCONN.
    pub fn peer_name(&self) -> Result<Address> {
        let state = self.state.lock();
        (state.stage == Stage::Connected).then(|| state.peer_name.clone()).ok_or(Errno::NOTCONN)
    }

    /// shutdown(2). ENOTCONN, EINVAL.
    pub fn shutdown(&self, how: u32) -> Result<()> {
        let mine = match how {
            SHUT_RD => CANNOT_RECEIVE,
            SHUT_WR => CANNOT_SEND,
            SHUT_RDWR => BOTH,
            _ => return Err(Errno::INVAL),
        };
        let mut state = self.state.lock();
        if self.family != Family::Unix && state.stage == Stage::Fresh {
            return Err(Errno::NOTCONN);
        }
        state.shut |= mine;
        let peer = state.peer.upgrade().filter(|_| self.kind.connects());
        drop(state);
        self.queue.wake(wait::READABLE | wait::WRITABLE | wait::RDHUP | wait::HUP);
        let theirs = when(mine & CANNOT_SEND != 0, u32::from(CANNOT_RECEIVE)) as u8;
        let unix = when(mine & CANNOT_RECEIVE != 0 && self.family == Family::Unix, u32::from(CANNOT_SEND)) as u8;
        if let Some(peer) = peer {
            peer.shut(theirs | unix, None);
        }
        Ok(())
    }

    fn shut(&self, bits: u8, error: Option<Errno>) {
        let mut state = self.state.lock();
        state.shut |= bits;
        state.error = error.or(state.error);
        drop(state);
        self.queue.wake(wait::READABLE | wait::WRITABLE | wait::RDHUP | wait::HUP);
    }

    /// Wake who waited for room here.
    pub(super) fn wake_waiting(&self, waiting: Vec<Weak<LocalSocket>>) {
        waiting.iter().filter_map(Weak::upgrade).for_each(|socket| socket.queue.wake(wait::WRITABLE));
    }

    fn room(&self) -> bool {
        let peer = self.state.lock().peer.upgrade();
        let Some(peer) = peer else { return true };
        let inbox = &peer.state.lock().inbox;
        match self.kind {
            SocketKind::Stream => inbox.size_bytes * 4 <= BUFFER_BYTES,
            _ => !super::transfer::is_full(inbox),
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        let waiting = std::mem::take(&mut state.waiting);
        let unread = !state.inbox.is_empty();
        let peer = state.peer.upgrade().filter(|_| self.kind.connects() && state.stage == Stage::Connected);
        let pending = std::mem::take(&mut state.pending);
        drop(state);
        if let Some(peer) = peer {
            peer.shut(BOTH, unread.then_some(Errno::CONNRESET));
        }
        for connection in &pending {
            let client = connection.state.lock().peer.upgrade();
            if let Some(client) = client {
                client.shut(BOTH, Some(Errno::CONNRESET));
            }
        }
        self.wake_waiting(waiting);
    }
}

impl File for LocalSocket {
    fn read(&self, context: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        if out.is_empty() {
            return Ok(0); // no message is taken, unlike by recv(2)
        }
        self.receive(context, out, 0).map(|received| received.count)
    }

    fn write(&self, context: &Context, _: u64, data: &[u8]) -> Result<usize> {
        self.send(context, data, Outgoing::default())
    }

    fn poll(&self, interest: Events) -> Events {
        let room = self.room();
        let state = self.state.lock();
        let cannot_receive = state.shut & CANNOT_RECEIVE != 0;
        let readable = !state.inbox.is_empty() || !state.pending.is_empty() || cannot_receive;
        let hung_up = state.shut == BOTH || (self.kind.connects() && state.stage == Stage::Fresh);
        let mask = when(readable, wait::READABLE)
            | when(cannot_receive, wait::RDHUP)
            | when(hung_up, wait::HUP)
            | when(state.error.is_some(), wait::ERR)
            | when(room && state.stage != Stage::Listening, wait::WRITABLE);
        answer(interest, mask)
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        use crate::inode::Inode;
        match &*self.metadata.lock() {
            Some(inode) => inode.metadata(),
            None => Ok(Metadata::new(FileType::Socket, 0o777)),
        }
    }

    fn ioctl(&self, _: &Context, request: u32, _: u64, data: &mut Vec<u8>) -> Result<i64> {
        if request == SIOCOUTQ {
            let peer = self.state.lock().peer.upgrade();
            let unread = peer.map_or(0, |peer| peer.state.lock().inbox.size_bytes);
            ioctl::put_i32(data, i32::try_from(unread).unwrap_or(i32::MAX));
            return Ok(0);
        }
        let state = self.state.lock();
        if request == ioctl::FIONREAD && state.stage == Stage::Listening {
            return Err(Errno::INVAL);
        }
        ioctl::answer_readable(request, state.inbox.readable_bytes(self.kind), data)
    }

    fn as_socket(&self) -> Option<&dyn super::Socket> {
        Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
