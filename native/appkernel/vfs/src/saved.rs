//! Open files without a name, written down and made again (snapshots of a running kernel): pipes and event objects.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use drupe_appkernel_abi::{coded, Errno, Result};

use crate::event::{Control, Epoll, EpollEvent, EventFd, TimerFd};
use crate::file::{File, Timestamp};
use crate::inode::InodeRef;
use crate::open::OpenFile;
use crate::pipe::{Pipe, PipeEnd};
use crate::time::{Clock, ClockId};

coded! {
    /// A pipe or FIFO with what is in it.
    pub struct SavedPipe {
        bytes: Vec<u8>,
        capacity_bytes: u64,
        ever: (u64, u64),
    }
}

coded! {
    /// One end of a pipe: whether it reads and writes, and how often the sides had been opened before.
    pub struct SavedEnd {
        reads: bool,
        writes: bool,
        before: (u64, u64),
    }
}

/// No pipe holds more.
const MAX_PIPE_BYTES: u64 = 16 << 20;

impl PipeEnd {
    pub fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    pub fn inode(&self) -> &InodeRef {
        &self.inode
    }

    pub fn save(&self) -> SavedEnd {
        let before = (self.readers_before, self.writers_before);
        SavedEnd { reads: self.reads, writes: self.writes, before }
    }

    /// A further end of a pipe that was made again. EINVAL for one that is none.
    pub fn restore(pipe: &Arc<Pipe>, inode: &InodeRef, saved: &SavedEnd) -> Result<Arc<dyn File>> {
        if !saved.reads && !saved.writes {
            return Err(Errno::INVAL);
        }
        let mut state = pipe.state.lock();
        state.readers += u32::from(saved.reads);
        state.writers += u32::from(saved.writes);
        drop(state);
        let (readers_before, writers_before) = saved.before;
        let (pipe, inode) = (Arc::clone(pipe), Arc::clone(inode));
        Ok(Arc::new(Self { pipe, inode, reads: saved.reads, writes: saved.writes, readers_before, writers_before }))
    }
}

impl Pipe {
    pub fn save(&self) -> SavedPipe {
        let state = self.state.lock();
        let bytes = state.bytes.iter().copied().collect();
        SavedPipe { bytes, capacity_bytes: state.capacity_bytes as u64, ever: (state.readers_ever, state.writers_ever) }
    }

    /// Without ends yet. EINVAL.
    pub fn restore(saved: SavedPipe) -> Result<Arc<Pipe>> {
        if saved.capacity_bytes > MAX_PIPE_BYTES || saved.bytes.len() as u64 > saved.capacity_bytes {
            return Err(Errno::INVAL);
        }
        let pipe = Self::new();
        let mut state = pipe.state.lock();
        state.capacity_bytes = saved.capacity_bytes as usize;
        state.bytes = saved.bytes.into();
        (state.readers_ever, state.writers_ever) = saved.ever;
        drop(state);
        Ok(pipe)
    }
}

coded! {
    /// eventfd(2).
    pub struct SavedEvent {
        count: u64,
        semaphore: bool,
    }
}

impl EventFd {
    pub fn save(&self) -> SavedEvent {
        SavedEvent { count: *self.count.lock(), semaphore: self.semaphore }
    }

    pub fn restore(saved: &SavedEvent) -> Arc<Self> {
        let made = Self::new(0, saved.semaphore);
        *made.count.lock() = saved.count.min(u64::MAX - 1);
        made
    }
}

coded! {
    /// timerfd_create(2): when it is due next, on its clock.
    pub struct SavedTimer {
        clock: u8,
        due: Option<(i64, u32)>,
        interval_ns: u64,
        expirations: u64,
    }
}

const CLOCKS: [ClockId; 3] = [ClockId::Realtime, ClockId::Monotonic, ClockId::Boottime];

/// A clock as a number, and back.
pub fn clock_number(clock: ClockId) -> u8 {
    CLOCKS.iter().position(|known| *known == clock).unwrap_or(0) as u8
}

/// EINVAL.
pub fn clock_of(number: u8) -> Result<ClockId> {
    CLOCKS.get(usize::from(number)).copied().ok_or(Errno::INVAL)
}

impl TimerFd {
    pub fn save(&self) -> SavedTimer {
        let state = self.state.lock();
        SavedTimer {
            clock: clock_number(self.id),
            due: state.due.map(|due| (due.seconds, due.nanoseconds)),
            interval_ns: state.interval.as_nanos() as u64,
            expirations: state.expirations,
        }
    }

    /// EINVAL.
    pub fn restore(saved: &SavedTimer, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let made = Self::new(clock, clock_of(saved.clock)?);
        let mut state = made.state.lock();
        let sound = |(seconds, part): (i64, u32)| (seconds >= 0 && part < 1_000_000_000).then_some(());
        if let Some(due) = saved.due {
            sound(due).ok_or(Errno::INVAL)?;
            state.due = Some(Timestamp::new(due.0, due.1));
        }
        state.interval = Duration::from_nanos(saved.interval_ns);
        state.expirations = saved.expirations;
        let none = made.arm(&mut state);
        drop(state);
        drop(none);
        Ok(made)
    }
}

/// What an epoll instance watches: the descriptor's number then, and the open file.
pub struct Watched {
    pub fd: i32,
    pub file: Arc<OpenFile>,
    pub wanted: EpollEvent,
    /// EPOLLONESHOT has fired.
    pub disarmed: bool,
}

impl Epoll {
    /// All that it watches and that is still open.
    pub fn save(&self) -> Vec<Watched> {
        let items = self.items.lock();
        let watched = |(key, item): (&(i32, u64), &crate::event::Item)| {
            let disarmed = item.signal.disarmed.load(Ordering::Relaxed);
            Some(Watched { fd: key.0, file: item.file.upgrade()?, wanted: item.wanted, disarmed })
        };
        items.iter().filter_map(watched).collect()
    }

    /// Watch it again; what is ready is told again. What epoll_ctl(2) says.
    pub fn restore(&self, watched: &Watched) -> Result<()> {
        self.control(Control::Add, watched.fd, &watched.file, watched.wanted)?;
        if watched.disarmed {
            let items = self.items.lock();
            let item = items.get(&(watched.fd, watched.file.id()));
            item.into_iter().for_each(|item| item.signal.disarmed.store(true, Ordering::Relaxed));
        }
        Ok(())
    }
}
