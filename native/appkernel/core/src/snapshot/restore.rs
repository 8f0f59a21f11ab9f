//! A kernel that goes on from what another one has written down.

use std::collections::BTreeSet;
use std::sync::Arc;

use drupe_appkernel_abi::Registers;
use drupe_appkernel_vfs::inode::Use;
use drupe_appkernel_vfs::saved::clock_of;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{Backing, Credentials, FdTable, MountNamespace, OpenFile, WaitQueue};

use super::files::{watch_again, Maker};
use super::locks::lock_again;
use super::state::{Saved, SavedInfo, SavedLife, SavedProcess, SavedTask, PROCESSOR_CLOCK};
use super::{damaged, Foreign, Refusal, Trees};
use crate::calls::schedule::Schedule;
use crate::calls::timers::{PosixTimer, PosixTimers, Source};
use crate::kernel::Kernel;
use crate::mm::MmId;
use crate::pids;
use crate::platform::{MemoryOp, SpaceId, ThreadId};
use crate::seccomp::bpf::Program;
use crate::seccomp::{Filter, Seccomp};
use crate::signal::{Action, Actions, AltStack, Info, COUNT};
use crate::task::{Exit, FsState, Ids, PendingCall, Process, Report, State, Task};
use crate::usage::Usage;

const LONGEST_NS: u64 = 1 << 62;

/// Objects that processes share, by their numbers.
struct Shared {
    tables: Vec<Arc<Mutex<FdTable>>>,
    fs: Vec<Arc<Mutex<FsState>>>,
    actions: Vec<Arc<Mutex<Actions>>>,
    mms: Vec<MmId>,
}

fn get<T: Clone>(list: &[T], number: u32, what: &str) -> Result<T, Refusal> {
    list.get(number as usize).cloned().ok_or_else(|| damaged(what))
}

fn signal(number: i32) -> Result<i32, Refusal> {
    (0..=COUNT).contains(&number).then_some(number).ok_or_else(|| damaged("a signal that there is not"))
}

fn infos(saved: &[SavedInfo]) -> Result<Vec<Info>, Refusal> {
    let one = |&(number, code, errno, fields): &SavedInfo| match signal(number)? {
        0 => Err(damaged("a signal that there is not")),
        signal => Ok(Info { signal, code, errno, fields }),
    };
    saved.iter().map(one).collect()
}

impl Kernel {
    /// Have everything of `saved` again, in a kernel that has run nothing; all of it rests until its container is to go on.
    /// `trees`: the containers' namespaces in their old order. After a refusal the kernel is of no use.
    pub fn restore(
        &mut self,
        saved: Saved,
        trees: &[Arc<MountNamespace>],
        foreign: &dyn Foreign,
        memory: &Arc<dyn Backing>,
    ) -> Result<(), Refusal> {
        if !self.tasks.processes.is_empty() {
            return Err(String::from("the kernel has run something already"));
        }
        if self.timers.now_ns() < saved.monotonic_ns {
            return Err(String::from(
                "the host was started anew since: its monotonic clock, which programs read, is behind",
            ));
        }
        let moved = self.platform.move_vdso(saved.vdso);
        moved.map_err(|errno| format!("the vDSO cannot be where it was: {errno}"))?;
        self.tasks.begin_at(&saved.last_numbers);
        self.rest.containers = saved.processes.iter().map(|process| process.container).collect();
        let trees = Trees(trees);
        let shared = self.restore_shared(&saved, &trees)?;
        for process in &saved.processes {
            let made = self.restore_process(process, &trees, &shared)?;
            if self.tasks.processes.insert(process.pid, made).is_some() {
                return Err(damaged("two processes of one number"));
            }
        }
        let filters = self.restore_filters(&saved.filters)?;
        saved.tasks.iter().try_for_each(|task| self.announce_task(task, &filters))?;
        let files = self.restore_files(&saved, &trees, foreign, memory.as_ref())?;
        self.fill_tables(&saved, &shared, &files)?;
        lock_again(&saved.locks, &files, &shared.tables)?;
        self.restore_sysv(&saved.sysv, &files)?;
        self.restore_spaces(&saved, &shared, &files, memory)?;
        self.restore_timers(&saved)?;
        self.is_first = self.known(&saved.first)?;
        self.joined = self.known(&saved.joined)?;
        self.has_changed = true;
        self.rest_all_tasks();
        self.take_signals_of_terminals(); // of those whose emulator was outside
        Ok(())
    }

    fn restore_filters(&self, saved: &[(Vec<u8>, Option<u32>)]) -> Result<Vec<Arc<Filter>>, Refusal> {
        let mut made: Vec<Arc<Filter>> = Vec::new();
        for (program, below) in saved {
            let below = below.map(|number| get(&made, number, "a filter that is not there")).transpose()?;
            let program = Program::parse(program).map_err(|_| damaged("a filter of system calls"))?;
            let filter = Filter::new(program, below, &self.filters);
            made.push(filter.map_err(|errno| format!("a filter of system calls: {errno}"))?);
        }
        Ok(made)
    }

    fn known(&self, pids: &[u32]) -> Result<BTreeSet<u32>, Refusal> {
        let all = pids.iter().all(|pid| self.tasks.processes.contains_key(pid));
        all.then(|| pids.iter().copied().collect()).ok_or_else(|| damaged("a process that is not there"))
    }

    fn restore_shared(&mut self, saved: &Saved, trees: &Trees<'_>) -> Result<Shared, Refusal> {
        let fs = |fs: &super::state::SavedFs| {
            let (root, cwd) = (trees.find(&fs.root)?, trees.find(&fs.cwd)?);
            Ok(Arc::new(Mutex::new(FsState { root, cwd, umask: fs.umask & 0o777 })))
        };
        let actions = |list: &Vec<[u64; 4]>| {
            let mut actions = Actions::default();
            for (signal, [handler, flags, restorer, mask]) in (1..=COUNT).zip(list.iter().copied()) {
                actions.set(signal, Action { handler, flags, restorer, mask });
            }
            Arc::new(Mutex::new(actions))
        };
        Ok(Shared {
            tables: saved.tables.iter().map(|_| Arc::default()).collect(),
            fs: saved.fs.iter().map(fs).collect::<Result<Vec<_>, Refusal>>()?,
            actions: saved.actions.iter().map(actions).collect(),
            mms: saved.mms.iter().map(|_| self.fresh_mm()).collect(),
        })
    }

    fn restore_process(&self, p: &SavedProcess, trees: &Trees<'_>, shared: &Shared) -> Result<Process, Refusal> {
        if pids::view_of(p.pid) >= pids::MAX_VIEWS || pids::seen(p.pid) == 0 || p.life.is_some() != p.exit.is_none() {
            return Err(damaged("a process"));
        }
        let none = || SavedLife { mm: u32::MAX, table: u32::MAX, fs: u32::MAX, actions: u32::MAX };
        let life = p.life.clone().unwrap_or_else(none);
        let lives = p.life.is_some();
        let namespace = Arc::clone(trees.get(p.namespace)?);
        let root = namespace.root();
        let ended_fs = || Arc::new(Mutex::new(FsState { root: root.clone(), cwd: root.clone(), umask: 0o022 }));
        let [uid, gid, real_uid, saved_uid, real_gid, saved_gid] = p.ids;
        let [effective, permitted, inheritable, bounding, ambient] = p.capabilities;
        let executable = p.executable.as_ref().map(|place| trees.find(place)).transpose()?;
        let running = executable.as_ref().filter(|_| lives).map(Use::running).transpose();
        let running = running.map_err(|errno| format!("a program is being written to: {errno}"))?.map(Arc::new);
        Ok(Process {
            pid: p.pid,
            parent: p.parent,
            group: p.group,
            session: p.session,
            container: p.container,
            mm: if lives { get(&shared.mms, life.mm, "memory that is not there")? } else { MmId(0) },
            files: if lives { get(&shared.tables, life.table, "a table that is not there")? } else { Arc::default() },
            fs: if lives { get(&shared.fs, life.fs, "a directory that is not there")? } else { ended_fs() },
            actions: if lives {
                get(&shared.actions, life.actions, "actions that are not there")?
            } else {
                default_actions()
            },
            namespace,
            pending: infos(&p.pending)?,
            credentials: Credentials { groups: p.groups.clone().into(), ..Credentials::new(uid, gid, effective) },
            ids: Ids {
                uid: real_uid,
                saved_uid,
                gid: real_gid,
                saved_gid,
                permitted,
                inheritable,
                bounding,
                ambient,
                securebits: p.securebits,
                fs_uid: p.fs_ids.0,
                fs_gid: p.fs_ids.1,
            },
            threads: Vec::new(),
            exit: p.exit.map(|exit| match u8::try_from(exit) {
                Ok(code) => Exit::Code(code),
                Err(_) => Exit::Signal(exit.unsigned_abs().clamp(1, COUNT as u32) as i32),
            }),
            exit_signal: signal(p.exit_signal)?,
            report: p.report.map(|signal| if signal == 0 { Report::Continued } else { Report::Stopped(signal) }),
            children: WaitQueue::new(),
            signals: WaitQueue::new(),
            posix_timers: PosixTimers::default(),
            schedule: Schedule::restore(&p.schedule),
            life: Arc::default(),
            pending_set: None,
            vfork_waiter: p.vfork_waiter,
            limits: p.limits,
            executable,
            running,
            has_execed: p.has_execed,
            started_ns: p.started_ns,
            alarm: None,
            processor_alarms: [None, None, None],
            stopped: p.stopped,
            death_signal: signal(p.death_signal)?,
            no_new_privileges: p.no_new_privileges,
            subreaper: p.subreaper,
            heard_cpu_ns: 0,
            lane: p.container,
            dumpable: p.dumpable,
            without_huge_pages: p.without_huge_pages,
            oom_score_adj: p.oom_score_adj,
            personality: p.personality,
            io_priority: p.io_priority,
            name: p.name,
            used: Usage::from_words(p.used),
            children_used: Usage::from_words(p.children_used),
        })
    }

    fn restore_files(
        &mut self,
        saved: &Saved,
        trees: &Trees<'_>,
        foreign: &dyn Foreign,
        memory: &dyn Backing,
    ) -> Result<Vec<Arc<OpenFile>>, Refusal> {
        let mut maker = Maker::new(self, trees, foreign, memory, saved)?;
        let mut made = Vec::new();
        for file in &saved.files {
            made.push(maker.make(self, file)?);
        }
        maker.settle_sockets(saved, &made)?;
        watch_again(&saved.files, &made)?;
        Ok(made)
    }

    fn fill_tables(&self, saved: &Saved, shared: &Shared, files: &[Arc<OpenFile>]) -> Result<(), Refusal> {
        const DESCRIPTORS: u64 = 1 << 20;
        for (saved, table) in saved.tables.iter().zip(&shared.tables) {
            let mut table = table.lock();
            for (fd, close_on_exec, file) in saved {
                let file = get(files, *file, "an open file that is not there")?;
                let put = table.replace(file, *close_on_exec, *fd, DESCRIPTORS);
                put.map_err(|_| damaged("a descriptor's number"))?;
            }
        }
        Ok(())
    }

    fn restore_spaces(
        &mut self,
        saved: &Saved,
        shared: &Shared,
        files: &[Arc<OpenFile>],
        memory: &Arc<dyn Backing>,
    ) -> Result<(), Refusal> {
        let objects = self.restore_objects(&saved.objects, memory.as_ref())?;
        for (mm, id) in saved.mms.iter().zip(&shared.mms) {
            let users: Vec<u32> = self.tasks.processes.values().filter(|p| p.mm == *id).map(|p| p.pid).collect();
            let tasks: Vec<&SavedTask> = saved.tasks.iter().filter(|task| users.contains(&task.pid)).collect();
            let (mut mm, first) = self.restore_mm(mm, files, &objects, memory)?;
            let space = mm.space;
            mm.users = users.len() as u32;
            self.mms.insert(*id, mm);
            let made = self.threads(first, tasks.len()).map_err(|errno| format!("a thread: {errno}"))?;
            for (task, thread) in tasks.into_iter().zip(made) {
                self.restore_task(task, thread, space)?;
            }
        }
        let whole = self.tasks.processes.values().all(|p| p.exit.is_some() != p.threads.contains(&p.pid));
        let all = self.by_thread.len() == saved.tasks.len();
        (whole && all).then_some(()).ok_or_else(|| damaged("a process without its first thread"))
    }

    /// So many threads of a space, one of which is there.
    fn threads(&mut self, first: ThreadId, count: usize) -> drupe_appkernel_abi::Result<Vec<ThreadId>> {
        let mut threads = vec![first];
        while threads.len() < count {
            threads.push(self.platform.new_thread(first)?);
        }
        Ok(threads)
    }

    fn restore_task(&mut self, saved: &SavedTask, thread: ThreadId, space: SpaceId) -> Result<(), Refusal> {
        let registers = Registers::from_words(saved.registers);
        let lost = |errno| format!("the registers of a thread: {errno}");
        self.platform.reset(thread, &registers).map_err(lost)?;
        if !saved.extended.is_empty() {
            self.platform.adopt_state(thread, &saved.extended).map_err(lost)?;
        }
        let end = self.platform.address_end();
        let mut ops = vec![MemoryOp::SetFs(saved.fs_base)];
        ops.extend(saved.gs_base.map(MemoryOp::SetGs));
        if saved.fs_base >= end || saved.gs_base.is_some_and(|base| base >= end) {
            return Err(damaged("a segment's base"));
        }
        self.platform.change(thread, &ops).map_err(lost)?;
        let task = self.tasks.tasks.get_mut(&saved.tid).ok_or_else(|| damaged("a thread"))?;
        (task.thread, task.space) = (thread, space);
        self.by_thread.insert(thread, saved.tid);
        Ok(())
    }

    /// A thread, before it has one of the host's: procfs shows it, and places there can be found.
    fn announce_task(&mut self, saved: &SavedTask, filters: &[Arc<Filter>]) -> Result<(), Refusal> {
        let task = restored_task(saved, filters)?;
        let process = self.tasks.processes.get_mut(&saved.pid).filter(|process| process.exit.is_none());
        process.ok_or_else(|| damaged("a thread of no process"))?.threads.push(saved.tid);
        if pids::view_of(saved.tid) != pids::view_of(saved.pid) || self.tasks.tasks.insert(saved.tid, task).is_some() {
            return Err(damaged("two threads of one number"));
        }
        Ok(())
    }

    fn restore_timers(&mut self, saved: &Saved) -> Result<(), Refusal> {
        for process in &saved.processes {
            if let Some((due_ns, interval_ns)) = process.alarm {
                self.set_alarm(process.pid, Some(due_ns), interval_ns);
            }
            for (which, left_ns, interval_ns) in
                process.processor_alarms.iter().copied().filter(|(which, ..)| *which < 3)
            {
                let (left_ns, interval_ns) = (left_ns.min(LONGEST_NS), interval_ns.min(LONGEST_NS));
                self.set_processor_alarm(process.pid, which.into(), Some(left_ns), interval_ns);
            }
            for timer in &process.timers {
                let source = match timer.clock {
                    PROCESSOR_CLOCK => Source::Process,
                    number => Source::Host(clock_of(number).map_err(|_| damaged("a clock"))?),
                };
                let armed = timer.due_ns.map(|due| self.arm_source(process.pid, source, due));
                let made = PosixTimer::restore(timer, source, armed);
                let made = made.ok_or_else(|| damaged("a timer"))?;
                if let Some(process) = self.tasks.processes.get_mut(&process.pid) {
                    process.posix_timers.insert(timer.id, made);
                }
            }
        }
        Ok(())
    }

    /// All of them, once they may, are tried again: who waits in a call makes it anew.
    fn rest_all_tasks(&mut self) {
        let tids: Vec<u32> = self.tasks.tasks.keys().copied().collect();
        tids.into_iter().for_each(|tid| self.ready.push(tid));
    }
}

fn default_actions() -> Arc<Mutex<Actions>> {
    Arc::new(Mutex::new(Actions::default()))
}

fn restored_task(saved: &SavedTask, filters: &[Arc<Filter>]) -> Result<Task, Refusal> {
    let call = saved.call.as_ref().map(|call| PendingCall {
        number: call.number,
        args: call.args,
        deadline_ns: call.deadline_ns,
        progress: call.progress,
        ..PendingCall::default()
    });
    Ok(Task {
        tid: saved.tid,
        pid: saved.pid,
        thread: ThreadId(u32::MAX),
        space: SpaceId(u32::MAX),
        state: if call.is_some() { State::Blocked } else { State::Parked },
        trapped: true,
        call,
        mask: saved.mask,
        saved_mask: saved.saved_mask,
        pending: infos(&saved.pending)?,
        waits_for: saved.waits_for,
        alt_stack: AltStack { address: saved.alt_stack.0, size: saved.alt_stack.1 },
        clear_tid: saved.clear_tid,
        robust_list: saved.robust_list,
        slack_ns: saved.slack_ns.0,
        usual_slack_ns: saved.slack_ns.1,
        name: saved.name,
        seccomp: match saved.seccomp {
            (true, _) => Seccomp::Strict,
            (false, None) => Seccomp::Off,
            (false, Some(number)) => Seccomp::Filtered(get(filters, number, "a filter that is not there")?),
        },
    })
}
