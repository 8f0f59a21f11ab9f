//! What runs guest code: the border to the platforms.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Registers, Result};
use drupe_appkernel_vfs::HostFile;

use crate::usage::Usage;

/// An address space with its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId(pub u32);

/// A thread that runs guest code in a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(pub u32);

/// A change of an address space. Addresses and sizes are whole pages below the platform's limit; protections are those
/// of mmap(2).
#[derive(Clone)]
pub enum MemoryOp {
    MapAnonymous {
        address: u64,
        size: u64,
        protection: u32,
        shared: bool,
    },
    MapFile {
        address: u64,
        size: u64,
        protection: u32,
        shared: bool,
        file: Arc<dyn HostFile>,
        offset: u64,
    },
    Unmap {
        address: u64,
        size: u64,
    },
    Protect {
        address: u64,
        size: u64,
        protection: u32,
    },
    Move {
        from: u64,
        from_size: u64,
        to: u64,
        to_size: u64,
    },
    /// A command of membarrier(2), of those that `Platform::barriers` offers.
    Barrier(u32),
    /// Segment bases of the calling thread.
    SetFs(u64),
    SetGs(u64),
    GetFs(u64),
    GetGs(u64),
    /// Wake all who wait in futex(2) at this address.
    FutexWake {
        address: u64,
        count: u32,
    },
}

/// Why a thread has left guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    Call {
        number: u64,
        args: [u64; 6],
    },
    /// A processor exception as Linux's signal: number, si_code, si_addr.
    Fault {
        signal: i32,
        code: i32,
        address: u64,
    },
    /// `kick` was called; or nothing has happened.
    Kicked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Trap(ThreadId, Trap),
    /// The space and its threads are gone, killed by the host.
    Died(SpaceId),
    /// A descriptor that was watched: the word given.
    Ready(u64, u32),
}

/// Runs guest code. A thread that has trapped stands still until it is resumed or ended.
pub trait Platform {
    /// An empty space with one thread, standing still.
    fn new_space(&mut self) -> Result<(SpaceId, ThreadId)>;

    /// As `new_space`, forked from one whose thread has never run: it stands on the host where that one does.
    fn new_space_beside(&mut self, _nursery: ThreadId) -> Result<(SpaceId, ThreadId)> {
        self.new_space()
    }

    /// The host's number for the process that is the space; 0: it is none.
    fn host_process(&self, _space: SpaceId) -> i32 {
        0
    }

    /// A copy of the space of `thread`, which stands still, with one thread where that is.
    fn fork(&mut self, thread: ThreadId) -> Result<(SpaceId, ThreadId)>;

    /// A further thread, standing still with a copy of the other's registers.
    fn new_thread(&mut self, beside: ThreadId) -> Result<ThreadId>;

    /// Write what was staged, and do `ops` now; those after one that fails are not done.
    fn change(&mut self, thread: ThreadId, ops: &[MemoryOp]) -> Result<()>;

    /// Lanes have their turns, one after the other: many who call in one do not keep another waiting. What is forked from a
    /// space is in its lane.
    fn set_lane(&mut self, _space: SpaceId, _lane: u32) {}

    fn registers(&self, thread: ThreadId) -> Result<Registers>;

    fn set_registers(&mut self, thread: ThreadId, registers: &Registers) -> Result<()>;

    /// Where guest code may jump to for a call instead of trapping, with the address of a system call instruction in
    /// r11: it goes on after that, which is executed where need be. Changes rcx, r11 and the arithmetic flags. 0: nowhere.
    fn call_entry(&self) -> u64 {
        0
    }

    /// The address after the instruction by which the thread has trapped, if it did for its call.
    fn call_site(&self, _thread: ThreadId) -> Option<u64> {
        None
    }

    /// Whether the thread's gs base is what the guest has set, and not the platform's own.
    fn owns_gs(&self, _thread: ThreadId) -> bool {
        true
    }

    /// Floating-point and vector registers as in a signal frame (XSAVE); may be empty.
    fn extended_state(&mut self, thread: ThreadId) -> Vec<u8>;

    /// False when it does not fit.
    fn set_extended_state(&mut self, thread: ThreadId, state: &[u8]) -> bool;

    /// Start with clean registers, as execve(2) does.
    fn reset(&mut self, thread: ThreadId, registers: &Registers) -> Result<()>;

    /// Do `ops`, and go on in guest code with `result` in rax (None: with what is there). If an op fails the guest sees
    /// its error instead.
    fn resume(&mut self, thread: ThreadId, result: Option<i64>, ops: &[MemoryOp]) -> Result<()>;

    /// The thread will not be resumed soon.
    fn blocked(&mut self, _thread: ThreadId) {}

    /// Take a thread out of guest code, soon.
    fn kick(&mut self, thread: ThreadId);

    /// End a thread that stands still. `clear`: an address to set to zero and wake, of set_tid_address(2).
    fn end_thread(&mut self, thread: ThreadId);

    /// End a space and all its threads, wherever they are.
    fn end_space(&mut self, space: SpaceId);

    /// Copy from guest memory: as many bytes as there are, EFAULT if none.
    fn read(&self, space: SpaceId, address: u64, out: &mut [u8]) -> Result<usize>;

    fn write(&self, space: SpaceId, address: u64, data: &[u8]) -> Result<usize>;

    /// What of guest memory from `address` on has come with the thread's call; may be nothing.
    fn input(&self, _thread: ThreadId, _address: u64) -> &[u8] {
        &[]
    }

    /// As `write`, at the latest when the thread, which is in a call, goes on; if that fails the guest sees EFAULT.
    fn stage(&self, thread: ThreadId, address: u64, data: &[u8]) -> Result<()>;

    /// Processor time that the space's threads have had, in nanoseconds.
    fn cpu_ns(&self, space: SpaceId) -> u64;

    /// That, and what else they have used.
    fn usage(&self, space: SpaceId) -> Usage {
        Usage { cpu_ns: self.cpu_ns(space), peak_bytes: self.resident_bytes(space), ..Usage::default() }
    }

    /// Processor time of one of its threads; None: that is not known apart.
    fn thread_cpu_ns(&self, _thread: ThreadId) -> Option<u64> {
        None
    }

    /// Whether a thread that runs guest code sleeps there, in a call that the host answers (futex(2)).
    fn is_asleep(&self, _thread: ThreadId) -> bool {
        false
    }

    /// Memory that the space's pages take now.
    fn resident_bytes(&self, space: SpaceId) -> u64;

    /// The same, range by range, as proc_pid_smaps(5) has it; empty where that is not known.
    fn memory_report(&self, _space: SpaceId) -> String {
        String::new()
    }

    /// Commands of membarrier(2) that may be ordered, as its query tells them: of the space's own threads.
    fn barriers(&self) -> u32 {
        0
    }

    /// Where the guest's addresses end.
    fn address_end(&self) -> u64;

    /// Address of a vDSO that all spaces have; 0: none.
    fn vdso(&self) -> u64;

    /// Pages of private memory in a range that are the space's own, not a file's: starts and ends, ascending.
    fn own_pages(&self, _space: SpaceId, _start: u64, _end: u64) -> Result<Vec<(u64, u64)>> {
        Err(Errno::NOSYS)
    }

    /// What an address of memory that is shared without a file belongs to: the same for all who share it; and where in that.
    fn shared_object(&self, _space: SpaceId, _address: u64) -> Result<((u64, u64), u64)> {
        Err(Errno::NOSYS)
    }

    /// The fs base of a thread that stands still; and its gs base, if that is the guest's.
    fn segment_bases(&mut self, _thread: ThreadId) -> Result<(u64, Option<u64>)> {
        Err(Errno::NOSYS)
    }

    /// Give a thread that has not run yet the extended state of one that has, in whatever kernel.
    fn adopt_state(&mut self, _thread: ThreadId, _state: &[u8]) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Have the vDSO of all spaces to come lie where programs from elsewhere expect it.
    fn move_vdso(&mut self, _to: u64) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// What has happened; waits for it at most `timeout_ns` (None: for ever).
    fn wait(&mut self, timeout_ns: Option<u64>, events: &mut Vec<Event>) -> Result<()>;
}
