//! Rest: threads that stand still, so that they can be written down, or until their container is to go on.
//!
//! Who is in guest code is called out of it, and what it asks on its way is still done; then it is parked. Who waits in a call
//! stays there: a call that waits is tried again whenever something wakes it, and so it is afterwards.

use std::collections::BTreeSet;

use drupe_appkernel_abi::{Errno, Result};

use crate::kernel::Kernel;
use crate::platform::MemoryOp;
use crate::task::{Pid, State, Task, Tid, PROCESSOR_ALARM};

/// Who rests.
#[derive(Default)]
pub struct Rest {
    /// Everybody.
    pub(crate) all: bool,
    /// Those of these containers, until they are told to go on.
    pub(crate) containers: BTreeSet<u32>,
    /// First processes, until they are told to begin.
    first: BTreeSet<Pid>,
    /// Those of these containers, until they may have more of the processors (quota.rs).
    slowed: BTreeSet<u32>,
    /// Woken meanwhile.
    woken: BTreeSet<Tid>,
}

impl Rest {
    fn is_of_some(&self) -> bool {
        !(self.containers.is_empty() && self.first.is_empty() && self.slowed.is_empty())
    }

    fn holds(&self, pid: Pid, container: u32) -> bool {
        self.containers.contains(&container) || self.slowed.contains(&container) || self.first.contains(&pid)
    }
}

impl Kernel {
    pub(crate) fn is_held(&self, tid: Tid) -> bool {
        if self.rest.all || !self.rest.is_of_some() {
            return self.rest.all;
        }
        let number = tid & !PROCESSOR_ALARM;
        let pid = self.tasks.tasks.get(&number).map_or(number, |task| task.pid);
        self.tasks.processes.get(&pid).is_some_and(|process| self.rest.holds(pid, process.container))
    }

    /// Those to be served of those who are ready.
    pub(crate) fn take_ready(&mut self) -> Vec<Tid> {
        let (held, due): (Vec<Tid>, _) = self.ready.take().into_iter().partition(|tid| self.is_held(*tid));
        self.rest.woken.extend(held);
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
        self.stand_still(None, latest_ns).inspect_err(|_| self.go_on_all())
    }

    /// The same of one container, until `go_on_container`; the others go on meanwhile.
    pub fn rest_container(&mut self, container: u32, latest_ns: u64) -> std::result::Result<(), Pid> {
        self.rest.containers.insert(container);
        self.stand_still(Some(container), latest_ns).inspect_err(|_| {
            self.rest.containers.remove(&container);
            self.wake_rested();
        })
    }

    fn stand_still(&mut self, container: Option<u32>, latest_ns: u64) -> std::result::Result<(), Pid> {
        let running: Vec<_> = self.moving_in(container).map(|(_, thread)| thread).collect();
        running.into_iter().for_each(|thread| self.platform.kick(thread));
        loop {
            let first = self.moving_in(container).next().map(|(pid, _)| pid);
            let Some(pid) = first else { return Ok(()) };
            let left = latest_ns.saturating_sub(self.timers.now_ns());
            if left == 0 || self.step(Some(left)).is_err() {
                return Err(pid);
            }
        }
    }

    /// Who is in guest code, in one container or (None) anywhere.
    pub(crate) fn moving_in(&self, of: Option<u32>) -> impl Iterator<Item = (Pid, crate::platform::ThreadId)> + '_ {
        let processes = &self.tasks.processes;
        let is_there =
            move |task: &Task| of.is_none() || processes.get(&task.pid).map(|process| process.container) == of;
        let moving = move |task: &&Task| (matches!(task.state, State::Dying) || !task.trapped) && is_there(task);
        self.tasks.tasks.values().filter(moving).map(|task| (task.pid, task.thread))
    }

    /// Have those of a container rest as they come by; `now`: call those who run.
    pub(crate) fn slow_down(&mut self, container: u32, now: bool) {
        let is_new = self.rest.slowed.insert(container);
        let running: Vec<_> = self.moving_in(Some(container)).map(|(_, thread)| thread).collect();
        let awake = running.into_iter().filter(|thread| (is_new || now) && !self.platform.is_asleep(*thread));
        awake.collect::<Vec<_>>().into_iter().for_each(|thread| self.platform.kick(thread));
    }

    pub(crate) fn let_run(&mut self, container: u32) {
        if self.rest.slowed.remove(&container) {
            self.wake_rested();
        }
    }

    /// Have what is about to be run in a new container wait before its first step; `begun`: that is this process, and
    /// others in the container need not wait.
    pub fn hold_first(&mut self, container: u32, begun: Option<Pid>) {
        match begun {
            None => drop(self.rest.containers.insert(container)),
            Some(pid) => {
                self.rest.containers.remove(&container);
                self.rest.first.insert(pid);
            }
        }
    }

    pub(crate) fn begins_no_more(&mut self, pid: Pid) {
        self.rest.first.remove(&pid);
    }

    /// A container is gone.
    pub fn forget_rest(&mut self, container: u32) {
        self.rest.containers.remove(&container);
        self.bound_time(container, None);
    }

    /// Whether a first process has not been told to begin.
    pub fn waits_to_begin(&self, pid: Pid) -> bool {
        self.rest.first.contains(&pid)
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
        let first = self.rest.first.iter().copied().find(|pid| self.container_of(*pid) == Some(container));
        let was_first = first.is_some_and(|pid| self.rest.first.remove(&pid));
        let rested = self.rest.containers.remove(&container) || was_first;
        rested.then_some(()).ok_or(Errno::NOENT)?;
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
