//! What was sent to a socket and not yet received.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::{Address, PeerCredentials, SocketKind};
use crate::open::OpenFile;
use crate::sync::Mutex;

/// Descriptors in one message (unix(7), SCM_RIGHTS), and in all inboxes of a network together.
const MAX_FILES: usize = 253;
const MAX_IN_FLIGHT: usize = 16_384;

/// Open files on their way, and the count of all of a network.
pub(super) struct Files(Vec<Arc<OpenFile>>, Arc<AtomicUsize>);

impl Files {
    /// EINVAL for too many; ETOOMANYREFS when too many are on their way already.
    pub fn new(files: Vec<Arc<OpenFile>>, in_flight: &Arc<AtomicUsize>) -> Result<Self> {
        if files.len() > MAX_FILES {
            return Err(Errno::INVAL);
        }
        let add = |now: usize| Some(now + files.len()).filter(|sum| *sum <= MAX_IN_FLIGHT);
        in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map_err(|_| Errno::TOOMANYREFS)?;
        Ok(Self(files, Arc::clone(in_flight)))
    }

    pub fn list(&self) -> &[Arc<OpenFile>] {
        &self.0
    }

    pub fn take(&mut self) -> Vec<Arc<OpenFile>> {
        self.1.fetch_sub(self.0.len(), Ordering::Relaxed);
        std::mem::take(&mut self.0)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        close(self.take());
    }
}

#[derive(Default)]
struct Closing {
    files: Vec<Arc<OpenFile>>,
    busy: bool,
}

static CLOSING: Mutex<Closing> = Mutex::new(Closing { files: Vec::new(), busy: false });

/// Close files one after the other, whatever is in the inboxes of those among them that are sockets: a chain of sockets, each
/// in the inbox of the next, must not be a chain of calls.
fn close(files: Vec<Arc<OpenFile>>) {
    let mut closing = CLOSING.lock();
    closing.files.extend(files);
    if std::mem::replace(&mut closing.busy, true) {
        return;
    }
    while let Some(file) = closing.files.pop() {
        drop(closing);
        drop(file);
        closing = CLOSING.lock();
    }
    closing.busy = false;
}

/// A message, or a piece of a stream.
pub(super) struct Message {
    pub bytes: VecDeque<u8>,
    pub from: Address,
    pub credentials: PeerCredentials,
    pub files: Files,
    /// Files came with it: the next bytes of a stream are not joined.
    pub sealed: bool,
}

/// Messages in order.
#[derive(Default)]
pub(super) struct Inbox {
    pub messages: VecDeque<Message>,
    pub size_bytes: usize,
}

impl Inbox {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub fn push(&mut self, kind: SocketKind, message: Message) {
        self.size_bytes += message.bytes.len();
        match self.messages.back_mut() {
            Some(last) if kind == SocketKind::Stream && joins(last, &message) => last.bytes.extend(message.bytes),
            _ => self.messages.push_back(message),
        }
    }

    /// What FIONREAD says: of datagrams the next one only.
    pub fn readable_bytes(&self, kind: SocketKind) -> usize {
        match kind {
            SocketKind::Stream | SocketKind::SeqPacket => self.size_bytes,
            SocketKind::Datagram => self.messages.front().map_or(0, |message| message.bytes.len()),
        }
    }

    /// Copy bytes of the first message from `start` on; with `take` they are gone.
    pub fn copy(&mut self, start: usize, out: &mut [u8], take: bool) -> usize {
        let Some(message) = self.messages.front_mut() else { return 0 };
        let count = out.len().min(message.bytes.len().saturating_sub(start));
        let (first, second) = message.bytes.as_slices();
        let from_first = first.get(start..).unwrap_or_default();
        let split = count.min(from_first.len());
        out[..split].copy_from_slice(&from_first[..split]);
        let skip = start.saturating_sub(first.len());
        out[split..count].copy_from_slice(&second[skip..skip + count - split]);
        if take {
            message.bytes.drain(..count);
            self.size_bytes -= count;
        }
        count
    }

    /// Drop the first message with what is left of it.
    pub fn pop(&mut self) {
        if let Some(message) = self.messages.pop_front() {
            self.size_bytes -= message.bytes.len();
        }
    }
}

fn joins(last: &Message, next: &Message) -> bool {
    !last.sealed && !next.sealed && last.credentials == next.credentials
}
