//! Out-of-memory kills as they happen: the kernel touches memory.events of the container's cgroup.

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::threads;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

/// One descriptor watches all containers.
#[derive(Default)]
pub struct Watch(OnceLock<OwnedFd>);

impl Watch {
    /// From now on kills in this cgroup are told; the kernel forgets it with the cgroup.
    pub fn add(&self, cgroup: &Cgroup) {
        let Some(watch) = self.0.get() else { return };
        if let Err(error) = inotify::add_watch(watch, cgroup.file("memory.events"), WatchFlags::MODIFY) {
            // Without the controller nothing is ever killed for it.
            if error != rustix::io::Errno::NOENT {
                eprintln!("drupe-agent: cannot watch for lack of memory: {error}");
            }
        }
    }
}

/// Looks at all containers whenever one of the files changes.
pub fn start_watch(agent: &Arc<Agent>) -> std::io::Result<()> {
    let descriptor = inotify::init(CreateFlags::CLOEXEC)?;
    let copy = descriptor.try_clone()?;
    let _ = agent.oom.0.set(descriptor);
    let agent = agent.clone();
    let work = move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(copy, &mut buffer);
        loop {
            match reader.next().map(drop) {
                Ok(()) if !reader.is_buffer_empty() => {}
                Ok(()) | Err(rustix::io::Errno::INTR) => look(&agent),
                Err(_) => return,
            }
        }
    };
    threads::start("oom", 64 << 10, work)
}

fn look(agent: &Agent) {
    agent.change(|state| {
        let crate::agent::State { containers, events, .. } = state;
        for (id, container) in containers {
            container.look_for_oom(id, events);
        }
    });
}
