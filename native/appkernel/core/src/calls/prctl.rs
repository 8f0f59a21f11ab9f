//! prctl(2).

use drupe_appkernel_abi::{Errno, Result};

use super::Args;
use crate::kernel::{Done, Kernel};
use crate::mm::LOWEST;
use crate::privileges::{SECBIT_KEEP_CAPS, SECBIT_NO_CAP_AMBIENT_RAISE, SECURE_ALL};
use crate::signal::COUNT;
use crate::task::{Process, Tid};

const CAP_SETPCAP: u32 = 8;
const CAP_LAST: u64 = 40;
/// The lock of each bit of the securebits.
const LOCKS: u32 = 0xaa;

const SET_PDEATHSIG: u64 = 1;
const GET_PDEATHSIG: u64 = 2;
const GET_DUMPABLE: u64 = 3;
const SET_DUMPABLE: u64 = 4;
const GET_KEEPCAPS: u64 = 7;
const SET_KEEPCAPS: u64 = 8;
const GET_TIMING: u64 = 13;
const SET_TIMING: u64 = 14;
const SET_NAME: u64 = 15;
const GET_NAME: u64 = 16;
const GET_SECCOMP: u64 = 21;
const SET_SECCOMP: u64 = 22;
const CAPBSET_READ: u64 = 23;
const CAPBSET_DROP: u64 = 24;
const GET_TSC: u64 = 25;
const GET_SECUREBITS: u64 = 27;
const SET_SECUREBITS: u64 = 28;
const SET_TIMERSLACK: u64 = 29;
const GET_TIMERSLACK: u64 = 30;
const SET_MM: u64 = 35;
const SET_CHILD_SUBREAPER: u64 = 36;
const GET_CHILD_SUBREAPER: u64 = 37;
const SET_NO_NEW_PRIVS: u64 = 38;
const GET_NO_NEW_PRIVS: u64 = 39;
const GET_TID_ADDRESS: u64 = 40;
const SET_THP_DISABLE: u64 = 41;
const GET_THP_DISABLE: u64 = 42;
const CAP_AMBIENT: u64 = 47;

pub fn prctl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [option, argument, third, fourth, fifth, _] = *args;
    let rest_is_zero = third == 0 && fourth == 0 && fifth == 0;
    let value = match option {
        SET_PDEATHSIG if argument <= COUNT as u64 => set(kernel, tid, |p| p.death_signal = argument as i32)?,
        GET_PDEATHSIG => put(kernel, tid, argument, kernel.process(tid)?.death_signal as u32)?,
        GET_DUMPABLE => kernel.process(tid)?.dumpable.into(),
        SET_DUMPABLE if argument <= 1 => set(kernel, tid, |p| p.dumpable = argument == 1)?,
        GET_SECCOMP => kernel.task(tid)?.seccomp.mode().into(),
        SET_SECCOMP => super::seccomp::set_by_prctl(kernel, tid, argument, third)?,
        GET_TIMING => 0,
        SET_TIMING if argument == 0 => 0,
        SET_NAME | GET_NAME => name(kernel, tid, option, argument)?,
        CAPBSET_READ => (kernel.process(tid)?.ids.bounding & bit(argument)? != 0).into(),
        CAPBSET_DROP => drop_bounding(kernel, tid, argument)?,
        GET_TSC => put(kernel, tid, argument, 1)?,
        GET_KEEPCAPS => (kernel.process(tid)?.ids.securebits & SECBIT_KEEP_CAPS != 0).into(),
        SET_KEEPCAPS if argument <= 1 => keep_capabilities(kernel.process_mut(tid)?, argument == 1)?,
        GET_SECUREBITS => kernel.process(tid)?.ids.securebits.into(),
        SET_SECUREBITS => set_securebits(kernel.process_mut(tid)?, argument)?,
        SET_TIMERSLACK => {
            // As Linux has it: nothing at all, or less than that, is the usual slack.
            let task = kernel.task_mut(tid)?;
            task.slack_ns = if argument as i64 > 0 { argument } else { task.usual_slack_ns };
            0
        }
        GET_TIMERSLACK => kernel.task(tid)?.slack_ns as i64,
        SET_MM => set_texts(kernel, tid, argument, (third, fourth, fifth))?,
        SET_CHILD_SUBREAPER => set(kernel, tid, |p| p.subreaper = argument != 0)?,
        GET_CHILD_SUBREAPER => put(kernel, tid, argument, kernel.process(tid)?.subreaper.into())?,
        SET_NO_NEW_PRIVS if argument == 1 && rest_is_zero => set(kernel, tid, |p| p.no_new_privileges = true)?,
        GET_NO_NEW_PRIVS if argument == 0 && rest_is_zero => kernel.process(tid)?.no_new_privileges.into(),
        GET_TID_ADDRESS => {
            kernel.put_words(tid, argument, &[kernel.task(tid)?.clear_tid])?;
            0
        }
        SET_THP_DISABLE if rest_is_zero => set(kernel, tid, |p| p.without_huge_pages = argument != 0)?,
        GET_THP_DISABLE if argument == 0 && rest_is_zero => kernel.process(tid)?.without_huge_pages.into(),
        CAP_AMBIENT if fourth == 0 && fifth == 0 => ambient(kernel.process_mut(tid)?, argument, third)?,
        _ => return Err(Errno::INVAL),
    };
    Ok(Done::Value(value))
}

fn set(kernel: &mut Kernel, tid: Tid, change: impl FnOnce(&mut Process)) -> Result<i64> {
    change(kernel.process_mut(tid)?);
    Ok(0)
}

fn put(kernel: &Kernel, tid: Tid, address: u64, value: u32) -> Result<i64> {
    kernel.put(tid, address, &value.to_le_bytes())?;
    Ok(0)
}

fn name(kernel: &mut Kernel, tid: Tid, option: u64, address: u64) -> Result<i64> {
    if option == GET_NAME {
        kernel.put(tid, address, &kernel.task(tid)?.name)?;
        return Ok(0);
    }
    let name = kernel.text(tid, address, 16, Errno::INVAL).or_else(|_| kernel.get_bytes(tid, address, 15))?;
    kernel.task_mut(tid)?.name = crate::exec::task_name(&name);
    Ok(0)
}

/// Where procfs finds arguments and environment; nothing else of a memory map. EPERM without CAP_SYS_RESOURCE.
fn set_texts(kernel: &mut Kernel, tid: Tid, which: u64, (address, fourth, fifth): (u64, u64, u64)) -> Result<i64> {
    const CAP_SYS_RESOURCE: u32 = 24;
    if fourth != 0 || fifth != 0 {
        return Err(Errno::INVAL);
    }
    if !kernel.process(tid)?.credentials.capable(CAP_SYS_RESOURCE) {
        return Err(Errno::PERM);
    }
    let mm = kernel.mm_mut(tid)?;
    if !(LOWEST..mm.end).contains(&address) {
        return Err(Errno::INVAL);
    }
    let mut texts = mm.texts;
    match which {
        8 => texts.arguments.0 = address, // PR_SET_MM_ARG_START
        9 => texts.arguments.1 = address,
        10 => texts.environment.0 = address,
        11 => texts.environment.1 = address,
        _ => return Err(Errno::INVAL),
    }
    let ordered = |(start, end): (u64, u64)| start <= end;
    if !ordered(texts.arguments) || !ordered(texts.environment) {
        return Err(Errno::INVAL);
    }
    // Nothing of the program's lies at or above it.
    mm.areas.values().any(|area| area.end > address).then_some(()).ok_or(Errno::FAULT)?;
    mm.texts = texts;
    Ok(0)
}

fn bit(capability: u64) -> Result<u64> {
    (capability <= CAP_LAST).then(|| 1 << capability).ok_or(Errno::INVAL)
}

fn drop_bounding(kernel: &mut Kernel, tid: Tid, capability: u64) -> Result<i64> {
    let process = kernel.process_mut(tid)?;
    let bit = bit(capability)?;
    if !process.credentials.capable(CAP_SETPCAP) {
        return Err(Errno::PERM);
    }
    process.ids.bounding &= !bit;
    Ok(0)
}

fn keep_capabilities(process: &mut Process, keep: bool) -> Result<i64> {
    let bits = &mut process.ids.securebits;
    if *bits & SECBIT_KEEP_CAPS << 1 != 0 {
        return Err(Errno::PERM);
    }
    *bits = *bits & !SECBIT_KEEP_CAPS | if keep { SECBIT_KEEP_CAPS } else { 0 };
    Ok(0)
}

/// EPERM for what is locked, for taking a lock away, for bits that are none, and without CAP_SETPCAP.
fn set_securebits(process: &mut Process, new: u64) -> Result<i64> {
    let old = process.ids.securebits;
    let locked = (old & LOCKS) >> 1;
    let changed = u64::from(old) ^ new;
    let unlocks = u64::from(old & LOCKS) & !new != 0;
    let unknown = new & !u64::from(SECURE_ALL) != 0;
    if changed & u64::from(locked) != 0 || unlocks || unknown || !process.credentials.capable(CAP_SETPCAP) {
        return Err(Errno::PERM);
    }
    process.ids.securebits = new as u32;
    Ok(0)
}

fn ambient(process: &mut Process, operation: u64, capability: u64) -> Result<i64> {
    const IS_SET: u64 = 1;
    const RAISE: u64 = 2;
    const LOWER: u64 = 3;
    const CLEAR_ALL: u64 = 4;
    let ids = &mut process.ids;
    match operation {
        CLEAR_ALL if capability == 0 => ids.ambient = 0,
        IS_SET => return Ok((ids.ambient & bit(capability)? != 0).into()),
        LOWER => ids.ambient &= !bit(capability)?,
        RAISE => {
            let bit = bit(capability)?;
            let forbidden = ids.securebits & SECBIT_NO_CAP_AMBIENT_RAISE != 0;
            if forbidden || ids.permitted & ids.inheritable & bit == 0 {
                return Err(Errno::PERM);
            }
            ids.ambient |= bit;
        }
        _ => return Err(Errno::INVAL),
    }
    Ok(0)
}
