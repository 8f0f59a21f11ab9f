//! What tests ask of the platform, and do to it.

use std::os::fd::AsFd;

use drupe_appkernel_core::platform::{SpaceId, ThreadId};
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
}
