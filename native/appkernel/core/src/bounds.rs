//! How many tasks there may be: in a container, in the pod. As the host's cgroups count them (pids): threads, and processes
//! that have ended and were not waited for. At the bound fork(2) and clone(2) are EAGAIN; what comes from outside is let in.

use std::collections::BTreeMap;

use crate::kernel::Kernel;
use crate::task::{Process, Tid};

#[derive(Debug, Default)]
pub struct Bounds {
    pod: Option<u64>,
    containers: BTreeMap<u32, u64>,
    memory_bytes: BTreeMap<u32, u64>,
}

impl Kernel {
    /// Bound the tasks of a container, or of all of them together. None: there is no bound.
    pub fn bound_tasks(&mut self, container: Option<u32>, tasks: Option<u64>) {
        match (container, tasks) {
            (None, tasks) => self.bounds.pod = tasks,
            (Some(container), Some(tasks)) => drop(self.bounds.containers.insert(container, tasks)),
            (Some(container), None) => drop(self.bounds.containers.remove(&container)),
        }
    }

    /// Have programs of a container see this as the memory that there is; None: the pod's.
    pub fn bound_memory(&mut self, container: u32, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => drop(self.bounds.memory_bytes.insert(container, bytes)),
            None => drop(self.bounds.memory_bytes.remove(&container)),
        }
    }

    /// Memory in all and free, as a program sees it.
    pub(crate) fn memory_of(&self, tid: Tid) -> (u64, u64) {
        let (total, free) = self.host.memory_bytes();
        let bound = self.process(tid).ok().and_then(|process| self.bounds.memory_bytes.get(&process.container));
        let most = bound.copied().unwrap_or(u64::MAX);
        (total.min(most), free.min(most))
    }

    /// Whether one more task fits.
    pub(crate) fn has_room(&self, container: u32) -> bool {
        let within = |bound: Option<u64>, of: &dyn Fn(&Process) -> bool| {
            bound.is_none_or(|bound| {
                let counted = self.tasks.processes.values().filter(|p| of(p));
                counted.map(|p| p.threads.len().max(1) as u64).sum::<u64>() < bound
            })
        };
        let own = self.bounds.containers.get(&container).copied();
        within(own, &|process| process.container == container) && within(self.bounds.pod, &|_| true)
    }
}
