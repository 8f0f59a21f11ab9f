//! What procfs shows. It is asked in the middle of a call, when the kernel is busy with the caller: so it reads a record
//! of the processes, which the kernel renews before a call that may look at it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::proc::{Area, Places, Process as Shown, Processes, System};
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{ClockId, FdTable, MountNamespace, OpenFile, Path};

use crate::host::Host;
use crate::kernel::Kernel;
use crate::mm::{Mm, PROT_EXEC, PROT_WRITE, STACK};
use crate::pages;
use crate::pids;
use crate::send::LIMIT_SIGPENDING;
use crate::signal::{set_of, Set, COUNT, SIG_DFL, SIG_IGN};
use crate::task::{FsState, Pid, Process, State, Tid, LIMIT_COUNT};
use crate::usage::Usage;

const TICK_NS: u64 = 10_000_000;

struct Record {
    threads: Vec<Shown>,
    /// Of the one that is being read.
    texts: [Option<Vec<u8>>; 2],
    auxiliary: Vec<u8>,
    areas: Vec<Area>,
    /// Not held: files must be closed when their last process ends.
    files: Weak<Mutex<FdTable>>,
    fs: Weak<Mutex<FsState>>,
    executable: Option<Path>,
    limits: [(u64, u64); LIMIT_COUNT],
    namespace: Arc<MountNamespace>,
}

/// The record.
pub struct Census {
    host: Arc<dyn Host>,
    pid: AtomicU32,
    tid: AtomicU32,
    records: Mutex<BTreeMap<Pid, Record>>,
    system: Mutex<System>,
    /// Names that were written to /proc/PID/comm, for the kernel to take over.
    names: Mutex<Vec<(Tid, Vec<u8>)>>,
    /// And values that were written to /proc/PID/oom_score_adj.
    scores: Mutex<Vec<(Pid, i32)>>,
    /// What was set below /proc/sys: paths there, and values.
    settings: Mutex<BTreeMap<String, String>>,
}

impl Census {
    pub fn new(host: Arc<dyn Host>) -> Arc<Census> {
        let (records, system) = (Mutex::default(), Mutex::new(host.system()));
        let (pid, tid) = (AtomicU32::new(0), AtomicU32::new(0));
        let (names, scores, settings) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Census { host, pid, tid, records, system, names, scores, settings })
    }

    pub(crate) fn show_setting(&self, path: &str, value: &str) {
        self.settings.lock().insert(path.into(), value.into());
    }

    /// The record of a process that the caller names.
    fn of<T>(&self, pid: u32, get: impl FnOnce(&Record) -> T) -> Option<T> {
        self.records.lock().get(&pids::known(self.view(), pid)).map(get)
    }

    /// What the host says of a process's memory (`pages::fill`).
    pub(crate) fn fill_areas(&self, pid: Pid, report: &str) {
        self.records.lock().get_mut(&pid).into_iter().for_each(|record| pages::fill(&mut record.areas, report));
    }

    /// What a process has used until now.
    pub(crate) fn show_usage(&self, pid: Pid, used: Usage) {
        for thread in self.records.lock().get_mut(&pid).into_iter().flat_map(|record| &mut record.threads) {
            thread.peak_resident_bytes = used.peak_bytes;
            (thread.faults[0], thread.faults[2]) = (used.minor_faults, used.major_faults);
        }
    }

    /// Arguments (0) or environment (1) of a process, as its memory has them now.
    pub(crate) fn show_texts(&self, pid: Pid, which: usize, text: Vec<u8>) {
        self.records.lock().get_mut(&pid).into_iter().for_each(|record| record.texts[which] = Some(text.clone()));
    }

    /// The caller's view of numbers: others' processes it cannot name.
    fn view(&self) -> u32 {
        pids::view_of(self.pid.load(Ordering::Relaxed))
    }
}

fn areas(mm: &Mm, root: &Path) -> Vec<Area> {
    let shown = |(start, area): (&u64, &crate::mm::Area)| {
        let mut out =
            Area { start: *start, end: area.end, protection: area.protection, shared: area.shared, ..Area::default() };
        out.name = area.name.as_bytes().to_vec();
        if let Some((file, offset)) = &area.file {
            out.offset = *offset;
            if let (Some(path), Ok(metadata)) = (file.path(), file.metadata()) {
                (out.device, out.inode, out.name) = (metadata.device, metadata.inode, path.link_text(root));
            }
        }
        out
    };
    mm.areas.iter().map(shown).collect()
}

fn of_areas(mm: Option<&Mm>, counts: impl Fn(&crate::mm::Area) -> bool) -> u64 {
    let areas = mm.into_iter().flat_map(|mm| &mm.areas);
    areas.filter(|(_, area)| counts(area)).map(|(start, area)| area.end - start).sum()
}

/// Ignored and caught signals.
fn dispositions(process: &Process) -> (Set, Set) {
    let actions = process.actions.lock();
    (1..=COUNT).fold((0, 0), |(ignored, caught), signal| {
        let bit = crate::signal::bit(signal);
        match actions.get(signal).handler {
            SIG_DFL => (ignored, caught),
            SIG_IGN => (ignored | bit, caught),
            _ => (ignored, caught | bit),
        }
    })
}

impl Kernel {
    /// Renew the record for the caller of a call; `all` even if no process has come or gone since.
    pub(crate) fn take_census(&mut self, tid: Tid, all: bool) {
        self.census.pid.store(self.pid(tid), Ordering::Relaxed);
        self.census.tid.store(tid, Ordering::Relaxed);
        if !all && !std::mem::take(&mut self.has_changed) {
            return;
        }
        let records = self.tasks.processes.values().map(|p| (p.pid, self.record(p))).collect();
        *self.census.records.lock() = records;
        let memory = self.memory_of(tid);
        let used_ns = self.gone_ns + self.mms.values().map(|mm| self.platform.cpu_ns(mm.space)).sum::<u64>();
        let mut system = self.census.system.lock();
        (system.memory_bytes, system.memory_free_bytes) = memory;
        system.since_boot = self.host.now(ClockId::Boottime).since_epoch();
        system.user_ticks = used_ns / TICK_NS;
        system.idle = (system.since_boot * system.processors).saturating_sub(Duration::from_nanos(used_ns));
        system.host_name = String::from_utf8_lossy(&self.hostname).into_owned();
        system.domain_name = "(none)".into();
        system.threads = self.tasks.tasks.len() as u32;
        system.running = self.tasks.tasks.values().filter(|t| t.state == State::Running).count() as u32;
        system.last_pid = self.tasks.last(self.view(tid));
    }

    /// Names and values that were written to /proc.
    pub(crate) fn take_names(&mut self) {
        let names = std::mem::take(&mut *self.census.names.lock());
        for (tid, name) in names {
            if let Ok(task) = self.task_mut(tid) {
                task.name = crate::exec::task_name(&name);
            }
        }
        let scores = std::mem::take(&mut *self.census.scores.lock());
        for (pid, score) in scores {
            self.tasks.processes.get_mut(&pid).into_iter().for_each(|process| process.oom_score_adj = score);
        }
    }

    fn record(&self, process: &Process) -> Record {
        let fs = process.fs.lock();
        let mm = self.mms.get(&process.mm);
        let record = Record {
            threads: Vec::new(),
            texts: [None, None],
            auxiliary: mm.map(|mm| mm.auxiliary.clone()).unwrap_or_default(),
            areas: mm.map(|mm| areas(mm, &fs.root)).unwrap_or_default(),
            files: Arc::downgrade(&process.files),
            fs: Arc::downgrade(&process.fs),
            executable: process.executable.clone(),
            limits: process.limits,
            namespace: Arc::clone(&process.namespace),
        };
        drop(fs);
        let threads = match process.exit {
            Some(_) => vec![self.shown(process, process.pid)],
            None => process.threads.iter().map(|tid| self.shown(process, *tid)).collect(),
        };
        Record { threads, ..record }
    }

    pub(crate) fn shown(&self, process: &Process, tid: Tid) -> Shown {
        let task = self.tasks.tasks.get(&tid);
        let state = match (process.exit, process.stopped, task.map(|t| t.state)) {
            (Some(_), ..) | (.., None) => b'Z',
            (_, true, _) => b'T',
            (.., Some(State::Blocked)) => b'S',
            _ if task.is_some_and(|t| !t.trapped && self.platform.is_asleep(t.thread)) => b'S',
            _ => b'R',
        };
        let name = task.map_or(process.name, |t| t.name);
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(15);
        let mm = self.mms.get(&process.mm);
        let (size, resident) = mm.map_or((0, 0), |mm| (mm.size_bytes(), self.platform.resident_bytes(mm.space)));
        let cpu = self.process_cpu_ns(process.pid);
        let (ignored, caught) = dispositions(process);
        let own = self.board.of_session(process.session);
        let (terminal, terminal_group) = own.map_or((0, -1), |(device, group)| (device, pids::seen(group) as i32));
        let (ids, credentials) = (&process.ids, &process.credentials);
        Shown {
            tid: pids::seen(tid),
            pid: pids::seen(process.pid),
            parent: pids::seen(process.parent),
            group: pids::seen(process.group),
            session: pids::seen(process.session),
            terminal,
            terminal_group,
            state,
            name: name[..length].to_vec(),
            thread_count: process.threads.len() as u32,
            uids: [ids.uid, credentials.uid, ids.saved_uid, ids.fs_uid.unwrap_or(credentials.uid)],
            gids: [ids.gid, credentials.gid, ids.saved_gid, ids.fs_gid.unwrap_or(credentials.gid)],
            groups: credentials.groups.to_vec(),
            size_bytes: size,
            resident_bytes: resident,
            peak_bytes: size,
            locked_bytes: mm.map_or(0, |mm| mm.locked.size_bytes()),
            data_bytes: of_areas(mm, |area| !area.shared && area.protection & PROT_WRITE != 0 && area.name != STACK),
            stack_bytes: of_areas(mm, |area| area.name == STACK),
            code_bytes: of_areas(mm, |area| !area.shared && area.protection & PROT_EXEC != 0),
            nice: process.schedule.nice(),
            pending_max: process.limits[LIMIT_SIGPENDING].0,
            processors: self.host.processors() as u32,
            user_ticks: cpu / TICK_NS,
            children_user_ticks: process.children_used.cpu_ns / TICK_NS,
            faults: [0, process.children_used.minor_faults, 0, process.children_used.major_faults],
            start_ticks: process.started_ns / TICK_NS,
            umask: process.fs.lock().umask,
            exit_signal: process.exit_signal,
            signals: [
                task.map_or(0, |t| set_of(&t.pending)),
                set_of(&process.pending),
                task.map_or(0, |t| t.mask),
                ignored,
                caught,
            ],
            capabilities: [ids.inheritable, ids.permitted, credentials.capabilities, ids.bounding, ids.ambient],
            no_new_privileges: process.no_new_privileges,
            seccomp: task.map_or(0, |t| t.seccomp.mode()),
            filters: task.map_or(0, |t| t.seccomp.count()),
            fd_slots: 64,
            oom_score_adj: process.oom_score_adj,
            ..Shown::default()
        }
    }
}

impl Processes for Census {
    fn current(&self) -> (u32, u32) {
        (pids::seen(self.pid.load(Ordering::Relaxed)), pids::seen(self.tid.load(Ordering::Relaxed)))
    }

    fn pids(&self) -> Vec<u32> {
        let view = self.view();
        let records = self.records.lock();
        records.keys().filter(|pid| pids::view_of(**pid) == view).map(|pid| pids::seen(*pid)).collect()
    }

    fn threads(&self, pid: u32) -> Vec<u32> {
        self.of(pid, |record| record.threads.iter().map(|thread| thread.tid).collect()).unwrap_or_default()
    }

    fn process(&self, pid: u32, tid: u32) -> Option<Shown> {
        self.of(pid, |record| record.threads.iter().find(|thread| thread.tid == tid).cloned())?
    }

    fn command_line(&self, pid: u32) -> Option<Vec<u8>> {
        self.of(pid, |record| record.texts[0].clone().unwrap_or_default())
    }

    fn environment(&self, pid: u32) -> Option<Vec<u8>> {
        self.of(pid, |record| record.texts[1].clone().unwrap_or_default())
    }

    fn auxiliary(&self, pid: u32) -> Option<Vec<u8>> {
        self.of(pid, |record| record.auxiliary.clone())
    }

    fn areas(&self, pid: u32) -> Vec<Area> {
        self.of(pid, |record| record.areas.clone()).unwrap_or_default()
    }

    fn files(&self, pid: u32) -> Vec<(i32, bool, Arc<OpenFile>)> {
        let Some(files) = self.of(pid, |record| record.files.upgrade()).flatten() else { return Vec::new() };
        let table = files.lock();
        let entry =
            |(fd, file): (i32, &Arc<OpenFile>)| (fd, table.close_on_exec(fd).unwrap_or(false), Arc::clone(file));
        table.iter().map(entry).collect()
    }

    fn places(&self, pid: u32) -> Option<Places> {
        let (fs, executable) = self.of(pid, |record| (record.fs.upgrade(), record.executable.clone()))?;
        let fs = fs?;
        let fs = fs.lock();
        Some(Places { root: fs.root.clone(), working: fs.cwd.clone(), executable })
    }

    fn limits(&self, pid: u32) -> Option<[(u64, u64); LIMIT_COUNT]> {
        self.of(pid, |record| record.limits)
    }

    fn namespace(&self, pid: u32) -> Option<Arc<MountNamespace>> {
        self.of(pid, |record| Arc::clone(&record.namespace))
    }

    fn set_name(&self, pid: u32, tid: u32, name: &[u8]) -> Result<()> {
        self.process(pid, tid).ok_or(Errno::SRCH)?;
        self.names.lock().push((pids::known(self.view(), tid), name.to_vec()));
        Ok(())
    }

    fn set_oom_score_adj(&self, pid: u32, score: i32) -> Result<()> {
        self.scores.lock().push((pids::known(self.view(), pid), score));
        Ok(())
    }

    fn system(&self) -> System {
        self.system.lock().clone()
    }

    fn settings(&self) -> Vec<(String, String)> {
        self.settings.lock().clone().into_iter().collect()
    }

    fn network_file(&self, name: &str) -> Option<Vec<u8>> {
        self.host.network_file(name)
    }

    fn uuid(&self) -> String {
        let mut bytes = [0; 16];
        self.host.random(&mut bytes);
        uuid(bytes)
    }
}

/// A version 4 UUID from random bytes.
pub fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
