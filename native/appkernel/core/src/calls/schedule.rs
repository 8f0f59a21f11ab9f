//! Scheduling: policies, priorities and processors as a process has set them. They are kept and told; the host schedules all alike.

use drupe_appkernel_abi::{Errno, Result};

use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::task::{Pid, Process, Tid};

const OTHER: u32 = 0;
const FIFO: u32 = 1;
const ROUND_ROBIN: u32 = 2;
const BATCH: u32 = 3;
const IDLE: u32 = 5;
const DEADLINE: u32 = 6;
const RESET_ON_FORK: u32 = 0x4000_0000;
const CAP_SYS_NICE: u32 = 23;
const LIMIT_NICE: usize = 13;
const SLICE_NS: u64 = 4_000_000;

/// What a process has set.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    policy: u32,
    nice: i32,
    /// Processors by their bits; empty: all.
    processors: Vec<u8>,
}

impl Schedule {
    pub(crate) fn nice(&self) -> i32 {
        self.nice
    }

    pub(crate) fn save(&self) -> (u32, i32, Vec<u8>) {
        (self.policy, self.nice, self.processors.clone())
    }

    pub(crate) fn restore((policy, nice, processors): &(u32, i32, Vec<u8>)) -> Schedule {
        Schedule { policy: *policy, nice: (*nice).clamp(-20, 19), processors: processors.clone() }
    }
}

/// The process of a thread, or the caller's for 0. EINVAL, ESRCH.
fn of(kernel: &Kernel, tid: Tid, number: u64) -> Result<Pid> {
    match number as i32 {
        0 => Ok(kernel.pid(tid)),
        n if n < 0 => Err(Errno::INVAL),
        n => Ok(kernel.task(n as u32)?.pid),
    }
}

/// The same for processors: there a negative number is nobody's. ESRCH.
fn with_affinity(kernel: &Kernel, tid: Tid, number: u64) -> Result<Pid> {
    of(kernel, tid, number).map_err(|_| Errno::SRCH)
}

/// Whether the caller may change how a process is scheduled: it is its user, or has CAP_SYS_NICE. EPERM.
fn check_owner(kernel: &Kernel, tid: Tid, pid: Pid) -> Result<()> {
    let (own, other) = (&kernel.process(tid)?.credentials, kernel.tasks.processes.get(&pid).ok_or(Errno::SRCH)?);
    let same = own.uid == other.credentials.uid || own.uid == other.ids.uid;
    (same || own.capable(CAP_SYS_NICE)).then_some(()).ok_or(Errno::PERM)
}

fn process(kernel: &mut Kernel, pid: Pid) -> Result<&mut Process> {
    kernel.tasks.processes.get_mut(&pid).ok_or(Errno::SRCH)
}

fn all_processors(kernel: &Kernel) -> Vec<u8> {
    let count = kernel.host.processors().clamp(1, 1024);
    let mut mask = vec![0; count.div_ceil(64) * 8];
    (0..count).for_each(|cpu| mask[cpu / 8] |= 1 << (cpu % 8));
    mask
}

pub fn sched_getaffinity(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pid = with_affinity(kernel, tid, args[0])?;
    let mut mask = process(kernel, pid)?.schedule.processors.clone();
    if mask.is_empty() {
        mask = all_processors(kernel);
    }
    if (args[1] as usize) < mask.len() || args[1] % 8 != 0 {
        return Err(Errno::INVAL);
    }
    kernel.put(tid, args[2], &mask)?;
    Ok(Done::Value(mask.len() as i64))
}

/// EINVAL when none of the processors is there.
pub fn sched_setaffinity(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (pid, mut mask) = (with_affinity(kernel, tid, args[0])?, all_processors(kernel));
    let given = kernel.get_bytes(tid, args[2], (args[1] as usize).min(mask.len()))?;
    for (at, byte) in mask.iter_mut().enumerate() {
        *byte &= given.get(at).copied().unwrap_or(0);
    }
    if mask.iter().all(|byte| *byte == 0) {
        return Err(Errno::INVAL);
    }
    check_owner(kernel, tid, pid)?;
    process(kernel, pid)?.schedule.processors = mask;
    Ok(Done::Value(0))
}

pub fn sched_getscheduler(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pid = of(kernel, tid, args[0])?;
    Ok(Done::Value(process(kernel, pid)?.schedule.policy.into()))
}

/// Policies without real time alone. EPERM.
pub fn sched_setscheduler(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pid = of(kernel, tid, args[0])?;
    let (policy, priority) = (args[1] as u32, parameter(kernel, tid, args[2])?);
    match policy & !RESET_ON_FORK {
        OTHER | BATCH | IDLE if priority == 0 => {}
        FIFO | ROUND_ROBIN if (1..=99).contains(&priority) => return Err(Errno::PERM),
        _ => return Err(Errno::INVAL),
    }
    check_owner(kernel, tid, pid)?;
    process(kernel, pid)?.schedule.policy = policy;
    Ok(Done::Value(0))
}

pub fn sched_getparam(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    of(kernel, tid, args[0])?;
    if args[1] == 0 {
        return Err(Errno::INVAL);
    }
    kernel.put(tid, args[1], &[0; 4])?;
    Ok(Done::Value(0))
}

pub fn sched_setparam(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pid = of(kernel, tid, args[0])?;
    if parameter(kernel, tid, args[1])? != 0 {
        return Err(Errno::INVAL);
    }
    check_owner(kernel, tid, pid)?;
    Ok(Done::Value(0))
}

/// struct sched_param. EINVAL without one.
fn parameter(kernel: &Kernel, tid: Tid, address: u64) -> Result<u32> {
    if address == 0 {
        return Err(Errno::INVAL);
    }
    kernel.get_u32(tid, address)
}

/// The first version of struct sched_attr.
const ATTRIBUTES_BYTES: u64 = 48;

pub fn sched_getattr(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [pid, address, size, flags, ..] = *args;
    if address == 0 || flags != 0 || !(ATTRIBUTES_BYTES..=4096).contains(&size) {
        return Err(Errno::INVAL);
    }
    let pid = of(kernel, tid, pid)?;
    let schedule = &process(kernel, pid)?.schedule;
    let reset = u64::from(schedule.policy & RESET_ON_FORK != 0);
    let policy = u64::from(schedule.policy & !RESET_ON_FORK);
    let words = [ATTRIBUTES_BYTES | policy << 32, reset, u64::from(schedule.nice as u32), 0, 0, 0];
    kernel.put(tid, address, &encode::words(&words))?;
    Ok(Done::Value(0))
}

/// Policies without real time alone. EPERM.
pub fn sched_setattr(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [pid, address, flags, ..] = *args;
    if address == 0 || flags != 0 {
        return Err(Errno::INVAL);
    }
    let pid = of(kernel, tid, pid)?;
    let [first, flags, nice, ..]: [u64; 6] = kernel.get_words(tid, address)?;
    let (size, policy, nice, priority) = (first as u32, (first >> 32) as u32, nice as i32, (nice >> 32) as u32);
    match policy {
        _ if size != 0 && u64::from(size) < ATTRIBUTES_BYTES || size > 4096 => return Err(Errno::TOOBIG),
        OTHER | BATCH | IDLE if priority == 0 => {}
        FIFO | ROUND_ROBIN | DEADLINE => return Err(Errno::PERM),
        _ => return Err(Errno::INVAL),
    }
    check_owner(kernel, tid, pid)?;
    let own = kernel.process(tid)?;
    let limited = (20 - nice.clamp(-20, 19)) as u64 <= own.limits[LIMIT_NICE].0;
    let raises = own.credentials.capable(CAP_SYS_NICE) || limited;
    let schedule = &mut process(kernel, pid)?.schedule;
    if policy != IDLE && nice < schedule.nice && !raises {
        return Err(Errno::PERM);
    }
    schedule.policy = policy | if flags & 1 != 0 { RESET_ON_FORK } else { 0 };
    if policy != IDLE {
        schedule.nice = nice.clamp(-20, 19);
    }
    Ok(Done::Value(0))
}

pub fn sched_rr_get_interval(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    of(kernel, tid, args[0])?;
    kernel.put(tid, args[1], &encode::words(&[0, SLICE_NS]))?;
    Ok(Done::Value(0))
}

/// Processes that getpriority(2) and setpriority(2) mean. EINVAL, ESRCH.
fn meant(kernel: &Kernel, tid: Tid, which: u64, who: u64) -> Result<Vec<Pid>> {
    let own = kernel.process(tid)?;
    let who = who as u32;
    let is_meant = |p: &&Process| match which {
        0 => p.pid == if who == 0 { own.pid } else { who },
        1 => p.group == if who == 0 { own.group } else { who },
        _ => p.ids.uid == if who == 0 { own.ids.uid } else { who },
    };
    if which > 2 {
        return Err(Errno::INVAL);
    }
    let found: Vec<Pid> = kernel.tasks.processes.values().filter(is_meant).map(|p| p.pid).collect();
    (!found.is_empty()).then_some(found).ok_or(Errno::SRCH)
}

const IO_CLASS_SHIFT: u32 = 13;

/// ioprio_get(2): the highest that one of them has.
pub fn ioprio_get(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let found = meant(kernel, tid, args[0].wrapping_sub(1), args[1])?;
    let own = found.iter().map(|pid| kernel.tasks.processes[pid].io_priority).min();
    Ok(Done::Value(own.unwrap_or(0).into()))
}

/// ioprio_set(2): EPERM for real time.
pub fn ioprio_set(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let value = args[2] as u32;
    match (value >> IO_CLASS_SHIFT, value & 7) {
        (0, level) if level != 0 => return Err(Errno::INVAL),
        (1, _) => return Err(Errno::PERM),
        (0 | 2 | 3, _) => {}
        _ => return Err(Errno::INVAL),
    }
    for pid in meant(kernel, tid, args[0].wrapping_sub(1), args[1])? {
        kernel.check_kill(tid, pid, 0)?;
        process(kernel, pid)?.io_priority = value;
    }
    Ok(Done::Value(0))
}

/// getpriority(2): 20 - nice, of the least nice.
pub fn getpriority(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let found = meant(kernel, tid, args[0], args[1])?;
    let least = found.iter().map(|pid| kernel.tasks.processes[pid].schedule.nice).min();
    Ok(Done::Value(i64::from(20 - least.unwrap_or(0))))
}

/// setpriority(2): EACCES for less niceness without CAP_SYS_NICE.
pub fn setpriority(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let nice = (args[2] as i32).clamp(-20, 19);
    let own = kernel.process(tid)?;
    let may_raise = own.credentials.capable(CAP_SYS_NICE) || (20 - nice) as u64 <= own.limits[LIMIT_NICE].0;
    for pid in meant(kernel, tid, args[0], args[1])? {
        kernel.check_kill(tid, pid, 0)?;
        let schedule = &mut process(kernel, pid)?.schedule;
        if nice < schedule.nice && !may_raise {
            return Err(Errno::ACCES);
        }
        schedule.nice = nice;
    }
    Ok(Done::Value(0))
}
