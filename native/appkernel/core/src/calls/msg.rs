//! System V message queues: msgget(2), msgsnd(2), msgrcv(2), msgctl(2).

use std::collections::VecDeque;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{wait, WaitQueue};

use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::sysv::{IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, MAY_READ, MAY_WRITE};
use crate::task::{Pid, Tid};

const MSG_NOERROR: u64 = 0o10_000;
const MSG_EXCEPT: u64 = 0o20_000;
const MSG_COPY: u64 = 0o40_000;
const MSG_STAT: u64 = 11;
const MSG_INFO: u64 = 12;
const MSG_STAT_ANY: u64 = 13;

/// One queue.
pub struct Queue {
    messages: VecDeque<(i64, Vec<u8>)>,
    limit_bytes: u64,
    /// Of the last send, receive and change; the last to send and to receive.
    times: [u64; 3],
    last: [Pid; 2],
    queue: WaitQueue,
}

impl Queue {
    fn size_bytes(&self) -> u64 {
        self.messages.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The message that msgrcv(2) takes for this type.
    fn choose(&self, kind: i64, flags: u64) -> Option<usize> {
        let mut types = self.messages.iter().map(|(kind, _)| *kind);
        match kind {
            0 => (!self.messages.is_empty()).then_some(0),
            kind if kind > 0 && flags & MSG_EXCEPT != 0 => types.position(|other| other != kind),
            kind if kind > 0 => types.position(|other| other == kind),
            kind => {
                let lowest = types.filter(|other| *other <= kind.saturating_neg()).min()?;
                self.messages.iter().position(|(other, _)| *other == lowest)
            }
        }
    }
}

pub fn msgget(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (by, now) = (kernel.credentials(tid)?, kernel.seconds());
    let limits = kernel.ipc;
    let room = (kernel.sysv.queues.values().count() as u64) < limits.queues;
    let made = kernel.sysv.queues.find(
        args[0] as u32,
        args[1],
        &by,
        |_| Ok(()),
        || {
            if !room {
                return Err(Errno::NOSPC);
            }
            let (messages, queue) = (VecDeque::new(), WaitQueue::new());
            Ok(Queue { messages, limit_bytes: limits.queue_bytes, times: [0, 0, now], last: [0; 2], queue })
        },
    );
    made.map(|id| Done::Value(id.into()))
}

/// Wait for a change of the queue, unless the caller does not want that.
fn wait_for(kernel: &mut Kernel, tid: Tid, queue: &WaitQueue, flags: u64, otherwise: Errno) -> Result<Done> {
    if flags & IPC_NOWAIT != 0 {
        return Err(otherwise);
    }
    let registration = queue.register(wait::READABLE, kernel.waker(tid));
    let call = kernel.pending(tid)?;
    call.progress = 1;
    call.registrations.push(registration);
    Ok(Done::Wait)
}

fn gone(kernel: &mut Kernel, tid: Tid, errno: Errno) -> Errno {
    let has_waited = kernel.pending(tid).is_ok_and(|call| call.progress > 0);
    if has_waited {
        Errno::IDRM
    } else {
        errno
    }
}

pub fn msgsnd(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [id, address, size, flags, ..] = *args;
    let (by, pid, now) = (kernel.credentials(tid)?, kernel.pid(tid), kernel.seconds());
    let kind = kernel.get_u64(tid, address)? as i64;
    if kind < 1 || size > kernel.ipc.message_bytes {
        return Err(Errno::INVAL);
    }
    let bytes = kernel.get_bytes(tid, address.wrapping_add(8), size as usize)?;
    if let Err(errno) = kernel.sysv.queues.get(id) {
        return Err(gone(kernel, tid, errno));
    }
    let (permissions, own) = kernel.sysv.queues.get_mut(id)?;
    permissions.check(&by, MAY_WRITE)?;
    let queue = own.queue.clone();
    let is_full = own.size_bytes() + size > own.limit_bytes || own.messages.len() as u64 >= own.limit_bytes;
    if is_full {
        return wait_for(kernel, tid, &queue, flags, Errno::AGAIN);
    }
    own.messages.push_back((kind, bytes));
    (own.times[0], own.last[0]) = (now, pid);
    queue.wake(wait::READABLE);
    Ok(Done::Value(0))
}

pub fn msgrcv(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [id, address, size, kind, flags, _] = *args;
    let (by, pid, now) = (kernel.credentials(tid)?, kernel.pid(tid), kernel.seconds());
    if (size as i64) < 0 {
        return Err(Errno::INVAL);
    }
    if let Err(errno) = kernel.sysv.queues.get(id) {
        return Err(gone(kernel, tid, errno));
    }
    let (permissions, own) = kernel.sysv.queues.get_mut(id)?;
    permissions.check(&by, MAY_READ)?;
    let queue = own.queue.clone();
    if flags & MSG_COPY != 0 {
        if flags & MSG_EXCEPT != 0 || flags & IPC_NOWAIT == 0 {
            return Err(Errno::INVAL);
        }
        let found = own.messages.get(kind as usize).ok_or(Errno::NOMSG)?;
        let (kind, bytes) = (found.0, found.1.clone());
        if bytes.len() as u64 > size && flags & MSG_NOERROR == 0 {
            return Err(Errno::TOOBIG);
        }
        return told(kernel, tid, address, (kind, bytes), size);
    }
    let Some(at) = own.choose(kind as i64, flags) else {
        return wait_for(kernel, tid, &queue, flags, Errno::NOMSG);
    };
    if own.messages[at].1.len() as u64 > size && flags & MSG_NOERROR == 0 {
        return Err(Errno::TOOBIG);
    }
    let Some(message) = own.messages.remove(at) else { return Err(Errno::NOMSG) };
    (own.times[1], own.last[1]) = (now, pid);
    queue.wake(wait::READABLE);
    told(kernel, tid, address, message, size)
}

/// Give the caller a message, as much of it as there is room for.
fn told(kernel: &Kernel, tid: Tid, address: u64, (kind, mut bytes): (i64, Vec<u8>), size: u64) -> Result<Done> {
    bytes.truncate(size as usize);
    kernel.put_words(tid, address, &[kind as u64])?;
    kernel.put(tid, address.wrapping_add(8), &bytes)?;
    Ok(Done::Value(bytes.len() as i64))
}

/// struct msqid_ds.
fn shown(kernel: &Kernel, tid: Tid, id: u64) -> Result<Vec<u8>> {
    let (permissions, own) = kernel.sysv.queues.get(id)?;
    let mut bytes = permissions.encode(0);
    bytes.extend(encode::words(&own.times));
    bytes.extend(encode::words(&[own.size_bytes(), own.messages.len() as u64, own.limit_bytes]));
    let seen = |pid: &Pid| pids::seen_from(kernel.view(tid), *pid).to_le_bytes();
    bytes.extend(own.last.iter().flat_map(seen));
    bytes.extend(encode::words(&[0, 0]));
    Ok(bytes)
}

/// struct msginfo: the limits, and with MSG_INFO how much there is.
fn information(kernel: &Kernel, command: u64) -> Vec<u8> {
    let (limits, queues) = (kernel.ipc, &kernel.sysv.queues);
    let [pool, map, total] = match command {
        MSG_INFO => [
            queues.values().count() as u64,
            queues.values().map(|queue| queue.messages.len() as u64).sum(),
            queues.values().map(Queue::size_bytes).sum(),
        ],
        _ => [limits.queues.saturating_mul(limits.queue_bytes) / 1024, limits.queue_bytes, limits.queue_bytes],
    };
    let mut bytes = encode::ints(&[pool, map, limits.message_bytes, limits.queue_bytes, limits.queues, 16, total]);
    bytes.extend([0xff, 0xff, 0, 0]); // msgseg, a short
    bytes
}

pub fn msgctl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [id, command, address, ..] = *args;
    let (by, now) = (kernel.credentials(tid)?, kernel.seconds());
    if matches!(command, IPC_INFO | MSG_INFO) {
        kernel.put(tid, address, &information(kernel, command))?;
        return Ok(Done::Value(kernel.sysv.queues.last_place()));
    }
    let by_place = matches!(command, MSG_STAT | MSG_STAT_ANY);
    let id = if by_place { kernel.sysv.queues.at(id)? as u64 } else { id };
    let (permissions, own) = kernel.sysv.queues.get(id)?;
    let queue = own.queue.clone();
    match command {
        IPC_STAT | MSG_STAT | MSG_STAT_ANY => {
            if command != MSG_STAT_ANY {
                permissions.check(&by, MAY_READ)?;
            }
            kernel.put(tid, address, &shown(kernel, tid, id)?)?;
            return Ok(Done::Value(if by_place { id as i64 } else { 0 }));
        }
        IPC_SET => {
            permissions.check_owner(&by)?;
            let given = kernel.get_bytes(tid, address, 96)?;
            let most = kernel.ipc.queue_bytes;
            let (permissions, own) = kernel.sysv.queues.get_mut(id)?;
            permissions.set(&given);
            let limit = given[88..].first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word));
            own.limit_bytes = limit.min(most);
            own.times[2] = now;
        }
        IPC_RMID => {
            permissions.check_owner(&by)?;
            drop(kernel.sysv.queues.remove(id));
        }
        _ => return Err(Errno::INVAL),
    }
    queue.wake(wait::READABLE);
    Ok(Done::Value(0))
}
