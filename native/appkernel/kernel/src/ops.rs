//! Changes of memory as system calls of a stub, and which of them the stub will have to ask for.

use std::sync::Arc;

use drupe_appkernel_core::platform::MemoryOp;
use drupe_appkernel_hostsys::layout::{self, SLOTS, SLOTS_SIZE};
use drupe_appkernel_hostsys::notify::Notification;
use drupe_appkernel_hostsys::slot::Op;
use drupe_appkernel_vfs::HostFile;

/// A call that the filter lets pass only when it was ordered.
pub struct Expected {
    number: u32,
    args: [u64; 6],
    /// A file that the caller must have as this descriptor.
    pub file: Option<(Arc<dyn HostFile>, u32)>,
}

impl Expected {
    pub fn call(op: &Op) -> Expected {
        Expected { number: op.number as u32, args: op.args, file: None }
    }

    /// A new process maps its slots.
    pub fn slots(fd: i32) -> Expected {
        let args = [SLOTS, SLOTS_SIZE, 3, FIXED | libc::MAP_SHARED as u64, fd as u64, 0];
        Expected { number: libc::SYS_mmap as u32, args, file: None }
    }

    pub fn is(&self, note: &Notification) -> bool {
        self.number == note.number && self.args == note.args
    }
}

const FIXED: u64 = libc::MAP_FIXED as u64;
const ANONYMOUS: u64 = libc::MAP_ANONYMOUS as u64 | libc::MAP_NORESERVE as u64 | FIXED;
/// Of membarrier(2), to be had since Linux 4.16: PRIVATE_EXPEDITED and PRIVATE_EXPEDITED_SYNC_CORE with their registrations.
pub const BARRIERS: u32 = 8 | 16 | 32 | 64;
/// Descriptors of mappings, one for each thread.
const FIRST_FD: u64 = 64;

fn op(number: libc::c_long, args: [u64; 6]) -> Op {
    Op { number: number as u64, args }
}

fn sharing(shared: bool) -> u64 {
    (if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE }) as u64
}

/// Which argument of clone(2) says whose order it was. The host does not look at it; what is made has it in its register when
/// it rings for the first time.
pub const TOKEN: usize = 5;

pub fn fork(token: u64) -> Op {
    op(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, token])
}

/// A thread whose stack pointer is `stack`.
pub fn new_thread(stack: u64, token: u64) -> Op {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    op(libc::SYS_clone, [flags as u64, stack, 0, 0, 0, token])
}

/// A copy that the stub makes, from its slot to a guest's address.
pub fn copy(address: u64, from: u64, size: usize) -> Op {
    Op { number: layout::CALL_COPY.into(), args: [address, from, size as u64, 0, 0, 0] }
}

/// Have the stub find the slot of a thread by its gs base.
pub fn set_gs(slot: u64) -> Op {
    op(libc::SYS_arch_prctl, [0x1001, slot, 0, 0, 0, 0])
}

pub fn exit() -> Op {
    op(libc::SYS_exit, [0; 6])
}

/// The calls, and what to expect, for the thread in slot `index`.
pub fn translate(changes: &[MemoryOp], index: u64) -> (Vec<Op>, Vec<Expected>) {
    let fd = FIRST_FD + index;
    let calls: Vec<Op> = changes.iter().map(|change| call(change, fd)).collect();
    let asked = changes.iter().zip(&calls).filter_map(|(change, call)| match change {
        MemoryOp::MapFile { file, .. } => {
            Some(Expected { file: Some((Arc::clone(file), fd as u32)), ..Expected::call(call) })
        }
        _ => None,
    });
    let asked = asked.collect();
    (calls, asked)
}

fn call(change: &MemoryOp, fd: u64) -> Op {
    match *change {
        MemoryOp::MapAnonymous { address, size, protection, shared } => {
            op(libc::SYS_mmap, [address, size, protection.into(), sharing(shared) | ANONYMOUS, u64::MAX, 0])
        }
        MemoryOp::MapFile { address, size, protection, shared, offset, .. } => {
            op(libc::SYS_mmap, [address, size, protection.into(), sharing(shared) | FIXED, fd, offset])
        }
        MemoryOp::Unmap { address, size } => op(libc::SYS_munmap, [address, size, 0, 0, 0, 0]),
        MemoryOp::Protect { address, size, protection } => {
            op(libc::SYS_mprotect, [address, size, protection.into(), 0, 0, 0])
        }
        MemoryOp::Move { from, from_size, to, to_size } => {
            let flags = libc::MREMAP_MAYMOVE as u64 | if from == to { 0 } else { libc::MREMAP_FIXED as u64 };
            op(libc::SYS_mremap, [from, from_size, to_size, flags, to, 0])
        }
        MemoryOp::Barrier(command) => op(libc::SYS_membarrier, [command.into(), 0, 0, 0, 0, 0]),
        MemoryOp::SetGs(base) => op(libc::SYS_arch_prctl, [0x1001, base, 0, 0, 0, 0]),
        MemoryOp::SetFs(base) => op(libc::SYS_arch_prctl, [0x1002, base, 0, 0, 0, 0]),
        MemoryOp::GetFs(at) => op(libc::SYS_arch_prctl, [0x1003, at, 0, 0, 0, 0]),
        MemoryOp::GetGs(at) => op(libc::SYS_arch_prctl, [0x1004, at, 0, 0, 0, 0]),
        MemoryOp::FutexWake { address, count } => op(libc::SYS_futex, [address, 1, count.into(), 0, 0, 0]),
    }
}
