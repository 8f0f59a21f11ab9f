//! System calls, by what they concern. Each takes the caller's number and its six arguments.

pub mod descriptors;
pub mod events;
pub mod files;
pub mod identity;
pub mod io;
pub mod locked;
pub mod locks;
pub mod memory;
pub mod messages;
pub mod mq;
pub mod msg;
pub mod names;
pub mod pidfd;
pub mod poll;
pub mod prctl;
pub mod remote;
pub mod schedule;
pub mod seccomp;
pub mod sem;
pub mod shm;
pub mod signalfd;
pub mod signals;
pub mod sockets;
pub mod splice;
pub mod system;
pub mod time;
pub mod timers;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{Events, OpenFile};

use crate::kernel::{Done, Kernel};
use crate::task::Tid;

pub type Args = [u64; 6];

impl Kernel {
    /// Wait until the file may be ready for one of `events`. EAGAIN when it cannot tell.
    pub(crate) fn wait_for_file(&mut self, tid: Tid, file: &OpenFile, events: Events) -> Result<Done> {
        let waker = self.waker(tid);
        let queue = file.file().queue().ok_or(Errno::AGAIN)?;
        let registration = queue.register(events, waker);
        self.pending(tid)?.registrations.push(registration);
        Ok(Done::Wait)
    }
}

/// Success without anything to do.
pub fn nothing(_: &mut Kernel, _: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(0))
}
