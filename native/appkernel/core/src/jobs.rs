//! Jobs and their terminals: what terminals must know of process groups, and where a pod's terminals are found.
//!
//! A terminal is used in the middle of a call, when the kernel is busy with the caller. So it reads what was noted here
//! before the call, and leaves the signals that it sends for the kernel to take.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::devices::Terminals;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::tty::{Devpts, Jobs, Slave};
use drupe_appkernel_vfs::{Context, File, OpenFile};

use crate::kernel::Kernel;
use crate::signal::{bit, Info, Set, SIGTTIN, SIGTTOU, SI_KERNEL};
use crate::task::{Pid, Tid};

/// What is known of the process that uses a terminal now.
#[derive(Default)]
struct Caller {
    group: Pid,
    /// Signals that would stop it.
    stops: Set,
    /// Sessions by groups; only for requests.
    sessions: HashMap<Pid, Pid>,
}

/// What terminals ask and tell.
#[derive(Default)]
pub struct Board {
    caller: Mutex<Caller>,
    sent: Mutex<Vec<(Pid, i32)>>,
    has_sent: AtomicBool,
    devpts: Mutex<Vec<Weak<Devpts>>>,
}

impl Board {
    pub fn new() -> Arc<Board> {
        Arc::default()
    }

    /// Terminals for a further container, to be mounted on its /dev/pts.
    pub fn new_devpts(self: &Arc<Self>) -> Arc<Devpts> {
        let made = Devpts::new(Arc::clone(self) as Arc<dyn Jobs>);
        let mut all = self.devpts.lock();
        all.retain(|devpts| devpts.strong_count() > 0);
        all.push(Arc::downgrade(&made));
        made
    }

    fn all(&self) -> Vec<Arc<Devpts>> {
        self.devpts.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Device number and foreground group of a session's terminal.
    pub fn of_session(&self, session: Pid) -> Option<(u64, Pid)> {
        self.all().iter().find_map(|devpts| devpts.of_session(session))
    }

    fn take(&self) -> Vec<(Pid, i32)> {
        match self.has_sent.swap(false, Ordering::Relaxed) {
            true => std::mem::take(&mut *self.sent.lock()),
            false => Vec::new(),
        }
    }
}

impl Jobs for Board {
    fn own_group(&self) -> u32 {
        self.caller.lock().group
    }

    fn session_of(&self, group: u32) -> Option<u32> {
        self.caller.lock().sessions.get(&group).copied()
    }

    fn signal(&self, group: u32, signal: i32) {
        self.sent.lock().push((group, signal));
        self.has_sent.store(true, Ordering::Relaxed);
    }

    fn would_stop(&self, signal: i32) -> bool {
        self.caller.lock().stops & bit(signal) != 0
    }
}

impl Terminals for Board {
    fn controlling(&self, context: &Context) -> Result<Arc<dyn File>> {
        self.all().iter().find_map(|devpts| devpts.controlling(context).ok()).ok_or(Errno::NXIO)
    }

    /// /dev/console is a link to the container's own terminal.
    fn console(&self) -> Result<Arc<dyn File>> {
        Err(Errno::NXIO)
    }

    /// /dev/ptmx is a link into the container's own devpts.
    fn new_master(&self, _: &Context) -> Result<Arc<dyn File>> {
        Err(Errno::NXIO)
    }
}

impl Kernel {
    /// Note what a terminal will ask about the caller, if `file` is one; `requests`: by ioctl(2).
    pub(crate) fn before_terminal(&self, tid: Tid, file: &OpenFile, requests: bool) {
        let Some(slave) = file.downcast::<Slave>() else { return };
        let Ok(process) = self.process(tid) else { return };
        let (group, session) = (process.group, process.session);
        let stops = if slave.foreground() == group { 0 } else { self.stopping(tid, group) };
        let all = self.tasks.processes.values();
        let sessions =
            if requests { all.map(|p| (p.group, p.session)).collect() } else { HashMap::from([(group, session)]) };
        *self.board.caller.lock() = Caller { group, stops, sessions };
    }

    /// Which of SIGTTIN and SIGTTOU would stop the task.
    fn stopping(&self, tid: Tid, group: Pid) -> Set {
        let (Ok(task), Ok(process)) = (self.task(tid), self.process(tid)) else { return 0 };
        if self.is_orphaned(group) {
            return 0;
        }
        let actions = process.actions.lock();
        let stops = |signal: &i32| task.mask & bit(*signal) == 0 && !actions.ignores(*signal);
        [SIGTTIN, SIGTTOU].into_iter().filter(stops).fold(0, |set, signal| set | bit(signal))
    }

    /// Whether nobody outside of the group, but in its session, is a parent of one in it (setpgid(2)).
    pub(crate) fn is_orphaned(&self, group: Pid) -> bool {
        let processes = &self.tasks.processes;
        let mut members = processes.values().filter(|p| p.group == group && p.exit.is_none());
        !members.any(|member| {
            processes.get(&member.parent).is_some_and(|p| p.group != group && p.session == member.session)
        })
    }

    /// Send what terminals have sent.
    pub(crate) fn take_signals_of_terminals(&mut self) {
        for (group, signal) in self.board.take() {
            let members = self.tasks.processes.values().filter(|p| p.group == group);
            let members: Vec<Pid> = members.map(|p| p.pid).collect();
            members.into_iter().for_each(|pid| self.send_to_process(pid, Info::new(signal, SI_KERNEL)));
        }
    }

    /// The leader of a session has ended: its terminal is free.
    pub(crate) fn leave_terminal(&mut self, session: Pid) {
        self.board.all().iter().for_each(|devpts| devpts.leader_ended(session));
        self.take_signals_of_terminals();
    }
}
