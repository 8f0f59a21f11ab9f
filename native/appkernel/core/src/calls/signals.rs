//! Signals: actions, masks, sending, waiting.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::wait;

use super::Args;
use crate::kernel::{Done, Kernel};
use crate::signal::{
    bit, set_of, take_pending, Action, AltStack, Info, COUNT, SI_TKILL, SI_USER, SS_DISABLE, SS_ONSTACK, UNBLOCKABLE,
};
use crate::task::{Pid, Tid};

const SET_BYTES: u64 = 8;
const MINSIGSTKSZ: u64 = 2048;

fn check_size(size: u64) -> Result<()> {
    (size == SET_BYTES).then_some(()).ok_or(Errno::INVAL)
}

pub(super) fn check_signal(signal: u64) -> Result<i32> {
    let signal = signal as i32;
    (0..=COUNT).contains(&signal).then_some(signal).ok_or(Errno::INVAL)
}

pub fn rt_sigaction(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [signal, new, old, size, ..] = *args;
    check_size(size)?;
    let signal = check_signal(signal)?;
    if signal == 0 || (new != 0 && bit(signal) & UNBLOCKABLE != 0) {
        return Err(Errno::INVAL);
    }
    let actions = Arc::clone(&kernel.process(tid)?.actions);
    let before = actions.lock().get(signal);
    if new != 0 {
        let [handler, flags, restorer, mask] = kernel.get_words(tid, new)?;
        actions.lock().set(signal, Action { handler, flags, restorer, mask: mask & !UNBLOCKABLE });
        if actions.lock().ignores(signal) {
            kernel.drop_pending(tid, signal)?;
        }
    }
    if old != 0 {
        kernel.put_words(tid, old, &[before.handler, before.flags, before.restorer, before.mask])?;
    }
    Ok(Done::Value(0))
}

impl Kernel {
    /// What is ignored now is no longer pending.
    fn drop_pending(&mut self, tid: Tid, signal: i32) -> Result<()> {
        let process = self.process_mut(tid)?;
        process.pending.retain(|info| info.signal != signal);
        let threads = process.threads.clone();
        for thread in threads {
            self.task_mut(thread)?.pending.retain(|info| info.signal != signal);
        }
        self.dropped_signals(self.pid(tid));
        self.note_pending(self.pid(tid));
        Ok(())
    }

    /// Another mask until the call is over (sigsuspend, ppoll): only the first time round.
    pub(crate) fn swap_mask(&mut self, tid: Tid, address: u64) -> Result<()> {
        if address == 0 || self.task(tid)?.saved_mask.is_some() {
            return Ok(());
        }
        let mask = self.get_u64(tid, address)? & !UNBLOCKABLE;
        let task = self.task_mut(tid)?;
        task.saved_mask = Some(std::mem::replace(&mut task.mask, mask));
        Ok(())
    }
}

pub fn rt_sigprocmask(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [how, new, old, size, ..] = *args;
    check_size(size)?;
    let before = kernel.task(tid)?.mask;
    if new != 0 {
        let set = kernel.get_u64(tid, new)?;
        let mask = match how as u32 {
            0 => before | set,
            1 => before & !set,
            2 => set,
            _ => return Err(Errno::INVAL),
        };
        kernel.task_mut(tid)?.mask = mask & !UNBLOCKABLE;
    }
    if old != 0 {
        kernel.put_words(tid, old, &[before])?;
    }
    Ok(Done::Value(0))
}

pub fn rt_sigpending(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let task = kernel.task(tid)?;
    let set = (set_of(&task.pending) | set_of(&kernel.process(tid)?.pending)) & task.mask;
    kernel.put_words(tid, args[0], &[set])?;
    Ok(Done::Value(0))
}

pub fn rt_sigsuspend(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    check_size(args[1])?;
    kernel.swap_mask(tid, args[0])?;
    Ok(Done::Wait)
}

pub fn pause(_: &mut Kernel, _: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Wait)
}

pub fn sigaltstack(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [new, old, ..] = *args;
    let registers = kernel.platform.registers(kernel.thread(tid)?)?;
    let before = kernel.task(tid)?.alt_stack;
    let on_it = before.size > 0 && before.contains(registers.rsp);
    if new != 0 {
        let [address, flags, size] = kernel.get_words(tid, new)?;
        let flags = flags as u32;
        if on_it {
            return Err(Errno::PERM);
        }
        let stack = match flags & !(1 << 31) {
            SS_DISABLE => AltStack::default(),
            0 | SS_ONSTACK if size < MINSIGSTKSZ => return Err(Errno::NOMEM),
            0 | SS_ONSTACK => AltStack { address, size },
            _ => return Err(Errno::INVAL),
        };
        kernel.task_mut(tid)?.alt_stack = stack;
    }
    if old != 0 {
        let flags = match (before.size, on_it) {
            (0, _) => SS_DISABLE,
            (_, true) => SS_ONSTACK,
            _ => 0,
        };
        kernel.put_words(tid, old, &[before.address, flags.into(), before.size])?;
    }
    Ok(Done::Value(0))
}

pub(super) fn own_info(kernel: &Kernel, tid: Tid, signal: i32, code: i32) -> Result<Info> {
    let process = kernel.process(tid)?;
    Ok(Info::from_process(signal, code, process.pid, process.ids.uid))
}

/// The process that a number names: its own, or that of one of its threads.
fn named(kernel: &Kernel, number: u32) -> Pid {
    kernel.task(number).map_or(number, |task| task.pid)
}

/// Live processes of which `chosen` holds.
fn targets(kernel: &Kernel, tid: Tid, which: i32) -> Result<Vec<Pid>> {
    let own = kernel.process(tid)?;
    let chosen = |p: &&crate::task::Process| match which {
        0 => p.group == own.group,
        -1 => p.pid != own.pid && p.parent != 0 && p.container == own.container,
        n if n < 0 => p.group == n.unsigned_abs(),
        n => p.pid == named(kernel, n as u32),
    };
    Ok(kernel.tasks.processes.values().filter(chosen).map(|p| p.pid).collect())
}

pub fn kill(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (which, signal) = (args[0] as i32, check_signal(args[1])?);
    let targets = targets(kernel, tid, which)?;
    if targets.is_empty() {
        return Err(Errno::SRCH);
    }
    let info = own_info(kernel, tid, signal, SI_USER)?;
    let mut refused = Ok(Done::Value(0));
    let mut any = false;
    for pid in targets {
        match kernel.check_kill(tid, pid, signal) {
            Ok(()) => {
                any = true;
                if signal != 0 {
                    kernel.send_to_process(pid, info);
                }
            }
            Err(errno) => refused = Err(errno),
        }
    }
    if any {
        return Ok(Done::Value(0));
    }
    refused
}

fn to_thread(kernel: &mut Kernel, tid: Tid, group: Option<u32>, target: u64, info: Info) -> Result<Done> {
    let target = target as i32;
    if target <= 0 || group.is_some_and(|group| group as i32 <= 0) {
        return Err(Errno::INVAL);
    }
    let pid = kernel.task(target as u32)?.pid;
    if group.is_some_and(|group| group != pid) {
        return Err(Errno::SRCH);
    }
    kernel.check_kill(tid, pid, info.signal)?;
    if info.signal != 0 {
        kernel.check_pending(pid, Some(target as u32), info.signal)?;
        kernel.send_to_task(target as u32, info);
    }
    Ok(Done::Value(0))
}

pub fn tgkill(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let info = own_info(kernel, tid, check_signal(args[2])?, SI_TKILL)?;
    to_thread(kernel, tid, Some(args[0] as u32), args[1], info)
}

pub fn tkill(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let info = own_info(kernel, tid, check_signal(args[1])?, SI_TKILL)?;
    to_thread(kernel, tid, None, args[0], info)
}

/// The siginfo_t that a program gives; it may not pretend to be the kernel to others.
pub(super) fn given_info(kernel: &Kernel, tid: Tid, target: Pid, signal: i32, address: u64) -> Result<Info> {
    let [first, code, fields @ ..]: [u64; 4] = kernel.get_words(tid, address)?;
    let (errno, code) = ((first >> 32) as i32, code as i32);
    if (code >= 0 || code == SI_TKILL) && target != kernel.pid(tid) {
        return Err(Errno::PERM);
    }
    Ok(Info { signal, code, errno, fields })
}

pub fn rt_sigqueueinfo(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (pid, signal) = (named(kernel, args[0] as u32), check_signal(args[1])?);
    let info = given_info(kernel, tid, pid, signal, args[2])?;
    kernel.check_kill(tid, pid, signal)?;
    if signal != 0 {
        kernel.check_pending(pid, None, signal)?;
        kernel.send_to_process(pid, info);
    }
    Ok(Done::Value(0))
}

pub fn rt_tgsigqueueinfo(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let info = given_info(kernel, tid, args[0] as u32, check_signal(args[2])?, args[3])?;
    to_thread(kernel, tid, Some(args[0] as u32), args[1], info)
}

pub fn rt_sigtimedwait(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [set, info_address, timeout, size, ..] = *args;
    check_size(size)?;
    let set = kernel.get_u64(tid, set)? & !UNBLOCKABLE;
    kernel.task_mut(tid)?.waits_for = 0;
    let process = kernel.process(tid)?.pid;
    let from_task = take_pending(&mut kernel.task_mut(tid)?.pending, !set);
    let found = match from_task {
        Some(info) => Some(info),
        None => kernel.tasks.processes.get_mut(&process).and_then(|p| take_pending(&mut p.pending, !set)),
    };
    if let Some(mut info) = found {
        kernel.taken(process, &mut info);
        kernel.note_pending(process);
        kernel.put_if(tid, info_address, &info.to_bytes())?;
        return Ok(Done::Value(info.signal.into()));
    }
    if kernel.is_over(tid) {
        return Err(Errno::AGAIN);
    }
    let deadline = match kernel.pending(tid)?.deadline_ns {
        Some(deadline) => Some(deadline),
        None => kernel.get_deadline(tid, timeout)?,
    };
    let (waker, queue) = (kernel.waker(tid), kernel.process(tid)?.signals.clone());
    kernel.task_mut(tid)?.waits_for = set;
    kernel.pending(tid)?.registrations.push(queue.register(wait::IN, waker));
    kernel.wait_until(tid, deadline)
}
