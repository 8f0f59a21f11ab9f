//! The platform: spaces and threads of the machine, as the kernel orders them.

use std::io;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Registers, Result};
use drupe_appkernel_core::platform::{Event, MemoryOp, Platform, SpaceId, ThreadId, Trap};
use drupe_appkernel_core::usage::Usage;
use drupe_appkernel_hostsys::kvm::Kvm;
use drupe_appkernel_hostsys::poll::Poller;

use crate::area::{PROT_READ, PROT_WRITE};
use crate::cpu::{Cpu, Extended};
use crate::frames::Frames;
use crate::futex::{now_ns, Answer, Futexes};
use crate::memory::{Memory, GUEST_END};
use crate::pool::{errno, lock, Place, Pool, SLICE};
use crate::state::{self, Features};
use crate::tables::{entry_of, store, Tables, NO_EXECUTE, PRESENT, TOUCHED, WRITE};
use crate::text;

const WORD_BELL: u64 = u64::MAX;
const CALL_YIELD: u64 = 24;
const CALL_MADVISE: u64 = 28;
const CALL_FUTEX: u64 = 202;
const SYSCALL_BYTES: u64 = 2;

/// A pod's machine.
pub struct Machines {
    pool: Arc<Pool>,
    poller: Arc<Poller>,
    features: Features,
    futexes: Futexes,
    /// Kicks of threads that waited.
    pending: Vec<Event>,
    next: u32,
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.pool.close();
    }
}

impl Machines {
    /// A machine of so many processors, with `memory_bytes` at most. Others add descriptors to the poller, with small words.
    pub fn start(kvm: &Kvm, poller: Arc<Poller>, processors: usize, memory_bytes: u64) -> io::Result<Machines> {
        let cpuid = kvm.cpuid()?;
        let features = Features::of(&cpuid);
        let mut frames = Frames::new(kvm.create()?, memory_bytes / 4096)?;
        let count = (processors as u64).clamp(1, text::CPU_MAX);
        let failed = |errno: Errno| io::Error::from_raw_os_error(errno.0);
        let (kernel, pages) = kernel_part(&mut frames, count).map_err(failed)?;
        let empty = Tables::new(&mut frames, kernel).map_err(failed)?;
        let make = |(index, page)| Cpu::new(&frames, index as u64, page, empty.cr3(), &cpuid, &features);
        let cpus = pages.into_iter().enumerate().map(make).collect::<io::Result<Vec<_>>>()?;
        let memory = Memory::new(frames, kernel, cpus.iter().map(Cpu::hook).collect());
        let pool = Pool::new(memory, cpus)?;
        poller.add(pool.bell.raw_fd(), 1, WORD_BELL)?; // EPOLLIN
        Ok(Machines { pool, poller, features, futexes: Futexes::default(), pending: Vec::new(), next: 1 })
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn space_of(&self, thread: ThreadId) -> Result<SpaceId> {
        self.pool.with(thread, |thread| thread.space)
    }

    /// How long the thread's last turn took, until it trapped.
    pub(crate) fn last_run_ns(&self, thread: ThreadId) -> Result<u64> {
        self.pool.with(thread, |thread| thread.ran_ns)
    }

    fn apply(&mut self, thread: ThreadId, op: &MemoryOp) -> Result<()> {
        let space = self.space_of(thread)?;
        match *op {
            MemoryOp::SetFs(base) => self.pool.with_extended(thread, |thread| thread.extended.fs = base),
            MemoryOp::SetGs(base) => self.pool.with_extended(thread, |thread| thread.extended.gs = base),
            MemoryOp::GetFs(at) => {
                let base = self.pool.with_extended(thread, |thread| thread.extended.fs)?;
                self.stage(thread, at, &base.to_le_bytes())
            }
            MemoryOp::GetGs(at) => {
                let base = self.pool.with_extended(thread, |thread| thread.extended.gs)?;
                self.stage(thread, at, &base.to_le_bytes())
            }
            MemoryOp::FutexWake { address, count } => {
                let memory = lock(&self.pool.memory);
                // Whoever waits may have said that the word is its process's alone, or not.
                let keys = [true, false].map(|private| memory.word_key(space, address, private));
                drop(memory);
                let woken = self.futexes.wake(keys[0], count, u32::MAX) as u32;
                if keys[0] != keys[1] {
                    self.futexes.wake(keys[1], count - woken, u32::MAX);
                }
                self.wake_up();
                Ok(())
            }
            ref op => lock(&self.pool.memory).apply(space, op),
        }
    }

    fn wake_up(&mut self) {
        for thread in std::mem::take(&mut self.futexes.woken) {
            let _gone = self.go_on(thread, 0);
        }
    }

    fn go_on(&self, thread: ThreadId, value: i64) -> Result<()> {
        self.pool.with(thread, |thread| thread.registers.rax = value as u64)?;
        self.pool.resume(thread)
    }

    /// A call that the host answers for other platforms. True: it is one, and done.
    fn answer(&mut self, id: ThreadId, number: u64, args: &[u64; 6]) -> bool {
        let Ok(space) = self.space_of(id) else { return true };
        let is_ours = matches!(number, CALL_YIELD | CALL_MADVISE | CALL_FUTEX);
        if is_ours && self.pool.with(id, |thread| thread.kicked).unwrap_or(false) {
            self.step_back(id, number);
            return true;
        }
        match number {
            CALL_YIELD => self.go_on(id, 0).is_ok(),
            CALL_MADVISE => match args[2] as u32 {
                3 => false, // WILLNEED: the kernel knows whether it is mapped
                4 | 8 if args[1] > 0 => {
                    let size = args[1].checked_next_multiple_of(4096).unwrap_or(0);
                    let done = lock(&self.pool.memory).forget(space, args[0], size);
                    self.go_on(id, done.map_or_else(Errno::as_return, |()| 0)).is_ok()
                }
                _ => false,
            },
            CALL_FUTEX => {
                let answer = self.futexes.call(&mut lock(&self.pool.memory), id, space, args);
                match answer {
                    Answer::Other => return false,
                    Answer::Wait => {
                        let _gone = self.pool.with(id, |thread| thread.place = Place::Waiting);
                    }
                    Answer::Value(value) => {
                        let _gone = self.go_on(id, value);
                    }
                }
                self.wake_up();
                true
            }
            _ => false,
        }
    }

    /// It was kicked before its call had begun.
    fn step_back(&mut self, id: ThreadId, number: u64) {
        let _gone = self.pool.with(id, |thread| {
            thread.registers.rip = thread.registers.rip.wrapping_sub(SYSCALL_BYTES);
            thread.registers.rax = number;
        });
        self.pending.push(Event::Trap(id, Trap::Kicked));
    }

    /// What has happened, but for what is answered here.
    fn collect(&mut self, events: &mut Vec<Event>) {
        for event in self.pool.take_events() {
            match event {
                Event::Trap(id, Trap::Call { number, args }) if self.answer(id, number, &args) => {}
                event => events.push(event),
            }
        }
        for thread in self.futexes.expire(now_ns(false)) {
            let _gone = self.go_on(thread, Errno::TIMEDOUT.as_return());
        }
        events.append(&mut self.pending);
    }

    fn copied(
        &self,
        space: SpaceId,
        address: u64,
        size: usize,
        mut part: impl FnMut(&mut Memory, u64, usize, usize) -> bool,
    ) -> Result<usize> {
        let end = address.checked_add(size as u64).filter(|&end| end <= GUEST_END).ok_or(Errno::FAULT)?;
        let mut memory = lock(&self.pool.memory);
        memory.cr3(space)?;
        let mut at = address;
        while at < end {
            let step = (4096 - at % 4096).min(end - at);
            if !part(&mut memory, at, (at - address) as usize, step as usize) {
                break;
            }
            at += step;
        }
        match (at - address) as usize {
            0 if size > 0 => Err(Errno::FAULT),
            done => Ok(done),
        }
    }
}

/// Pages of the kernel's part: the entry by which spaces have it, and the pages of processors.
fn kernel_part(frames: &mut Frames, count: u64) -> Result<(u64, Vec<u64>)> {
    let [upper, middle, lower] = [frames.take(true)?, frames.take(true)?, frames.take(true)?];
    let table = PRESENT | WRITE | TOUCHED;
    let index = |shift: u32| (text::KERNEL >> shift & 0x1ff) * 8;
    store(frames, upper + index(30), entry_of(middle) | table)?;
    store(frames, middle + index(21), entry_of(lower) | table)?;
    let put = |frames: &mut Frames, address: u64, bytes: &[u8], flags: u64| {
        let page = frames.take(true)?;
        frames.arena.write(page, bytes, false).map_err(|_| Errno::FAULT)?;
        store(frames, lower + (address >> 12 & 0x1ff) * 8, entry_of(page) | PRESENT | TOUCHED | flags)?;
        Ok(page)
    };
    put(frames, text::TEXT, &text::text(), 0)?;
    put(frames, text::IDT, &text::idt(), NO_EXECUTE)?;
    let pages = (0..count)
        .map(|index| put(frames, text::cpu_page(index), &text::task_state(index), WRITE | NO_EXECUTE))
        .collect::<Result<Vec<u64>>>()?;
    Ok((entry_of(upper) | table, pages))
}

fn fresh() -> Extended {
    Extended { fs: 0, gs: 0, area: state::clean() }
}

impl Platform for Machines {
    fn new_space(&mut self) -> Result<(SpaceId, ThreadId)> {
        let (space, thread) = (SpaceId(self.number()), ThreadId(self.number()));
        lock(&self.pool.memory).create(space)?;
        self.pool.add(thread, space, Registers::default(), fresh());
        Ok((space, thread))
    }

    fn fork(&mut self, thread: ThreadId) -> Result<(SpaceId, ThreadId)> {
        let of = |thread: &mut crate::pool::Thread| (thread.space, thread.registers, thread.extended.clone());
        let (from, registers, extended) = self.pool.with_extended(thread, of)?;
        let (space, child) = (SpaceId(self.number()), ThreadId(self.number()));
        lock(&self.pool.memory).fork(from, space)?;
        self.pool.add(child, space, registers, extended);
        Ok((space, child))
    }

    fn new_thread(&mut self, beside: ThreadId) -> Result<ThreadId> {
        let of = |thread: &mut crate::pool::Thread| (thread.space, thread.registers, thread.extended.clone());
        let (space, registers, extended) = self.pool.with_extended(beside, of)?;
        let id = ThreadId(self.number());
        lock(&self.pool.memory).add_thread(space);
        self.pool.add(id, space, registers, extended);
        Ok(id)
    }

    fn change(&mut self, thread: ThreadId, ops: &[MemoryOp]) -> Result<()> {
        ops.iter().try_for_each(|op| self.apply(thread, op))
    }

    fn registers(&self, thread: ThreadId) -> Result<Registers> {
        self.pool.with(thread, |thread| thread.registers)
    }

    fn set_registers(&mut self, thread: ThreadId, registers: &Registers) -> Result<()> {
        self.pool.with(thread, |thread| thread.registers = *registers)
    }

    fn extended_state(&mut self, thread: ThreadId) -> Vec<u8> {
        let features = self.features;
        self.pool.with_extended(thread, |thread| features.frame_of_area(&thread.extended.area)).unwrap_or_default()
    }

    fn set_extended_state(&mut self, thread: ThreadId, state: &[u8]) -> bool {
        let Some(area) = self.features.area_of_frame(state) else { return false };
        self.pool.with_extended(thread, |thread| thread.extended.area = area).is_ok()
    }

    fn reset(&mut self, thread: ThreadId, registers: &Registers) -> Result<()> {
        self.pool.with_extended(thread, |thread| (thread.registers, thread.extended) = (*registers, fresh()))
    }

    fn resume(&mut self, thread: ThreadId, result: Option<i64>, ops: &[MemoryOp]) -> Result<()> {
        let failed = self.change(thread, ops).err().map(Errno::as_return);
        match failed.or(result) {
            Some(value) => self.go_on(thread, value),
            None => self.pool.resume(thread),
        }
    }

    fn kick(&mut self, thread: ThreadId) {
        if !self.pool.kick(thread) {
            return;
        }
        let Some(limited) = self.futexes.remove(thread) else { return };
        let _gone = self.pool.with(thread, |state| state.place = Place::Still);
        if limited {
            // The rest of its time is not known any more.
            let _gone = self.pool.with(thread, |state| state.registers.rax = Errno::INTR.as_return() as u64);
            self.pending.push(Event::Trap(thread, Trap::Kicked));
        } else {
            self.step_back(thread, CALL_FUTEX);
        }
        self.pool.bell.ring();
    }

    fn end_thread(&mut self, thread: ThreadId) {
        self.futexes.remove(thread);
        self.pending.retain(|event| !matches!(event, Event::Trap(who, _) if *who == thread));
        self.pool.remove(thread);
    }

    fn end_space(&mut self, space: SpaceId) {
        for thread in self.pool.threads_of(space) {
            self.end_thread(thread);
        }
        self.pool.remove_space(space);
    }

    fn read(&self, space: SpaceId, address: u64, out: &mut [u8]) -> Result<usize> {
        let size = out.len();
        self.copied(space, address, size, |memory, at, from, step| match memory.find(space, at, PROT_READ) {
            Ok((offset, file)) => memory.frames().arena.read(offset, &mut out[from..from + step], file).is_ok(),
            Err(_) => false,
        })
    }

    fn write(&self, space: SpaceId, address: u64, data: &[u8]) -> Result<usize> {
        self.copied(space, address, data.len(), |memory, at, from, step| match memory.find(space, at, PROT_WRITE) {
            Ok((offset, file)) => memory.frames().arena.write(offset, &data[from..from + step], file).is_ok(),
            Err(_) => false,
        })
    }

    fn stage(&self, thread: ThreadId, address: u64, data: &[u8]) -> Result<()> {
        let done = self.write(self.space_of(thread)?, address, data)?;
        (done == data.len()).then_some(()).ok_or(Errno::FAULT)
    }

    fn cpu_ns(&self, space: SpaceId) -> u64 {
        self.pool.cpu_ns(space)
    }

    fn is_asleep(&self, thread: ThreadId) -> bool {
        self.pool.with(thread, |thread| thread.place) == Ok(Place::Waiting)
    }

    fn usage(&self, space: SpaceId) -> Usage {
        let (peak_bytes, minor_faults) = lock(&self.pool.memory).use_of(space);
        Usage { cpu_ns: self.cpu_ns(space), peak_bytes, minor_faults, major_faults: 0 }
    }

    fn resident_bytes(&self, space: SpaceId) -> u64 {
        lock(&self.pool.memory).resident_bytes(space)
    }

    fn address_end(&self) -> u64 {
        GUEST_END
    }

    fn vdso(&self) -> u64 {
        0
    }

    fn wait(&mut self, timeout_ns: Option<u64>, events: &mut Vec<Event>) -> Result<()> {
        self.collect(events);
        let mut limit = if events.is_empty() { timeout_ns } else { Some(0) };
        let mut sooner = |ns: u64| limit = Some(limit.map_or(ns, |limit| limit.min(ns)));
        if let Some(deadline) = self.futexes.next_ns() {
            sooner(deadline.saturating_sub(now_ns(false)));
        }
        if self.pool.take_turns() {
            sooner(SLICE.as_nanos() as u64);
        }
        let mut ready = Vec::new();
        self.poller.wait(limit, &mut ready).map_err(|error| errno(&error))?;
        for (word, bits) in ready {
            match word {
                WORD_BELL => self.pool.bell.hush(),
                word => events.push(Event::Ready(word, bits)),
            }
        }
        self.collect(events);
        Ok(())
    }
}

#[cfg(test)]
impl Machines {
    /// Whether the thread is in futex(2).
    pub fn is_waiting(&self, thread: ThreadId) -> bool {
        self.is_asleep(thread)
    }
}
