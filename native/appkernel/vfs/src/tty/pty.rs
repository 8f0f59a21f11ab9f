//! Both ends of a terminal as files.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use drupe_appkernel_abi::{Errno, Result};

use super::discipline::Discipline;
use super::output::CAPACITY_BYTES;
use super::termios::{TOSTOP, VMIN, VTIME};
use super::{Jobs, RESTART, SIGCONT, SIGHUP, SIGTTIN, SIGTTOU};
use crate::file::{Context, File, Metadata, Timestamp};
use crate::kind::{make_device, FileType, SetAttributes};
use crate::open::OpenFlags;
use crate::sync::Mutex;
use crate::wait::{self, answer, when, Events, WaitQueue};

/// Group of the slaves (mount option gid=5: "tty").
const TTY_GROUP: u32 = 5;
const SLAVE_MAJOR: u32 = 136;

#[derive(Default)]
pub(super) struct State {
    pub discipline: Discipline,
    /// Rows, columns, and pixels of both.
    pub window: [u16; 4],
    pub session: u32,
    pub foreground: u32,
    pub locked: bool,
    masters: u32,
    slaves: u32,
    /// A slave was open and none is.
    pub left: bool,
}

impl State {
    pub fn is_held(&self) -> bool {
        self.masters > 0
    }
}

/// A terminal: a pair of a master and a slave.
pub struct Pty {
    pub index: u32,
    pub(super) jobs: Arc<dyn Jobs>,
    pub(super) state: Mutex<State>,
    pub(super) master_queue: WaitQueue,
    pub(super) slave_queue: WaitQueue,
    metadata: Mutex<Metadata>,
}

impl Pty {
    pub(super) fn new(context: &Context, index: u32, device: u64, jobs: Arc<dyn Jobs>) -> Arc<Self> {
        let metadata = Metadata {
            device,
            inode: u64::from(index) + 3,
            uid: context.credentials.uid,
            gid: TTY_GROUP,
            rdev: make_device(SLAVE_MAJOR, index),
            accessed: context.now,
            modified: context.now,
            changed: context.now,
            block_size: 1024,
            ..Metadata::new(FileType::CharDevice, 0o620)
        };
        let state = Mutex::new(State { locked: true, ..State::default() });
        let (master_queue, slave_queue) = (WaitQueue::new(), WaitQueue::new());
        Arc::new(Self { index, jobs, state, master_queue, slave_queue, metadata: Mutex::new(metadata) })
    }

    pub(super) fn metadata(&self) -> Metadata {
        self.metadata.lock().clone()
    }

    pub(super) fn set_attributes(&self, now: Timestamp, changes: &SetAttributes) {
        let mut metadata = self.metadata.lock();
        let permissions = changes.permissions.unwrap_or(metadata.mode & 0o7777);
        metadata.mode = FileType::CharDevice.mode_bits() | permissions;
        metadata.uid = changes.uid.unwrap_or(metadata.uid);
        metadata.gid = changes.gid.unwrap_or(metadata.gid);
        metadata.accessed = changes.accessed.unwrap_or(metadata.accessed);
        metadata.modified = changes.modified.unwrap_or(metadata.modified);
        metadata.changed = now;
    }

    pub(super) fn is_hung_up(&self) -> bool {
        self.state.lock().masters == 0
    }

    pub(super) fn session(&self) -> u32 {
        self.state.lock().session
    }

    /// The master, for who has made the pair.
    pub fn open_master(self: &Arc<Self>) -> Arc<Master> {
        self.state.lock().masters += 1;
        Arc::new(Master { pty: Arc::clone(self) })
    }

    /// The slave. EIO while it is locked, or when the master is gone. It becomes the controlling terminal of a session's leader
    /// who has none (`free`), unless O_NOCTTY.
    pub(super) fn open_slave(self: &Arc<Self>, context: &Context, flags: OpenFlags, free: bool) -> Result<Arc<Slave>> {
        let mut state = self.state.lock();
        if state.locked || state.masters == 0 {
            return Err(Errno::IO);
        }
        state.left = false;
        let leader = context.pid == context.session;
        if leader && free && state.session == 0 && !flags.has(OpenFlags::NOCTTY) {
            (state.session, state.foreground) = (context.session, context.session);
            // a leader leads its group, too
        }
        drop(state);
        self.master_queue.wake(wait::WRITABLE);
        Ok(self.join())
    }

    pub(super) fn join(self: &Arc<Self>) -> Arc<Slave> {
        self.state.lock().slaves += 1;
        Arc::new(Slave { pty: Arc::clone(self) })
    }

    /// The leader of this session is gone, or gave the terminal up: its jobs hear SIGHUP and SIGCONT.
    pub(super) fn release_session(&self, session: u32) {
        let mut state = self.state.lock();
        if state.session != session || session == 0 {
            return;
        }
        let foreground = std::mem::take(&mut state.foreground);
        state.session = 0;
        drop(state);
        self.hang_up_jobs(&[foreground]);
    }

    fn hang_up_jobs(&self, groups: &[u32]) {
        for group in groups.iter().filter(|group| **group != 0) {
            self.jobs.signal(*group, SIGHUP);
            self.jobs.signal(*group, SIGCONT);
        }
    }

    pub(super) fn signal_foreground(&self, signals: &[i32]) {
        let foreground = self.state.lock().foreground;
        signals.iter().filter(|_| foreground != 0).for_each(|signal| self.jobs.signal(foreground, *signal));
    }

    /// A background job that touches its terminal is stopped (`RESTART` after the signal), or EIO where it cannot be; `reads`: SIGTTIN.
    pub(super) fn check_foreground(&self, context: &Context, reads: bool) -> Result<()> {
        let state = self.state.lock();
        let (session, foreground) = (state.session, state.foreground);
        drop(state);
        let group = self.jobs.own_group();
        if session == 0 || session != context.session || foreground == 0 || group == foreground {
            return Ok(());
        }
        let signal = if reads { SIGTTIN } else { SIGTTOU };
        if !self.jobs.would_stop(signal) {
            return if reads { Err(Errno::IO) } else { Ok(()) };
        }
        self.jobs.signal(group, signal);
        Err(RESTART)
    }
}

/// The end that a terminal emulator holds.
pub struct Master {
    pub(super) pty: Arc<Pty>,
}

impl Master {
    /// The slave for TIOCGPTPEER.
    pub fn open_peer(&self, context: &Context, flags: OpenFlags) -> Result<Arc<dyn File>> {
        Ok(self.pty.open_slave(context, flags, false)?)
    }

    pub fn index(&self) -> u32 {
        self.pty.index
    }

    /// Let the slave be opened (unlockpt(3)).
    pub fn unlock(&self) {
        self.pty.state.lock().locked = false;
    }

    /// Become the controlling terminal of a session, whose leader is in front.
    pub fn set_session(&self, leader: u32) {
        let mut state = self.pty.state.lock();
        (state.session, state.foreground) = (leader, leader);
    }

    /// TIOCSWINSZ: rows and columns.
    pub fn set_window_size(&self, rows: u16, columns: u16) {
        self.pty.resize([rows, columns, 0, 0]);
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let mut state = self.pty.state.lock();
        state.masters -= 1;
        if state.masters > 0 {
            return;
        }
        let (session, foreground) = (std::mem::take(&mut state.session), std::mem::take(&mut state.foreground));
        state.discipline.flush_input();
        drop(state);
        self.pty.slave_queue.wake(wait::READABLE | wait::WRITABLE | wait::HUP | wait::ERR);
        let groups: &[u32] = if session == foreground { &[session] } else { &[session, foreground] };
        self.pty.hang_up_jobs(groups);
    }
}

impl File for Master {
    fn read(&self, _: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        let mut state = self.pty.state.lock();
        let left = state.left;
        let bytes = &mut state.discipline.output.bytes;
        if bytes.is_empty() {
            return Err(if left { Errno::IO } else { Errno::AGAIN });
        }
        let count = out.len().min(bytes.len());
        out.iter_mut().zip(bytes.drain(..count)).for_each(|(place, byte)| *place = byte);
        drop(state);
        self.pty.slave_queue.wake(wait::WRITABLE);
        Ok(count)
    }

    fn write(&self, _: &Context, _: u64, data: &[u8]) -> Result<usize> {
        let mut state = self.pty.state.lock();
        let discipline = &mut state.discipline;
        let count = data.len().min(discipline.room());
        if count == 0 && !data.is_empty() {
            return Err(Errno::AGAIN);
        }
        let signals: Vec<i32> = data[..count].iter().filter_map(|byte| discipline.receive(*byte)).collect();
        drop(state);
        self.pty.slave_queue.wake(wait::READABLE | wait::WRITABLE);
        self.pty.master_queue.wake(wait::READABLE);
        self.pty.signal_foreground(&signals);
        Ok(count)
    }

    fn poll(&self, interest: Events) -> Events {
        let state = self.pty.state.lock();
        let (discipline, output) = (&state.discipline, &state.discipline.output);
        let mask = when(!output.bytes.is_empty(), wait::READABLE)
            | when(discipline.room() > 0, wait::WRITABLE)
            | when(state.left, wait::HUP);
        answer(interest, mask)
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.pty.master_queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata { rdev: make_device(5, 2), ..Metadata::new(FileType::CharDevice, 0o666) })
    }

    fn ioctl(&self, context: &Context, request: u32, argument: u64, data: &mut Vec<u8>) -> Result<i64> {
        self.pty.master_request(context, request, argument, data)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The end that programs take for a terminal.
pub struct Slave {
    pub(super) pty: Arc<Pty>,
}

impl Slave {
    /// The group in front; 0: none.
    pub fn foreground(&self) -> u32 {
        self.pty.state.lock().foreground
    }

    /// How long a read of a terminal with VMIN 0 and VTIME waits at most before it answers 0; None: as long as it takes.
    pub fn read_limit(&self) -> Option<Duration> {
        let termios = self.pty.state.lock().discipline.termios;
        let (minimum, tenths) = (termios.characters[VMIN], termios.characters[VTIME]);
        let timed = !termios.does(super::termios::ICANON) && minimum == 0 && tenths > 0;
        timed.then(|| Duration::from_millis(u64::from(tenths) * 100))
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        let mut state = self.pty.state.lock();
        state.slaves -= 1;
        state.left |= state.slaves == 0;
        let left = state.slaves == 0;
        drop(state);
        if left {
            self.pty.master_queue.wake(wait::READABLE | wait::HUP);
        }
    }
}

impl File for Slave {
    fn read(&self, context: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        if self.pty.is_hung_up() {
            return Ok(0);
        }
        self.pty.check_foreground(context, true)?;
        let count = self.pty.state.lock().discipline.read(out).ok_or(Errno::AGAIN)?;
        self.pty.master_queue.wake(wait::WRITABLE);
        Ok(count)
    }

    fn write(&self, context: &Context, _: u64, data: &[u8]) -> Result<usize> {
        if self.pty.is_hung_up() {
            return Err(Errno::IO);
        }
        if self.pty.state.lock().discipline.termios.does(TOSTOP) {
            self.pty.check_foreground(context, false)?;
        }
        let mut state = self.pty.state.lock();
        let discipline = &mut state.discipline;
        let count = if discipline.stopped { 0 } else { discipline.output.write(&discipline.termios, data) };
        drop(state);
        if count == 0 && !data.is_empty() {
            return Err(Errno::AGAIN);
        }
        self.pty.master_queue.wake(wait::READABLE);
        Ok(count)
    }

    fn poll(&self, interest: Events) -> Events {
        let state = self.pty.state.lock();
        let discipline = &state.discipline;
        let readable = discipline.readable(1).is_some_and(|_| discipline.unread() > 0 || discipline.has_line());
        let writable = !discipline.stopped && discipline.output.bytes.len() < CAPACITY_BYTES / 2;
        let hung_up = state.masters == 0;
        let mask = when(readable || hung_up, wait::READABLE)
            | when(writable || hung_up, wait::WRITABLE)
            | when(hung_up, wait::HUP | wait::ERR);
        answer(interest, mask)
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.pty.slave_queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(self.pty.metadata())
    }

    fn ioctl(&self, context: &Context, request: u32, argument: u64, data: &mut Vec<u8>) -> Result<i64> {
        if self.pty.is_hung_up() {
            return Err(Errno::IO);
        }
        self.pty.slave_request(context, request, argument, data)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
