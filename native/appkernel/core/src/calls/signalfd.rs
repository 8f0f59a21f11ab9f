//! signalfd(2).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::event::{SignalFd, Signals, SIGINFO_BYTES};
use drupe_appkernel_vfs::{wait, OpenFile, OpenFlags};

use super::Args;
use crate::guest::{total, Piece};
use crate::kernel::{Done, Kernel};
use crate::signal::{set_of, take_pending, Info, Set, UNBLOCKABLE};
use crate::task::{Pid, Tid};

const NONBLOCK: u64 = OpenFlags::NONBLOCK as u64;
const CLOEXEC: u64 = OpenFlags::CLOEXEC as u64;

/// Signals that are pending for a process or one of its threads, for who polls.
#[derive(Default)]
pub struct PendingSet(AtomicU64);

impl Signals for PendingSet {
    /// The core reads such files itself.
    fn take(&self, _: u64) -> Option<[u8; SIGINFO_BYTES]> {
        None
    }

    fn is_pending(&self, mask: u64) -> bool {
        self.0.load(Ordering::Relaxed) & mask != 0
    }
}

impl Kernel {
    /// Have those who poll see what is pending now. Only where somebody has asked for it by signalfd(2).
    pub(crate) fn note_pending(&self, pid: Pid) {
        let Some(process) = self.tasks.processes.get(&pid) else { return };
        let Some(noted) = &process.pending_set else { return };
        let of_threads = process.threads.iter().filter_map(|tid| self.tasks.tasks.get(tid));
        let set = of_threads.fold(set_of(&process.pending), |set, task| set | set_of(&task.pending));
        noted.0.store(set, Ordering::Relaxed);
    }
}

pub fn signalfd4(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, mask, size, flags, ..] = *args;
    if size != 8 || flags & !(NONBLOCK | CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let mask = kernel.get_u64(tid, mask)? & !UNBLOCKABLE;
    if fd as i32 != -1 {
        let file = kernel.file(tid, fd)?;
        file.downcast::<SignalFd>().ok_or(Errno::INVAL)?.set_mask(mask);
        return Ok(Done::Value(i64::from(fd as i32)));
    }
    let process = kernel.process_mut(tid)?;
    let (pid, queue) = (process.pid, process.signals.clone());
    let set = Arc::clone(process.pending_set.get_or_insert_with(Arc::default));
    kernel.note_pending(pid);
    let file = SignalFd::new(mask, set, queue);
    kernel.install_event(tid, file, "signalfd", OpenFlags::RDWR, flags)
}

pub fn signalfd(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    signalfd4(kernel, tid, &[args[0], args[1], args[2], 0, 0, 0])
}

/// struct signalfd_siginfo.
fn encoded(info: &Info) -> [u8; SIGINFO_BYTES] {
    let mut out = [0; SIGINFO_BYTES];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    let (first, second) = (info.fields[0].to_le_bytes(), info.fields[1].to_le_bytes());
    put(0, &info.signal.to_le_bytes());
    put(8, &info.code.to_le_bytes());
    put(12, &first); // pid and uid
    put(40, &second[..4]); // status
    put(44, &second[..4]);
    put(48, &second);
    if info.code > 0 {
        put(72, &first); // an address
    }
    out
}

fn take(kernel: &mut Kernel, tid: Tid, mask: Set) -> Result<Option<Info>> {
    let of_task = take_pending(&mut kernel.task_mut(tid)?.pending, !mask);
    let mut found = match of_task {
        Some(info) => Some(info),
        None => take_pending(&mut kernel.process_mut(tid)?.pending, !mask),
    };
    if let Some(info) = &mut found {
        kernel.taken(kernel.pid(tid), info);
    }
    Ok(found)
}

/// read(2) of such a file: signals of the caller's.
pub(super) fn read(kernel: &mut Kernel, tid: Tid, file: &OpenFile, pieces: &[Piece]) -> Result<Done> {
    let mask = file.downcast::<SignalFd>().ok_or(Errno::INVAL)?.mask();
    let room = total(pieces) as usize / SIGINFO_BYTES;
    if room == 0 {
        return Err(Errno::INVAL);
    }
    let mut bytes = Vec::new();
    while bytes.len() < room * SIGINFO_BYTES {
        let Some(info) = take(kernel, tid, mask)? else { break };
        bytes.extend(encoded(&info));
    }
    kernel.note_pending(kernel.pid(tid));
    if bytes.is_empty() {
        if file.is_nonblocking() {
            return Err(Errno::AGAIN);
        }
        let (waker, queue) = (kernel.waker(tid), kernel.process(tid)?.signals.clone());
        kernel.pending(tid)?.registrations.push(queue.register(wait::READABLE, waker));
        return Ok(Done::Wait);
    }
    kernel.scatter(tid, pieces, 0, &bytes)?;
    Ok(Done::Value(bytes.len() as i64))
}
