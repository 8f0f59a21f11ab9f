//! A POSIX message queue as a file: messages by priority, who waits, who is to be told.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use drupe_appkernel_abi::{coded, Errno, Result};
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::wait::{answer, when, READABLE, WRITABLE};
use drupe_appkernel_vfs::{
    Context, Credentials, Events, File, FileType, Metadata, Registration, Timestamp, WaitQueue, Wake,
};

use crate::signal::COUNT;
use crate::task::Pid;

/// How much a queue holds.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    pub messages: u64,
    pub message_bytes: u64,
}

impl Attributes {
    /// What it may take: RLIMIT_MSGQUEUE counts so.
    pub fn bytes(self) -> u64 {
        const OVERHEAD: u64 = 80;
        self.messages.saturating_mul(self.message_bytes.saturating_add(OVERHEAD))
    }
}

impl Attributes {
    /// Beyond these there is no queue, whoever makes it.
    pub const HARD: Attributes = Attributes { messages: 65_536, message_bytes: 16 << 20 };

    pub fn fit(self, most: Attributes) -> bool {
        (1..=most.messages).contains(&self.messages) && (1..=most.message_bytes).contains(&self.message_bytes)
    }
}

coded! {
    /// attributes: most messages, bytes of each. owner: user, group, permissions. made: when. messages: each with its priority.
    /// notice: process, signal, value.
    pub struct SavedMessages {
        attributes: (u64, u64),
        owner: (u32, u32, u32),
        made: (i64, u32),
        messages: Vec<(u32, Vec<u8>)>,
        notice: Option<(u32, i32, u64)>,
    }
}

/// Which process is to be told of a message in an empty queue, by which signal (0: by none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    pub pid: Pid,
    pub signal: i32,
    pub value: u64,
}

#[derive(Default)]
struct Content {
    /// The highest priority first, then the oldest.
    messages: BTreeMap<Reverse<u32>, VecDeque<Vec<u8>>>,
    count: u64,
    notice: Option<Notice>,
}

/// One queue; it lives as long as it has a name or somebody has it open.
pub struct MessageQueue {
    pub attributes: Attributes,
    metadata: Metadata,
    content: Mutex<Content>,
    queue: WaitQueue,
    receivers: WaitQueue,
}

impl MessageQueue {
    pub fn new(attributes: Attributes, by: &Credentials, mode: u32, now: Timestamp) -> Arc<MessageQueue> {
        let metadata = Metadata {
            uid: by.uid,
            gid: by.gid,
            size_bytes: 80,
            accessed: now,
            modified: now,
            changed: now,
            ..Metadata::new(FileType::Regular, mode)
        };
        let (queue, receivers) = (WaitQueue::new(), WaitQueue::new());
        Arc::new(MessageQueue { attributes, metadata, content: Mutex::default(), queue, receivers })
    }

    pub fn save(&self) -> SavedMessages {
        let (content, of) = (self.content.lock(), &self.metadata);
        let all = content.messages.iter();
        let messages = all.flat_map(|(Reverse(priority), list)| list.iter().map(|bytes| (*priority, bytes.clone())));
        SavedMessages {
            attributes: (self.attributes.messages, self.attributes.message_bytes),
            owner: (of.uid, of.gid, of.mode & 0o777),
            made: (of.changed.seconds, of.changed.nanoseconds),
            messages: messages.collect(),
            notice: content.notice.map(|notice| (notice.pid, notice.signal, notice.value)),
        }
    }

    /// None: there is no such queue.
    pub fn restore(saved: &SavedMessages) -> Option<Arc<MessageQueue>> {
        let (messages, message_bytes) = saved.attributes;
        let attributes = Attributes { messages, message_bytes };
        let fits = saved.messages.len() as u64 <= messages
            && saved.messages.iter().all(|(_, bytes)| bytes.len() as u64 <= message_bytes)
            && saved.notice.is_none_or(|(_, signal, _)| (0..=COUNT).contains(&signal));
        let (uid, gid, mode) = saved.owner;
        let by = Credentials::new(uid, gid, 0);
        (fits && attributes.fit(Attributes::HARD)).then_some(())?;
        let made = MessageQueue::new(attributes, &by, mode & 0o777, Timestamp::new(saved.made.0, saved.made.1));
        for (priority, bytes) in &saved.messages {
            made.send(*priority, bytes.clone());
        }
        made.content.lock().notice = saved.notice.map(|(pid, signal, value)| Notice { pid, signal, value });
        Some(made)
    }

    /// Whose it is and what others may.
    pub fn owner(&self) -> Metadata {
        self.metadata.clone()
    }

    pub fn count(&self) -> u64 {
        self.content.lock().count
    }

    pub fn has_room(&self) -> bool {
        self.count() < self.attributes.messages
    }

    /// Be woken when there may be a message, or room for one.
    pub fn register(&self, receives: bool, wake: Arc<dyn Wake>) -> Registration {
        match receives {
            true => self.receivers.register(READABLE, wake),
            false => self.queue.register(WRITABLE, wake),
        }
    }

    /// Put a message in; who is to be told of it, if it is the first one and nobody waits for it.
    pub fn send(&self, priority: u32, bytes: Vec<u8>) -> Option<Notice> {
        let mut content = self.content.lock();
        content.messages.entry(Reverse(priority)).or_default().push_back(bytes);
        content.count += 1;
        let tells = content.count == 1 && self.receivers.is_empty();
        let notice = if tells { content.notice.take() } else { None };
        drop(content);
        self.queue.wake(READABLE);
        self.receivers.wake(READABLE);
        notice
    }

    /// The oldest of the highest priority.
    pub fn receive(&self) -> Option<(u32, Vec<u8>)> {
        let mut content = self.content.lock();
        let mut first = content.messages.first_entry()?;
        let (Reverse(priority), bytes) = (*first.key(), first.get_mut().pop_front()?);
        if first.get().is_empty() {
            first.remove();
        }
        content.count -= 1;
        drop(content);
        self.queue.wake(WRITABLE);
        Some((priority, bytes))
    }

    /// Ask to be told, or (None) take that back. EBUSY: somebody who lives has asked.
    pub fn notify(&self, pid: Pid, notice: Option<Notice>, lives: impl Fn(Pid) -> bool) -> Result<()> {
        let mut content = self.content.lock();
        match (notice, content.notice.filter(|known| lives(known.pid))) {
            (Some(_), Some(_)) => return Err(Errno::BUSY),
            (None, Some(known)) if known.pid != pid => {}
            (notice, _) => content.notice = notice,
        }
        Ok(())
    }

    /// A process has closed it.
    pub fn forget(&self, pid: Pid) {
        let mut content = self.content.lock();
        content.notice = content.notice.filter(|known| known.pid != pid);
    }
}

impl File for MessageQueue {
    /// How much it holds, as Linux says it.
    fn read(&self, _: &Context, offset: u64, out: &mut [u8]) -> Result<usize> {
        let content = self.content.lock();
        let bytes: usize = content.messages.values().flatten().map(Vec::len).sum();
        let notice = content.notice.unwrap_or(Notice { pid: 0, signal: 0, value: 0 });
        let (signal, pid) = (notice.signal, crate::pids::seen(notice.pid));
        let text = format!("QSIZE:{bytes:<10} NOTIFY:{:<5} SIGNO:{signal:<5} NOTIFY_PID:{pid:<6}\n", 0);
        let rest = text.as_bytes().get(offset as usize..).unwrap_or_default();
        let size = rest.len().min(out.len());
        out[..size].copy_from_slice(&rest[..size]);
        Ok(size)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::INVAL)
    }

    fn poll(&self, interest: Events) -> Events {
        let count = self.count();
        answer(interest, when(count > 0, READABLE) | when(count < self.attributes.messages, WRITABLE))
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(self.metadata.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Arc<MessageQueue> {
        let attributes = Attributes { messages: 3, message_bytes: 8 };
        MessageQueue::new(attributes, &Credentials::root(), 0o600, Timestamp::default())
    }

    #[test]
    fn the_highest_priority_comes_first_then_the_oldest() {
        let queue = made();
        for (priority, text) in [(1, "a"), (7, "b"), (7, "c")] {
            assert_eq!(queue.send(priority, text.into()), None);
        }
        assert!(!queue.has_room());
        let got: Vec<_> = std::iter::from_fn(|| queue.receive()).collect();
        assert_eq!(got, [(7, b"b".to_vec()), (7, b"c".to_vec()), (1, b"a".to_vec())]);
    }

    #[test]
    fn one_process_is_told_once_and_while_it_lives_it_is_the_only_one() {
        let (queue, notice) = (made(), Notice { pid: 5, signal: 10, value: 3 });
        assert_eq!(queue.notify(5, Some(notice), |_| true), Ok(()));
        assert_eq!(queue.notify(6, Some(Notice { pid: 6, ..notice }), |_| true), Err(Errno::BUSY));
        assert_eq!(queue.send(0, Vec::new()), Some(notice));
        assert_eq!(queue.send(0, Vec::new()), None);
        assert_eq!(queue.notify(6, Some(Notice { pid: 6, ..notice }), |pid| pid != 5), Ok(()));
        queue.forget(6);
        assert_eq!(queue.notify(7, Some(Notice { pid: 7, ..notice }), |_| true), Ok(()));
    }
}
