//! The end of threads and processes, and waiting for it (wait(2)).

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::wait;

use crate::calls::descriptors::leave_locks;
use crate::kernel::{Done, Kernel};
use crate::mm::MmId;
use crate::pids;
use crate::platform::{MemoryOp, SpaceId};
use crate::signal::{self, Info, SA_NOCLDSTOP, SA_NOCLDWAIT, SIGCHLD, SIGKILL, SIG_IGN, SI_KERNEL};
use crate::task::{Exit, Pid, Process, Report, State, Tid};
use crate::usage::Usage;

const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
pub const CLD_STOPPED: i32 = 5;
pub const CLD_CONTINUED: i32 = 6;

const WNOHANG: u64 = 1;
const WUNTRACED: u64 = 2;
const WEXITED: u64 = 4;
const WCONTINUED: u64 = 8;
const WNOWAIT: u64 = 0x100_0000;

impl Kernel {
    /// End a thread that stands still.
    pub(crate) fn bury_thread(&mut self, tid: Tid) {
        let Some(task) = self.tasks.tasks.remove(&tid) else { return };
        self.by_thread.remove(&task.thread);
        self.platform.end_thread(task.thread);
    }

    /// The task no longer has its thread (its space may live on, shared by others).
    pub(crate) fn leave_thread(&mut self, tid: Tid) {
        let Ok(task) = self.task(tid) else { return };
        let (thread, mm) = (task.thread, self.process(tid).map(|p| p.mm));
        self.by_thread.remove(&thread);
        let _ = mm;
        self.platform.end_thread(thread);
    }

    /// One user of an address space less.
    pub(crate) fn release_mm(&mut self, container: u32, id: MmId) {
        let Some(mm) = self.mms.get_mut(&id) else { return };
        mm.users -= 1;
        if mm.users == 0 {
            let space = mm.space;
            self.note_time(container, id);
            self.gone_ns += self.platform.cpu_ns(space);
            self.mms.remove(&id);
            self.platform.end_space(space);
        }
    }

    /// Tell whoever waits for the thread's end (set_tid_address(2)).
    fn clear_tid(&mut self, tid: Tid) {
        let Ok(task) = self.task_mut(tid) else { return };
        let (address, thread) = (std::mem::take(&mut task.clear_tid), task.thread);
        if address == 0 || self.put_now(tid, address, &[0; 4]).is_err() {
            return;
        }
        let _gone = self.platform.change(thread, &[MemoryOp::FutexWake { address, count: 1 }]);
    }

    /// exit(2) of one thread.
    pub(crate) fn exit_thread(&mut self, tid: Tid, code: u8) {
        let pid = self.pid(tid);
        let last = self.tasks.processes.get(&pid).is_none_or(|p| p.threads.len() <= 1);
        if last {
            return self.end_process(pid, Exit::Code(code));
        }
        self.leave_robust_list(tid);
        self.clear_tid(tid);
        if let Some(process) = self.tasks.processes.get_mut(&pid) {
            process.threads.retain(|other| *other != tid);
        }
        self.bury_thread(tid);
    }

    pub(crate) fn end_other_threads(&mut self, tid: Tid) {
        let threads = self.process(tid).map(|p| p.threads.clone()).unwrap_or_default();
        threads.into_iter().filter(|&other| other != tid).for_each(|other| self.stop_thread(other));
        if let Ok(process) = self.process_mut(tid) {
            process.threads = vec![tid];
        }
    }

    /// End a thread wherever it is; one in guest code is ended when it leaves that.
    fn stop_thread(&mut self, tid: Tid) {
        let Some(task) = self.tasks.tasks.get_mut(&tid) else { return };
        if task.state == State::Running && !task.trapped {
            task.state = State::Dying;
            self.platform.kick(task.thread);
        } else {
            self.bury_thread(tid);
        }
    }

    /// End a process with all its threads.
    pub(crate) fn end_process(&mut self, pid: Pid, exit: Exit) {
        let Some(process) = self.tasks.processes.get_mut(&pid) else { return };
        if process.exit.is_some() {
            return;
        }
        process.exit = Some(exit);
        self.has_changed = true;
        (process.stopped, process.alarm, process.running) = (false, None, None);
        process.processor_alarms = [None, None, None];
        let timers = std::mem::take(&mut process.posix_timers);
        drop(timers);
        let life = Arc::clone(&process.life);
        let (threads, mm) = (std::mem::take(&mut process.threads), process.mm);
        leave_locks(process);
        let files = std::mem::take(&mut process.files);
        let shared = self.mms.get(&mm).is_some_and(|mm| mm.users > 1);
        self.account(pid);
        threads.iter().for_each(|tid| self.leave_robust_list(*tid));
        for tid in threads {
            match shared {
                // Those who share the space go on.
                true => {
                    if self.task(tid).is_ok_and(|task| task.trapped) {
                        self.clear_tid(tid);
                    }
                    self.stop_thread(tid);
                }
                false => {
                    if let Some(task) = self.tasks.tasks.remove(&tid) {
                        self.by_thread.remove(&task.thread);
                    }
                }
            }
        }
        self.release_mm(self.container_of(pid).unwrap_or(0), mm);
        drop(files);
        life.end();
        self.undo_semaphores(pid);
        self.drop_removed_segments();
        self.end_vfork(pid);
        if self.tasks.processes.get(&pid).is_some_and(|p| p.session == pid) {
            self.leave_terminal(pid);
        }
        self.orphan(pid);
        self.begins_no_more(pid);
        if self.is_first.remove(&pid) {
            self.end_container(pid, exit);
        } else if self.joined.remove(&pid) {
            self.forget(pid);
            self.ended.insert(pid, exit);
        } else {
            self.announce(pid, exit);
        }
    }

    /// What it has used in its space, before that is gone.
    pub(crate) fn account(&mut self, pid: Pid) {
        let Some(id) = self.tasks.processes.get(&pid).map(|process| process.mm) else { return };
        let used = self.used_in(id);
        self.tasks.processes.get_mut(&pid).into_iter().for_each(|process| process.used = process.used.and(used));
    }

    /// Children get another parent: the nearest subreaper, or the container's first process.
    fn orphan(&mut self, pid: Pid) {
        let heir = self.heir(pid);
        let children: Vec<Pid> = self.tasks.processes.values().filter(|p| p.parent == pid).map(|p| p.pid).collect();
        for child in children {
            let Some(process) = self.tasks.processes.get_mut(&child) else { continue };
            (process.parent, process.exit_signal) = (heir, SIGCHLD);
            let (signal, exit) = (process.death_signal, process.exit);
            if let Some(exit) = exit {
                self.announce(child, exit);
            } else if signal != 0 {
                self.send_to_process(child, Info::new(signal, SI_KERNEL));
            }
        }
    }

    fn heir(&self, pid: Pid) -> Pid {
        let mut at = self.tasks.processes.get(&pid).map_or(0, |p| p.parent);
        while let Some(process) = self.tasks.processes.get(&at) {
            if process.exit.is_none() && (process.subreaper || process.parent == 0) {
                return at;
            }
            at = process.parent;
        }
        self.first_beside(pid)
    }

    /// A container ends with its first process.
    fn end_container(&mut self, pid: Pid, exit: Exit) {
        let container = self.tasks.processes.get(&pid).map(|p| p.container);
        let all = self.tasks.processes.values();
        let others: Vec<Pid> = all.filter(|p| Some(p.container) == container && p.pid != pid).map(|p| p.pid).collect();
        for other in others {
            self.is_first.remove(&other);
            self.end_process(other, Exit::Signal(SIGKILL));
            self.forget(other);
        }
        self.forget(pid);
        self.ended.insert(pid, exit);
    }

    /// Tell the parent, or nobody if it does not care.
    fn announce(&mut self, pid: Pid, exit: Exit) {
        let Some(process) = self.tasks.processes.get(&pid) else { return };
        let (parent, signal) = (process.parent, process.exit_signal);
        let Some(parent) = self.tasks.processes.get(&parent) else { return self.forget(pid) };
        let action = parent.actions.lock().get(SIGCHLD);
        let queue = parent.children.clone();
        let carefree = signal == SIGCHLD && (action.handler == SIG_IGN || action.flags & SA_NOCLDWAIT != 0);
        let code = match exit {
            Exit::Code(_) => CLD_EXITED,
            Exit::Signal(_) => CLD_KILLED,
        };
        let status = match exit {
            Exit::Code(code) => i32::from(code),
            Exit::Signal(signal) => signal,
        };
        let info = self.child_info(pid, code, status);
        let to = parent_of(self, pid);
        if carefree {
            self.forget(pid);
        }
        if signal != 0 {
            self.send_to_process(to, Info { signal, ..info });
        }
        queue.wake(wait::IN);
    }

    pub(crate) fn child_info(&self, pid: Pid, code: i32, status: i32) -> Info {
        let uid = self.tasks.processes.get(&pid).map_or(0, |p| p.ids.uid);
        Info {
            signal: SIGCHLD,
            code,
            errno: 0,
            fields: [u64::from(pids::seen(pid)) | u64::from(uid) << 32, status as u32 as u64],
        }
    }

    /// A child was stopped or goes on.
    pub(crate) fn tell_parent(&mut self, pid: Pid, code: i32, status: i32) {
        let parent = parent_of(self, pid);
        let Some(process) = self.tasks.processes.get(&parent) else { return };
        let quiet = process.actions.lock().get(SIGCHLD).flags & SA_NOCLDSTOP != 0;
        let queue = process.children.clone();
        if !quiet {
            let info = self.child_info(pid, code, status);
            self.send_to_process(parent, info);
        }
        queue.wake(wait::IN);
    }

    /// Nothing of the process is left.
    pub(crate) fn forget(&mut self, pid: Pid) {
        self.has_changed = true;
        self.tasks.tasks.remove(&pid);
        self.tasks.processes.remove(&pid);
    }

    /// The host has killed a space: memory ran out, or the stub was damaged beyond repair.
    pub(crate) fn space_died(&mut self, space: SpaceId) {
        let of_space: Vec<MmId> = self.mms.iter().filter(|(_, mm)| mm.space == space).map(|(id, _)| *id).collect();
        let victims = self.tasks.processes.values().filter(|p| of_space.contains(&p.mm) && p.exit.is_none());
        let victims: Vec<Pid> = victims.map(|p| p.pid).collect();
        for pid in victims {
            self.host.log(&format!("process {pid} was killed by the host (out of memory, or a damaged stub)"));
            self.end_process(pid, Exit::Signal(SIGKILL));
        }
    }

    fn is_child(&self, process: &Process, of: Pid, which: i64, group: Pid) -> bool {
        process.parent == of
            && match which {
                -1 => true,
                0 => process.group == group,
                n if n < 0 => i64::from(process.group) == -n,
                n => i64::from(process.pid) == n,
            }
    }

    /// A child that has something to tell: its number, what, and its status as wait4(2) gives it.
    fn find_child(&mut self, tid: Tid, which: i64, options: u64) -> Result<Option<Found>> {
        let (pid, group) = (self.pid(tid), self.process(tid)?.group);
        let all = self.tasks.processes.values();
        let children: Vec<&Process> = all.filter(|p| self.is_child(p, pid, which, group)).collect();
        if children.is_empty() {
            return Err(Errno::CHILD);
        }
        let found = children.into_iter().find_map(|child| news(child, options));
        Ok(found.map(|found| Found { used: self.usage(found.pid).and(found.used), ..found }))
    }

    fn take_child(&mut self, found: &Found, options: u64) {
        if options & WNOWAIT != 0 {
            return;
        }
        let Some(child) = self.tasks.processes.get_mut(&found.pid) else { return };
        if child.exit.is_none() {
            child.report = None;
            return;
        }
        let parent = child.parent;
        self.forget(found.pid);
        if let Some(parent) = self.tasks.processes.get_mut(&parent) {
            parent.children_used = parent.children_used.and(found.used);
        }
    }

    fn wait_child(&mut self, tid: Tid, which: i64, options: u64) -> Result<Option<Option<Found>>> {
        if let Some(found) = self.find_child(tid, which, options)? {
            self.take_child(&found, options);
            return Ok(Some(Some(found)));
        }
        if options & WNOHANG != 0 {
            return Ok(Some(None));
        }
        let (waker, queue) = (self.waker(tid), self.process(tid)?.children.clone());
        self.pending(tid)?.registrations.push(queue.register(wait::IN, waker));
        Ok(None)
    }
}

fn parent_of(kernel: &Kernel, pid: Pid) -> Pid {
    kernel.tasks.processes.get(&pid).map_or(0, |p| p.parent)
}

struct Found {
    pid: Pid,
    uid: u32,
    code: i32,
    status: i32,
    wait_status: u32,
    /// With its children that were waited for.
    used: Usage,
}

fn news(child: &Process, options: u64) -> Option<Found> {
    let (code, status, wait_status) = match (child.exit, child.report) {
        (Some(exit @ Exit::Code(code)), _) if options & WEXITED != 0 => (CLD_EXITED, code.into(), exit.wait_status()),
        (Some(exit @ Exit::Signal(signal)), _) if options & WEXITED != 0 => (CLD_KILLED, signal, exit.wait_status()),
        (None, Some(Report::Stopped(signal))) if options & WUNTRACED != 0 => {
            (CLD_STOPPED, signal, (signal as u32) << 8 | 0x7f)
        }
        (None, Some(Report::Continued)) if options & WCONTINUED != 0 => (CLD_CONTINUED, signal::SIGCONT, 0xffff),
        _ => return None,
    };
    Some(Found { pid: child.pid, uid: child.ids.uid, code, status, wait_status, used: child.children_used })
}

/// exit(2).
pub(crate) fn exit(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    kernel.exit_thread(tid, args[0] as u8);
    Ok(Done::Gone)
}

/// exit_group(2).
pub(crate) fn exit_group(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    kernel.end_process(kernel.pid(tid), Exit::Code(args[0] as u8));
    Ok(Done::Gone)
}

/// wait4(2).
pub(crate) fn wait4(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    let [which, status, options, usage, ..] = *args;
    if options & !(WNOHANG | WUNTRACED | WCONTINUED | 0xe000_0000) & 0xffff_ffff != 0 {
        return Err(Errno::INVAL);
    }
    if which as i32 == i32::MIN {
        return Err(Errno::SRCH); // a group whose number cannot be
    }
    match kernel.wait_child(tid, i64::from(which as i32), options & 0xffff_ffff | WEXITED)? {
        None => Ok(Done::Wait),
        Some(None) => Ok(Done::Value(0)),
        Some(Some(found)) => {
            kernel.put_if(tid, status, &found.wait_status.to_le_bytes())?;
            kernel.put_if(tid, usage, &found.used.to_bytes())?;
            Ok(Done::Value(i64::from(found.pid)))
        }
    }
}

/// waitid(2).
pub(crate) fn waitid(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    let [kind, id, info, options, usage, _] = *args;
    let which = match (kind, id as i32) {
        (0, _) => -1,
        (1, id) if id > 0 => i64::from(id),
        (2, 0) => 0,
        (2, id) if id > 0 => -i64::from(id),
        (3, _) => {
            i64::from(
                kernel.pid_of_fd(tid, id).map_err(|errno| if errno == Errno::SRCH { Errno::CHILD } else { errno })?,
            )
        }
        _ => return Err(Errno::INVAL),
    };
    let known = WNOHANG | WUNTRACED | WEXITED | WCONTINUED | WNOWAIT;
    if options & !known & 0x1fff_ffff != 0 || options & (WUNTRACED | WEXITED | WCONTINUED) == 0 {
        return Err(Errno::INVAL);
    }
    match kernel.wait_child(tid, which, options)? {
        // A descriptor with O_NONBLOCK says so.
        None if kind == 3 && kernel.file(tid, id).is_ok_and(|file| file.is_nonblocking()) => return Err(Errno::AGAIN),
        None => return Ok(Done::Wait),
        Some(None) => kernel.put_if(tid, info, &[0; 128])?,
        Some(Some(found)) => {
            let fields = [u64::from(pids::seen(found.pid)) | u64::from(found.uid) << 32, found.status as u32 as u64];
            let bytes = Info { signal: SIGCHLD, code: found.code, errno: 0, fields }.to_bytes();
            kernel.put_if(tid, info, &bytes)?;
            kernel.put_if(tid, usage, &found.used.to_bytes())?;
        }
    }
    Ok(Done::Value(0))
}
