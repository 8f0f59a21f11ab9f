//! Robust futexes (get_robust_list(2)): what a dying thread holds is marked, and one who waits for it is woken.

use drupe_appkernel_abi::{Errno, Result};

use crate::kernel::{Done, Kernel};
use crate::pids::seen;
use crate::platform::MemoryOp;
use crate::task::Tid;

const WAITERS: u32 = 1 << 31;
const OWNER_DIED: u32 = 1 << 30;
const OWNER: u32 = OWNER_DIED - 1;
/// ROBUST_LIST_LIMIT: a list may be a circle, or nonsense.
const MAX_ENTRIES: usize = 2048;
const HEAD_BYTES: u64 = 24;

impl Kernel {
    /// Walk the list of a thread that ends, as far as its memory makes sense.
    pub(crate) fn leave_robust_list(&mut self, tid: Tid) {
        let Ok(task) = self.task_mut(tid) else { return };
        let head = std::mem::take(&mut task.robust_list);
        if head != 0 {
            let _as_far = self.walk_robust_list(tid, head);
        }
    }

    fn walk_robust_list(&mut self, tid: Tid, head: u64) -> Result<()> {
        let [mut entry, offset, pending] = self.get_words(tid, head)?;
        let at = |entry: u64| (entry & !1).wrapping_add(offset);
        for _ in 0..MAX_ENTRIES {
            if entry & !1 == head {
                break;
            }
            let next = self.get_u64(tid, entry & !1);
            if entry & !1 != pending & !1 {
                self.owner_died(tid, at(entry))?;
            }
            entry = next?;
        }
        if pending & !1 != 0 {
            self.owner_died(tid, at(pending))?;
        }
        Ok(())
    }

    fn owner_died(&mut self, tid: Tid, address: u64) -> Result<()> {
        let word = self.get_u32(tid, address)?;
        if word & OWNER != seen(tid) {
            return Ok(());
        }
        self.put(tid, address, &(word & WAITERS | OWNER_DIED).to_le_bytes())?;
        let task = self.task(tid)?;
        // Always: one may have come to wait since the word was read.
        if task.trapped {
            let thread = task.thread;
            self.platform.change(thread, &[MemoryOp::FutexWake { address, count: 1 }])?;
        }
        Ok(())
    }
}

/// get_robust_list(2).
pub(crate) fn get_robust_list(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    let of = if args[0] == 0 { tid } else { args[0] as u32 };
    let (pid, head) = kernel.task(of).map(|task| (task.pid, task.robust_list))?;
    kernel.check_kill(tid, pid, 0).map_err(|_| Errno::PERM)?;
    kernel.put_words(tid, args[1], &[head])?;
    kernel.put_words(tid, args[2], &[HEAD_BYTES])?;
    Ok(Done::Value(0))
}
