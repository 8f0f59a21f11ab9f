//! A kernel at rest, written down.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use drupe_appkernel_vfs::saved::clock_number;
use drupe_appkernel_vfs::{MountNamespace, Path};

use super::files::Files;
use super::memory::Objects;
use super::state::{
    Place, Saved, SavedArea, SavedCall, SavedFs, SavedInfo, SavedLife, SavedMm, SavedPosixTimer, SavedProcess,
    SavedSysV, SavedTask, PROCESSOR_CLOCK,
};
use super::{Foreign, Pages, Refusal, Trees};
use crate::calls::timers::Source;
use crate::kernel::Kernel;
use crate::mm::{Mm, MmId};
use crate::platform::ThreadId;
use crate::seccomp::{Filter, Seccomp};
use crate::signal::Info;
use crate::task::{Exit, Process, Report, State, Task};

/// Objects that processes share, by where they lie in this kernel.
#[derive(Default)]
struct Shared {
    mms: HashMap<MmId, u32>,
    tables: HashMap<usize, u32>,
    fs: HashMap<usize, u32>,
    actions: HashMap<usize, u32>,
    objects: Objects,
}

/// Filters of system calls, each once, those that others stand on first.
#[derive(Default)]
struct Filters {
    numbers: HashMap<usize, u32>,
    saved: Vec<(Vec<u8>, Option<u32>)>,
}

impl Filters {
    fn number(&mut self, newest: &Arc<Filter>) -> u32 {
        let mut chain = vec![newest];
        while let Some(below) = chain.last().and_then(|filter| filter.parts().1) {
            chain.push(below);
        }
        let mut last = None;
        for filter in chain.into_iter().rev() {
            let saved = &mut self.saved;
            last = Some(*self.numbers.entry(Arc::as_ptr(filter) as usize).or_insert_with(|| {
                saved.push((filter.parts().0.bytes().to_vec(), last));
                saved.len() as u32 - 1
            }));
        }
        last.unwrap_or(0)
    }
}

fn info(info: &Info) -> SavedInfo {
    (info.signal, info.code, info.errno, info.fields)
}

impl Kernel {
    /// Everything, when everybody rests: it stays as it is. `trees`: the containers' namespaces. A refusal says what cannot be saved.
    pub fn save(
        &mut self,
        trees: &[Arc<MountNamespace>],
        foreign: &dyn Foreign,
        pages: &mut Pages<'_>,
    ) -> Result<Saved, Refusal> {
        let trees = Trees(trees);
        let mut files = Files::new(self, &trees, foreign);
        let mut saved = self.saved_head();
        let mut shared = Shared::default();
        let pids: Vec<u32> = self.tasks.processes.keys().copied().collect();
        for pid in pids {
            let process = self.save_process(pid, &mut files, &mut shared, &mut saved, pages);
            saved.processes.push(process.map_err(|why| self.blame(pid, &why))?);
        }
        let mut filters = Filters::default();
        let tids: Vec<u32> = self.tasks.tasks.keys().copied().collect();
        for tid in tids {
            let Some(pid) = self.tasks.tasks.get(&tid).map(|task| task.pid) else { continue };
            if self.tasks.processes.get(&pid).is_some_and(|process| process.exit.is_none()) {
                saved.tasks.push(self.save_task(tid, &mut filters).map_err(|why| self.blame(pid, &why))?);
            }
        }
        saved.sysv = self.save_sysv(&mut files);
        saved.files = files.save(self, pages)?;
        saved.locks = files.locks(&shared.tables)?;
        saved.filters = filters.saved;
        (saved.pipes, saved.leaves, saved.sockets) = (files.pipes, files.leaves, files.sockets);
        (saved.terminals, saved.queues) = (files.terminals.saved, files.queues.saved);
        saved.objects = shared.objects.saved;
        Ok(saved)
    }

    fn blame(&self, pid: u32, why: &str) -> Refusal {
        let name = self.tasks.processes.get(&pid).map_or_else(String::new, |p| self.name_of(p));
        format!("process {} ({name}): {why}", crate::pids::seen(pid))
    }

    fn name_of(&self, process: &Process) -> String {
        let name = self.tasks.tasks.get(&process.pid).map_or(process.name, |task| task.name);
        String::from_utf8_lossy(&name).trim_end_matches('\0').to_string()
    }

    fn saved_head(&self) -> Saved {
        Saved {
            monotonic_ns: self.timers.now_ns(),
            vdso: self.platform.vdso(),
            last_numbers: self.tasks.all_last(),
            pipes: Vec::new(),
            leaves: Vec::new(),
            sockets: Vec::new(),
            objects: Vec::new(),
            files: Vec::new(),
            tables: Vec::new(),
            fs: Vec::new(),
            actions: Vec::new(),
            mms: Vec::new(),
            processes: Vec::new(),
            filters: Vec::new(),
            tasks: Vec::new(),
            first: self.is_first.iter().copied().collect(),
            joined: self.joined.iter().copied().collect(),
            locks: Vec::new(),
            sysv: SavedSysV { next: [0; 3], segments: Vec::new(), semaphores: Vec::new(), queues: Vec::new() },
            terminals: Vec::new(),
            queues: Vec::new(),
        }
    }

    fn save_process(
        &mut self,
        pid: u32,
        files: &mut Files<'_>,
        shared: &mut Shared,
        saved: &mut Saved,
        pages: &mut Pages<'_>,
    ) -> Result<SavedProcess, Refusal> {
        let life = match self.tasks.processes.get(&pid).filter(|process| process.exit.is_none()) {
            Some(_) => Some(self.save_life(pid, files, shared, saved, pages)?),
            None => None,
        };
        let p = self.tasks.processes.get(&pid).ok_or("it has gone")?;
        let executable = p.executable.as_ref().filter(|_| life.is_some());
        let executable = executable.map(|path| place(files.trees, path, "its program")).transpose()?;
        let c = &p.credentials;
        Ok(SavedProcess {
            pid,
            parent: p.parent,
            group: p.group,
            session: p.session,
            container: p.container,
            namespace: files.trees.number(&p.namespace)?,
            life,
            exit: p.exit.map(|exit| match exit {
                Exit::Code(code) => code.into(),
                Exit::Signal(signal) => -signal,
            }),
            pending: p.pending.iter().map(info).collect(),
            ids: [c.uid, c.gid, p.ids.uid, p.ids.saved_uid, p.ids.gid, p.ids.saved_gid],
            fs_ids: (p.ids.fs_uid, p.ids.fs_gid),
            groups: c.groups.to_vec(),
            capabilities: [c.capabilities, p.ids.permitted, p.ids.inheritable, p.ids.bounding, p.ids.ambient],
            securebits: p.ids.securebits,
            exit_signal: p.exit_signal,
            report: p.report.map(|report| match report {
                Report::Stopped(signal) => signal,
                Report::Continued => 0,
            }),
            timers: self.saved_timers(p),
            schedule: p.schedule.save(),
            vfork_waiter: p.vfork_waiter,
            limits: p.limits,
            executable,
            has_execed: p.has_execed,
            started_ns: p.started_ns,
            alarm: p.alarm.as_ref().map(|alarm| (alarm.due_ns, alarm.interval_ns)),
            processor_alarms: self.saved_processor_alarms(p),
            stopped: p.stopped,
            death_signal: p.death_signal,
            no_new_privileges: p.no_new_privileges,
            subreaper: p.subreaper,
            dumpable: p.dumpable,
            without_huge_pages: p.without_huge_pages,
            oom_score_adj: p.oom_score_adj,
            personality: p.personality,
            io_priority: p.io_priority,
            name: p.name,
            // Of one that goes on it is counted anew.
            used: p.exit.map_or([0; 4], |_| p.used.to_words()),
            children_used: p.children_used.to_words(),
        })
    }

    fn saved_timers(&self, process: &Process) -> Vec<SavedPosixTimer> {
        let mut saved: Vec<_> = process.posix_timers.iter().map(|(id, timer)| timer.save(*id)).collect();
        let used = self.process_cpu_ns(process.pid);
        for timer in saved.iter_mut().filter(|timer| timer.clock == PROCESSOR_CLOCK) {
            timer.due_ns = timer.due_ns.map(|due| due.saturating_sub(used).max(1));
            // which is counted anew
        }
        saved
    }

    fn saved_processor_alarms(&self, process: &Process) -> Vec<(u8, u64, u64)> {
        let used = self.process_cpu_ns(process.pid);
        let alarms = (0..).zip(&process.processor_alarms);
        let set = alarms.filter_map(|(which, alarm)| Some((which, alarm.as_ref()?)));
        set.map(|(which, alarm)| (which, alarm.due_ns.saturating_sub(used).max(1), alarm.interval_ns)).collect()
    }

    fn save_life(
        &mut self,
        pid: u32,
        files: &mut Files<'_>,
        shared: &mut Shared,
        saved: &mut Saved,
        pages: &mut Pages<'_>,
    ) -> Result<SavedLife, Refusal> {
        let p = self.tasks.processes.get(&pid).ok_or("it has gone")?;
        let next = saved.tables.len() as u32;
        let table = *shared.tables.entry(Arc::as_ptr(&p.files) as usize).or_insert(next);
        if table == next {
            let descriptors = p.files.lock();
            let one = |(fd, file)| (fd, descriptors.close_on_exec(fd).unwrap_or(false), files.number(file));
            saved.tables.push(descriptors.iter().map(one).collect());
        }
        let next = saved.fs.len() as u32;
        let fs = *shared.fs.entry(Arc::as_ptr(&p.fs) as usize).or_insert(next);
        if fs == next {
            let state = p.fs.lock();
            saved.fs.push(SavedFs {
                root: place(files.trees, &state.root, "its root")?,
                cwd: place(files.trees, &state.cwd, "its working directory")?,
                umask: state.umask,
            });
        }
        let next = saved.actions.len() as u32;
        let actions = *shared.actions.entry(Arc::as_ptr(&p.actions) as usize).or_insert(next);
        if actions == next {
            let all = p.actions.lock();
            let one = |signal| all.get(signal);
            let all = (1..=crate::signal::COUNT).map(one).map(|a| [a.handler, a.flags, a.restorer, a.mask]);
            saved.actions.push(all.collect());
        }
        let (id, next) = (p.mm, saved.mms.len() as u32);
        let mm = *shared.mms.entry(id).or_insert(next);
        if mm == next {
            let thread = p.threads.iter().find_map(|tid| self.tasks.tasks.get(tid)).map(|task| task.thread);
            let thread = thread.ok_or("it has no thread")?;
            saved.mms.push(self.save_mm(id, thread, (files, &mut shared.objects), pages)?);
        }
        Ok(SavedLife { mm, table, fs, actions })
    }

    fn save_mm(
        &mut self,
        id: MmId,
        thread: ThreadId,
        (files, objects): (&mut Files<'_>, &mut Objects),
        pages: &mut Pages<'_>,
    ) -> Result<SavedMm, Refusal> {
        let mm: Mm = self.mms.get(&id).ok_or("it has no memory")?.clone();
        let (mut areas, mut pieces) = (Vec::new(), Vec::new());
        for (start, area) in &mm.areas {
            let lost = |errno| format!("its memory at {start:#x} ({}): {errno}", area.name);
            let of = (mm.space, thread);
            let object = match (area.shared, &area.file) {
                (true, None) => Some(self.save_object(of, (*start, area), pages, objects).map_err(lost)?),
                (true, Some(_)) => None,
                _ => {
                    self.save_pages(of, (*start, area), &mm.pieces, pages, &mut pieces).map(|()| None).map_err(lost)?
                }
            };
            areas.push(SavedArea {
                start: *start,
                end: area.end,
                protection: area.protection,
                shared: area.shared,
                file: area.file.as_ref().map(|(file, offset)| (files.number(file), *offset)),
                object,
                name: area.name.to_string(),
            });
        }
        let (sites, regions) = mm.sites.save();
        let Mm { brk_start, brk, top, auxiliary, texts, .. } = mm;
        let (texts, growing) = ((texts.arguments, texts.environment), mm.growing.into_iter().collect());
        Ok(SavedMm { areas, brk_start, brk, top, auxiliary, texts, growing, pages: pieces, sites, regions })
    }

    fn save_task(&mut self, tid: u32, filters: &mut Filters) -> Result<SavedTask, Refusal> {
        let thread = self.thread(tid).map_err(|_| "it has gone")?;
        let lost = |errno| format!("the registers of thread {}: {errno}", crate::pids::seen(tid));
        // First of all: from then on it has a frame.
        let extended = self.platform.extended_state(thread);
        let registers = self.platform.registers(thread).map_err(lost)?;
        let (fs_base, gs_base) = self.platform.segment_bases(thread).map_err(lost)?;
        let task = self.tasks.tasks.get(&tid).ok_or("it has gone")?;
        let call = saved_call(task)?;
        Ok(SavedTask {
            tid,
            pid: task.pid,
            registers: registers.to_words(),
            extended,
            fs_base,
            gs_base,
            call,
            mask: task.mask,
            saved_mask: task.saved_mask,
            pending: task.pending.iter().map(info).collect(),
            waits_for: task.waits_for,
            alt_stack: (task.alt_stack.address, task.alt_stack.size),
            clear_tid: task.clear_tid,
            robust_list: task.robust_list,
            slack_ns: (task.slack_ns, task.usual_slack_ns),
            name: task.name,
            seccomp: match &task.seccomp {
                Seccomp::Off => (false, None),
                Seccomp::Strict => (true, None),
                Seccomp::Filtered(newest) => (false, Some(filters.number(newest))),
            },
        })
    }
}

fn saved_call(task: &Task) -> Result<Option<SavedCall>, Refusal> {
    match (&task.call, task.state) {
        (Some(call), State::Blocked) if call.opening.is_some() => Err(String::from("it waits to open a FIFO")),
        (Some(call), State::Blocked) => {
            let (number, args, deadline_ns, progress) = (call.number, call.args, call.deadline_ns, call.progress);
            Ok(Some(SavedCall { number, args, deadline_ns, progress }))
        }
        _ => Ok(None),
    }
}

fn place(trees: &Trees<'_>, path: &Path, what: &str) -> Result<Place, Refusal> {
    let name = || String::from_utf8_lossy(&path.dentry.name()).into_owned();
    trees.place(path).ok_or_else(|| format!("{what} ({}) was removed", name()))
}

impl crate::calls::timers::PosixTimer {
    fn save(&self, id: i32) -> SavedPosixTimer {
        SavedPosixTimer {
            id,
            clock: match self.source {
                Source::Host(clock) => clock_number(clock),
                Source::Process | Source::Thread(_) => PROCESSOR_CLOCK,
            },
            how: self.notice.how,
            signal: self.notice.signal,
            value: self.notice.value,
            thread: self.notice.thread,
            interval_ns: self.interval_ns,
            due_ns: self.due_ns,
            overrun: self.overrun,
        }
    }
}

impl crate::task::Tasks {
    fn all_last(&self) -> Vec<(u32, u32)> {
        let last: &BTreeMap<u32, u32> = self.numbers();
        last.iter().map(|(view, number)| (*view, *number)).collect()
    }
}
