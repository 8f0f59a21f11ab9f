//! System V semaphores: semget(2), semop(2), semctl(2).

use std::collections::BTreeMap;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{wait, WaitQueue};

use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::sysv::{IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, MAY_READ, MAY_WRITE};
use crate::task::{Pid, State, Tid};

const SEM_UNDO: u16 = 0x1000;
/// Of one set, and of one call, whatever is set.
const MAX_IN_SET: u64 = 32_000;
const MAX_OPERATIONS: u64 = 500;
const VALUE_MAX: i64 = 32_767;
const SEM_STAT: u64 = 18;
const SEM_INFO: u64 = 19;
const SEM_STAT_ANY: u64 = 20;
const SEMOP: u64 = 65;
const SEMTIMEDOP: u64 = 220;

/// One set.
pub struct Semaphores {
    /// Value, and who has changed it last.
    values: Vec<(u16, Pid)>,
    /// What to add when a process ends, by process and index.
    undo: BTreeMap<(Pid, u16), i64>,
    operated: u64,
    changed: u64,
    queue: WaitQueue,
}

#[derive(Clone, Copy)]
struct Operation {
    index: u16,
    change: i16,
    flags: u16,
}

pub fn semget(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [key, count, flags, ..] = *args;
    let (by, changed) = (kernel.credentials(tid)?, kernel.seconds());
    let count = count & 0xffff_ffff;
    let fits = |set: &Semaphores| (count <= set.values.len() as u64).then_some(()).ok_or(Errno::INVAL);
    let [in_set, in_all, _, sets] = kernel.ipc.semaphores;
    let known = &kernel.sysv.semaphores;
    let total: u64 = known.values().map(|set| set.values.len() as u64).sum();
    let room = (known.values().count() as u64) < sets && total.saturating_add(count) <= in_all;
    let made = kernel.sysv.semaphores.find(key as u32, flags, &by, fits, || {
        if !(1..=in_set.min(MAX_IN_SET)).contains(&count) {
            return Err(Errno::INVAL);
        }
        if !room {
            return Err(Errno::NOSPC);
        }
        let values = vec![(0, 0); count as usize];
        Ok(Semaphores { values, undo: BTreeMap::new(), operated: 0, changed, queue: WaitQueue::new() })
    });
    made.map(|id| Done::Value(id.into()))
}

fn operations(kernel: &Kernel, tid: Tid, address: u64, count: u64) -> Result<Vec<Operation>> {
    if count == 0 {
        return Err(Errno::INVAL);
    }
    if count > kernel.ipc.semaphores[2].min(MAX_OPERATIONS) {
        return Err(Errno::TOOBIG);
    }
    let bytes = kernel.get_bytes(tid, address, 6 * count as usize)?;
    let half = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let decoded = |b: &[u8]| Operation { index: half(b, 0), change: half(b, 2) as i16, flags: half(b, 4) };
    Ok(bytes.chunks_exact(6).map(decoded).collect())
}

impl Semaphores {
    /// The first that cannot be done now, if all before it are.
    fn blocked(&self, list: &[Operation]) -> Result<Option<Operation>> {
        self.attempt(list).map(|done| done.err())
    }

    /// What all would lead to; or the one that cannot be done now.
    fn attempt(&self, list: &[Operation]) -> Result<std::result::Result<Vec<i64>, Operation>> {
        let mut values: Vec<i64> = self.values.iter().map(|(value, _)| i64::from(*value)).collect();
        for operation in list {
            let value = values.get_mut(usize::from(operation.index)).ok_or(Errno::FBIG)?;
            let next = *value + i64::from(operation.change);
            let blocked = next < 0 || (operation.change == 0 && *value != 0);
            if blocked {
                return Ok(Err(*operation));
            }
            if next > VALUE_MAX {
                return Err(Errno::RANGE);
            }
            *value = next;
        }
        Ok(Ok(values))
    }

    /// All of them, or none: the one that cannot be done now.
    fn operate(&mut self, list: &[Operation], pid: Pid) -> Result<Option<Operation>> {
        let values = match self.attempt(list)? {
            Ok(values) => values,
            Err(blocked) => return Ok(Some(blocked)),
        };
        for operation in list {
            let index = usize::from(operation.index);
            self.values[index] = (values[index] as u16, pid);
            if operation.flags & SEM_UNDO != 0 && operation.change != 0 {
                *self.undo.entry((pid, operation.index)).or_default() -= i64::from(operation.change);
            }
        }
        Ok(None)
    }
}

pub fn semtimedop(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [id, address, count, timeout, ..] = *args;
    let (by, pid, now) = (kernel.credentials(tid)?, kernel.pid(tid), kernel.seconds());
    let list = operations(kernel, tid, address, count)?;
    let tried_before = kernel.pending(tid)?.progress > 0;
    let gone = |errno| if tried_before { Errno::IDRM } else { errno };
    let (permissions, set) = kernel.sysv.semaphores.get_mut(id).map_err(gone)?;
    let changes = list.iter().any(|operation| operation.change != 0);
    permissions.check(&by, if changes { MAY_WRITE } else { MAY_READ })?;
    let queue = set.queue.clone();
    match set.operate(&list, pid)? {
        None => {
            set.operated = now;
            queue.wake(wait::READABLE);
            Ok(Done::Value(0))
        }
        Some(blocked) if u64::from(blocked.flags) & IPC_NOWAIT != 0 || kernel.is_over(tid) => Err(Errno::AGAIN),
        Some(_) => {
            let deadline = match kernel.pending(tid)?.deadline_ns {
                Some(deadline) => Some(deadline),
                None => kernel.get_deadline(tid, timeout)?,
            };
            let registration = queue.register(wait::READABLE, kernel.waker(tid));
            let call = kernel.pending(tid)?;
            call.progress = 1;
            call.registrations.push(registration);
            kernel.wait_until(tid, deadline)
        }
    }
}

pub fn semop(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    semtimedop(kernel, tid, &[args[0], args[1], args[2], 0, 0, 0])
}

/// struct seminfo: the limits, and with SEM_INFO how much there is.
fn information(kernel: &Kernel, command: u64) -> Vec<u8> {
    const UNDO_BYTES: u64 = 20;
    let [in_set, in_all, operations, sets] = kernel.ipc.semaphores;
    let known = &kernel.sysv.semaphores;
    let (used, total) = match command {
        SEM_INFO => (known.values().count() as u64, known.values().map(|set| set.values.len() as u64).sum()),
        _ => (UNDO_BYTES, VALUE_MAX as u64),
    };
    encode::ints(&[in_all, sets, in_all, in_all, in_set, operations, operations, used, VALUE_MAX as u64, total])
}

/// GETNCNT, GETZCNT: how many wait for this semaphore to grow, or (`zero`) to be zero.
fn waiting(kernel: &Kernel, id: u64, index: u16, zero: bool) -> Result<i64> {
    let (_, set) = kernel.sysv.semaphores.get(id)?;
    let stuck = |tid: Tid, args: &Args| {
        let list = operations(kernel, tid, args[1], args[2]).ok()?;
        set.blocked(&list).ok()?
    };
    let of_task = |task: &crate::task::Task| {
        let call =
            task.call.as_ref().filter(|call| task.state == State::Blocked && call.args[0] as i32 == id as i32)?;
        if matches!(call.number, SEMOP | SEMTIMEDOP) {
            stuck(task.tid, &call.args)
        } else {
            None
        }
    };
    let counts = |operation: &Operation| operation.index == index && (operation.change == 0) == zero;
    Ok(kernel.tasks.tasks.values().filter_map(of_task).filter(counts).count() as i64)
}

pub fn semctl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [id, index, command, argument, ..] = *args;
    let (by, pid, now) = (kernel.credentials(tid)?, kernel.pid(tid), kernel.seconds());
    if matches!(command, IPC_INFO | SEM_INFO) {
        kernel.put(tid, argument, &information(kernel, command))?;
        return Ok(Done::Value(kernel.sysv.semaphores.last_place()));
    }
    let by_place = matches!(command, SEM_STAT | SEM_STAT_ANY);
    let id = if by_place { kernel.sysv.semaphores.at(id)? as u64 } else { id };
    let (permissions, set) = kernel.sysv.semaphores.get(id)?;
    let at = index as u32 as usize;
    let queue = set.queue.clone();
    match command {
        IPC_RMID | IPC_SET => permissions.check_owner(&by)?,
        16 | 17 => permissions.check(&by, MAY_WRITE)?,
        SEM_STAT_ANY => {}
        _ => permissions.check(&by, MAY_READ)?,
    }
    let value = set.values.get(at).copied().ok_or(Errno::INVAL);
    match command {
        IPC_STAT | SEM_STAT | SEM_STAT_ANY => {
            let words = [set.operated, 0, set.changed, 0, set.values.len() as u64, 0, 0];
            let bytes = [permissions.encode(0), encode::words(&words)].concat();
            kernel.put(tid, argument, &bytes)?;
            return Ok(Done::Value(if by_place { id as i64 } else { 0 }));
        }
        IPC_SET => {
            let given = kernel.get_bytes(tid, argument, 48)?;
            let (permissions, set) = kernel.sysv.semaphores.get_mut(id)?;
            permissions.set(&given);
            set.changed = now;
        }
        IPC_RMID => drop(kernel.sysv.semaphores.remove(id)),
        11 => return Ok(Done::Value(pids::seen_from(kernel.view(tid), value?.1).into())),
        12 => return Ok(Done::Value(value?.0.into())),
        13 => {
            let bytes: Vec<u8> = set.values.iter().flat_map(|(value, _)| value.to_le_bytes()).collect();
            kernel.put(tid, argument, &bytes)?;
        }
        14 | 15 => return value.and_then(|_| waiting(kernel, id, at as u16, command == 15)).map(Done::Value),
        16 => {
            value?;
            set_values(kernel, id, at, &[argument as u32 as i32 as i64], pid)?;
        }
        17 => {
            let bytes = kernel.get_bytes(tid, argument, 2 * set.values.len())?;
            let new: Vec<i64> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]).into()).collect();
            set_values(kernel, id, 0, &new, pid)?;
        }
        _ => return Err(Errno::INVAL),
    }
    queue.wake(wait::READABLE);
    Ok(Done::Value(0))
}

/// ERANGE.
fn set_values(kernel: &mut Kernel, id: u64, first: usize, new: &[i64], pid: Pid) -> Result<()> {
    if !new.iter().all(|value| (0..=VALUE_MAX).contains(value)) {
        return Err(Errno::RANGE);
    }
    let now = kernel.seconds();
    let (_, set) = kernel.sysv.semaphores.get_mut(id)?;
    set.changed = now;
    for (at, value) in (first..).zip(new) {
        set.values[at] = (*value as u16, pid);
        set.undo.retain(|(_, index), _| usize::from(*index) != at);
    }
    Ok(())
}

impl Kernel {
    /// Undo what a process that has ended did with SEM_UNDO.
    pub(crate) fn undo_semaphores(&mut self, pid: Pid) {
        for set in self.sysv.semaphores.values_mut() {
            let own: Vec<(u16, i64)> =
                set.undo.range((pid, 0)..=(pid, u16::MAX)).map(|((_, index), change)| (*index, *change)).collect();
            for (index, change) in &own {
                set.undo.remove(&(pid, *index));
                let value = &mut set.values[usize::from(*index)];
                *value = ((i64::from(value.0) + change).clamp(0, VALUE_MAX) as u16, pid);
            }
            if !own.is_empty() {
                set.queue.wake(wait::READABLE);
            }
        }
    }
}
