//! epoll(7), level-triggered.

use crate::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

pub const IN: u32 = libc::EPOLLIN as u32;
pub const OUT: u32 = libc::EPOLLOUT as u32;
pub const ERR: u32 = libc::EPOLLERR as u32;
pub const HUP: u32 = libc::EPOLLHUP as u32;

pub struct Epoll(OwnedFd);

/// Room for what one `wait` reports.
pub struct Events(Vec<libc::epoll_event>);

impl Events {
    pub fn with_capacity(count: usize) -> Self {
        Events(Vec::with_capacity(count))
    }

    /// (token, events) of each ready descriptor.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.0.iter().map(|event| (event.u64, event.events))
    }
}

impl Epoll {
    /// epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a result that is not an error is a descriptor that we own.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Epoll(fd))
    }

    pub fn add(&self, fd: &impl AsFd, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, events)
    }

    pub fn modify(&self, fd: &impl AsFd, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, events)
    }

    pub fn delete(&self, fd: &impl AsFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, operation: libc::c_int, fd: &impl AsFd, token: u64, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: both descriptors are open for the length of the call, `event` is valid and only read.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) })?;
        Ok(())
    }

    /// epoll_wait(2) for at most `timeout_ms` (-1: for ever). A signal is an empty result.
    pub fn wait(&self, events: &mut Events, timeout_ms: i32) -> io::Result<()> {
        events.0.clear();
        let room = events.0.capacity() as libc::c_int;
        // SAFETY: the vector has room for `room` events, and the kernel says how many it wrote.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.0.as_mut_ptr(), room, timeout_ms) };
        match check(count) {
            // SAFETY: the kernel initialised the first `count` elements.
            Ok(count) => unsafe { events.0.set_len(count as usize) },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
