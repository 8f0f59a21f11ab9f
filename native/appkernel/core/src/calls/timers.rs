//! POSIX timers (timer_create(2) and its kin), on clocks of the host's.

use std::collections::BTreeMap;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::time::Armed;
use drupe_appkernel_vfs::ClockId;

use super::time::{source, ABSOLUTE};
use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::signal::{Info, COUNT, SIGALRM};
use crate::snapshot::state::SavedPosixTimer;
use crate::task::{Pid, TaskWaker, Tid, TIMER};
use crate::timers::{nanoseconds, timestamp};

const SI_TIMER: i32 = -2;
const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
/// What the C library makes of it is its own: here it is a signal.
const SIGEV_THREAD: u32 = 2;
const SIGEV_THREAD_ID: u32 = 4;
const MAX_TIMERS: usize = 4096;

/// Whom a timer tells, and how.
#[derive(Clone, Copy)]
pub(crate) struct Notice {
    pub(crate) how: u32,
    pub(crate) signal: i32,
    pub(crate) value: u64,
    pub(crate) thread: Tid,
}

/// What a timer counts. The host tells nobody when a processor's time is due: it is looked at when it might be.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    Host(ClockId),
    /// Processor time of the timer's process.
    Process,
    Thread(Tid),
}

/// One timer of a process.
pub struct PosixTimer {
    pub(crate) source: Source,
    pub(crate) notice: Notice,
    pub(crate) interval_ns: u64,
    /// On the monotonic clock, or in processor time.
    pub(crate) due_ns: Option<u64>,
    armed: Option<Box<dyn Armed>>,
    pub(crate) overrun: u32,
}

impl PosixTimer {
    /// One of another kernel's. None: it tells in no way that there is.
    pub(crate) fn restore(
        saved: &SavedPosixTimer,
        source: Source,
        armed: Option<Box<dyn Armed>>,
    ) -> Option<PosixTimer> {
        let SavedPosixTimer { how, signal, value, thread, interval_ns, due_ns, overrun, .. } = *saved;
        let sound = matches!(how, SIGEV_SIGNAL | SIGEV_NONE | SIGEV_THREAD | SIGEV_THREAD_ID);
        let tells = how == SIGEV_NONE || (1..=COUNT).contains(&signal);
        let notice = Notice { how, signal, value, thread };
        (sound && tells).then_some(PosixTimer { source, notice, interval_ns, due_ns, armed, overrun })
    }
}

/// A process's timers, by their numbers.
pub type PosixTimers = BTreeMap<i32, PosixTimer>;

fn notice(kernel: &Kernel, tid: Tid, address: u64, id: i32) -> Result<Notice> {
    if address == 0 {
        return Ok(Notice { how: SIGEV_SIGNAL, signal: SIGALRM, value: id as u64, thread: 0 });
    }
    let [value, second, third] = kernel.get_words(tid, address)?;
    let (signal, how, thread) = (second as i32, (second >> 32) as u32, pids::known(kernel.view(tid), third as u32));
    let known = matches!(how, SIGEV_SIGNAL | SIGEV_NONE | SIGEV_THREAD | SIGEV_THREAD_ID);
    if !known || (how != SIGEV_NONE && !(1..=COUNT).contains(&signal)) {
        return Err(Errno::INVAL);
    }
    if how == SIGEV_THREAD_ID && kernel.task(thread).map_or(0, |task| task.pid) != kernel.pid(tid) {
        return Err(Errno::INVAL);
    }
    Ok(Notice { how, signal, value, thread })
}

pub fn timer_create(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let source = source(kernel, tid, args[0])?;
    let timers = &kernel.process(tid)?.posix_timers;
    let id = (0..).zip(timers.keys().copied().chain([i32::MAX])).find(|(free, used)| free != used);
    let (id, _) = id.filter(|_| timers.len() < MAX_TIMERS).ok_or(Errno::AGAIN)?;
    let notice = notice(kernel, tid, args[1], id)?;
    kernel.put(tid, args[2], &id.to_le_bytes())?;
    let timer = PosixTimer { source, notice, interval_ns: 0, due_ns: None, armed: None, overrun: 0 };
    kernel.process_mut(tid)?.posix_timers.insert(id, timer);
    Ok(Done::Value(0))
}

fn timer(kernel: &mut Kernel, tid: Tid, id: u64) -> Result<&mut PosixTimer> {
    kernel.process_mut(tid)?.posix_timers.get_mut(&(id as i32)).ok_or(Errno::INVAL)
}

/// struct itimerspec: interval and what is left.
fn setting(now_ns: u64, timer: &PosixTimer) -> Vec<u8> {
    let left = timer.due_ns.map_or(0, |due| due.saturating_sub(now_ns).max(1));
    [encode::timespec(timestamp(timer.interval_ns)), encode::timespec(timestamp(left))].concat()
}

pub fn timer_settime(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [id, flags, new, old, ..] = *args;
    if new == 0 {
        return Err(Errno::INVAL);
    }
    let (interval, value) = (kernel.get_time(tid, new)?, kernel.get_time(tid, new.wrapping_add(16))?);
    let (pid, source) = (kernel.pid(tid), timer(kernel, tid, id)?.source);
    let now = kernel.timer_now_ns(pid, source);
    let due = match (nanoseconds(value), source) {
        (0, _) => None,
        (_, Source::Host(clock)) if flags & ABSOLUTE != 0 => Some(kernel.timers.to_monotonic_ns(clock, value)),
        (ns, _) if flags & ABSOLUTE != 0 => Some(ns),
        (ns, _) => Some(now.saturating_add(ns)),
    };
    let armed = due.map(|due| kernel.arm_source(pid, source, due));
    let timer = timer(kernel, tid, id)?;
    let before = setting(now, timer);
    (timer.interval_ns, timer.due_ns, timer.overrun) = (nanoseconds(interval), due, 0);
    let replaced = std::mem::replace(&mut timer.armed, armed);
    drop(replaced);
    kernel.put_if(tid, old, &before)?;
    Ok(Done::Value(0))
}

pub fn timer_gettime(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (pid, source) = (kernel.pid(tid), timer(kernel, tid, args[0])?.source);
    let now = kernel.timer_now_ns(pid, source);
    let bytes = setting(now, timer(kernel, tid, args[0])?);
    kernel.put(tid, args[1], &bytes)?;
    Ok(Done::Value(0))
}

pub fn timer_getoverrun(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    Ok(Done::Value(timer(kernel, tid, args[0])?.overrun.into()))
}

pub fn timer_delete(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let removed = kernel.process_mut(tid)?.posix_timers.remove(&(args[0] as i32));
    removed.map(|_| Done::Value(0)).ok_or(Errno::INVAL)
}

impl Kernel {
    pub(crate) fn arm_timer(&self, pid: Pid, due_ns: u64) -> Box<dyn Armed> {
        self.timers.at(due_ns, Arc::new(TaskWaker { tid: pid | TIMER, ready: Arc::clone(&self.ready) }))
    }

    /// What the timer's clock says.
    fn timer_now_ns(&self, pid: Pid, source: Source) -> u64 {
        match source {
            Source::Host(_) => self.timers.now_ns(),
            Source::Process => self.process_cpu_ns(pid),
            Source::Thread(tid) => self.thread_cpu_ns(tid),
        }
    }

    /// Look at a timer when it may be due: at the earliest when all threads have run until then.
    pub(crate) fn arm_source(&self, pid: Pid, source: Source, due_ns: u64) -> Box<dyn Armed> {
        const SOONEST_NS: u64 = 1_000_000;
        if let Source::Host(_) = source {
            return self.arm_timer(pid, due_ns);
        }
        let threads = match source {
            Source::Process => self.tasks.processes.get(&pid).map_or(1, |process| process.threads.len().max(1)),
            _ => 1,
        };
        let left_ns = due_ns.saturating_sub(self.timer_now_ns(pid, source)) / threads as u64;
        self.arm_timer(pid, self.timers.now_ns().saturating_add(left_ns.max(SOONEST_NS)))
    }

    /// A timer of the process may be due.
    pub(crate) fn timers_due(&mut self, pid: Pid) {
        let Some(process) = self.tasks.processes.get(&pid) else { return };
        let set = process.posix_timers.iter().filter_map(|(id, timer)| Some((*id, timer.source, timer.due_ns?)));
        for (id, source, due) in set.collect::<Vec<_>>() {
            match self.timer_now_ns(pid, source) {
                now if due <= now => self.fire_timer(pid, id, now),
                _ if matches!(source, Source::Host(_)) => {}
                _ => self.look_again(pid, id, source, due),
            }
        }
    }

    fn look_again(&mut self, pid: Pid, id: i32, source: Source, due: u64) {
        let armed = self.arm_source(pid, source, due);
        let timer = self.tasks.processes.get_mut(&pid).and_then(|process| process.posix_timers.get_mut(&id));
        if let Some(timer) = timer {
            timer.armed = Some(armed);
        }
    }

    fn fire_timer(&mut self, pid: Pid, id: i32, now: u64) {
        let timer = |kernel: &Self| {
            let found = kernel.tasks.processes.get(&pid)?.posix_timers.get(&id);
            found.map(|t| (t.source, t.due_ns, t.interval_ns, t.notice))
        };
        let Some((source, Some(due), interval, notice)) = timer(self) else { return };
        let missed = (now - due).checked_div(interval).unwrap_or(0);
        let next = (interval > 0).then(|| due + (missed + 1) * interval);
        let armed = next.map(|next| self.arm_source(pid, source, next));
        let waiting = self.count_overrun(pid, id, notice, missed);
        let Some(timer) = self.tasks.processes.get_mut(&pid).and_then(|p| p.posix_timers.get_mut(&id)) else { return };
        (timer.due_ns, timer.armed) = (next, armed);
        timer.overrun = waiting.unwrap_or(missed as u32);
        let fields = [u64::from(id as u32) | missed << 32, notice.value];
        let info = Info { signal: notice.signal, code: SI_TIMER, errno: 0, fields };
        match notice.how {
            _ if waiting.is_some() => {}
            SIGEV_SIGNAL | SIGEV_THREAD => self.send_to_process(pid, info),
            SIGEV_THREAD_ID => self.send_to_task(notice.thread, info),
            _ => {}
        }
    }

    /// If the timer's last signal still waits: it counts this expiry, too. How often it has then.
    fn count_overrun(&mut self, pid: Pid, id: i32, notice: Notice, missed: u64) -> Option<u32> {
        let of_thread = self.tasks.tasks.get_mut(&notice.thread).map(|task| &mut task.pending);
        let of_process = self.tasks.processes.get_mut(&pid).map(|process| &mut process.pending);
        let mut all = of_thread.into_iter().chain(of_process).flatten();
        let same = |info: &&mut Info| info.code == SI_TIMER && info.fields[0] as u32 == id as u32;
        let info = all.find(same)?;
        info.fields[0] = info.fields[0].saturating_add((missed + 1) << 32);
        Some((info.fields[0] >> 32) as u32)
    }
}
