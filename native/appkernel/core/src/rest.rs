//! Rest: threads that stand still, so that they can be written down, or until their container is to go on.
//!
//! Who is in guest code is called out of it, and what it asks on its way is still done; then it is parked. Who waits in a call
//! stays there: a call that waits is tried again whenever something wakes it, and so it is afterwards.

use std::collections::BTreeSet;

use drupe_appkernel_abi::{Errno, Result};

use crate::kernel::Kernel;
use crate::platform::MemoryOp;
use crate::task::{Pid, State, Tid, PROCESSOR_ALARM};

/// Who rests.
#[derive(Default)]
pub struct Rest {
    /// Everybody.
    pub(crate) all: bool,
    /// Those of these containers.
    pub(crate) containers: BTreeSet<u32>,
    /// Woken meanwhile.
    woken: Vec<Tid>,
}

impl Kernel {
    pub(crate) fn is_held(&self, tid: Tid) -> bool {
        if self.rest.all || self.rest.containers.is_empty() {
            return self.rest.all;
        }
        let number = tid & !PROCESSOR_ALARM;
        let pid = self.tasks.tasks.get(&number).map_or(number, |task| task.pid);
        self.tasks.processes.get(&pid).is_some_and(|process| self.rest.containers.contains(&process.container))
    }

    /// Those to be served of those who are ready.
    pub(crate) fn take_ready(&mut self) -> Vec<Tid> {
        let (held, due) = self.ready.take().into_iter().partition(|tid| self.is_held(*tid));
        self.rest.woken.extend::<Vec<Tid>>(held);
        due
    }

    /// It would go on, but rests.
    pub(crate) fn park(&mut self, tid: Tid, value: Option<i64>, ops: &[MemoryOp]) {
        let Ok(thread) = self.thread(tid) else { return };
        let changed = self.platform.change(thread, ops);
        let value = changed.map_or_else(|errno| Some(errno.as_return()), |()| value);
        self.set_result(tid, value);
        if let Ok(task) = self.task_mut(tid) {
            task.state = State::Parked;
        }
    }

    /// Have everybody stand still, at the latest by this time of the monotonic clock. ETIMEDOUT, and all go on: somebody did
    /// not, and who.
    pub fn come_to_rest(&mut self, latest_ns: u64) -> std::result::Result<(), Pid> {
        self.rest.all = true;
        let running: Vec<_> = self.moving().map(|(_, thread)| thread).collect();
        running.into_iter().for_each(|thread| self.platform.kick(thread));
        loop {
            let first = self.moving().next().map(|(pid, _)| pid);
            let Some(pid) = first else { return Ok(()) };
            let left = latest_ns.saturating_sub(self.timers.now_ns());
            if left == 0 || self.step(Some(left)).is_err() {
                self.go_on_all();
                return Err(pid);
            }
        }
    }

    fn moving(&self) -> impl Iterator<Item = (Pid, crate::platform::ThreadId)> + '_ {
        let moving = |task: &&crate::task::Task| match task.state {
            State::Dying => true,
            _ => !task.trapped,
        };
        self.tasks.tasks.values().filter(moving).map(|task| (task.pid, task.thread))
    }

    pub fn is_at_rest(&self) -> bool {
        self.rest.all
    }

    /// The end of everybody's rest.
    pub fn go_on_all(&mut self) {
        self.rest.all = false;
        self.wake_rested();
    }

    /// The end of the rest of a container's processes. ENOENT when they do not rest.
    pub fn go_on_container(&mut self, container: u32) -> Result<()> {
        self.rest.containers.remove(&container).then_some(()).ok_or(Errno::NOENT)?;
        self.wake_rested();
        Ok(())
    }

    fn wake_rested(&mut self) {
        let woken = std::mem::take(&mut self.rest.woken);
        let waiting = self.tasks.tasks.values().filter(|task| matches!(task.state, State::Blocked | State::Parked));
        let all: Vec<Tid> = waiting.map(|task| task.tid).chain(woken).collect();
        all.into_iter().for_each(|tid| self.ready.push(tid));
    }
}
