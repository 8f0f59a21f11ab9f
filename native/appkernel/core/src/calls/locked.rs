//! What is locked in memory and what is there: mlock(2) and its kin, mincore(2). Locks are counted and limited; the host
//! may swap all the same.

use drupe_appkernel_abi::{Errno, Result};

use super::Args;
use crate::kernel::{Done, Kernel};
use crate::mm::{Area, Locked, PAGE, STACK};
use crate::task::Tid;

/// What Linux gives a stack at first.
const STACK_BYTES: u64 = 132 << 10;
const CAP_IPC_LOCK: u32 = 14;
const LIMIT_MEMLOCK: usize = 8;
/// Pages that mincore(2) tells of before others have their turn.
const PAGES_AT_ONCE: u64 = 1 << 16;

impl Kernel {
    /// Bytes that the caller may still lock (RLIMIT_MEMLOCK). EPERM: none at all.
    fn lockable_bytes(&self, tid: Tid) -> Result<u64> {
        let process = self.process(tid)?;
        let limit = process.limits[LIMIT_MEMLOCK].0;
        match limit {
            _ if process.credentials.capable(CAP_IPC_LOCK) => Ok(u64::MAX),
            0 => Err(Errno::PERM),
            _ => Ok((limit & !(PAGE - 1)).saturating_sub(self.mm(tid)?.locked.size_bytes())),
        }
    }

    /// Of memory that is mapped anew: EAGAIN when all must be locked and it may not be. True: it must.
    pub(crate) fn check_future_lock(&self, tid: Tid, flag: bool, size: u64) -> Result<bool> {
        if !flag && !self.mm(tid)?.locked.future {
            return Ok(false);
        }
        (size <= self.lockable_bytes(tid)?).then_some(true).ok_or(Errno::AGAIN)
    }
}

/// The pages that a range of bytes touches. EINVAL, ENOMEM.
fn pages(kernel: &Kernel, tid: Tid, args: &Args) -> Result<(u64, u64)> {
    let (start, size) = (args[0] & !(PAGE - 1), args[1].checked_add(args[0] & (PAGE - 1)).ok_or(Errno::INVAL)?);
    kernel.mm(tid)?.range(start, size)
}

/// mlock(2). EPERM, ENOMEM: it may not, or not so much, or not all of it is mapped.
pub fn mlock(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let room = kernel.lockable_bytes(tid)?;
    if args[1] == 0 {
        return Ok(Done::Value(0));
    }
    let (start, end) = pages(kernel, tid, args)?;
    let mm = kernel.mm_mut(tid)?;
    let mut with = mm.locked.clone();
    with.insert(start, end);
    if !mm.is_mapped(start, end) || with.size_bytes() - mm.locked.size_bytes() > room {
        return Err(Errno::NOMEM);
    }
    mm.locked = with;
    Ok(Done::Value(0))
}

pub fn mlock2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const ONFAULT: u64 = 1;
    if args[2] & !ONFAULT != 0 {
        return Err(Errno::INVAL);
    }
    mlock(kernel, tid, args)
}

pub fn munlock(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[1] == 0 {
        return Ok(Done::Value(0));
    }
    let (start, end) = pages(kernel, tid, args)?;
    let mm = kernel.mm_mut(tid)?;
    mm.locked.remove(start, end);
    mm.is_mapped(start, end).then_some(Done::Value(0)).ok_or(Errno::NOMEM)
}

/// mlockall(2): of the flags one at least, and MCL_ONFAULT not alone.
pub fn mlockall(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const CURRENT: u64 = 1;
    const FUTURE: u64 = 2;
    if !matches!(args[0], 1..=3 | 5..=7) {
        return Err(Errno::INVAL);
    }
    let room = kernel.lockable_bytes(tid)?;
    let mm = kernel.mm_mut(tid)?;
    if args[0] & CURRENT != 0 {
        let mut with = Locked::default();
        mm.areas.iter().for_each(|(start, area)| with.insert(used_from(*start, area), area.end));
        if with.size_bytes().saturating_sub(mm.locked.size_bytes()) > room {
            return Err(Errno::NOMEM);
        }
        mm.locked = with;
    }
    mm.locked.future = args[0] & FUTURE != 0;
    Ok(Done::Value(0))
}

/// Where what is used of an area begins: a stack is mapped farther down than it has grown.
fn used_from(start: u64, area: &Area) -> u64 {
    if area.name == STACK {
        start.max(area.end - STACK_BYTES.min(area.end - start))
    } else {
        start
    }
}

pub fn munlockall(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    kernel.mm_mut(tid)?.locked = Default::default();
    Ok(Done::Value(0))
}

/// mincore(2): of memory without a file what is there; pages of files are the kernel's, and are.
pub fn mincore(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let mm = kernel.mm(tid)?;
    let (start, end) = mm.range(args[0], args[1])?;
    if !mm.is_mapped(start, end) {
        return Err(Errno::NOMEM);
    }
    let done = kernel.pending(tid)?.progress;
    let from = start + done * PAGE;
    let to = end.min(from + PAGES_AT_ONCE * PAGE);
    let there = presence(kernel, tid, from, to)?;
    kernel.put_now(tid, args[2].checked_add(done).ok_or(Errno::FAULT)?, &there)?;
    if to == end {
        return Ok(Done::Value(0));
    }
    kernel.pending(tid)?.progress = (to - start) / PAGE;
    kernel.ready.push(tid);
    Ok(Done::Wait)
}

/// One byte for each page.
fn presence(kernel: &Kernel, tid: Tid, start: u64, end: u64) -> Result<Vec<u8>> {
    let mm = kernel.mm(tid)?;
    let mut there = vec![1; ((end - start) / PAGE) as usize];
    let place = |address: u64| ((address.clamp(start, end) - start) / PAGE) as usize;
    for (at, area) in mm.overlapping(start, end).filter(|(_, area)| !area.shared && area.file.is_none()) {
        let (from, to) = (at.max(start), area.end.min(end));
        let Ok(own) = kernel.platform.own_pages(mm.space, from, to) else { continue };
        there[place(from)..place(to)].fill(0);
        own.iter().for_each(|(from, to)| there[place(*from)..place(*to)].fill(1));
    }
    mm.locked.ranges.iter().for_each(|(from, to)| there[place(*from)..place(*to)].fill(1));
    Ok(there)
}
