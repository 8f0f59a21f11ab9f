//! The kernel's view of one thread's slot. The guest can write all of it at any time: every access here copies, and
//! nothing read is believed without a check.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use drupe_appkernel_abi::Registers;

use crate::layout::{self, SLOT_SIZE};

/// A system call that the stub makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    pub number: u64,
    pub args: [u64; 6],
}

/// The code segments and the rest of what a frame of ours holds beside registers.
const SEGMENTS: u64 = 0x002b_0000_0000_0033;
/// UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
const UC_FLAGS: u64 = 6;

/// One slot, mapped.
pub struct Slot {
    memory: *mut AtomicU64,
    /// Where the guest sees it.
    pub address: u64,
}

// SAFETY: the memory is accessed through atomics alone, and belongs to this object until it is dropped.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    /// Map slot `index` of the slots in `memfd`.
    pub fn map(memfd: BorrowedFd<'_>, index: u64) -> io::Result<Slot> {
        assert!(index < layout::SLOT_COUNT);
        // SAFETY: a fresh mapping at an address of the host's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SLOT_SIZE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                memfd.as_raw_fd(),
                (index * SLOT_SIZE) as libc::off_t,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Slot { memory: memory.cast(), address: layout::SLOTS + index * SLOT_SIZE })
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset % 8 == 0 && offset + 8 <= SLOT_SIZE as usize);
        // SAFETY: within the mapping, aligned; atomics may be shared with another process.
        unsafe { &*self.memory.add(offset / 8) }
    }

    pub fn load(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    pub fn store(&self, offset: usize, value: u64) {
        self.word(offset).store(value, Ordering::Release);
    }

    /// Where in the slot the thread's frame is. None: the guest has written nonsense there.
    pub(crate) fn frame(&self) -> Option<usize> {
        let offset = self.load(layout::FRAME).checked_sub(self.address)? as usize;
        let inside =
            offset >= layout::STACK && offset + layout::UC_SIZE <= SLOT_SIZE as usize || offset == layout::FAST;
        (inside && offset % 8 == 0).then_some(offset)
    }

    /// The guest's registers; None: the slot is not sound.
    pub fn registers(&self) -> Option<Registers> {
        let at = self.frame()? + layout::UC_REGISTERS;
        Some(Registers::from_words(std::array::from_fn(|i| self.load(at + 8 * i))))
    }

    /// Where the guest is; None: the slot is not sound.
    pub fn instruction(&self) -> Option<u64> {
        Some(self.load(self.frame()? + layout::UC_REGISTERS + 16 * 8))
    }

    /// Those of a thread that has called without a signal.
    pub fn fast_registers(&self) -> Registers {
        Registers::from_words(std::array::from_fn(|i| self.load(layout::FAST + layout::UC_REGISTERS + 8 * i)))
    }

    /// False: the slot is not sound.
    #[must_use]
    pub fn set_registers(&self, registers: &Registers) -> bool {
        let Some(at) = self.frame() else { return false };
        self.put_registers(at, registers);
        true
    }

    fn put_registers(&self, frame: usize, registers: &Registers) {
        let at = frame + layout::UC_REGISTERS;
        registers.to_words().iter().enumerate().for_each(|(i, word)| self.store(at + 8 * i, *word));
    }

    #[must_use]
    pub fn set_result(&self, value: u64) -> bool {
        let Some(at) = self.frame() else { return false };
        self.store(at + layout::UC_REGISTERS + 13 * 8, value);
        true
    }

    /// The signal that the host delivered last: number, and the first words of its siginfo_t.
    pub fn signal(&self) -> (i32, [u64; 4]) {
        let number = self.load(layout::SIGNAL) as i32;
        let offset = self.load(layout::INFO).wrapping_sub(self.address) as usize;
        let sound = offset >= layout::STACK && offset <= SLOT_SIZE as usize - 32 && offset % 8 == 0;
        (number, std::array::from_fn(|i| if sound { self.load(offset + 8 * i) } else { 0 }))
    }

    /// The extended processor state in the frame, and where the guest sees it; empty when there is none.
    pub fn extended_state(&self) -> Vec<u8> {
        let Some(frame) = self.frame() else { return Vec::new() };
        let Some(offset) = self.load(frame + layout::UC_FPSTATE).checked_sub(self.address) else { return Vec::new() };
        let offset = offset as usize;
        if offset < layout::STACK || offset + 512 > SLOT_SIZE as usize || offset % 8 != 0 {
            return Vec::new();
        }
        // struct _fpx_sw_bytes at 464: magic1, extended_size
        let software = self.load(offset + 464);
        let (magic, size) = (software as u32, (software >> 32) as usize);
        let size = if magic == 0x4650_5853 && (512..=0x4000).contains(&size) { size } else { 512 };
        self.copy_out(offset, size.min(SLOT_SIZE as usize - offset) & !7)
    }

    /// Put extended state into the frame where there is room for it. False: it was dropped.
    pub fn set_extended_state(&self, state: &[u8]) -> bool {
        let room = self.extended_state().len();
        if room == 0 || state.len() != room {
            return false;
        }
        let Some(frame) = self.frame() else { return false };
        let offset = self.load(frame + layout::UC_FPSTATE).wrapping_sub(self.address) as usize;
        if offset < layout::STACK || offset + room > SLOT_SIZE as usize || offset % 8 != 0 {
            return false;
        }
        for (i, chunk) in state.chunks_exact(8).enumerate() {
            // Not the size fields: the host's own frame says where it ends.
            if !(464..512).contains(&(8 * i)) {
                self.store(offset + 8 * i, u64::from_le_bytes(chunk.try_into().expect("8 bytes")));
            }
        }
        true
    }

    fn copy_out(&self, offset: usize, size: usize) -> Vec<u8> {
        (0..size / 8).flat_map(|i| self.load(offset + 8 * i).to_le_bytes()).collect()
    }

    /// A frame made from nothing, for a thread that has not been in the guest yet; processor state starts clean.
    pub fn make_frame(&self, registers: &Registers) {
        let at = layout::STACK + layout::STACK_SIZE - 0x400;
        (0..layout::UC_SIZE).step_by(8).for_each(|i| self.store(at + i, 0));
        self.store(at, UC_FLAGS);
        self.store(at + layout::UC_STACK, self.address + layout::STACK as u64);
        self.store(at + layout::UC_STACK + 16, layout::STACK_SIZE as u64);
        self.store(at + layout::UC_REGISTERS + 18 * 8, SEGMENTS);
        self.store(layout::FRAME, self.address + at as u64);
        self.put_registers(at, registers); // not where FRAME says: another thread of the guest may write there meanwhile
    }

    /// Give this slot the same frame as `other`'s, for a child that goes on where its parent is.
    pub fn copy_frame(&self, other: &Slot) -> bool {
        if other.frame().is_none() {
            return false;
        }
        (layout::STACK..SLOT_SIZE as usize).step_by(8).for_each(|i| self.store(i, other.load(i)));
        let moved = |value: u64| value.wrapping_sub(other.address).wrapping_add(self.address);
        let frame = moved(other.load(layout::FRAME));
        self.store(layout::FRAME, frame);
        let Some(at) = self.frame() else { return false };
        let state = at + layout::UC_FPSTATE;
        if self.load(state) != 0 {
            self.store(state, moved(self.load(state)));
        }
        self.store(at + layout::UC_STACK, self.address + layout::STACK as u64);
        true
    }

    /// What the stub's sigaltstack(2) reads.
    pub fn prepare_stack(&self) {
        self.set_watched(false);
        self.store(layout::ALTSTACK, self.address + layout::STACK as u64);
        self.store(layout::ALTSTACK + 8, 0);
        self.store(layout::ALTSTACK + 16, layout::STACK_SIZE as u64);
    }

    /// What the stub does at its next answer. At most `layout::OP_MAX`.
    pub fn set_ops(&self, ops: &[Op]) {
        assert!(ops.len() <= layout::OP_MAX);
        self.store(layout::FAILED, 0);
        for (i, op) in ops.iter().enumerate() {
            let at = layout::OPS + i * layout::OP_SIZE;
            self.store(at, op.number);
            op.args.iter().enumerate().for_each(|(n, arg)| self.store(at + 8 + 8 * n, *arg));
            self.store(at + 56, 0);
        }
        self.store(layout::OP_COUNT, ops.len() as u64);
    }

    /// What the stub has brought along: where it lay, into `out`. Copied once; what it says is the guest's word.
    pub fn input(&self, out: &mut Vec<u8>) -> u64 {
        out.clear();
        let size = self.load(layout::IN_SIZE) as usize;
        if size > 0 && size <= layout::IN_MAX {
            out.resize(size, 0);
            // SAFETY: within the mapping.
            unsafe { copy(self.memory.cast::<u8>().add(layout::IN_DATA), out.as_mut_ptr(), size) };
        }
        self.load(layout::IN_ADDRESS)
    }

    /// Put bytes for the guest's memory at an offset among them; the guest address of that place. None: no room.
    pub fn set_output(&self, offset: usize, data: &[u8]) -> Option<u64> {
        if offset.checked_add(data.len())? > layout::OUT_MAX {
            return None;
        }
        // SAFETY: within the mapping.
        unsafe { copy(data.as_ptr(), self.memory.cast::<u8>().add(layout::OUT_DATA + offset), data.len()) };
        Some(self.address + (layout::OUT_DATA + offset) as u64)
    }

    fn turn(&self) -> &AtomicU32 {
        // SAFETY: within the mapping, aligned; atomics may be shared with another process.
        unsafe { &*self.memory.cast::<AtomicU32>().add(layout::TURN / 4) }
    }

    /// Whether the stub has trapped while it was watched.
    pub fn has_rung(&self) -> bool {
        matches!(self.turn().load(Ordering::Acquire), layout::TURN_RANG | layout::TURN_SLEEPS)
    }

    /// Watch no longer. False: it has rung already.
    #[must_use]
    pub fn unwatch(&self) -> bool {
        let (from, to) = (layout::TURN_WATCHED, layout::TURN_UNWATCHED);
        self.turn().compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Say whether the stub's next trap will be seen without the doorbell.
    pub fn set_watched(&self, watched: bool) {
        let turn = if watched { layout::TURN_WATCHED } else { layout::TURN_UNWATCHED };
        self.turn().store(turn, Ordering::Release);
    }

    /// Answer a stub that spins, or sleeps since.
    pub fn answer(&self, how: i64, watched: bool) {
        self.store(layout::ANSWER, how as u64);
        let turn = if watched { layout::TURN_WATCHED } else { layout::TURN_UNWATCHED };
        if self.turn().swap(turn, Ordering::AcqRel) == layout::TURN_SLEEPS {
            // SAFETY: wakes who sleeps at an address of our mapping.
            unsafe { libc::syscall(libc::SYS_futex, self.turn().as_ptr(), libc::FUTEX_WAKE, 1) };
        }
    }

    /// The answer will take long: let the stub sleep.
    pub fn park(&self) {
        let (from, to) = (layout::TURN_RANG, layout::TURN_PARK);
        let _sleeps = self.turn().compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
    }

    /// What operation `index` returned.
    pub fn result(&self, index: usize) -> i64 {
        self.load(layout::OPS + index * layout::OP_SIZE + 56) as i64
    }

    pub fn failed(&self) -> bool {
        self.load(layout::FAILED) != 0
    }
}

/// Copy memory that another process may be writing to, or reading: one instruction that the compiler knows nothing of.
///
/// # Safety
/// Both ranges must be mapped here.
unsafe fn copy(from: *const u8, to: *mut u8, size: usize) {
    // SAFETY: as the caller promises; the direction flag is clear (the ABI).
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") size => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.memory.cast(), SLOT_SIZE as usize) };
    }
}
