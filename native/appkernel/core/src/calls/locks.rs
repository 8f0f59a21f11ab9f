//! flock(2) and the record locks of fcntl(2).

use std::collections::BTreeMap;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::locks::{Owner, RecordLock};
use drupe_appkernel_vfs::{wait, OpenFile};

use super::descriptors::lock_owner;
use super::Args;
use crate::kernel::{Done, Kernel};
use crate::task::Tid;

const F_RDLCK: u16 = 0;
const F_WRLCK: u16 = 1;
const F_UNLCK: u16 = 2;

pub fn flock(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const NB: u64 = 4;
    let file = kernel.file(tid, args[0])?;
    let path = file.path().ok_or(Errno::BADF)?;
    let locks = &path.inode().attachment().locks;
    let exclusive = match args[1] & !NB {
        1 => false,
        2 => true,
        8 => {
            locks.unlock_flock(file.id());
            return Ok(Done::Value(0));
        }
        _ => return Err(Errno::INVAL),
    };
    match locks.flock(file.id(), exclusive) {
        Err(Errno::AGAIN) if args[1] & NB == 0 => {
            let waker = kernel.waker(tid);
            let registration = locks.wait_queue().register(wait::IN, waker);
            kernel.pending(tid)?.registrations.push(registration);
            Ok(Done::Wait)
        }
        other => other.map(|()| Done::Value(0)),
    }
}

/// struct flock: type, whence, start, length, pid.
struct Asked {
    kind: u16,
    start: u64,
    end: u64,
}

fn asked(file: &OpenFile, bytes: &[u8]) -> Result<Asked> {
    let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let long = |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or([0; 8]));
    let base = match short(2) {
        0 => 0,
        1 => file.seek(drupe_appkernel_vfs::SeekFrom::Current(0)).unwrap_or(0) as i64,
        2 => file.file().size_bytes()? as i64,
        _ => return Err(Errno::INVAL),
    };
    let start = base.checked_add(long(8)).ok_or(Errno::OVERFLOW)?;
    let length = long(16);
    let (start, end) = match length {
        0 => (start, i64::MAX),
        n if n > 0 => (start, start.checked_add(n).ok_or(Errno::OVERFLOW)?),
        n => (start + n, start),
    };
    let end = if length == 0 { u64::MAX } else { u64::try_from(end).map_err(|_| Errno::INVAL)? };
    Ok(Asked { kind: short(0), start: u64::try_from(start).map_err(|_| Errno::INVAL)?, end })
}

/// F_GETLK, F_SETLK, F_SETLKW, and those of open files.
pub fn record(kernel: &mut Kernel, tid: Tid, file: &Arc<OpenFile>, command: u64, address: u64) -> Result<Done> {
    let bytes = kernel.get_bytes(tid, address, 32)?;
    let asked = asked(file, &bytes)?;
    let path = file.path().ok_or(Errno::BADF)?;
    let locks = &path.inode().attachment().locks;
    let owner = if command >= 36 { Owner::File(file.id()) } else { lock_owner(kernel.process(tid)?) };
    let wanted = RecordLock { owner, exclusive: asked.kind == F_WRLCK, start: asked.start, end: asked.end };
    if matches!(command, 5 | 36) {
        let answer = locks.conflict(&wanted).map_or_else(|| free(&bytes), |held| held_by(&held));
        kernel.put(tid, address, &answer)?;
        return Ok(Done::Value(0));
    }
    match asked.kind {
        F_UNLCK => {
            locks.unlock(owner, asked.start, asked.end);
            return Ok(Done::Value(0));
        }
        F_RDLCK if !file.flags().reads() => return Err(Errno::BADF),
        F_WRLCK if !file.flags().writes() => return Err(Errno::BADF),
        F_RDLCK | F_WRLCK => {}
        _ => return Err(Errno::INVAL),
    }
    kernel.pending(tid)?.lock_of = None;
    match locks.lock(wanted) {
        Err(Errno::AGAIN) if matches!(command, 7 | 38) => {
            if let (Owner::Process { table, .. }, Some(held)) = (owner, locks.conflict(&wanted)) {
                let holder = table_of(held.owner);
                if holder.is_some_and(|holder| leads_back(kernel, table, holder)) {
                    return Err(Errno::DEADLOCK);
                }
                kernel.pending(tid)?.lock_of = holder;
            }
            let waker = kernel.waker(tid);
            let registration = locks.wait_queue().register(wait::IN, waker);
            kernel.pending(tid)?.registrations.push(registration);
            Ok(Done::Wait)
        }
        other => other.map(|()| Done::Value(0)),
    }
}

fn table_of(owner: Owner) -> Option<u64> {
    match owner {
        Owner::Process { table, .. } => Some(table),
        Owner::File(_) => None,
    }
}

/// Whether the holder of a lock waits for `own`, itself or by those for whom it waits.
fn leads_back(kernel: &Kernel, own: u64, holder: u64) -> bool {
    let waits: BTreeMap<u64, u64> = kernel
        .tasks
        .tasks
        .values()
        .filter_map(|task| {
            let of = task.call.as_ref()?.lock_of?;
            Some((table_of(lock_owner(kernel.tasks.processes.get(&task.pid)?))?, of))
        })
        .collect();
    let mut at = holder;
    for _ in 0..=waits.len() {
        if at == own {
            return true;
        }
        let Some(&next) = waits.get(&at) else { return false };
        at = next;
    }
    false
}

fn free(given: &[u8]) -> Vec<u8> {
    let mut bytes = given.to_vec();
    bytes[..2].copy_from_slice(&F_UNLCK.to_le_bytes());
    bytes
}

fn held_by(lock: &RecordLock) -> Vec<u8> {
    let kind = if lock.exclusive { F_WRLCK } else { F_RDLCK };
    let pid = match lock.owner {
        Owner::Process { pid, .. } => crate::pids::seen(pid as u32) as i32,
        Owner::File(_) => -1,
    };
    let mut bytes = vec![0; 32];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&lock.start.to_le_bytes());
    let length = if lock.end == u64::MAX { 0 } else { lock.end - lock.start };
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    bytes[24..28].copy_from_slice(&pid.to_le_bytes());
    bytes
}
