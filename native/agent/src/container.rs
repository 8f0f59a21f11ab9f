//! A container and its processes as the agent knows them.

use crate::cgroup::Cgroup;
use crate::children::Exit;
use crate::events::Events;
use crate::fault::{not_found, wrong_state, Reply};
use crate::streams::Streams;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The exec id of a container's first process.
pub const INIT: &str = "";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Described, not made yet.
    Prepared,
    /// A call makes, starts or removes it.
    Busy,
    Created,
    Running,
    Stopped,
}

pub struct Process {
    pub phase: Phase,
    pub pid: u32,
    pub exit: Option<Exit>,
    pub terminal: bool,
    pub wanted: [bool; 3],
    pub streams: Arc<Streams>,
    /// Of an exec: process.json of the runtime specification.
    pub spec: Vec<u8>,
}

impl Process {
    pub fn new(terminal: bool, wanted: [bool; 3], spec: Vec<u8>) -> Self {
        let streams = Arc::default();
        Process { phase: Phase::Prepared, pid: 0, exit: None, terminal, wanted, streams, spec }
    }

    /// Moves on, or says why not.
    pub fn move_on(&mut self, from: Phase, to: Phase) -> Reply<()> {
        if self.phase != from {
            return Err(wrong_state(format!("the process is {:?}, not {from:?}", self.phase)));
        }
        self.phase = to;
        Ok(())
    }

    pub fn is_alive(&self) -> bool {
        self.pid != 0 && self.exit.is_none()
    }
}

pub struct Container {
    pub bundle: PathBuf,
    pub cgroup: Cgroup,
    /// By exec id; `INIT` is there from the beginning.
    pub processes: BTreeMap<String, Process>,
    pub is_paused: bool,
    pub oom_kills: u64,
}

impl Container {
    pub fn process(&mut self, exec_id: &str) -> Reply<&mut Process> {
        self.processes.get_mut(exec_id).ok_or_else(|| not_found(format!("there is no process {exec_id:?} in it")))
    }

    pub fn init(&mut self) -> &mut Process {
        self.processes.get_mut(INIT).expect("every container has a first process")
    }

    /// Notes that OOM kills have happened; whether there are new ones.
    pub fn look_for_oom(&mut self, id: &str, events: &mut Events) -> bool {
        let kills = self.cgroup.oom_kills();
        let is_new = kills > self.oom_kills;
        if is_new {
            self.oom_kills = kills;
            events.oom(id);
        }
        is_new
    }

    /// Takes the end of `pid`; false: it is none of this container's.
    pub fn take_end(&mut self, id: &str, pid: i32, exit: Exit, events: &mut Events) -> bool {
        let found = self.processes.iter().find(|(_, process)| process.pid == pid as u32 && process.exit.is_none());
        let Some(exec_id) = found.map(|(exec_id, _)| exec_id.clone()) else { return false };
        self.end(id, &exec_id, exit, events);
        true
    }

    /// A process has ended. With the first one end all of them, also where they share a PID namespace with others.
    pub fn end(&mut self, id: &str, exec_id: &str, exit: Exit, events: &mut Events) {
        if exec_id == INIT {
            self.look_for_oom(id, events);
            self.cgroup.kill();
        }
        let oom_killed = exec_id == INIT && self.oom_kills > 0 && exit.status == 128 + libc::SIGKILL as u32;
        let Some(process) = self.processes.get_mut(exec_id) else { return };
        (process.exit, process.phase) = (Some(exit), Phase::Stopped);
        events.exit(id, exec_id, process.pid, exit, oom_killed);
    }
}
