//! Who has ended: the programs that the agent starts, the containers' processes, which become its children, and orphans.

use crate::agent::{Agent, State};
use crate::{clock, threads};
use drupe_sys::process::{self, Ended, Pid};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// How many ends of unknown processes are kept: a container's may be over before its pid is read.
const KEPT: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exit {
    pub status: u32,
    pub at_unix_ns: i64,
}

#[derive(Default)]
pub struct Children {
    programs: BTreeMap<Pid, Option<Exit>>,
    unknown: VecDeque<(Pid, Exit)>,
}

impl Children {
    /// How the process ended that nobody knew then.
    pub fn take_unknown(&mut self, pid: Pid) -> Option<Exit> {
        let at = self.unknown.iter().position(|(ended, _)| *ended == pid)?;
        self.unknown.remove(at).map(|(_, exit)| exit)
    }
}

/// A program with its streams; its descriptors beyond those are closed.
pub fn spawn(agent: &Agent, argv: &[String], stdio: [BorrowedFd; 3]) -> io::Result<Pid> {
    let env = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_string()];
    let spawn = process::Spawn { argv, env: &env, cwd: None, stdio, pass: &[], ahead: false, join: &[] };
    // Under the lock, so that the reaper knows it before it can be told of its end.
    let mut state = agent.state();
    let pid = process::spawn(&spawn)?;
    state.children.programs.insert(pid, None);
    Ok(pid)
}

/// Waits for a program from `spawn`.
pub fn wait(agent: &Agent, pid: Pid) -> Exit {
    let ended = agent.await_some(None, None, |state| *state.children.programs.get(&pid)?);
    agent.state().children.programs.remove(&pid);
    ended.unwrap_or(Exit { status: 255, at_unix_ns: 0 })
}

/// Reaps for ever. SIGCHLD is blocked in every thread. Errors: no signalfd.
pub fn start_reaper(agent: &Arc<Agent>) -> io::Result<()> {
    let signals = process::signal_fd(&[libc::SIGCHLD])?;
    let agent = agent.clone();
    let work = move || loop {
        wait_readable(&signals);
        while process::next_signal(&signals).is_some() {}
        while let Some((pid, ended)) = process::reap() {
            agent.change(|state| take_end(state, pid, ended));
        }
    };
    threads::start("reaper", 64 << 10, work)
}

pub fn wait_readable(fd: &impl AsFd) {
    use rustix::event::{poll, PollFd, PollFlags};
    let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], None);
}

fn take_end(state: &mut State, pid: Pid, ended: Ended) {
    let exit = Exit { status: ended.code as u32, at_unix_ns: clock::now_unix_ns() };
    if let Some(program) = state.children.programs.get_mut(&pid) {
        *program = Some(exit);
        return;
    }
    let State { containers, events, .. } = state;
    if containers.iter_mut().any(|(id, container)| container.take_end(id, pid, exit, events)) {
        return;
    }
    if state.children.unknown.len() == KEPT {
        state.children.unknown.pop_front();
    }
    state.children.unknown.push_back((pid, exit));
}
