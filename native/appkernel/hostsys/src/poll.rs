//! Waiting for descriptors (epoll(7)), signalling threads, and descriptors of processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::notify::own;

/// An epoll set; each descriptor has a word by which it is told.
pub struct Poller(OwnedFd);

/// (word, events)
pub type Ready = (u64, u32);

pub const EDGE: u32 = libc::EPOLLET as u32;

impl Poller {
    pub fn new() -> io::Result<Poller> {
        // SAFETY: no memory is involved.
        Ok(Poller(own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?))
    }

    pub fn add(&self, fd: RawFd, events: u32, word: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, word)
    }

    pub fn modify(&self, fd: RawFd, events: u32, word: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, word)
    }

    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, operation: i32, fd: RawFd, events: u32, word: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: word };
        // SAFETY: `event` is ours.
        if unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &raw mut event) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Wait until something is ready, at most `timeout_ns` (None: for ever).
    pub fn wait(&self, timeout_ns: Option<u64>, out: &mut Vec<Ready>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 32];
        let limit = timeout_ns.map(|ns| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (ns % 1_000_000_000) as libc::c_long,
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `events` has room for as many as are asked for; `limit` is null or ours.
        let count =
            unsafe { libc::syscall(libc::SYS_epoll_pwait2, self.0.as_raw_fd(), events.as_mut_ptr(), 32, limit, 0, 8) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        out.extend(events[..count as usize].iter().map(|event| (event.u64, event.events)));
        Ok(())
    }
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
pub fn pidfd(process: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) } as RawFd)
}

/// Send a signal to the process behind a pidfd. One that has ended is no error.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
}

/// Send a signal to one thread of a process of ours.
pub fn signal_thread(process: i32, thread: i32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
}

/// Whether `fd` becomes readable within `timeout_ms`.
pub fn is_readable(fd: RawFd, timeout_ms: i32) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, ours.
    unsafe { libc::poll(&raw mut entry, 1, timeout_ms) > 0 && entry.revents & libc::POLLIN != 0 }
}

/// Which of `events` (and errors) a descriptor is ready for now.
pub fn ready(fd: RawFd, events: u32) -> u32 {
    let mut entry = libc::pollfd { fd, events: events as i16, revents: 0 };
    // SAFETY: one entry, ours.
    let count = unsafe { libc::poll(&raw mut entry, 1, 0) };
    if count > 0 {
        entry.revents as u16 as u32
    } else {
        0
    }
}
