//! Containers as whoever runs the kernel sees them: further processes in one, signals from outside, who runs there.

use drupe_appkernel_abi::{Errno, Result};

use crate::clone::Surroundings;
use crate::kernel::{Kernel, Program};
use crate::pids;
use crate::signal::{Info, SIGKILL, SI_USER};
use crate::task::{Exit, Pid, Process};

/// A process as a list of processes shows it. started_ns: on the monotonic clock.
pub struct Seen {
    pub pid: Pid,
    pub parent: Pid,
    pub uid: u32,
    pub state: u8,
    pub threads: usize,
    pub cpu_ns: u64,
    pub resident_bytes: u64,
    pub started_ns: u64,
    pub command: Vec<u8>,
}

impl Kernel {
    /// Start a further process from outside in a container that runs. ESRCH when it does not.
    pub fn enter(&mut self, container: u32, around: Surroundings, program: Program) -> Result<Pid> {
        let first = self.first_of(container).ok_or(Errno::SRCH)?;
        self.begin(container, pids::view_of(first), around, program, false)
    }

    /// Whether a container's first process lives.
    pub fn runs(&self, container: u32) -> bool {
        self.first_of(container).is_some()
    }

    /// Whether `take_ended` has something to tell.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    fn first_of(&self, container: u32) -> Option<Pid> {
        self.is_first.iter().copied().find(|pid| self.container_of(*pid) == Some(container))
    }

    pub(crate) fn container_of(&self, pid: Pid) -> Option<u32> {
        self.tasks.processes.get(&pid).map(|p| p.container)
    }

    /// The first process of the container that a process is in; 0: there is none.
    pub(crate) fn first_beside(&self, pid: Pid) -> Pid {
        let first = self.container_of(pid).and_then(|container| self.first_of(container));
        first.filter(|first| *first != pid).unwrap_or(0)
    }

    /// Signal a process from outside. As in a PID namespace: none but SIGKILL reaches a first process that does not
    /// handle it. ESRCH.
    pub fn signal_process(&mut self, pid: Pid, signal: i32) -> Result<()> {
        self.tasks.processes.get(&pid).filter(|p| p.exit.is_none()).ok_or(Errno::SRCH)?;
        match signal {
            SIGKILL => self.end_process(pid, Exit::Signal(SIGKILL)),
            _ => self.send_to_process(pid, Info::new(signal, SI_USER)),
        }
        Ok(())
    }

    /// Signal all processes of a container. ESRCH.
    pub fn signal_container(&mut self, container: u32, signal: i32) -> Result<()> {
        let first = self.first_of(container).ok_or(Errno::SRCH)?;
        if signal == SIGKILL {
            return self.signal_process(first, SIGKILL);
        }
        for pid in self.live_in(container) {
            self.signal_process(pid, signal)?;
        }
        Ok(())
    }

    /// Signal a process and all that descends from it. ESRCH when it is not there.
    pub fn signal_family(&mut self, pid: Pid, signal: i32) -> Result<()> {
        self.tasks.processes.get(&pid).filter(|p| p.exit.is_none()).ok_or(Errno::SRCH)?;
        let mut family = vec![pid];
        let mut at = 0;
        while at < family.len() {
            let parent = family[at];
            let children = self.tasks.processes.values().filter(|p| p.parent == parent && p.exit.is_none());
            family.extend(children.map(|p| p.pid));
            at += 1;
        }
        for pid in family {
            let _ended_meanwhile = self.signal_process(pid, signal);
        }
        Ok(())
    }

    fn live_in(&self, container: u32) -> Vec<Pid> {
        let live = |p: &&Process| p.container == container && p.exit.is_none();
        self.tasks.processes.values().filter(live).map(|p| p.pid).collect()
    }

    /// The processes of a container.
    pub fn seen(&self, container: u32) -> Vec<Seen> {
        let inside = self.tasks.processes.values().filter(|p| p.container == container);
        inside.map(|p| self.seen_process(p)).collect()
    }

    fn seen_process(&self, process: &Process) -> Seen {
        let shown = self.shown(process, process.pid);
        let line = self.command_line_of(process);
        let words = line.split(|&byte| byte == 0).filter(|word| !word.is_empty());
        Seen {
            pid: pids::seen(process.pid),
            parent: pids::seen(process.parent),
            uid: process.credentials.uid,
            state: shown.state,
            threads: process.threads.len(),
            cpu_ns: self.process_cpu_ns(process.pid),
            resident_bytes: shown.resident_bytes,
            started_ns: process.started_ns,
            command: words.collect::<Vec<_>>().join(&b' '),
        }
    }
}
