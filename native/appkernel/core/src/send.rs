//! Signals on their way: to threads, processes, groups; alarms.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::wait;

use crate::calls::timers::{forwarded, UNHEARD_NS};
use crate::kernel::Kernel;
use crate::signal::{bit, default_of, set_of, Effect, Info, SIGALRM, SIGCONT, SIGKILL, SIG_DFL, SI_KERNEL, STOPS};
use crate::task::{PendingCall, Pid, ProcessorAlarm, Report, State, TaskWaker, Tid, ALARM, PROCESSOR_ALARM};

/// What waits in one queue at most, whatever RLIMIT_SIGPENDING says.
const MAX_PENDING: usize = 1024;
pub(crate) const LIMIT_SIGPENDING: usize = 11;
/// Signals below this are kept once.
const FIRST_REAL_TIME: i32 = 32;

pub(crate) const LIMIT_CPU: usize = 0;
/// Which processor alarm watches it.
const CPU_LIMIT: usize = 2;
const SECOND_NS: u64 = 1_000_000_000;

/// No time at all is taken for a second.
fn cpu_limit_ns(seconds: u64) -> u64 {
    seconds.max(1).saturating_mul(SECOND_NS)
}

fn enqueue(list: &mut Vec<Info>, info: Info) {
    let known = info.signal < FIRST_REAL_TIME && list.iter().any(|other| other.signal == info.signal);
    if !known && (list.len() < MAX_PENDING || info.signal == SIGKILL) {
        list.push(info);
    }
}

impl Kernel {
    /// EAGAIN when no more of a queued signal may wait for this process and its user's others (RLIMIT_SIGPENDING): those with
    /// a number from 32 on are queued and counted, the others are kept once. `thread`: whose own queue it goes to.
    pub(crate) fn check_pending(&self, pid: Pid, thread: Option<Tid>, signal: i32) -> Result<()> {
        let Some(process) = self.tasks.processes.get(&pid).filter(|_| signal >= FIRST_REAL_TIME) else { return Ok(()) };
        let counted = |list: &[Info]| list.iter().filter(|info| info.signal >= FIRST_REAL_TIME).count();
        let queued = |tid: &Tid| self.tasks.tasks.get(tid).map_or(0, |task| counted(&task.pending));
        let own = thread.map_or(counted(&process.pending), |tid| queued(&tid));
        let all = self.tasks.processes.values().filter(|other| other.ids.uid == process.ids.uid);
        let waiting: usize =
            all.map(|other| counted(&other.pending) + other.threads.iter().map(queued).sum::<usize>()).sum();
        let fits = own < MAX_PENDING && (waiting as u64) < process.limits[LIMIT_SIGPENDING].0;
        fits.then_some(()).ok_or(Errno::AGAIN)
    }

    /// Send to a process: whichever of its threads takes it.
    pub(crate) fn send_to_process(&mut self, pid: Pid, info: Info) {
        self.before_signal(pid, info.signal);
        let Some(process) = self.tasks.processes.get_mut(&pid) else { return };
        if process.exit.is_some() {
            return;
        }
        let open = |tid: &&Tid| {
            let task = self.tasks.tasks.get(tid);
            task.is_some_and(|t| t.mask & bit(info.signal) == 0 && t.state != State::Dying)
        };
        let taker = process.threads.iter().find(open).copied();
        let ignored = process.actions.lock().ignores(info.signal);
        let waited = process
            .threads
            .iter()
            .any(|tid| self.tasks.tasks.get(tid).is_some_and(|t| t.waits_for & bit(info.signal) != 0));
        if ignored && taker.is_some() && !waited {
            return;
        }
        enqueue(&mut process.pending, info);
        let signals = process.signals.clone();
        self.note_pending(pid);
        signals.wake(wait::IN);
        if let Some(tid) = taker {
            self.notify(tid);
        }
        if info.signal == SIGKILL {
            let threads = self.tasks.processes.get(&pid).map(|p| p.threads.clone()).unwrap_or_default();
            threads.into_iter().for_each(|tid| self.notify(tid));
        }
    }

    /// Send to one thread.
    pub(crate) fn send_to_task(&mut self, tid: Tid, info: Info) {
        let pid = self.pid(tid);
        self.before_signal(pid, info.signal);
        let Some(process) = self.tasks.processes.get(&pid) else { return };
        let ignored = process.actions.lock().ignores(info.signal);
        let Some(task) = self.tasks.tasks.get_mut(&tid) else { return };
        if ignored && (task.mask | task.waits_for) & bit(info.signal) == 0 {
            return;
        }
        enqueue(&mut task.pending, info);
        let signals = process.signals.clone();
        self.note_pending(pid);
        signals.wake(wait::IN);
        self.notify(tid);
    }

    /// A fault of the thread's own: it cannot be put off.
    pub(crate) fn force_signal(&mut self, tid: Tid, info: Info) {
        let Ok(process) = self.process(tid) else { return };
        let actions = Arc::clone(&process.actions);
        let Some(task) = self.tasks.tasks.get_mut(&tid) else { return };
        let mut actions = actions.lock();
        if task.mask & bit(info.signal) != 0 || actions.ignores(info.signal) {
            actions.set(info.signal, crate::signal::Action::default());
            task.mask &= !bit(info.signal);
        }
        task.pending.insert(0, info);
    }

    /// SIGCONT ends a stop and takes stop signals back, and the other way round.
    fn before_signal(&mut self, pid: Pid, signal: i32) {
        let Some(process) = self.tasks.processes.get_mut(&pid) else { return };
        let against = match signal {
            SIGCONT => STOPS,
            s if bit(s) & STOPS != 0 => bit(SIGCONT),
            _ => 0,
        };
        if against != 0 {
            process.pending.retain(|info| bit(info.signal) & against == 0);
            for tid in &process.threads {
                if let Some(task) = self.tasks.tasks.get_mut(tid) {
                    task.pending.retain(|info| bit(info.signal) & against == 0);
                }
            }
            self.dropped_signals(pid);
        }
        self.note_pending(pid);
        let Some(process) = self.tasks.processes.get(&pid) else { return };
        if (signal == SIGCONT || signal == SIGKILL) && process.stopped {
            self.unstop(pid, signal == SIGCONT);
        }
    }

    fn unstop(&mut self, pid: Pid, tell: bool) {
        let Some(process) = self.tasks.processes.get_mut(&pid) else { return };
        process.stopped = false;
        process.threads.iter().for_each(|tid| self.ready.push(*tid));
        if tell {
            process.report = Some(Report::Continued);
            self.tell_parent(pid, crate::exit::CLD_CONTINUED, SIGCONT);
        }
    }

    /// Have a thread look at its signals.
    fn notify(&mut self, tid: Tid) {
        let Some(task) = self.tasks.tasks.get(&tid) else { return };
        match task.state {
            State::Running if !task.trapped => self.platform.kick(task.thread),
            State::Blocked | State::Parked => self.ready.push(tid),
            _ => {}
        }
    }

    /// Whether a signal waits that the thread does not block. In vfork(2) it hears of those alone that end it.
    pub(crate) fn has_signal(&self, tid: Tid) -> bool {
        let Ok(task) = self.task(tid) else { return false };
        if task.call.as_ref().is_some_and(PendingCall::is_vfork) {
            return self.deadly_signal(tid).is_some();
        }
        // What sigtimedwait(2) waits for it takes itself, blocked or not.
        let closed = task.mask | task.waits_for;
        let open = |info: &Info| closed & bit(info.signal) == 0 || info.signal == SIGKILL;
        let process = self.tasks.processes.get(&task.pid);
        task.pending.iter().any(open) || process.is_some_and(|p| p.pending.iter().any(open))
    }

    /// A signal that waits, is not blocked, and ends the thread's process.
    pub(crate) fn deadly_signal(&self, tid: Tid) -> Option<i32> {
        let (task, process) = (self.task(tid).ok()?, self.process(tid).ok()?);
        let protected = self.is_first.contains(&task.pid);
        let is_deadly = |info: &&Info| match info.signal {
            SIGKILL => !protected || info.code == SI_KERNEL,
            signal => {
                let by_default = process.actions.lock().get(signal).handler == SIG_DFL;
                !protected && task.mask & bit(signal) == 0 && by_default && default_of(signal) == Effect::Terminate
            }
        };
        task.pending.iter().chain(&process.pending).find(is_deadly).map(|info| info.signal)
    }

    /// kill(2) and its kin: may `tid` signal this process? EPERM.
    pub(crate) fn check_kill(&self, tid: Tid, to: Pid, signal: i32) -> Result<()> {
        const CAP_KILL: u32 = 5;
        let (from, target) = (self.process(tid)?, self.tasks.processes.get(&to).ok_or(Errno::SRCH)?);
        let mine = [from.credentials.uid, from.ids.uid];
        let its = [target.ids.uid, target.ids.saved_uid];
        let same = mine.iter().any(|uid| its.contains(uid));
        let continues = signal == SIGCONT && from.session == target.session;
        (same || continues || from.credentials.capable(CAP_KILL)).then_some(()).ok_or(Errno::PERM)
    }

    /// Set the process's alarm.
    pub(crate) fn set_alarm(&mut self, pid: Pid, due_ns: Option<u64>, interval_ns: u64) {
        let waker = Arc::new(TaskWaker { tid: pid | ALARM, ready: Arc::clone(&self.ready) });
        let alarm =
            due_ns.map(|due_ns| crate::task::Alarm { due_ns, interval_ns, timer: Some(self.timers.at(due_ns, waker)) });
        if let Some(process) = self.tasks.processes.get_mut(&pid) {
            process.alarm = alarm;
        }
    }

    /// Arm ITIMER_VIRTUAL (0) or ITIMER_PROF (1) for so much more processor time; None: disarm it.
    pub(crate) fn set_processor_alarm(&mut self, pid: Pid, which: usize, left_ns: Option<u64>, interval_ns: u64) {
        let used_ns = self.process_cpu_ns(pid);
        let alarm =
            left_ns.map(|left| ProcessorAlarm { due_ns: used_ns.saturating_add(left), interval_ns, timer: None });
        if let Some(process) = self.tasks.processes.get_mut(&pid) {
            process.processor_alarms[which] = alarm;
        }
        self.processor_alarms_due(pid);
    }

    pub(crate) fn process_cpu_ns(&self, pid: Pid) -> u64 {
        let Some(process) = self.tasks.processes.get(&pid) else { return 0 };
        let live = self.mms.get(&process.mm).filter(|_| process.exit.is_none());
        process.used.cpu_ns.saturating_add(live.map_or(0, |mm| self.platform.cpu_ns(mm.space)))
    }

    /// Send what is due, and look again when the next one may be: at the earliest when all threads have run until then.
    pub(crate) fn processor_alarms_due(&mut self, pid: Pid) {
        const SIGNALS: [i32; 3] = [26, 27, 24]; // SIGVTALRM, SIGPROF, SIGXCPU
        const SOONEST_NS: u64 = 1_000_000;
        let (used_ns, now_ns) = (self.process_cpu_ns(pid), self.timers.now_ns());
        for (which, signal) in SIGNALS.into_iter().enumerate() {
            let Some(process) = self.tasks.processes.get_mut(&pid) else { return };
            let threads = process.threads.len().max(1) as u64;
            let Some(alarm) = process.processor_alarms[which].as_mut() else { continue };
            let is_due = alarm.due_ns <= used_ns;
            if is_due {
                let missed = (used_ns - alarm.due_ns).checked_div(alarm.interval_ns);
                alarm.due_ns += missed.map_or(0, |missed| (missed + 1) * alarm.interval_ns);
            }
            if is_due && alarm.interval_ns == 0 {
                process.processor_alarms[which] = None;
            } else {
                let waker = Arc::new(TaskWaker { tid: pid | PROCESSOR_ALARM, ready: Arc::clone(&self.ready) });
                let wait_ns = ((alarm.due_ns - used_ns) / threads).max(SOONEST_NS);
                alarm.timer = Some(self.timers.at(now_ns.saturating_add(wait_ns), waker));
            }
            if is_due {
                let ends = which == CPU_LIMIT && used_ns >= cpu_limit_ns(process.limits[LIMIT_CPU].1);
                self.send_to_process(pid, Info::new(if ends { SIGKILL } else { signal }, SI_KERNEL));
            }
        }
    }

    /// RLIMIT_CPU: SIGXCPU at the soft limit and each second from then on, SIGKILL at the hard one (setrlimit(2)).
    pub(crate) fn watch_cpu_limit(&mut self, pid: Pid) {
        let Some(process) = self.tasks.processes.get(&pid) else { return };
        let (soft, hard) = process.limits[LIMIT_CPU];
        let is_limited = soft.min(hard) != u64::MAX;
        if is_limited || process.processor_alarms[CPU_LIMIT].is_some() {
            let left = cpu_limit_ns(soft.min(hard)).saturating_sub(self.process_cpu_ns(pid));
            self.set_processor_alarm(pid, CPU_LIMIT, is_limited.then_some(left), SECOND_NS);
        }
    }

    /// The alarm may be due. Until its signal has been taken it does not go on.
    pub(crate) fn alarm_due(&mut self, pid: Pid) {
        let now = self.timers.now_ns();
        let Some(alarm) = self.tasks.processes.get_mut(&pid).and_then(|p| p.alarm.as_mut()) else { return };
        let due_ns = alarm.due_ns;
        alarm.timer = None;
        if due_ns > now {
            return self.rearm_alarm(pid, due_ns);
        }
        let waits =
            |kernel: &Self| kernel.tasks.processes.get(&pid).is_some_and(|p| set_of(&p.pending) & bit(SIGALRM) != 0);
        if !waits(self) {
            if let Some(pause_ns) = self.pause_before_timer(pid) {
                return self.rearm_alarm(pid, now.saturating_add(pause_ns));
            }
            self.send_to_process(pid, Info::new(SIGALRM, SI_KERNEL));
        }
        if !waits(self) {
            self.forward_alarm(pid, now, UNHEARD_NS); // it was ignored
        }
    }

    /// Have an alarm that was due be due again, not sooner than `pause_ns` from now; or be over.
    pub(crate) fn forward_alarm(&mut self, pid: Pid, now_ns: u64, pause_ns: u64) {
        let Some(process) = self.tasks.processes.get_mut(&pid) else { return };
        let Some(alarm) = process.alarm.as_mut() else { return };
        match forwarded(alarm.due_ns, alarm.interval_ns, now_ns).0 {
            None => process.alarm = None,
            Some(next) => {
                alarm.due_ns = next;
                self.rearm_alarm(pid, next.max(now_ns.saturating_add(pause_ns)));
            }
        }
    }

    /// Have an alarm that stands still look at this time.
    pub(crate) fn rearm_alarm(&mut self, pid: Pid, at_ns: u64) {
        let waker = Arc::new(TaskWaker { tid: pid | ALARM, ready: Arc::clone(&self.ready) });
        let timers = Arc::clone(&self.timers);
        let alarm = self.tasks.processes.get_mut(&pid).and_then(|process| process.alarm.as_mut());
        if let Some(alarm) = alarm.filter(|alarm| alarm.timer.is_none()) {
            alarm.timer = Some(timers.at(at_ns, waker));
        }
    }
}
