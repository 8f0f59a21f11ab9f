//! Clocks, sleeping, interval timers, processor time.

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{ClockId, Timestamp};

use super::timers::Source;
use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::task::{PendingCall, Tid};
use crate::timers::{nanoseconds, timestamp};
use crate::usage::Usage;

pub(super) const ABSOLUTE: u64 = 1;
pub const NANOSLEEP: u64 = 35;
pub const CLOCK_NANOSLEEP: u64 = 230;

/// What a clock's number means to a process.
enum Kind {
    Host(ClockId),
    /// Processor time of a process, 0: the caller's.
    Processor(u32),
    /// The same of a thread.
    Thread(u32),
}

fn kind(id: u64) -> Result<Kind> {
    match id as i32 {
        0 | 11 => Ok(Kind::Host(ClockId::Realtime)),
        1 | 4 => Ok(Kind::Host(ClockId::Monotonic)),
        5 => Ok(Kind::Host(ClockId::RealtimeCoarse)),
        6 => Ok(Kind::Host(ClockId::MonotonicCoarse)),
        7..=9 => Ok(Kind::Host(if id == 8 { ClockId::Realtime } else { ClockId::Boottime })),
        2 => Ok(Kind::Processor(0)),
        3 => Ok(Kind::Thread(0)),
        // The number's complement, what is counted (3: a descriptor's, of which there are none), and whether of a thread.
        id if id < 0 && id & 7 < 3 => Ok(Kind::Processor(!(id >> 3) as u32)),
        id if id < 0 && id & 3 != 3 => Ok(Kind::Thread(!(id >> 3) as u32)),
        _ => Err(Errno::INVAL),
    }
}

/// A clock of the host's. EINVAL; EOPNOTSUPP for processor clocks.
pub(super) fn clock(id: u64) -> Result<ClockId> {
    match kind(id)? {
        Kind::Host(ClockId::RealtimeCoarse | ClockId::MonotonicCoarse) => Err(Errno::NOTSUP),
        Kind::Host(id) => Ok(id),
        Kind::Processor(_) | Kind::Thread(_) => Err(Errno::NOTSUP),
    }
}

/// The clock of a timer of the caller's: its own processor time, or one of the host's. EINVAL, EOPNOTSUPP.
pub(super) fn source(kernel: &Kernel, tid: Tid, id: u64) -> Result<Source> {
    match kind(id)? {
        Kind::Processor(number) if kernel.pid(counted(kernel, tid, number)?) == kernel.pid(tid) => Ok(Source::Process),
        Kind::Thread(number) => {
            let thread = counted(kernel, tid, number)?;
            (kernel.pid(thread) == kernel.pid(tid)).then_some(Source::Thread(thread)).ok_or(Errno::INVAL)
        }
        _ => clock(id).map(Source::Host),
    }
}

impl Kernel {
    /// Processor time of the caller's process until now.
    pub(crate) fn own_cpu_ns(&self, tid: Tid) -> u64 {
        self.process_cpu_ns(self.pid(tid))
    }

    /// The same of a thread alone.
    pub(crate) fn thread_cpu_ns(&self, tid: Tid) -> u64 {
        let own = self.thread(tid).ok().and_then(|thread| self.platform.thread_cpu_ns(thread));
        own.unwrap_or_else(|| self.own_cpu_ns(tid))
    }

    /// A call is left before its end: nanosleep(2) says how long it would have slept.
    pub(crate) fn leave_call(&mut self, tid: Tid, call: &PendingCall) {
        if let Ok(task) = self.task_mut(tid) {
            task.waits_for = 0;
        }
        let rest_at = match (call.number, call.args) {
            (NANOSLEEP, args) => args[1],
            (CLOCK_NANOSLEEP, args) if args[1] & ABSOLUTE == 0 => args[3],
            _ => return,
        };
        let left = call.deadline_ns.unwrap_or(0).saturating_sub(self.timers.now_ns());
        if rest_at != 0 {
            // EFAULT would hide EINTR
            let _nowhere = self.put_now(tid, rest_at, &encode::timespec(timestamp(left)));
        }
    }
}

/// The thread whose process is asked about. EINVAL when it is gone.
fn counted(kernel: &Kernel, tid: Tid, number: u32) -> Result<Tid> {
    let known = if number == 0 { tid } else { pids::known(kernel.view(tid), number) };
    kernel.task(known).map(|_| known).map_err(|_| Errno::INVAL)
}

pub fn clock_gettime(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let time = match kind(args[0])? {
        Kind::Host(id) => kernel.host.now(id),
        Kind::Processor(number) => timestamp(kernel.own_cpu_ns(counted(kernel, tid, number)?)),
        Kind::Thread(number) => timestamp(kernel.thread_cpu_ns(counted(kernel, tid, number)?)),
    };
    kernel.put(tid, args[1], &encode::timespec(time))?;
    Ok(Done::Value(0))
}

pub fn clock_getres(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if let Kind::Processor(number) | Kind::Thread(number) = kind(args[0])? {
        counted(kernel, tid, number)?;
    }
    let coarse = matches!(args[0], 5 | 6);
    let step = Timestamp::new(0, if coarse { 4_000_000 } else { 1 });
    kernel.put_if(tid, args[1], &encode::timespec(step))?;
    Ok(Done::Value(0))
}

/// adjtimex(2) that only asks: the state of a clock that nobody here steers. EPERM for changes.
pub fn adjtimex(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const WORDS: usize = 26; // struct timex
    const TICK_US: u64 = 10_000;
    const UNSYNCHRONIZED: u64 = 0x40;
    const ERROR: i64 = 5;
    if kernel.get_u32(tid, args[0])? != 0 {
        return Err(Errno::PERM);
    }
    let now = kernel.host.now(ClockId::Realtime);
    let mut words = [0; WORDS];
    (words[3], words[4], words[5]) = (16_000_000, 16_000_000, UNSYNCHRONIZED);
    (words[7], words[8]) = (1, 32_768_000);
    (words[9], words[10], words[11]) = (now.seconds as u64, u64::from(now.nanoseconds) / 1000, TICK_US);
    kernel.put_words(tid, args[0], &words)?;
    Ok(Done::Value(ERROR))
}

/// clock_adjtime(2), of CLOCK_REALTIME.
pub fn clock_adjtime(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    match kind(args[0])? {
        Kind::Host(ClockId::Realtime) => adjtimex(kernel, tid, &[args[1], 0, 0, 0, 0, 0]),
        _ => Err(Errno::NOTSUP),
    }
}

pub fn gettimeofday(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let now = kernel.host.now(ClockId::Realtime);
    kernel.put_if(tid, args[0], &encode::words(&[now.seconds as u64, u64::from(now.nanoseconds) / 1000]))?;
    kernel.put_if(tid, args[1], &[0; 8])?;
    Ok(Done::Value(0))
}

pub fn time(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let now = kernel.host.now(ClockId::Realtime).seconds;
    kernel.put_if(tid, args[0], &now.to_le_bytes())?;
    Ok(Done::Value(now))
}

fn sleep(kernel: &mut Kernel, tid: Tid, deadline_ns: impl FnOnce(&Kernel) -> Result<u64>) -> Result<Done> {
    if kernel.is_over(tid) {
        return Ok(Done::Value(0));
    }
    let deadline = match kernel.pending(tid)?.deadline_ns {
        Some(deadline) => deadline,
        None => deadline_ns(kernel)?,
    };
    kernel.wait_until(tid, Some(deadline))
}

pub fn nanosleep(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    sleep(kernel, tid, |k| Ok(k.timers.now_ns().saturating_add(nanoseconds(k.get_time(tid, args[0])?))))
}

pub fn clock_nanosleep(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [clock, flags, request, ..] = *args;
    let id = self::clock(clock)?;
    sleep(kernel, tid, |k| {
        let time = k.get_time(tid, request)?;
        match flags & ABSOLUTE {
            0 => Ok(k.timers.now_ns().saturating_add(nanoseconds(time))),
            _ => Ok(k.timers.to_monotonic_ns(id, time)),
        }
    })
}

fn remaining(kernel: &Kernel, tid: Tid) -> Result<(u64, u64)> {
    let now = kernel.timers.now_ns();
    let alarm = kernel.process(tid)?.alarm.as_ref();
    Ok(alarm.map_or((0, 0), |alarm| (alarm.due_ns.saturating_sub(now).max(1), alarm.interval_ns)))
}

pub fn alarm(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (left, _) = remaining(kernel, tid)?;
    let seconds = u64::from(args[0] as u32);
    let due = kernel.timers.now_ns() + seconds * 1_000_000_000;
    kernel.set_alarm(kernel.pid(tid), (seconds > 0).then_some(due), 0);
    Ok(Done::Value(left.div_ceil(1_000_000_000) as i64))
}

fn timeval_words(ns: u64) -> [u64; 2] {
    [ns / 1_000_000_000, ns % 1_000_000_000 / 1000]
}

pub fn getitimer(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (left, interval) = match args[0] {
        0 => remaining(kernel, tid)?,
        1 | 2 => processor_remaining(kernel, tid, args[0] as usize - 1)?,
        _ => return Err(Errno::INVAL),
    };
    kernel.put_words(tid, args[1], &[timeval_words(interval), timeval_words(left)].concat())?;
    Ok(Done::Value(0))
}

fn processor_remaining(kernel: &Kernel, tid: Tid, which: usize) -> Result<(u64, u64)> {
    let (used, alarm) = (kernel.own_cpu_ns(tid), kernel.process(tid)?.processor_alarms[which].as_ref());
    Ok(alarm.map_or((0, 0), |alarm| (alarm.due_ns.saturating_sub(used).max(1), alarm.interval_ns)))
}

pub fn setitimer(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [which, new, old, ..] = *args;
    let before = match which {
        0 => remaining(kernel, tid)?,
        1 | 2 => processor_remaining(kernel, tid, which as usize - 1)?,
        _ => return Err(Errno::INVAL),
    };
    let times: [u64; 4] = if new == 0 { [0; 4] } else { kernel.get_words(tid, new)? };
    if times[1] >= 1_000_000 || times[3] >= 1_000_000 || (times[0] | times[2]) >> 32 != 0 {
        return Err(Errno::INVAL);
    }
    let ns = |seconds: u64, micro: u64| seconds * 1_000_000_000 + micro * 1000;
    let value = ns(times[2], times[3]);
    let (pid, value, interval) = (kernel.pid(tid), (value > 0).then_some(value), ns(times[0], times[1]));
    match which {
        0 => kernel.set_alarm(pid, value.map(|value| kernel.timers.now_ns() + value), interval),
        _ => kernel.set_processor_alarm(pid, which as usize - 1, value, interval),
    }
    if old != 0 {
        kernel.put_words(tid, old, &[timeval_words(before.1), timeval_words(before.0)].concat())?;
    }
    Ok(Done::Value(0))
}

pub fn getrusage(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let own = || kernel.usage(kernel.pid(tid));
    let used = match args[0] as i32 {
        0 => own(),
        // Faults are counted for all threads together.
        1 => Usage { cpu_ns: kernel.thread_cpu_ns(tid), peak_bytes: own().peak_bytes, ..Usage::default() },
        -1 => kernel.process(tid)?.children_used,
        _ => return Err(Errno::INVAL),
    };
    kernel.put(tid, args[1], &used.to_bytes())?;
    Ok(Done::Value(0))
}

pub fn times(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const TICK_NS: u64 = 10_000_000;
    let (own, children) = (kernel.own_cpu_ns(tid), kernel.process(tid)?.children_used.cpu_ns);
    if args[0] != 0 {
        kernel.put_words(tid, args[0], &[own / TICK_NS, 0, children / TICK_NS, 0])?;
    }
    Ok(Done::Value((kernel.timers.now_ns() / TICK_NS) as i64))
}
