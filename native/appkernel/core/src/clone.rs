//! New threads and processes: fork(2), vfork(2), clone(2), clone3(2), and a container's first one.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{Credentials, FdTable, MountNamespace, Path, WaitQueue};

use crate::kernel::{Done, Kernel, Program};
use crate::mm::{Locked, Mm, MmId};
use crate::pids;
use crate::platform::{MemoryOp, SpaceId, ThreadId};
use crate::seccomp::Seccomp;
use crate::signal::{Actions, COUNT, SIGCHLD, SIGKILL};
use crate::task::{Exit, FsState, Ids, Pid, Process, State, Task, Tid, LIMIT_COUNT};
use crate::usage::Usage;

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// New namespaces: none can be made.
const CLONE_NEW: u64 = 0x7e02_0080;
const CLONE_NEWNS: u64 = 0x2_0000;
const EXIT_SIGNAL: u64 = 0xff;
pub const MAX_TASKS: usize = 32_768;

/// What is to be made.
struct Order {
    flags: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
    exit_signal: i32,
    /// Where the number of a descriptor of the child goes, with CLONE_PIDFD.
    pidfd: u64,
}

/// A container's root, working directory, user, descriptors. umask: of its first files.
pub struct Surroundings {
    pub namespace: Arc<MountNamespace>,
    pub root: Path,
    pub cwd: Path,
    pub credentials: Credentials,
    pub rights: Rights,
    pub seccomp: Seccomp,
    pub files: FdTable,
    pub limits: [(u64, u64); LIMIT_COUNT],
    pub umask: u32,
    pub oom_score_adj: i32,
}

/// umask(2) of a process for which nobody said another.
pub const USUAL_UMASK: u32 = 0o022;

/// Capabilities beside the effective ones (capabilities(7)), and whether a program may gain any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rights {
    pub permitted: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub no_new_privileges: bool,
}

impl Rights {
    /// What the user has now is all there is.
    pub fn of(credentials: &Credentials) -> Rights {
        let all = credentials.capabilities;
        Rights { permitted: all, bounding: all, ..Rights::default() }
    }
}

/// RLIM_INFINITY everywhere but for stack, processes and descriptors.
pub fn default_limits() -> [(u64, u64); LIMIT_COUNT] {
    let mut limits = [(u64::MAX, u64::MAX); LIMIT_COUNT];
    limits[3] = (8 << 20, u64::MAX);
    limits[4] = (0, u64::MAX);
    limits[6] = (MAX_TASKS as u64, MAX_TASKS as u64);
    limits[7] = (1024, 1 << 20);
    limits[8] = (8 << 20, 8 << 20);
    limits[11] = (1024, 1024);
    limits[12] = (819_200, 819_200);
    limits[13] = (0, 0);
    limits[14] = (0, 0);
    limits
}

impl Kernel {
    /// Start a container's first process, in this view of numbers. Its number.
    pub fn spawn(&mut self, container: u32, view: u32, around: Surroundings, program: Program) -> Result<Pid> {
        self.tasks.begin_view(view);
        self.begin(container, view, around, program, true)
    }

    /// A process from outside; `first`: its container ends with it.
    pub(crate) fn begin(
        &mut self,
        container: u32,
        view: u32,
        around: Surroundings,
        program: Program,
        first: bool,
    ) -> Result<Pid> {
        let pid = self.tasks.fresh(view);
        let mm = self.fresh_mm();
        // An empty space, replaced at once by the program's.
        self.mms.insert(mm, Mm::new(SpaceId(u32::MAX), self.platform.address_end()));
        let mut task = new_task(pid, pid, ThreadId(u32::MAX), SpaceId(u32::MAX));
        task.seccomp = around.seccomp.clone();
        self.tasks.tasks.insert(pid, task);
        let process = self.first_process(pid, container, mm, around);
        self.tasks.processes.insert(pid, process);
        self.watch_cpu_limit(pid);
        let outside = if first { &mut self.is_first } else { &mut self.joined };
        outside.insert(pid);
        if let Err(errno) = self.exec_first(pid, program) {
            self.is_first.remove(&pid);
            self.joined.remove(&pid);
            self.mms.remove(&mm);
            self.forget(pid);
            return Err(errno);
        }
        Ok(pid)
    }

    fn first_process(&self, pid: Pid, container: u32, mm: MmId, around: Surroundings) -> Process {
        let (uid, gid, rights) = (around.credentials.uid, around.credentials.gid, around.rights);
        Process {
            pid,
            parent: 0,
            group: pid,
            session: pid,
            container,
            mm,
            files: Arc::new(Mutex::new(around.files)),
            fs: Arc::new(Mutex::new(FsState { root: around.root, cwd: around.cwd, umask: around.umask })),
            namespace: around.namespace,
            actions: Arc::new(Mutex::new(Actions::default())),
            pending: Vec::new(),
            credentials: around.credentials,
            ids: Ids {
                uid,
                saved_uid: uid,
                gid,
                saved_gid: gid,
                permitted: rights.permitted,
                inheritable: rights.inheritable,
                bounding: rights.bounding,
                // Who is not root has what was made ambient, and nothing else (capabilities(7)).
                ambient: if uid == 0 { 0 } else { rights.permitted & rights.inheritable },
                securebits: 0,
                fs_uid: None,
                fs_gid: None,
            },
            threads: vec![pid],
            exit: None,
            exit_signal: SIGCHLD,
            report: None,
            children: WaitQueue::new(),
            signals: WaitQueue::new(),
            posix_timers: Default::default(),
            schedule: Default::default(),
            life: Arc::default(),
            pending_set: None,
            vfork_waiter: None,
            limits: around.limits,
            executable: None,
            running: None,
            has_execed: false,
            started_ns: self.timers.now_ns(),
            alarm: None,
            processor_alarms: [None, None, None],
            stopped: false,
            death_signal: 0,
            no_new_privileges: rights.no_new_privileges,
            heard_cpu_ns: 0,
            lane: pid,
            subreaper: false,
            dumpable: true,
            without_huge_pages: false,
            oom_score_adj: around.oom_score_adj,
            personality: 0,
            io_priority: 0,
            name: [0; 16],
            used: Usage::default(),
            children_used: Usage::default(),
        }
    }

    fn clone_task(&mut self, tid: Tid, order: &Order) -> Result<Done> {
        if let Some(child) = self.vfork_in_progress(tid)? {
            return self.wait_for_vfork(tid, child);
        }
        check(order.flags)?;
        if self.tasks.tasks.len() >= MAX_TASKS
            || self.at_process_limit(tid)?
            || !self.has_room(self.process(tid)?.container)
        {
            return Err(Errno::AGAIN);
        }
        let parent = self.thread(tid)?;
        let (space, thread) = if order.flags & CLONE_VM == 0 {
            self.platform.fork(parent)?
        } else {
            (self.space(tid)?, self.platform.new_thread(parent)?)
        };
        let child = self.tasks.fresh(pids::view_of(tid));
        let pid = if order.flags & CLONE_THREAD != 0 { self.pid(tid) } else { child };
        let mut task = new_task(child, pid, thread, space);
        let caller = self.task(tid)?;
        (task.mask, task.name, task.seccomp) = (caller.mask, caller.name, caller.seccomp.clone());
        (task.slack_ns, task.usual_slack_ns) = (caller.slack_ns, caller.slack_ns);
        if order.flags & CLONE_VM == 0 || order.flags & CLONE_VFORK != 0 {
            task.alt_stack = caller.alt_stack;
        }
        if order.flags & CLONE_CHILD_CLEARTID != 0 {
            task.clear_tid = order.child_tid;
        }
        if order.flags & CLONE_THREAD != 0 {
            self.process_mut(tid)?.threads.push(child);
        } else {
            let process = self.copy_process(tid, child, space, order)?;
            self.tasks.processes.insert(child, process);
            self.watch_cpu_limit(child);
        }
        self.has_changed = true;
        self.by_thread.insert(thread, child);
        self.tasks.tasks.insert(child, task);
        self.tell_numbers(tid, child, order);
        if order.flags & CLONE_PIDFD != 0 {
            self.give_pidfd(tid, child, order.pidfd)?;
        }
        self.start_child(child, thread, order)?;
        if order.flags & CLONE_VFORK != 0 {
            self.pending(tid)?.progress = u64::from(child);
            return self.wait_for_vfork(tid, child);
        }
        Ok(Done::Value(i64::from(child)))
    }

    /// A descriptor of the child; a child that cannot have one never was.
    fn give_pidfd(&mut self, tid: Tid, child: Pid, address: u64) -> Result<()> {
        let told = self.new_pidfd(tid, child, 0).and_then(|fd| {
            let told = self.put_now(tid, address, &fd.to_le_bytes());
            told.inspect_err(|_| drop(self.process(tid).map(|process| process.files.lock().remove(fd))))
        });
        told.inspect_err(|_| {
            if let Some(process) = self.tasks.processes.get_mut(&child) {
                process.exit_signal = 0;
            }
            self.end_process(child, Exit::Signal(SIGKILL));
            self.forget(child);
        })
    }

    fn at_process_limit(&self, tid: Tid) -> Result<bool> {
        let process = self.process(tid)?;
        let (limit, uid) = (process.limits[6].0, process.ids.uid);
        if uid == 0 || self.tasks.tasks.len() as u64 <= limit {
            return Ok(false);
        }
        let own = self.tasks.processes.values().filter(|p| p.ids.uid == uid).map(|p| p.threads.len() as u64);
        Ok(own.sum::<u64>() >= limit)
    }

    fn copy_process(&mut self, tid: Tid, pid: Pid, space: SpaceId, order: &Order) -> Result<Process> {
        let mm = self.child_mm(tid, space, order.flags)?;
        let parent = self.process(tid)?;
        let shared = |flag: u64| order.flags & flag != 0;
        let files = if shared(CLONE_FILES) { Arc::clone(&parent.files) } else { copied(&parent.files) };
        let fs = if shared(CLONE_FS) { Arc::clone(&parent.fs) } else { copied(&parent.fs) };
        let actions = if shared(CLONE_SIGHAND) { Arc::clone(&parent.actions) } else { copied(&parent.actions) };
        if shared(CLONE_CLEAR_SIGHAND) {
            actions.lock().reset();
        }
        Ok(Process {
            pid,
            parent: if shared(CLONE_PARENT) { parent.parent } else { parent.pid },
            mm,
            files,
            fs,
            actions,
            namespace: Arc::clone(&parent.namespace),
            pending: Vec::new(),
            credentials: parent.credentials.clone(),
            threads: vec![pid],
            exit: None,
            exit_signal: order.exit_signal,
            report: None,
            children: WaitQueue::new(),
            signals: WaitQueue::new(),
            posix_timers: Default::default(),
            schedule: parent.schedule.clone(),
            life: Arc::default(),
            pending_set: None,
            vfork_waiter: shared(CLONE_VFORK).then_some(tid),
            executable: parent.executable.clone(),
            running: parent.running.clone(),
            has_execed: false,
            started_ns: self.timers.now_ns(),
            alarm: None,
            processor_alarms: [None, None, None],
            stopped: false,
            death_signal: 0,
            heard_cpu_ns: 0,
            subreaper: false,
            used: Usage::default(),
            children_used: Usage::default(),
            ..*parent
        })
    }

    fn child_mm(&mut self, tid: Tid, space: SpaceId, flags: u64) -> Result<MmId> {
        if flags & CLONE_VM != 0 {
            self.mm_mut(tid)?.users += 1;
            return Ok(self.process(tid)?.mm);
        }
        let mm = Mm { space, users: 1, locked: Locked::default(), ..self.mm(tid)?.clone() };
        let id = self.fresh_mm();
        self.mms.insert(id, mm);
        Ok(id)
    }

    fn tell_numbers(&self, tid: Tid, child: Tid, order: &Order) {
        let number = pids::seen(child).to_le_bytes();
        // As Linux does, without a word about addresses that are not there.
        if order.flags & CLONE_PARENT_SETTID != 0 {
            let _none = self.put_now(tid, order.parent_tid, &number);
        }
        if order.flags & CLONE_CHILD_SETTID != 0 {
            let _none = self.put_now(child, order.child_tid, &number);
        }
    }

    fn start_child(&mut self, child: Tid, thread: ThreadId, order: &Order) -> Result<()> {
        let mut registers = self.platform.registers(thread)?;
        registers.rax = 0;
        if order.stack != 0 {
            registers.rsp = order.stack;
        }
        self.platform.set_registers(thread, &registers)?;
        let ops = if order.flags & CLONE_SETTLS != 0 { vec![MemoryOp::SetFs(order.tls)] } else { Vec::new() };
        self.go_on(child, None, ops);
        Ok(())
    }

    /// The child of a vfork that the task is waiting in.
    fn vfork_in_progress(&mut self, tid: Tid) -> Result<Option<Pid>> {
        let progress = self.pending(tid)?.progress as u32;
        Ok((progress != 0).then_some(progress))
    }

    fn wait_for_vfork(&mut self, tid: Tid, child: Pid) -> Result<Done> {
        let still = self.tasks.processes.get(&child).is_some_and(|p| p.vfork_waiter == Some(tid));
        if still {
            return Ok(Done::Wait);
        }
        Ok(Done::Value(i64::from(child)))
    }

    /// The process has its own memory now, or none: whoever waits in vfork for it goes on.
    pub(crate) fn end_vfork(&mut self, pid: Pid) {
        let waiter = self.tasks.processes.get_mut(&pid).and_then(|p| p.vfork_waiter.take());
        waiter.into_iter().for_each(|tid| self.ready.push(tid));
    }
}

pub(crate) fn copied<T: Clone>(shared: &Mutex<T>) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(shared.lock().clone()))
}

fn new_task(tid: Tid, pid: Pid, thread: ThreadId, space: SpaceId) -> Task {
    Task {
        tid,
        pid,
        thread,
        space,
        state: State::Running,
        trapped: true,
        call: None,
        mask: 0,
        saved_mask: None,
        pending: Vec::new(),
        waits_for: 0,
        alt_stack: Default::default(),
        clear_tid: 0,
        robust_list: 0,
        slack_ns: 50_000,
        usual_slack_ns: 50_000,
        name: [0; 16],
        seccomp: Seccomp::Off,
    }
}

/// EINVAL for what makes no sense together; EPERM for new namespaces.
fn check(flags: u64) -> Result<()> {
    let needs = |flag: u64, other: u64| flags & flag == 0 || flags & other == other;
    if !needs(CLONE_THREAD, CLONE_SIGHAND) || !needs(CLONE_SIGHAND, CLONE_VM) {
        return Err(Errno::INVAL);
    }
    if flags & CLONE_NEWNS != 0 && flags & CLONE_FS != 0
        || flags & CLONE_CLEAR_SIGHAND != 0 && flags & CLONE_SIGHAND != 0
    {
        return Err(Errno::INVAL);
    }
    if flags & CLONE_NEW != 0 {
        return Err(Errno::PERM);
    }
    if flags & CLONE_PIDFD != 0 && flags & CLONE_THREAD != 0 {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// fork(2).
pub(crate) fn fork(kernel: &mut Kernel, tid: Tid, _: &[u64; 6]) -> Result<Done> {
    clone(kernel, tid, &[SIGCHLD as u64, 0, 0, 0, 0, 0])
}

/// vfork(2).
pub(crate) fn vfork(kernel: &mut Kernel, tid: Tid, _: &[u64; 6]) -> Result<Done> {
    clone(kernel, tid, &[CLONE_VM | CLONE_VFORK | SIGCHLD as u64, 0, 0, 0, 0, 0])
}

/// clone(2).
pub(crate) fn clone(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    let [flags, stack, parent_tid, child_tid, tls, _] = *args;
    // As Linux: a number that no signal has is none.
    let exit_signal = Some((flags & EXIT_SIGNAL) as i32).filter(|&signal| signal <= COUNT).unwrap_or(0);
    let flags = flags & !EXIT_SIGNAL & 0xffff_ffff;
    let pidfd = parent_tid;
    kernel.clone_task(tid, &Order { flags, stack, parent_tid, child_tid, tls, exit_signal, pidfd })
}

/// clone3(2), the first version's fields.
pub(crate) fn clone3(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    let [address, size, ..] = *args;
    if size < 64 {
        return Err(Errno::INVAL);
    }
    if size > 4096 {
        return Err(Errno::TOOBIG);
    }
    let [flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls] = kernel.get_words(tid, address)?;
    if exit_signal > 64 || (stack == 0) != (stack_size == 0) {
        return Err(Errno::INVAL);
    }
    let more = kernel.get_bytes(tid, address + 64, size as usize - 64)?;
    if more.iter().any(|&byte| byte != 0) {
        // set_tid and its size, or a cgroup, or what nobody knows
        return Err(if size <= 88 { Errno::INVAL } else { Errno::TOOBIG });
    }
    if flags & EXIT_SIGNAL != 0 {
        return Err(Errno::INVAL);
    }
    let stack = stack.wrapping_add(stack_size);
    let exit_signal = exit_signal as i32;
    kernel.clone_task(tid, &Order { flags, stack, parent_tid, child_tid, tls, exit_signal, pidfd })
}
