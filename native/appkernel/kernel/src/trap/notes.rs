//! Calls of the doorbell as they come: of whom they are, and which of them wait to be served.

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_core::platform::ThreadId;
use drupe_appkernel_hostsys::notify::Notification;
use drupe_appkernel_hostsys::poll;

use super::{errno, Stubs};

/// A stub that has been told to do something must come back within this time, or is killed.
const PATIENCE_MS: i32 = 5_000;
/// With more spaces than these calls are taken in before one is chosen; and how many at most.
const CROWD: usize = 8;
const STASH_MAX: usize = 4096;

impl Stubs {
    /// The next notification that has come, from the host.
    pub(super) fn receive(&mut self) -> Result<Option<Notification>> {
        if !poll::is_readable(self.listener.raw_fd(), PATIENCE_MS) {
            return Err(Errno::TIMEDOUT);
        }
        self.listener.receive().map_err(errno)
    }

    pub(super) fn wait_for_bell(&mut self, id: ThreadId) -> Result<()> {
        let (host, was_put_by) = (self.thread(id)?.host, self.thread(id)?.is_put_by);
        // It was taken out of the doorbell by a signal, and what it rang then came while another was waited for.
        if let Some(note) = if was_put_by { self.stash.find(|note| note.thread == host) } else { None } {
            self.accept(id, &note);
        }
        while self.thread(id)?.waiting.is_none() {
            let Some(note) = self.receive()? else { continue };
            if self.by_host.get(&note.thread) == Some(&id) {
                self.accept(id, &note);
            } else {
                self.put_by(note);
            }
        }
        Ok(())
    }

    /// Keep what has come for later.
    pub(super) fn put_by(&mut self, note: Notification) {
        self.supersede(&note);
        let thread = self.by_host.get(&note.thread).and_then(|id| self.threads.get_mut(id));
        let space = thread.map(|thread| {
            thread.is_put_by = true;
            thread.space
        });
        let lane = space.and_then(|space| self.spaces.get(&space)).map_or(0, |space| space.lane);
        self.stash.push(lane, note);
    }

    /// A thread is in one call at a time: what was put by of an earlier one, out of which the host has taken it, is none any more.
    pub(super) fn supersede(&mut self, note: &Notification) {
        let thread = self.by_host.get(&note.thread).and_then(|id| self.threads.get_mut(id));
        if thread.is_some_and(|thread| std::mem::take(&mut thread.is_put_by)) {
            let _is_none_any_more = self.stash.find(|old| old.thread == note.thread);
        }
    }

    /// Where many may call at once: take in what has come, so that who is served is not who came first.
    pub(super) fn take_in(&mut self) -> Result<()> {
        let is_crowd = self.spaces.len() > CROWD;
        while is_crowd && self.stash.len() < STASH_MAX && poll::is_readable(self.listener.raw_fd(), 0) {
            if let Some(note) = self.listener.receive().map_err(errno)? {
                self.put_by(note);
            }
        }
        Ok(())
    }
}
