//! What tests of several modules need: a backing in memory, a small tree, a clock to turn by hand.

#![allow(dead_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::backing::{Backing, Backings};
use crate::dentry::Path;
use crate::file::{Context, Credentials, File, HostFile, Timestamp};
use crate::inode::NewNode;
use crate::kind::FileType;
use crate::mount::{Mount, MountNamespace};
use crate::open::OpenFlags;
use crate::ops::SpecialFiles;
use crate::sync::Mutex;
use crate::time::{Armed, Clock, ClockId};
use crate::tmpfs::{Limits, Tmpfs};
use crate::wait::{Events, Wake};
use crate::walk::View;

/// A backing over a vector.
#[derive(Default)]
pub struct Memory(pub Mutex<Vec<u8>>);

impl HostFile for Memory {
    fn raw_fd(&self) -> i32 {
        -1
    }
}

impl Backing for Memory {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let bytes = self.0.lock();
        for (index, byte) in out.iter_mut().enumerate() {
            *byte = bytes.get(offset as usize + index).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let (mut bytes, end) = (self.0.lock(), offset as usize + data.len());
        if end > 1 << 26 {
            return Err(Errno::NOSPC);
        }
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        if size_bytes > 1 << 26 {
            return Err(Errno::NOSPC); // a vector has no holes
        }
        self.0.lock().resize(size_bytes as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, length_bytes: u64) -> Result<()> {
        let mut bytes = self.0.lock();
        let end = bytes.len().min(offset.saturating_add(length_bytes) as usize);
        bytes[(offset as usize).min(end)..end].fill(0);
        Ok(())
    }

    fn as_host_file(self: Arc<Self>) -> Arc<dyn HostFile> {
        self
    }
}

pub struct MemoryBackings;

impl Backings for MemoryBackings {
    fn create(&self) -> Result<Arc<dyn Backing>> {
        Ok(Arc::new(Memory::default()))
    }
}

pub struct NoSpecials;

impl SpecialFiles for NoSpecials {
    fn open(&self, _: &Context, _: &Path, _: OpenFlags) -> Result<Arc<dyn File>> {
        Err(Errno::NXIO)
    }
}

/// Who asks, in tests.
pub struct Asker(pub Credentials);

impl Asker {
    pub fn root() -> Self {
        Self(Credentials::root())
    }

    pub fn user(uid: u32) -> Self {
        Self(Credentials::new(uid, uid, 0))
    }

    pub fn context(&self) -> Context<'_> {
        Context { credentials: &self.0, now: Timestamp::new(1000, 5), pid: 7, session: 7 }
    }
}

/// A tmpfs without limits, mounted as the root.
pub struct Tree {
    pub namespace: Arc<MountNamespace>,
    pub root: Path,
}

pub fn tmpfs(limits: Limits) -> Arc<Tmpfs> {
    let root = NewNode::new(FileType::Directory, 0o755, 0, 0);
    Tmpfs::new(limits, Arc::new(MemoryBackings), &root, Timestamp::new(900, 0)).unwrap()
}

impl Tree {
    pub fn new() -> Self {
        Self::of(Mount::new(tmpfs(Limits::default()), b"tmpfs", 0))
    }

    pub fn of(mount: Arc<Mount>) -> Self {
        let namespace = MountNamespace::new(mount);
        let root = namespace.root();
        Self { namespace, root }
    }

    pub fn view<'a>(&'a self, context: &'a Context<'a>) -> View<'a> {
        View { context, namespace: &self.namespace, root: &self.root, umask: 0o022, specials: &NoSpecials }
    }
}

/// Counts how often it was woken.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Counter {
    fn wake(&self, _: Events) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A clock that tests turn.
#[derive(Default)]
pub struct HandClock(Arc<Mutex<Hands>>);

#[derive(Default)]
struct Hands {
    now: Timestamp,
    next: u64,
    alarms: Vec<(u64, Timestamp, Arc<dyn Wake>)>,
}

struct Alarm(Arc<Mutex<Hands>>, u64);

impl Armed for Alarm {}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.lock().alarms.retain(|(id, ..)| *id != self.1);
    }
}

impl HandClock {
    pub fn turn_to(&self, now: Timestamp) {
        let mut hands = self.0.lock();
        hands.now = now;
        let (due, later) = hands.alarms.drain(..).partition(|(_, at, _)| *at <= now);
        hands.alarms = later;
        drop(hands);
        let due: Vec<(u64, Timestamp, Arc<dyn Wake>)> = due;
        due.iter().for_each(|(_, _, waker)| waker.wake(0));
    }
}

impl Clock for HandClock {
    fn now(&self, _: ClockId) -> Timestamp {
        self.0.lock().now
    }

    fn arm(&self, _: ClockId, deadline: Timestamp, waker: Arc<dyn Wake>) -> Box<dyn Armed> {
        let mut hands = self.0.lock();
        hands.next += 1;
        let id = hands.next;
        hands.alarms.push((id, deadline, waker));
        Box::new(Alarm(Arc::clone(&self.0), id))
    }
}
