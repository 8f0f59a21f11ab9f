//! The `trap` platform: guest code in stub processes that can do nothing but trap.
//!
//! One process of the host for each address space, one of its threads for each thread. A system call or fault lands in
//! the stub's handler, which rings a doorbell (a seccomp notification); this process reads the registers in the thread's
//! slot, and answers. Memory is the host's own: private pages, copied on write by the host when a space is forked.

mod births;
mod lanes;
mod notes;
mod saving;
#[cfg(test)]
mod testing;
mod thread;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Registers, Result};
use drupe_appkernel_core::platform::{Event, MemoryOp, Platform, SpaceId, ThreadId, Trap};
use drupe_appkernel_core::usage::Usage;
use drupe_appkernel_hostsys::identity::Identity;
use drupe_appkernel_hostsys::layout::{self, ANSWER_RESUME, ANSWER_RING, CALL_DOORBELL, SLOTS};
use drupe_appkernel_hostsys::notify::{Listener, Notification};
use drupe_appkernel_hostsys::poll::{self, Poller};
use drupe_appkernel_hostsys::slot::Op;
use drupe_appkernel_hostsys::zygote::{self, Zygote};
use drupe_appkernel_hostsys::{clock, files, memory, remote, stub};

use crate::ops::{self, Expected};
use lanes::Lanes;
use thread::{Space, Thread, Waiting};

const WORD_LISTENER: u64 = u64::MAX;
/// Words of the poller: spaces have this bit.
const WORD_SPACE: u64 = 1 << 63;
const ZYGOTE: ThreadId = ThreadId(0);

/// Pieces of memory written on a thread's way back; leaves room for changes of the space.
const STAGED_MAX: usize = layout::OP_MAX / 2;
/// Calls that have come meanwhile and are served before the poller is looked at: a few, that whoever runs the kernel is heard.
const SERVE_OF_STASH: usize = 4;
/// Traps that are served from slots before descriptors have their turn.
const SERVE_BEFORE_POLL: u32 = 16;

pub struct Stubs {
    listener: Listener,
    poller: Arc<Poller>,
    threads: BTreeMap<ThreadId, Thread>,
    by_host: BTreeMap<i32, ThreadId>,
    spaces: BTreeMap<SpaceId, Space>,
    next: u32,
    /// Came while something else was waited for.
    stash: Lanes<Notification>,
    vdso: u64,
    /// That of the stubs' PID namespace if `numbers_inside`, else the host's.
    proc: OwnedFd,
    numbers_inside: bool,
    /// 0 where the processor has no instructions for segment bases.
    call_entry: u64,
    /// Threads whose slots are looked at while this process does not sleep.
    watched: Vec<ThreadId>,
    wakes_here: bool,
    served_since_poll: u32,
}

fn errno(error: std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(Errno::IO.0))
}

impl Stubs {
    /// Start the first stub process.
    pub fn start() -> std::io::Result<Stubs> {
        Stubs::start_with(Arc::new(Poller::new()?), None, false)
    }

    /// As `start`, with a poller that others add descriptors to, with small words.
    /// `identity`: who the stubs are; None: this process's user. `restores`: they go on from a snapshot.
    pub fn start_with(poller: Arc<Poller>, identity: Option<&Identity>, restores: bool) -> std::io::Result<Stubs> {
        Stubs::over(zygote::start(identity, restores)?, poller, identity)
    }

    /// As `start_with`, from a first stub process that is there.
    pub fn over(zygote: Zygote, poller: Arc<Poller>, identity: Option<&Identity>) -> std::io::Result<Stubs> {
        let first = zygote::first_ops()?;
        poller.add(zygote.listener.raw_fd(), libc::EPOLLIN as u32, WORD_LISTENER)?;
        let pidfd = poll::pidfd(zygote.process)?;
        poller.add(pidfd.as_raw_fd(), libc::EPOLLIN as u32, WORD_SPACE)?;
        let thread = Thread::new(zygote.process, SpaceId(0), 0, zygote.slot);
        let numbers_inside = identity.is_some();
        let proc = match identity {
            Some(identity) => identity.proc.try_clone()?,
            None => files::open_path(b"/proc", libc::O_PATH)?,
        };
        let space = Space {
            process: zygote.process,
            in_proc: if numbers_inside { 2 } else { zygote.process },
            pidfd,
            slots: zygote.slots,
            next_slot: 1,
            resting: VecDeque::new(),
            threads: 1,
            lane: 0,
        };
        let mut stubs = Stubs {
            listener: zygote.listener,
            poller,
            by_host: BTreeMap::from([(thread.host, ZYGOTE)]),
            threads: BTreeMap::from([(ZYGOTE, thread)]),
            spaces: BTreeMap::from([(SpaceId(0), space)]),
            next: 1,
            stash: Lanes::default(),
            vdso: zygote.vdso,
            proc,
            numbers_inside,
            call_entry: if memory::has_fsgsbase() { stub::fast() } else { 0 },
            watched: Vec::new(),
            wakes_here: true,
            served_since_poll: 0,
        };
        stubs.wait_for_bell(ZYGOTE).map_err(|e| std::io::Error::from_raw_os_error(e.0))?;
        stubs.run(ZYGOTE, &first, Vec::new()).map_err(|e| std::io::Error::from_raw_os_error(e.0))?;
        Ok(stubs)
    }

    fn thread(&self, id: ThreadId) -> Result<&Thread> {
        self.threads.get(&id).ok_or(Errno::SRCH)
    }

    fn thread_mut(&mut self, id: ThreadId) -> Result<&mut Thread> {
        self.threads.get_mut(&id).ok_or(Errno::SRCH)
    }

    fn answer(&mut self, id: ThreadId, how: i64) -> Result<()> {
        self.watched.retain(|watched| *watched != id);
        let now = self.now_ns();
        let thread = self.threads.get_mut(&id).ok_or(Errno::SRCH)?;
        let waiting = thread.waiting.take().ok_or(Errno::SRCH)?;
        let watch = how == ANSWER_RESUME && thread.expected.is_empty() && thread.pace.is_quick();
        thread.pace.resumed(now);
        match waiting {
            Waiting::Slot => thread.slot.answer(how, watch),
            Waiting::Bell(bell) => {
                thread.slot.set_watched(watch);
                // Who is watched must run on another processor than this one, which will be busy watching.
                if self.wakes_here == watch {
                    self.wakes_here = !watch;
                    self.listener.wake_here(!watch);
                }
                if !self.listener.answer(bell, how) {
                    thread.unheard = Some(how);
                }
            }
        }
        if watch {
            self.watched.push(id);
        }
        Ok(())
    }

    /// Have the stub make these calls, and wait until it has. The results.
    fn run(&mut self, id: ThreadId, calls: &[Op], expected: Vec<Expected>) -> Result<Vec<i64>> {
        if !expected.is_empty() {
            self.settle(id)?;
        }
        let thread = self.thread_mut(id)?;
        thread.slot.set_ops(calls);
        thread.expected = expected.into();
        self.answer(id, ANSWER_RING)?;
        self.wait_for_bell(id)?;
        let thread = self.thread_mut(id)?;
        if thread.is_fast {
            thread.adopt();
        }
        Ok((0..calls.len()).map(|index| thread.slot.result(index)).collect())
    }

    /// Have a thread that has called without a signal stand in one, with all its registers in the host's frame.
    fn settle(&mut self, id: ThreadId) -> Result<()> {
        if self.thread(id)?.is_fast {
            self.run(id, &[], Vec::new())?;
        }
        Ok(())
    }

    /// The calls that make these changes.
    fn translate(&mut self, id: ThreadId, changes: &[MemoryOp]) -> Result<(Vec<Op>, Vec<Expected>)> {
        let thread = self.thread_mut(id)?;
        thread.owns_gs |= changes.iter().any(|change| matches!(change, MemoryOp::SetGs(_)));
        Ok(ops::translate(changes, thread.index))
    }

    /// A notification of a thread that we know. True: it is a doorbell, now waiting.
    fn accept(&mut self, id: ThreadId, note: &Notification) -> bool {
        let Some(thread) = self.threads.get_mut(&id) else { return false };
        thread.is_put_by = false;
        if note.number == CALL_DOORBELL {
            let again = thread.waiting.replace(Waiting::Bell(note.id)).is_some();
            return match thread.unheard.take() {
                Some(how) => self.answer(id, how).is_err(),
                None => !again,
            };
        }
        match thread.expected.front() {
            Some(expected) if expected.is(note) => {
                let given = expected.file.as_ref().map_or(Ok(0), |(file, at)| {
                    memory::with_fd(file.raw_fd(), |fd| self.listener.add_fd(note.id, fd, Some(*at)))
                });
                let heard = match given {
                    Ok(_) => self.listener.let_pass(note.id),
                    Err(error) => self.listener.refuse(note.id, errno(error).0),
                };
                if heard {
                    thread.expected.pop_front();
                }
            }
            // Not what was ordered: guest code has jumped into the stub.
            _ => drop(self.listener.refuse(note.id, Errno::PERM.0)),
        }
        false
    }

    fn trap(&mut self, id: ThreadId) -> Trap {
        let Some(thread) = self.threads.get_mut(&id) else { return Trap::Kicked };
        thread.input.0 = thread.slot.input(&mut thread.input.1);
        let (signal, info) = thread.slot.signal();
        let code = info[1] as i32;
        thread.is_fast = signal == layout::SIGNAL_FAST_CALL;
        if thread.is_fast {
            let r = thread.slot.fast_registers();
            return Trap::Call { number: r.rax, args: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] };
        }
        match thread.slot.instruction() {
            Some(rip) if stub::is_leaving(rip) => {
                thread.adopt();
                return Trap::Kicked;
            }
            Some(rip) if stub::is_before_call(rip) => thread.leave_loop(),
            _ => {}
        }
        match signal {
            0 => Trap::Kicked,
            libc::SIGSYS => match thread.slot.registers() {
                Some(r) => {
                    // si_syscall and si_arch
                    let (number, arch) = (info[3] as u32, (info[3] >> 32) as u32);
                    let number = if arch == 0xc000_003e { u64::from(number) } else { u64::MAX };
                    Trap::Call { number, args: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] }
                }
                None => Trap::Fault { signal: libc::SIGKILL, code: 0, address: 0 },
            },
            layout::KICK => Trap::Kicked,
            // The host says SI_KERNEL with address 0 for addresses that no pointer can be.
            signal @ 1..=64 => Trap::Fault { signal, code, address: info[2] },
            // Guest code has written there what no signal is.
            _ => Trap::Fault { signal: libc::SIGKILL, code: 0, address: 0 },
        }
    }

    fn dispatch(&mut self, note: &Notification, events: &mut Vec<Event>) {
        match self.by_host.get(&note.thread).copied() {
            Some(id) => {
                if self.accept(id, note) {
                    let now = self.now_ns();
                    if let Some(thread) = self.threads.get_mut(&id) {
                        thread.pace.rang(now);
                    }
                    events.push(Event::Trap(id, self.trap(id)));
                }
            }
            // A thread of a space that was ended, or one that nobody ordered.
            None => {
                poll::signal_thread(note.thread, note.thread, libc::SIGKILL); // needs no descriptor
                self.listener.refuse(note.id, Errno::PERM.0);
            }
        }
    }

    fn now_ns(&self) -> u64 {
        let (seconds, nanoseconds) = clock::now(clock::MONOTONIC);
        seconds as u64 * 1_000_000_000 + u64::from(nanoseconds)
    }

    fn forget_thread(&mut self, id: ThreadId) -> Option<Thread> {
        let thread = self.threads.remove(&id)?;
        self.by_host.remove(&thread.host);
        self.stash.drop_all(|note| note.thread == thread.host); // its number may soon be another's
        self.watched.retain(|watched| *watched != id);
        Some(thread)
    }
}

impl Platform for Stubs {
    fn new_space(&mut self) -> Result<(SpaceId, ThreadId)> {
        self.fork_stub(ZYGOTE, Some(&Registers::default()))
    }

    fn new_space_beside(&mut self, nursery: ThreadId) -> Result<(SpaceId, ThreadId)> {
        self.fork_stub(nursery, Some(&Registers::default()))
    }

    fn host_process(&self, space: SpaceId) -> i32 {
        self.spaces.get(&space).map_or(0, |space| space.process)
    }

    fn fork(&mut self, thread: ThreadId) -> Result<(SpaceId, ThreadId)> {
        self.fork_stub(thread, None)
    }

    fn new_thread(&mut self, beside: ThreadId) -> Result<ThreadId> {
        self.fork_thread(beside)
    }

    fn change(&mut self, thread: ThreadId, changes: &[MemoryOp]) -> Result<()> {
        let staged = self.thread_mut(thread)?.take_staged();
        for part in staged.chunks(layout::OP_MAX) {
            done(&self.run(thread, part, Vec::new())?)?;
        }
        for part in changes.chunks(layout::OP_MAX) {
            let (calls, expected) = self.translate(thread, part)?;
            done(&self.run(thread, &calls, expected)?)?;
        }
        Ok(())
    }

    fn set_lane(&mut self, space: SpaceId, lane: u32) {
        if let Some(space) = self.spaces.get_mut(&space) {
            space.lane = lane;
        }
    }

    fn registers(&self, thread: ThreadId) -> Result<Registers> {
        self.thread(thread)?.slot.registers().ok_or(Errno::FAULT)
    }

    fn call_entry(&self) -> u64 {
        self.call_entry
    }

    fn owns_gs(&self, thread: ThreadId) -> bool {
        self.thread(thread).is_ok_and(|thread| thread.owns_gs)
    }

    fn call_site(&self, thread: ThreadId) -> Option<u64> {
        let thread = self.threads.get(&thread).filter(|thread| !thread.is_fast)?;
        thread.slot.instruction()
    }

    fn set_registers(&mut self, thread: ThreadId, registers: &Registers) -> Result<()> {
        self.settle(thread)?;
        self.thread(thread)?.slot.set_registers(registers).then_some(()).ok_or(Errno::FAULT)
    }

    fn extended_state(&mut self, thread: ThreadId) -> Vec<u8> {
        let _gone = self.settle(thread);
        self.thread(thread).map_or_else(|_| Vec::new(), |thread| thread.slot.extended_state())
    }

    fn set_extended_state(&mut self, thread: ThreadId, state: &[u8]) -> bool {
        self.settle(thread).is_ok() && self.thread(thread).is_ok_and(|thread| thread.slot.set_extended_state(state))
    }

    fn reset(&mut self, thread: ThreadId, registers: &Registers) -> Result<()> {
        self.settle(thread)?;
        self.thread(thread)?.slot.make_frame(registers);
        Ok(())
    }

    fn resume(&mut self, thread: ThreadId, result: Option<i64>, changes: &[MemoryOp]) -> Result<()> {
        let (changes, expected) = self.translate(thread, changes)?;
        if !expected.is_empty() {
            self.settle(thread)?;
        }
        let state = self.thread_mut(thread)?;
        let mut calls = state.take_staged();
        calls.extend(changes);
        if result.is_some_and(|value| !state.slot.set_result(value as u64)) {
            return Err(Errno::FAULT);
        }
        state.slot.set_ops(&calls);
        state.expected = expected.into();
        self.answer(thread, ANSWER_RESUME)
    }

    fn blocked(&mut self, thread: ThreadId) {
        if let Ok(Thread { waiting: Some(Waiting::Slot), slot, .. }) = self.thread(thread) {
            slot.park();
        }
    }

    fn kick(&mut self, thread: ThreadId) {
        let Ok(state) = self.thread(thread) else { return };
        if let Some(space) = self.spaces.get(&state.space) {
            poll::signal_thread(space.process, state.host, layout::KICK);
        }
    }

    fn end_thread(&mut self, thread: ThreadId) {
        if let Ok(state) = self.thread(thread) {
            state.slot.set_ops(&[ops::exit()]);
            let _gone = self.answer(thread, ANSWER_RESUME);
        }
        let Some(state) = self.forget_thread(thread) else { return };
        if let Some(space) = self.spaces.get_mut(&state.space) {
            space.resting.push_back(state.index);
            space.threads -= 1;
        }
    }

    fn end_space(&mut self, id: SpaceId) {
        let Some(space) = self.spaces.remove(&id) else { return };
        poll::signal(space.pidfd.as_fd(), libc::SIGKILL);
        let _closed = self.poller.remove(std::os::fd::AsRawFd::as_raw_fd(&space.pidfd));
        let threads: Vec<_> = self.threads.iter().filter(|(_, t)| t.space == id).map(|(id, _)| *id).collect();
        threads.into_iter().for_each(|thread| drop(self.forget_thread(thread)));
    }

    fn read(&self, space: SpaceId, address: u64, out: &mut [u8]) -> Result<usize> {
        let process = self.spaces.get(&space).ok_or(Errno::SRCH)?.process;
        within(address, out.len())?;
        remote::read(process, address, out).map_err(errno)
    }

    fn write(&self, space: SpaceId, address: u64, data: &[u8]) -> Result<usize> {
        let process = self.spaces.get(&space).ok_or(Errno::SRCH)?.process;
        within(address, data.len())?;
        remote::write(process, address, data).map_err(errno)
    }

    fn input(&self, thread: ThreadId, address: u64) -> &[u8] {
        let Some(thread) = self.threads.get(&thread) else { return &[] };
        let (start, bytes) = &thread.input;
        let skipped = address.checked_sub(*start).and_then(|skipped| usize::try_from(skipped).ok());
        let inside = within(address, bytes.len()).ok().and(skipped);
        inside.and_then(|skipped| bytes.get(skipped..)).unwrap_or_default()
    }

    fn stage(&self, thread: ThreadId, address: u64, data: &[u8]) -> Result<()> {
        within(address, data.len())?;
        let state = self.thread(thread)?;
        let mut staged = state.staged.borrow_mut();
        let from = if staged.copies.len() < STAGED_MAX { state.slot.set_output(staged.size, data) } else { None };
        let Some(from) = from else {
            drop(staged);
            let done = self.write(state.space, address, data)?;
            return (done == data.len()).then_some(()).ok_or(Errno::FAULT);
        };
        staged.size += data.len().next_multiple_of(8);
        staged.copies.push(ops::copy(address, from, data.len()));
        Ok(())
    }

    fn cpu_ns(&self, space: SpaceId) -> u64 {
        self.spaces.get(&space).map_or(0, |space| clock::cpu_ns(space.process))
    }

    fn usage(&self, space: SpaceId) -> Usage {
        let cpu_ns = self.cpu_ns(space);
        let Some(space) = self.spaces.get(&space) else { return Usage::default() };
        let peak_bytes = memory::peak_bytes(self.proc.as_fd(), space.in_proc);
        let (minor_faults, major_faults) = memory::faults(self.proc.as_fd(), space.in_proc);
        Usage { cpu_ns, peak_bytes, minor_faults, major_faults }
    }

    fn thread_cpu_ns(&self, thread: ThreadId) -> Option<u64> {
        let thread = self.threads.get(&thread)?;
        memory::thread_cpu_ns(self.proc.as_fd(), self.spaces.get(&thread.space)?.in_proc, thread.in_proc)
    }

    fn is_asleep(&self, thread: ThreadId) -> bool {
        let Some(thread) = self.threads.get(&thread).filter(|thread| thread.waiting.is_none()) else { return false };
        let process = self.spaces.get(&thread.space).map_or(0, |space| space.in_proc);
        memory::thread_state(self.proc.as_fd(), process, thread.in_proc) == Some(b'S')
    }

    fn resident_bytes(&self, space: SpaceId) -> u64 {
        self.spaces.get(&space).map_or(0, |space| memory::resident_bytes(self.proc.as_fd(), space.in_proc))
    }

    fn memory_report(&self, space: SpaceId) -> String {
        self.spaces.get(&space).map_or_else(String::new, |space| memory::report(self.proc.as_fd(), space.in_proc))
    }

    fn address_end(&self) -> u64 {
        layout::GUEST_END
    }

    fn vdso(&self) -> u64 {
        self.vdso
    }

    fn barriers(&self) -> u32 {
        ops::BARRIERS
    }

    fn own_pages(&self, space: SpaceId, start: u64, end: u64) -> Result<Vec<(u64, u64)>> {
        self.pages_of(space, start, end)
    }

    fn shared_object(&self, space: SpaceId, address: u64) -> Result<((u64, u64), u64)> {
        self.object_of(space, address)
    }

    fn segment_bases(&mut self, thread: ThreadId) -> Result<(u64, Option<u64>)> {
        self.bases_of(thread)
    }

    fn adopt_state(&mut self, thread: ThreadId, state: &[u8]) -> Result<()> {
        self.thread(thread)?.slot.adopt_state(state).then_some(()).ok_or(Errno::INVAL)
    }

    fn move_vdso(&mut self, to: u64) -> Result<()> {
        self.place_vdso(to)
    }

    fn wait(&mut self, timeout_ns: Option<u64>, events: &mut Vec<Event>) -> Result<()> {
        self.take_in()?;
        let waiting = self.stash.len().min(SERVE_OF_STASH);
        for _ in 0..waiting {
            let Some(note) = self.stash.pop() else { break };
            self.dispatch(&note, events);
        }
        // What has come while the kernel waited for one stub may be much, and each of it may take long.
        let timeout_ns = if self.stash.is_empty() { timeout_ns } else { Some(0) };
        if !self.watched.is_empty() && events.is_empty() && timeout_ns != Some(0) {
            self.watch(timeout_ns, events);
        }
        let timeout_ns = if events.is_empty() { timeout_ns } else { Some(0) };
        if !events.is_empty() && waiting == 0 && self.served_since_poll < SERVE_BEFORE_POLL {
            self.served_since_poll += 1;
            return Ok(());
        }
        self.served_since_poll = 0;
        let timeout_ns = if events.is_empty() { timeout_ns } else { Some(0) };
        let mut ready = Vec::new();
        self.poller.wait(timeout_ns, &mut ready).map_err(errno)?;
        for (word, bits) in ready {
            match word {
                WORD_LISTENER => {
                    if let Some(note) = self.listener.receive().map_err(errno)? {
                        self.supersede(&note);
                        self.dispatch(&note, events);
                    }
                }
                // The first stub process: without it no other can be made.
                WORD_SPACE => return Err(Errno::OWNERDEAD),
                word if word & WORD_SPACE != 0 => events.push(Event::Died(SpaceId(word as u32))),
                word => events.push(Event::Ready(word, bits)),
            }
        }
        Ok(())
    }
}

/// The first error among results of calls.
fn done(results: &[i64]) -> Result<()> {
    let failed = results.iter().find(|&&result| (-4095..0).contains(&result));
    failed.map_or(Ok(()), |failed| Err(Errno(-*failed as i32)))
}

/// The stub's own memory is none of the guest's.
fn within(address: u64, size: usize) -> Result<()> {
    match address.checked_add(size as u64) {
        Some(end) if end <= SLOTS => Ok(()),
        _ => Err(Errno::FAULT),
    }
}
