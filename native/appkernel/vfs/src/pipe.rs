//! Pipes and FIFOs (pipe(7), fifo(7)).

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::anonymous::AnonymousInode;
use crate::cred::CAP_SYS_RESOURCE;
use crate::file::{Context, File, Metadata};
use crate::inode::InodeRef;
use crate::ioctl;
use crate::kind::FileType;
use crate::open::{OpenFile, OpenFlags};
use crate::sync::Mutex;
use crate::wait::{self, answer, when, Events, WaitQueue};

/// Writes of up to this many bytes are not split.
pub const PIPE_BUF: usize = 4096;
/// Capacity of a new pipe, and the highest that F_SETPIPE_SZ gives without CAP_SYS_RESOURCE, and with it.
pub const CAPACITY_BYTES: usize = 65_536;
pub const MAX_CAPACITY_BYTES: usize = 1 << 20;
const PRIVILEGED_CAPACITY_BYTES: usize = 16 << 20;

pub(crate) struct State {
    pub(crate) bytes: VecDeque<u8>,
    pub(crate) capacity_bytes: usize,
    pub(crate) readers: u32,
    pub(crate) writers: u32,
    /// How often each side was opened, ever.
    pub(crate) readers_ever: u64,
    pub(crate) writers_ever: u64,
}

impl State {
    fn free(&self) -> usize {
        self.capacity_bytes.saturating_sub(self.bytes.len())
    }
}

/// What both ends share.
pub struct Pipe {
    pub(crate) state: Mutex<State>,
    /// Who waits to read, to write, and for either on an end that does both.
    reading: WaitQueue,
    writing: WaitQueue,
    both: WaitQueue,
}

impl Pipe {
    pub(crate) fn new() -> Arc<Self> {
        let (bytes, capacity_bytes) = (VecDeque::new(), CAPACITY_BYTES);
        let state = State { bytes, capacity_bytes, readers: 0, writers: 0, readers_ever: 0, writers_ever: 0 };
        let (reading, writing, both) = (WaitQueue::new(), WaitQueue::new(), WaitQueue::new());
        Arc::new(Self { state: Mutex::new(state), reading, writing, both })
    }

    fn wake_readers(&self, events: Events) {
        self.reading.wake(events);
        self.both.wake(events);
    }

    fn wake_writers(&self, events: Events) {
        self.writing.wake(events);
        self.both.wake(events);
    }

    /// The pipe of a FIFO.
    fn of(inode: &InodeRef) -> Result<Arc<Self>> {
        let mut object = inode.attachment().object.lock();
        let pipe = object.get_or_insert_with(|| Self::new());
        Arc::clone(pipe).downcast().map_err(|_| Errno::NXIO)
    }
}

/// pipe2(2): the end to read from, and the one to write to. Of `flags` O_NONBLOCK counts.
pub fn pipe(context: &Context, flags: OpenFlags) -> Result<(Arc<OpenFile>, Arc<OpenFile>)> {
    let inode = AnonymousInode::new(context, FileType::Fifo, 0o600);
    let path = inode.path(&format!("pipe:[{}]", inode.number()));
    let shared = Pipe::of(path.inode())?;
    let end = |access| PipeEnd::new(&shared, path.inode(), OpenFlags(access));
    let (read, write) = (end(0), end(OpenFlags::WRONLY));
    let kept = flags.0 & OpenFlags::NONBLOCK;
    let write = OpenFile::new(write, Some(path.clone()), OpenFlags(OpenFlags::WRONLY | kept));
    Ok((OpenFile::new(read, Some(path), OpenFlags(kept)), write))
}

/// Open the FIFO `inode`. ENXIO to write without waiting when nobody reads. Who may wait then waits until
/// `PipeEnd::is_open`.
pub fn open_fifo(inode: &InodeRef, flags: OpenFlags) -> Result<Arc<dyn File>> {
    let pipe = Pipe::of(inode)?;
    let only_writes = flags.writes() && !flags.reads();
    if only_writes && flags.has(OpenFlags::NONBLOCK) && pipe.state.lock().readers == 0 {
        return Err(Errno::NXIO);
    }
    Ok(PipeEnd::new(&pipe, inode, flags))
}

/// One open end (or both, of a FIFO that was opened O_RDWR).
pub struct PipeEnd {
    pub(crate) pipe: Arc<Pipe>,
    pub(crate) inode: InodeRef,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    /// How often the sides had been opened when this one was.
    pub(crate) readers_before: u64,
    pub(crate) writers_before: u64,
}

impl PipeEnd {
    fn new(pipe: &Arc<Pipe>, inode: &InodeRef, flags: OpenFlags) -> Arc<Self> {
        let (reads, writes) = (flags.reads(), flags.writes());
        let mut state = pipe.state.lock();
        let (readers_before, writers_before) = (state.readers_ever, state.writers_ever);
        state.readers += u32::from(reads);
        state.writers += u32::from(writes);
        state.readers_ever += u64::from(reads);
        state.writers_ever += u64::from(writes);
        drop(state);
        if reads {
            pipe.wake_writers(wait::WRITABLE); // who waits in open(2)
        }
        if writes {
            pipe.wake_readers(wait::READABLE);
        }
        let (pipe, inode) = (Arc::clone(pipe), Arc::clone(inode));
        Arc::new(Self { pipe, inode, reads, writes, readers_before, writers_before })
    }

    /// Whether the other side is or was there since this one was opened, so that open(2) need not wait.
    pub fn is_open(&self) -> bool {
        let state = self.pipe.state.lock();
        match (self.reads, self.writes) {
            (true, false) => state.writers > 0 || state.writers_ever != self.writers_before,
            (false, true) => state.readers > 0 || state.readers_ever != self.readers_before,
            _ => true,
        }
    }

    /// F_GETPIPE_SZ.
    pub fn capacity_bytes(&self) -> usize {
        self.pipe.state.lock().capacity_bytes
    }

    /// F_SETPIPE_SZ: the capacity then. EPERM; EBUSY while it holds more; EINVAL.
    pub fn set_capacity(&self, context: &Context, size_bytes: usize) -> Result<usize> {
        if size_bytes > 1 << 31 {
            return Err(Errno::INVAL);
        }
        let rounded = size_bytes.max(PIPE_BUF).checked_next_power_of_two().ok_or(Errno::INVAL)?;
        let mut state = self.pipe.state.lock();
        let privileged = context.credentials.capable(CAP_SYS_RESOURCE);
        let limit = if privileged { PRIVILEGED_CAPACITY_BYTES } else { MAX_CAPACITY_BYTES };
        if rounded > limit && rounded > state.capacity_bytes {
            return Err(Errno::PERM);
        }
        if rounded < state.bytes.len() {
            return Err(Errno::BUSY);
        }
        state.capacity_bytes = rounded;
        drop(state);
        self.pipe.wake_writers(wait::WRITABLE);
        Ok(rounded)
    }

    /// Whether both are ends of one pipe (splice(2), tee(2)).
    pub fn same_pipe(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pipe, &other.pipe)
    }

    /// As `read`, but the bytes stay: for tee(2), and splice(2), which then calls `consume` with what the other side took.
    pub fn peek(&self, out: &mut [u8]) -> Result<usize> {
        let state = self.pipe.state.lock();
        if state.bytes.is_empty() && !out.is_empty() {
            return if state.writers == 0 { Ok(0) } else { Err(Errno::AGAIN) };
        }
        let count = out.len().min(state.bytes.len());
        let (first, second) = state.bytes.as_slices();
        let split = count.min(first.len());
        out[..split].copy_from_slice(&first[..split]);
        out[split..count].copy_from_slice(&second[..count - split]);
        Ok(count)
    }

    /// Drop `count` bytes that `peek` has shown.
    pub fn consume(&self, count: usize) {
        let mut state = self.pipe.state.lock();
        let count = count.min(state.bytes.len());
        let was_full = state.free() < PIPE_BUF;
        state.bytes.drain(..count);
        if state.bytes.is_empty() && state.bytes.capacity() > PIPE_BUF {
            state.bytes = VecDeque::new(); // an idle pipe holds no memory
        }
        let writable = was_full && state.free() >= PIPE_BUF;
        drop(state);
        if writable {
            self.pipe.wake_writers(wait::WRITABLE);
        }
    }

    /// What can be written now.
    pub fn free_bytes(&self) -> usize {
        self.pipe.state.lock().free()
    }

    fn readable_bytes(&self) -> usize {
        self.pipe.state.lock().bytes.len()
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        state.readers -= u32::from(self.reads);
        state.writers -= u32::from(self.writes);
        let (no_readers, no_writers) = (state.readers == 0, state.writers == 0);
        if no_readers && no_writers {
            state.bytes = VecDeque::new();
        }
        drop(state);
        if no_writers {
            self.pipe.wake_readers(wait::READABLE | wait::HUP);
        }
        if no_readers {
            self.pipe.wake_writers(wait::WRITABLE | wait::ERR);
        }
    }
}

impl File for PipeEnd {
    fn read(&self, _: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        let count = self.peek(out)?;
        self.consume(count);
        Ok(count)
    }

    fn write(&self, _: &Context, _: u64, data: &[u8]) -> Result<usize> {
        let mut state = self.pipe.state.lock();
        if data.is_empty() {
            return Ok(0);
        }
        if state.readers == 0 {
            return Err(Errno::PIPE);
        }
        let free = state.free();
        let split = data.len() > PIPE_BUF;
        let count = if split { data.len().min(free) } else { data.len() };
        if count <= free {
            state.bytes.extend(&data[..count]);
        }
        drop(state);
        self.pipe.wake_readers(wait::READABLE); // also when nothing fits: as Linux, for edge-triggered watchers
        (0 < count && count <= free).then_some(count).ok_or(Errno::AGAIN)
    }

    fn poll(&self, interest: Events) -> Events {
        let state = self.pipe.state.lock();
        let hung_up = state.writers == 0 && state.writers_ever != self.writers_before;
        let reading = when(!state.bytes.is_empty(), wait::READABLE) | when(hung_up, wait::HUP);
        let writing = when(state.free() >= PIPE_BUF, wait::WRITABLE) | when(state.readers == 0, wait::ERR);
        answer(interest, when(self.reads, reading) | when(self.writes, writing))
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(match (self.reads, self.writes) {
            (true, false) => &self.pipe.reading,
            (false, true) => &self.pipe.writing,
            _ => &self.pipe.both,
        })
    }

    fn metadata(&self) -> Result<Metadata> {
        self.inode.metadata()
    }

    fn ioctl(&self, _: &Context, request: u32, _: u64, data: &mut Vec<u8>) -> Result<i64> {
        ioctl::answer_readable(request, self.readable_bytes(), data)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
