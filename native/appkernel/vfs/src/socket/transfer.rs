//! Sending and receiving.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use super::inbox::{Files, Inbox, Message};
use super::local::{LocalSocket, Stage, State, CANNOT_RECEIVE, CANNOT_SEND};
use super::options::BUFFER_BYTES;
use super::{Address, Family, Outgoing, PeerCredentials, Received, SocketKind, MSG_EOR, MSG_PEEK, MSG_TRUNC};
use crate::cred::CAP_SYS_ADMIN;
use crate::file::Context;
use crate::wait;

/// Messages that an inbox of datagrams holds (net.unix.max_dgram_qlen, 512 as current systems set it).
const MAX_MESSAGES: usize = 512;
const UDP_MAX_BYTES: usize = 65_507;

/// Whether a socket of messages takes no more.
pub(super) fn is_full(inbox: &Inbox) -> bool {
    inbox.messages.len() >= MAX_MESSAGES || inbox.size_bytes >= BUFFER_BYTES
}

impl LocalSocket {
    /// sendmsg(2): bytes taken. EPIPE (SIGPIPE is the core's), ENOTCONN, EDESTADDRREQ, EISCONN, EMSGSIZE, EAGAIN, EPERM.
    pub fn send(&self, context: &Context, data: &[u8], outgoing: Outgoing<'_>) -> Result<usize> {
        let credentials = outgoing.credentials.unwrap_or(PeerCredentials::of(context));
        check_credentials(context, credentials)?;
        if self.family != Family::Unix && !outgoing.files.is_empty() {
            return Err(Errno::INVAL);
        }
        let target = self.destination(&outgoing)?;
        let limit = if self.family == Family::Unix { BUFFER_BYTES - 32 } else { UDP_MAX_BYTES };
        if self.kind != SocketKind::Stream && data.len() > limit {
            return Err(Errno::MSGSIZE);
        }
        let Some(target) = target else { return Ok(data.len()) }; // a datagram that nobody hears
        if self.kind == SocketKind::Stream && data.is_empty() {
            return Ok(0);
        }
        let (from, files) = (self.sender_name(&target)?, outgoing.files);
        target.put(self, data, Part { from, credentials, files })
    }

    /// Who gets it; None: nobody, and that is no error (UDP).
    fn destination(&self, outgoing: &Outgoing<'_>) -> Result<Option<Arc<Self>>> {
        let mut state = self.state.lock();
        let error = if self.kind == SocketKind::SeqPacket { state.error.take() } else { None };
        error.map_or(Ok(()), Err)?;
        if state.shut & CANNOT_SEND != 0 {
            return Err(Errno::PIPE);
        }
        let (stage, peer) = (state.stage, state.peer.upgrade());
        drop(state);
        match (self.kind, outgoing.to) {
            (SocketKind::Datagram, Some((caller, address))) => match self.target(caller, address) {
                Err(Errno::CONNREFUSED) if self.family != Family::Unix => Ok(None),
                found => found.map(Some),
            },
            (_, Some(_)) if self.family == Family::Unix && stage == Stage::Connected => Err(Errno::ISCONN),
            (SocketKind::Datagram, None) if stage == Stage::Fresh => {
                Err(if self.family == Family::Unix { Errno::NOTCONN } else { Errno::DESTADDRREQ })
            }
            (SocketKind::Datagram, None) => peer.map(Some).ok_or_else(|| self.left_alone()),
            _ if stage != Stage::Connected => {
                Err(if self.family == Family::Unix { Errno::NOTCONN } else { Errno::PIPE })
            }
            _ => peer.map(Some).ok_or(Errno::PIPE),
        }
    }

    /// The peer of a datagram socket is gone: told once, then there is none, and nothing of its own is left.
    fn left_alone(&self) -> Errno {
        if self.family == Family::Unix {
            let mut state = self.state.lock();
            state.stage = Stage::Fresh;
            let inbox = std::mem::take(&mut state.inbox);
            drop(state);
            drop(inbox);
        }
        Errno::CONNREFUSED
    }

    fn sender_name(&self, target: &Self) -> Result<Address> {
        self.bind_any_port()?;
        let name = self.state.lock().name.clone();
        let Address::Inet(address) = name else { return Ok(name) };
        let local = match address.ip().is_unspecified() {
            true if address.is_ipv4() || target.family == Family::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
            true => std::net::Ipv6Addr::LOCALHOST.into(),
            false => address.ip().to_canonical(),
        };
        Ok(Address::Inet((local, address.port()).into()).seen_by(target.family))
    }

    /// Put what `sender` sends into this socket's inbox.
    fn put(&self, sender: &Self, data: &[u8], part: Part) -> Result<usize> {
        let mut state = self.state.lock();
        if state.shut & CANNOT_RECEIVE != 0 && self.family == Family::Unix {
            return Err(Errno::PIPE);
        }
        let connected_elsewhere = state.stage == Stage::Connected && !state.peer.ptr_eq(&sender.own);
        if self.kind == SocketKind::Datagram && connected_elsewhere {
            return if self.family == Family::Unix { Err(Errno::PERM) } else { Ok(data.len()) };
        }
        let count = match self.kind {
            SocketKind::Stream => data.len().min(BUFFER_BYTES.saturating_sub(state.inbox.size_bytes)),
            _ if is_full(&state.inbox) && self.family != Family::Unix => return Ok(data.len()), // UDP drops
            _ => {
                if is_full(&state.inbox) {
                    0
                } else {
                    data.len()
                }
            }
        };
        let blocked = count == 0 && !data.is_empty() || self.kind != SocketKind::Stream && is_full(&state.inbox);
        if blocked {
            state.waiting.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&sender.own));
            state.waiting.push(Weak::clone(&sender.own));
            return Err(Errno::AGAIN);
        }
        let message = part.message(&data[..count], &self.network.in_flight)?;
        state.inbox.push(self.kind, message);
        drop(state);
        self.queue.wake(wait::READABLE);
        Ok(count)
    }

    /// recvmsg(2) with MSG_PEEK or without. EAGAIN, ENOTCONN, ECONNRESET; a count of 0: the end.
    pub fn receive(&self, _: &Context, out: &mut [u8], flags: u32) -> Result<Received> {
        let mut state = self.state.lock();
        let error_first = self.kind != SocketKind::Stream && state.error.is_some();
        if state.inbox.is_empty() || error_first {
            return self.nothing(&mut state);
        }
        let take = flags & MSG_PEEK == 0;
        let mut received = Received::default();
        if let Some(first) = state.inbox.messages.front() {
            received.from = (self.kind == SocketKind::Datagram).then(|| first.from.clone());
            received.credentials = Some(first.credentials);
        }
        received.credentials = received.credentials.filter(|_| state.options.passes_credentials());
        match self.kind {
            SocketKind::Stream => receive_stream(&mut state.inbox, out, take, &mut received),
            _ => receive_message(&mut state.inbox, out, take, &mut received),
        }
        if self.kind == SocketKind::SeqPacket {
            received.flags |= MSG_EOR;
        }
        self.made_room(state, take);
        Ok(received)
    }

    fn nothing(&self, state: &mut State) -> Result<Received> {
        match state.error.take() {
            Some(error) => Err(error),
            None if state.shut & CANNOT_RECEIVE != 0 => Ok(Received::default()),
            None if self.kind.connects() && state.stage != Stage::Connected => {
                Err(if self.family == Family::Unix && self.kind == SocketKind::Stream {
                    Errno::INVAL
                } else {
                    Errno::NOTCONN
                })
            }
            None => Err(Errno::AGAIN),
        }
    }

    fn made_room(&self, mut state: std::sync::MutexGuard<'_, State>, take: bool) {
        if !take {
            return;
        }
        let waiting = std::mem::take(&mut state.waiting);
        let peer = state.peer.upgrade();
        drop(state);
        self.wake_waiting(waiting);
        if let Some(peer) = peer {
            peer.queue.wake(wait::WRITABLE);
        }
    }
}

/// What goes with the bytes.
struct Part {
    from: Address,
    credentials: PeerCredentials,
    files: Vec<Arc<crate::open::OpenFile>>,
}

impl Part {
    fn message(self, data: &[u8], in_flight: &Arc<AtomicUsize>) -> Result<Message> {
        let sealed = !self.files.is_empty();
        let (files, bytes) = (Files::new(self.files, in_flight)?, data.iter().copied().collect());
        Ok(Message { bytes, from: self.from, credentials: self.credentials, files, sealed })
    }
}

fn check_credentials(context: &Context, said: PeerCredentials) -> Result<()> {
    let own = PeerCredentials::of(context);
    (said == own || context.credentials.capable(CAP_SYS_ADMIN)).then_some(()).ok_or(Errno::PERM)
}

/// As much as there is, but not beyond a piece that files came with.
fn receive_stream(inbox: &mut Inbox, out: &mut [u8], take: bool, received: &mut Received) {
    while received.count < out.len() {
        let Some(message) = inbox.messages.front_mut() else { break };
        let files = take_files(message, take);
        let had_files = !files.is_empty();
        received.files.extend(files);
        received.count += inbox.copy(0, &mut out[received.count..], take);
        let emptied = inbox.messages.front().is_some_and(|message| message.bytes.is_empty());
        if emptied {
            inbox.pop();
        }
        if !take || !emptied || had_files {
            break;
        }
    }
    received.full_length = received.count;
}

fn receive_message(inbox: &mut Inbox, out: &mut [u8], take: bool, received: &mut Received) {
    let Some(message) = inbox.messages.front_mut() else { return };
    received.full_length = message.bytes.len();
    received.files = take_files(message, take);
    received.count = inbox.copy(0, out, take);
    if received.count < received.full_length {
        received.flags |= MSG_TRUNC;
    }
    if take {
        inbox.pop();
    }
}

/// The files of a message; when it stays (MSG_PEEK), they do too, and are not given twice.
fn take_files(message: &mut Message, take: bool) -> Vec<Arc<crate::open::OpenFile>> {
    if take {
        message.files.take()
    } else {
        Vec::new()
    }
}
