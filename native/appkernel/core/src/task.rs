//! Threads and processes.

use std::collections::BTreeMap;
use std::sync::Arc;

use drupe_appkernel_vfs::inode::Use;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::time::Armed;
use drupe_appkernel_vfs::{
    Credentials, Events, FdTable, MountNamespace, OpenFile, Path, Registration, WaitQueue, Wake,
};

use crate::calls::pidfd::Life;
use crate::calls::schedule::Schedule;
use crate::calls::signalfd::PendingSet;
use crate::calls::timers::PosixTimers;
use crate::mm::MmId;
use crate::pids;
use crate::platform::{SpaceId, ThreadId};
use crate::seccomp::Seccomp;
use crate::signal::{Actions, AltStack, Info, Set};
use crate::usage::Usage;

pub type Tid = u32;
pub type Pid = u32;

/// Root, working directory and umask, shared by CLONE_FS.
#[derive(Clone)]
pub struct FsState {
    pub root: Path,
    pub cwd: Path,
    pub umask: u32,
}

/// A system call that a thread is in.
#[derive(Default)]
pub struct PendingCall {
    pub number: u64,
    pub args: [u64; 6],
    /// On the monotonic clock, in nanoseconds; kept when the call is tried again.
    pub deadline_ns: Option<u64>,
    pub timer: Option<Box<dyn Armed>>,
    /// How far the call has come: bytes moved, or a number that it keeps for its next try.
    pub progress: u64,
    pub registrations: Vec<Registration>,
    /// Whose record lock it waits for: a descriptor table's number (descriptors::lock_owner).
    pub lock_of: Option<u64>,
    /// A FIFO that is being opened, and waits for its other side.
    pub opening: Option<Arc<OpenFile>>,
}

impl PendingCall {
    /// It waits in vfork(2), for a child that runs on its stack: nothing but its end takes it out of there.
    pub fn is_vfork(&self) -> bool {
        const CALLS: [u64; 3] = [56, 58, 435]; // clone, vfork, clone3, which keep the child's number
        self.progress != 0 && CALLS.contains(&self.number)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// In guest code, or about to be.
    Running,
    /// In a call that waits.
    Blocked,
    /// Ready to go on, kept back while its process is stopped.
    Parked,
    /// In guest code, and to be ended as soon as it leaves that.
    Dying,
}

pub struct Task {
    pub tid: Tid,
    pub pid: Pid,
    pub thread: ThreadId,
    pub space: SpaceId,
    pub state: State,
    /// Stands still, and must be resumed to go on.
    pub trapped: bool,
    pub call: Option<PendingCall>,
    pub mask: Set,
    /// The mask to restore when a call that has changed it for its time is over (sigsuspend, ppoll).
    pub saved_mask: Option<Set>,
    pub pending: Vec<Info>,
    /// Signals that the thread is waiting for (sigtimedwait(2)): kept even if ignored.
    pub waits_for: Set,
    pub alt_stack: AltStack,
    pub clear_tid: u64,
    pub robust_list: u64,
    /// As prctl(2) PR_SET_TIMERSLACK sets it, and gives it back; and what 0 means there.
    pub slack_ns: u64,
    pub usual_slack_ns: u64,
    pub name: [u8; 16],
    pub seccomp: Seccomp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    Code(u8),
    Signal(i32),
}

impl Exit {
    /// As wait(2) gives it.
    pub fn wait_status(self) -> u32 {
        match self {
            Exit::Code(code) => u32::from(code) << 8,
            Exit::Signal(signal) => signal as u32,
        }
    }
}

/// What of a child is to be told to its parent once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Report {
    Stopped(i32),
    Continued,
}

pub const LIMIT_COUNT: usize = 16;

pub struct Process {
    pub pid: Pid,
    pub parent: Pid,
    pub group: Pid,
    pub session: Pid,
    pub container: u32,
    pub mm: MmId,
    pub files: Arc<Mutex<FdTable>>,
    pub fs: Arc<Mutex<FsState>>,
    pub namespace: Arc<MountNamespace>,
    pub actions: Arc<Mutex<Actions>>,
    pub pending: Vec<Info>,
    pub credentials: Credentials,
    pub ids: Ids,
    pub threads: Vec<Tid>,
    pub exit: Option<Exit>,
    pub exit_signal: i32,
    pub report: Option<Report>,
    pub children: WaitQueue,
    pub signals: WaitQueue,
    pub posix_timers: PosixTimers,
    pub schedule: Schedule,
    /// For pidfd_open(2).
    pub life: Arc<Life>,
    /// Of signalfd(2), if it was used.
    pub pending_set: Option<Arc<PendingSet>>,
    /// The thread that waits in vfork(2) for this process to exec or end.
    pub vfork_waiter: Option<Tid>,
    pub limits: [(u64, u64); LIMIT_COUNT],
    pub executable: Option<Path>,
    /// Nobody may write to it.
    pub running: Option<Arc<Use>>,
    pub has_execed: bool,
    pub started_ns: u64,
    pub alarm: Option<Alarm>,
    /// ITIMER_VIRTUAL, ITIMER_PROF, and RLIMIT_CPU.
    pub processor_alarms: [Option<ProcessorAlarm>; 3],
    pub stopped: bool,
    pub death_signal: i32,
    pub no_new_privileges: bool,
    pub subreaper: bool,
    /// Whom it descends from, of those that came from outside: each of these has its turn (Platform::set_lane).
    pub lane: u32,
    /// Its processor time when it last had a signal of a timer.
    pub heard_cpu_ns: u64,
    /// Asked for by prctl(2), and told again.
    pub dumpable: bool,
    pub without_huge_pages: bool,
    pub oom_score_adj: i32,
    pub personality: u32,
    /// ioprio_set(2).
    pub io_priority: u32,
    /// Of its first thread, for when that is gone.
    pub name: [u8; 16],
    /// By the programs that it has left (execve(2)), and by all when it has ended; and by its children that were waited for.
    pub used: Usage,
    pub children_used: Usage,
}

/// The real interval timer (setitimer(2)).
pub struct Alarm {
    pub due_ns: u64,
    pub interval_ns: u64,
    /// None: it was due, and goes on when its signal has been taken.
    pub timer: Option<Box<dyn Armed>>,
}

/// An interval timer of processor time. The host tells nobody when it is due: it is looked at when it might be.
pub struct ProcessorAlarm {
    /// In processor time of the process.
    pub due_ns: u64,
    pub interval_ns: u64,
    pub timer: Option<Box<dyn Armed>>,
}

/// Real, saved and file-system ids; the effective ones are in `Credentials`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ids {
    pub uid: u32,
    pub saved_uid: u32,
    pub gid: u32,
    pub saved_gid: u32,
    /// Those for files, where setfsuid(2) and setfsgid(2) have set them apart from the effective ones.
    pub fs_uid: Option<u32>,
    pub fs_gid: Option<u32>,
    pub permitted: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
    /// SECBIT_* of capabilities(7).
    pub securebits: u32,
}

impl Process {
    /// Who it is to files.
    pub fn acting(&self) -> Credentials {
        let own = &self.credentials;
        let (uid, gid) = (self.ids.fs_uid.unwrap_or(own.uid), self.ids.fs_gid.unwrap_or(own.gid));
        Credentials { uid, gid, ..own.clone() }
    }
}

/// Tasks that something has woken, to be tried again.
#[derive(Default)]
pub struct ReadyList(Mutex<Vec<Tid>>);

impl ReadyList {
    pub fn push(&self, tid: Tid) {
        self.0.lock().push(tid);
    }

    pub fn take(&self) -> Vec<Tid> {
        std::mem::take(&mut *self.0.lock())
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// Numbers on the list that stand for a process's alarm, not for a task.
pub const ALARM: Tid = 1 << 31;
/// And for its POSIX timers.
pub const TIMER: Tid = 1 << 30;

/// Both: for its timers of processor time.
pub const PROCESSOR_ALARM: Tid = ALARM | TIMER;

/// Puts one task on the list.
pub struct TaskWaker {
    pub tid: Tid,
    pub ready: Arc<ReadyList>,
}

impl Wake for TaskWaker {
    fn wake(&self, _: Events) {
        self.ready.push(self.tid);
    }
}

/// All there are.
#[derive(Default)]
pub struct Tasks {
    pub tasks: BTreeMap<Tid, Task>,
    pub processes: BTreeMap<Pid, Process>,
    /// The number given last, by view.
    last: BTreeMap<u32, u32>,
}

impl Tasks {
    /// The number given last in a view.
    pub fn last(&self, view: u32) -> u32 {
        self.last.get(&view).copied().unwrap_or(0)
    }

    /// All that `last` knows.
    pub(crate) fn numbers(&self) -> &BTreeMap<u32, u32> {
        &self.last
    }

    /// Go on numbering where another kernel was.
    pub(crate) fn begin_at(&mut self, last: &[(u32, u32)]) {
        self.last = last.iter().copied().collect();
    }

    /// Numbers of a view that nobody has begin anew.
    pub fn begin_view(&mut self, view: u32) {
        if !self.processes.keys().any(|pid| pids::view_of(*pid) == view) {
            self.last.remove(&view);
        }
    }

    /// A number that no task, process, group or session of its view has.
    pub fn fresh(&mut self, view: u32) -> Pid {
        let mut number = self.last(view);
        loop {
            number = if number >= 4_000_000 { 2 } else { number + 1 };
            let pid = pids::known(view, number);
            let used = self.tasks.contains_key(&pid)
                || self.processes.values().any(|p| [p.pid, p.group, p.session].contains(&pid));
            if !used {
                self.last.insert(view, number);
                return pid;
            }
        }
    }
}
