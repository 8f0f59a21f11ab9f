//! seccomp(2), and what prctl(2) has of it.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::Args;
use crate::kernel::{Done, Kernel};
use crate::seccomp::bpf::{Program, MAX_INSTRUCTIONS};
use crate::seccomp::{self, Filter, Seccomp};
use crate::task::Tid;

const CAP_SYS_ADMIN: u32 = 21;

const SET_MODE_STRICT: u64 = 0;
const SET_MODE_FILTER: u64 = 1;
const GET_ACTION_AVAIL: u64 = 2;

const TSYNC: u64 = 1;
const SPEC_ALLOW_AND_LOG: u64 = 6;
const TSYNC_ESRCH: u64 = 16;

/// What a filter may say; nobody can be notified, for descriptors to listen by are not there.
const ACTIONS: [u32; 7] = [
    seccomp::KILL_PROCESS,
    seccomp::KILL_THREAD,
    seccomp::TRAP,
    seccomp::ERRNO,
    seccomp::TRACE,
    seccomp::LOG,
    seccomp::ALLOW,
];

/// seccomp(2).
pub fn seccomp(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [operation, flags, address, ..] = *args;
    match operation & 0xffff_ffff {
        SET_MODE_STRICT if flags as u32 == 0 && address == 0 => set_strict(kernel, tid),
        SET_MODE_FILTER => set_filter(kernel, tid, flags & 0xffff_ffff, address),
        GET_ACTION_AVAIL if flags as u32 == 0 => {
            let bytes = kernel.get_bytes(tid, address, 4)?;
            let action = bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
            ACTIONS.contains(&action).then_some(Done::Value(0)).ok_or(Errno::NOTSUP)
        }
        _ => Err(Errno::INVAL),
    }
}

/// prctl(2), PR_SET_SECCOMP.
pub fn set_by_prctl(kernel: &mut Kernel, tid: Tid, mode: u64, address: u64) -> Result<i64> {
    let done = match mode {
        1 => set_strict(kernel, tid)?,
        2 => set_filter(kernel, tid, 0, address)?,
        _ => return Err(Errno::INVAL),
    };
    Ok(if let Done::Value(value) = done { value } else { 0 })
}

fn set_strict(kernel: &mut Kernel, tid: Tid) -> Result<Done> {
    let task = kernel.task_mut(tid)?;
    if matches!(task.seccomp, Seccomp::Filtered(_)) {
        return Err(Errno::INVAL);
    }
    task.seccomp = Seccomp::Strict;
    Ok(Done::Value(0))
}

fn set_filter(kernel: &mut Kernel, tid: Tid, flags: u64, address: u64) -> Result<Done> {
    if flags & !(TSYNC | SPEC_ALLOW_AND_LOG | TSYNC_ESRCH) != 0 {
        return Err(Errno::INVAL);
    }
    let program = read_program(kernel, tid, address)?;
    let process = kernel.process(tid)?;
    if !process.no_new_privileges && !process.credentials.capable(CAP_SYS_ADMIN) {
        return Err(Errno::ACCES);
    }
    let program = Program::parse(&program)?;
    let own = &kernel.task(tid)?.seccomp;
    if matches!(own, Seccomp::Strict) {
        return Err(Errno::INVAL);
    }
    if flags & TSYNC != 0 {
        if let Some(other) = out_of_step(kernel, tid)? {
            let told = if flags & TSYNC_ESRCH != 0 { Err(Errno::SRCH) } else { Ok(Done::Value(other.into())) };
            return told;
        }
    }
    let filter = Seccomp::Filtered(Filter::new(program, own.newest().map(Arc::clone), &kernel.filters)?);
    let with = if flags & TSYNC != 0 { kernel.process(tid)?.threads.clone() } else { vec![tid] };
    for thread in with {
        kernel.task_mut(thread)?.seccomp = filter.clone();
    }
    Ok(Done::Value(0))
}

/// The bytes of a struct sock_fprog's program.
fn read_program(kernel: &Kernel, tid: Tid, address: u64) -> Result<Vec<u8>> {
    let [count, at] = kernel.get_words(tid, address)?;
    let count = (count & 0xffff) as usize;
    if count == 0 || count > MAX_INSTRUCTIONS {
        return Err(Errno::INVAL);
    }
    kernel.get_bytes(tid, at, 8 * count)
}

/// A thread whose filters the caller does not have: it cannot be given the caller's.
fn out_of_step(kernel: &Kernel, tid: Tid) -> Result<Option<Tid>> {
    let own = &kernel.task(tid)?.seccomp;
    let others = kernel.process(tid)?.threads.iter().filter(|other| **other != tid);
    let differs = |other: &&Tid| kernel.task(**other).is_ok_and(|task| !task.seccomp.is_below(own));
    Ok(others.copied().find(|other| differs(&other)))
}
