//! Descriptors in the event loop.

use drupe_sys::epoll::Epoll;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Whose event it is. With the id of its owner it makes the token that epoll reports; ids are never used twice, so an
/// event for something gone finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Source {
    Listener,
    Signals,
    Connection,
    TaskStdout,
    TaskStderr,
    TaskStdin,
    TaskPidfd,
    AttachedStdin,
    AttachedStdout,
    AttachedStderr,
    HelperStdin,
    HelperStdout,
    HelperStderr,
    Namespace,
}

const SOURCES: [Source; 14] = [
    Source::Listener,
    Source::Signals,
    Source::Connection,
    Source::TaskStdout,
    Source::TaskStderr,
    Source::TaskStdin,
    Source::TaskPidfd,
    Source::AttachedStdin,
    Source::AttachedStdout,
    Source::AttachedStderr,
    Source::HelperStdin,
    Source::HelperStdout,
    Source::HelperStderr,
    Source::Namespace,
];

impl Source {
    pub fn token(self, id: u64) -> u64 {
        (id << 8) | self as u64
    }

    pub fn of(token: u64) -> (Source, u64) {
        (SOURCES[(token & 0xff) as usize % SOURCES.len()], token >> 8)
    }
}

/// A descriptor that epoll may watch. It leaves epoll before it is closed: a duplicate in another process would keep a
/// mere close from doing so, and its events would come for ever.
pub struct Watch {
    pub file: File,
    epoll: Rc<Epoll>,
    token: u64,
    events: Option<u32>,
    /// epoll refuses regular files and the like: they never wait.
    pub always_ready: bool,
}

impl Watch {
    pub fn new(epoll: &Rc<Epoll>, fd: impl Into<OwnedFd>, source: Source, id: u64) -> Watch {
        let file = File::from(fd.into());
        Watch { file, epoll: epoll.clone(), token: source.token(id), events: None, always_ready: false }
    }

    /// Watches for `events` (Some(0): errors and hang-ups only) or, with None, for nothing at all.
    pub fn set(&mut self, events: Option<u32>) -> io::Result<()> {
        if events == self.events || self.always_ready {
            return Ok(());
        }
        match (self.events, events) {
            (None, Some(events)) => match self.epoll.add(&self.file, self.token, events) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.always_ready = true,
                result => result?,
            },
            (Some(_), Some(events)) => self.epoll.modify(&self.file, self.token, events)?,
            (_, None) => self.epoll.delete(&self.file)?,
        }
        self.events = events;
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.events.is_some() && !self.always_ready {
            let _ = self.epoll.delete(&self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_both_ways() {
        for (index, source) in SOURCES.into_iter().enumerate() {
            assert_eq!(source as usize, index);
            assert_eq!(Source::of(source.token(77)), (source, 77));
        }
    }
}
