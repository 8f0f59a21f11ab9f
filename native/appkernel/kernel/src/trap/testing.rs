//! What tests ask of stubs.

use std::os::fd::AsFd;

use drupe_appkernel_core::platform::{SpaceId, ThreadId, Trap};
use drupe_appkernel_hostsys::poll;

use super::Stubs;

impl Stubs {
    /// How many processes of the host this space's has made.
    pub fn children(&self, space: SpaceId) -> usize {
        let pid = self.spaces[&space].process;
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the host lists them");
        list.split_whitespace().count()
    }

    /// Take the thread for one that calls often.
    pub fn be_quick(&mut self, thread: ThreadId) {
        let Some(thread) = self.threads.get_mut(&thread) else { return };
        thread.pace = crate::pace::Pace::default();
        (0..4).for_each(|_| thread.pace.rang(0));
    }

    /// As the host does when memory is short.
    pub fn kill_host_process(&self, space: SpaceId) {
        poll::signal(self.spaces[&space].pidfd.as_fd(), libc::SIGKILL);
    }

    /// Take in calls until so many wait to be served.
    pub fn gather(&mut self, count: usize) {
        while self.stash.len() < count {
            self.take_in().expect("calls are taken in");
            std::thread::yield_now();
        }
    }

    /// Whether a call waits to be taken in.
    pub fn is_called(&self) -> bool {
        poll::is_readable(self.listener.raw_fd(), 0)
    }

    /// Write a word of a thread's slot, as its guest may.
    pub fn spoil(&self, thread: ThreadId, word: usize, value: u64) {
        self.threads[&thread].slot.store(word, value);
    }

    /// Why the thread stands still, as its slot says now.
    pub fn trapped(&mut self, thread: ThreadId) -> Trap {
        self.trap(thread)
    }
}
