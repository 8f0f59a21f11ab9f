//! Threads of the guest on processors: some run, others wait for their turn. Each processor has a thread of this process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drupe_appkernel_abi::{Errno, Registers, Result};
use drupe_appkernel_core::platform::{Event, SpaceId, ThreadId, Trap};
use drupe_appkernel_hostsys::runner::{self, Bell};

use crate::cpu::{Cpu, Extended, Hook, Outcome};
use crate::memory::Memory;

/// How long a thread may run while others wait.
pub const SLICE: Duration = Duration::from_millis(5);
const STACK_BYTES: usize = 256 << 10;

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has trapped, and its event was told.
    Still,
    /// It waits for a processor.
    Queued,
    Running(usize),
    /// In futex(2).
    Waiting,
}

pub struct Thread {
    pub space: SpaceId,
    pub registers: Registers,
    pub extended: Extended,
    pub place: Place,
    /// The processor that has its extended state.
    loaded: Option<usize>,
    /// Somebody has asked for it since it was resumed.
    pub kicked: bool,
    pub ran_ns: u64,
}

struct Seat {
    hook: Arc<Hook>,
    /// Its thread in this process; 0 before there is one.
    runner: i32,
    /// Whose extended state it has.
    loaded: Option<ThreadId>,
    running: Option<(ThreadId, SpaceId, Instant)>,
    /// Who runs there next.
    next: Option<ThreadId>,
}

#[derive(Default)]
struct State {
    threads: BTreeMap<ThreadId, Thread>,
    queue: VecDeque<ThreadId>,
    seats: Vec<Seat>,
    events: Vec<Event>,
    cpu_ns: BTreeMap<SpaceId, u64>,
    /// Spaces that are to go when no processor runs them any more.
    ended: BTreeSet<SpaceId>,
    started: bool,
    over: bool,
}

/// What processors and the kernel share. Locks are taken in the order of the fields.
pub struct Pool {
    state: Mutex<State>,
    cpus: Vec<Mutex<Cpu>>,
    pub memory: Mutex<Memory>,
    work: Vec<Condvar>,
    pub bell: Bell,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn errno(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(Errno::IO.0))
}

impl Pool {
    pub fn new(memory: Memory, cpus: Vec<Cpu>) -> io::Result<Arc<Pool>> {
        let seat = |cpu: &Cpu| Seat { hook: cpu.hook(), runner: 0, loaded: None, running: None, next: None };
        let state = State { seats: cpus.iter().map(seat).collect(), ..State::default() };
        let work = cpus.iter().map(|_| Condvar::new()).collect();
        let cpus = cpus.into_iter().map(Mutex::new).collect();
        runner::prepare()?;
        Ok(Arc::new(Pool { state: Mutex::new(state), cpus, memory: Mutex::new(memory), work, bell: Bell::new()? }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The processors' threads, once this process is confined.
    fn start(self: &Arc<Pool>, state: &mut State) -> Result<()> {
        if std::mem::replace(&mut state.started, true) {
            return Ok(());
        }
        for index in 0..self.cpus.len() {
            let pool = Arc::clone(self);
            let made = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || pool.serve(index));
            made.map_err(|error| errno(&error))?;
        }
        Ok(())
    }

    /// For the pool's end: nobody runs any more, soon.
    pub fn close(&self) {
        let mut state = self.state();
        state.over = true;
        (0..state.seats.len()).for_each(|index| take_out(&state.seats[index]));
        self.work.iter().for_each(Condvar::notify_all);
    }

    pub fn add(&self, id: ThreadId, space: SpaceId, registers: Registers, extended: Extended) {
        let place = Place::Still;
        let thread = Thread { space, registers, extended, place, loaded: None, kicked: false, ran_ns: 0 };
        self.state().threads.insert(id, thread);
    }

    /// Look at a thread, or change what is not on a processor.
    pub fn with<T>(&self, id: ThreadId, look: impl FnOnce(&mut Thread) -> T) -> Result<T> {
        self.state().threads.get_mut(&id).map(look).ok_or(Errno::SRCH)
    }

    /// The same, with its extended state taken off the processor that has it.
    pub fn with_extended<T>(&self, id: ThreadId, look: impl FnOnce(&mut Thread) -> T) -> Result<T> {
        let mut state = self.state();
        self.unload(&mut state, id)?;
        state.threads.get_mut(&id).map(look).ok_or(Errno::SRCH)
    }

    /// A thread that runs nowhere.
    fn unload(&self, state: &mut State, id: ThreadId) -> Result<()> {
        let Some(thread) = state.threads.get_mut(&id) else { return Err(Errno::SRCH) };
        if matches!(thread.place, Place::Running(_)) {
            return Err(Errno::BUSY);
        }
        let Some(index) = thread.loaded.take() else { return Ok(()) };
        state.seats[index].loaded = None;
        thread.extended = lock(&self.cpus[index]).extended().map_err(|error| errno(&error))?;
        Ok(())
    }

    /// Have it run as soon as there is a processor.
    pub fn resume(self: &Arc<Pool>, id: ThreadId) -> Result<()> {
        let mut state = self.state();
        self.start(&mut state)?;
        let thread = state.threads.get_mut(&id).ok_or(Errno::SRCH)?;
        (thread.place, thread.kicked) = (Place::Queued, false);
        let loaded = thread.loaded;
        let is_idle = |seat: &Seat| seat.running.is_none() && seat.next.is_none();
        let own = loaded.filter(|&index| is_idle(&state.seats[index]));
        let empty = || state.seats.iter().position(|seat| is_idle(seat) && seat.loaded.is_none());
        match own.or_else(empty).or_else(|| state.seats.iter().position(is_idle)) {
            Some(index) => {
                state.seats[index].next = Some(id);
                self.work[index].notify_one();
            }
            None => state.queue.push_back(id),
        }
        Ok(())
    }

    /// Take a thread out of guest code. A thread in futex(2) is the caller's business: true.
    pub fn kick(&self, id: ThreadId) -> bool {
        let mut state = self.state();
        let Some(thread) = state.threads.get_mut(&id) else { return false };
        match thread.place {
            Place::Waiting => return true,
            // Its event may be one that nobody will be told.
            Place::Still => thread.kicked = true,
            Place::Queued => {
                thread.place = Place::Still;
                state.queue.retain(|queued| *queued != id);
                state.seats.iter_mut().filter(|seat| seat.next == Some(id)).for_each(|seat| seat.next = None);
                state.events.push(Event::Trap(id, Trap::Kicked));
                self.bell.ring();
            }
            Place::Running(index) => {
                thread.kicked = true;
                take_out(&state.seats[index]);
            }
        }
        false
    }

    /// The thread is no more. Its space is told.
    pub fn remove(&self, id: ThreadId) {
        let mut state = self.state();
        let Some(thread) = state.forget(id) else { return };
        drop(state);
        lock(&self.memory).remove_thread(thread.space);
    }

    pub fn threads_of(&self, space: SpaceId) -> Vec<ThreadId> {
        self.state().threads.iter().filter(|(_, thread)| thread.space == space).map(|(id, _)| *id).collect()
    }

    /// A space, whose threads are no more.
    pub fn remove_space(&self, space: SpaceId) {
        let mut state = self.state();
        state.cpu_ns.remove(&space);
        state.events.retain(|event| *event != Event::Died(space));
        if state.runs(space) {
            state.ended.insert(space);
        } else {
            lock(&self.memory).end(space);
        }
    }

    /// What has happened.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().events)
    }

    /// Take out those who have run for long, if others wait. True: some wait still.
    pub fn take_turns(&self) -> bool {
        let state = self.state();
        if state.queue.is_empty() {
            return false;
        }
        let long = |seat: &&Seat| seat.running.is_some_and(|(_, _, since)| since.elapsed() >= SLICE);
        state.seats.iter().filter(long).for_each(take_out);
        true
    }

    pub fn cpu_ns(&self, space: SpaceId) -> u64 {
        let state = self.state();
        let now = |seat: &Seat| match seat.running {
            Some((_, of, since)) if of == space => since.elapsed().as_nanos() as u64,
            _ => 0,
        };
        state.cpu_ns.get(&space).copied().unwrap_or(0) + state.seats.iter().map(now).sum::<u64>()
    }

    /// A processor's thread.
    fn serve(&self, index: usize) {
        let mut state = self.state();
        state.seats[index].runner = runner::own_number();
        loop {
            let id = loop {
                if state.over {
                    return;
                }
                let next = state.seats[index].next.take().or_else(|| state.queue.pop_front());
                match next {
                    Some(id) => break id,
                    None => state = self.work[index].wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state = self.turn(state, index, id);
        }
    }

    /// One thread's turn.
    fn turn<'a>(&'a self, mut state: MutexGuard<'a, State>, index: usize, id: ThreadId) -> MutexGuard<'a, State> {
        if self.load(&mut state, index, id).is_err() {
            state.leave(index, id, &Registers::default(), Outcome::Broken);
            self.bell.ring();
            return state;
        }
        let Some(thread) = state.threads.get_mut(&id) else { return state };
        thread.place = Place::Running(index);
        let (space, mut registers) = (thread.space, thread.registers);
        let seat = &mut state.seats[index];
        seat.running = Some((id, space, Instant::now()));
        seat.hook.wanted.store(false, Ordering::SeqCst);
        seat.hook.kick.set(false);
        drop(state);
        let (begun, before) = (Instant::now(), runner::own_cpu_ns());
        let ran = lock(&self.cpus[index]).run(&self.memory, space, &mut registers);
        let used = runner::own_cpu_ns() - before;
        let ran_ns = begun.elapsed().as_nanos() as u64;
        let mut state = self.state();
        state.seats[index].running = None;
        if let Some(thread) = state.threads.get_mut(&id) {
            thread.ran_ns = ran_ns;
        }
        *state.cpu_ns.entry(space).or_default() += used;
        let outcome = ran.unwrap_or(Outcome::Broken);
        if outcome == Outcome::NoMemory {
            let largest = lock(&self.memory).largest();
            state.events.extend(largest.map(Event::Died));
        }
        state.leave(index, id, &registers, outcome);
        if state.ended.contains(&space) && !state.runs(space) {
            state.ended.remove(&space);
            state.cpu_ns.remove(&space);
            lock(&self.memory).end(space);
        }
        self.bell.ring();
        state
    }

    /// Have a processor hold a thread's extended state.
    fn load(&self, state: &mut State, index: usize, id: ThreadId) -> Result<()> {
        if state.seats[index].loaded == Some(id) {
            return Ok(());
        }
        if let Some(other) = state.seats[index].loaded {
            self.unload(state, other)?;
        }
        self.unload(state, id)?;
        let thread = state.threads.get_mut(&id).ok_or(Errno::SRCH)?;
        lock(&self.cpus[index]).set_extended(&thread.extended).map_err(|error| errno(&error))?;
        thread.loaded = Some(index);
        state.seats[index].loaded = Some(id);
        Ok(())
    }
}

fn take_out(seat: &Seat) {
    seat.hook.wanted.store(true, Ordering::SeqCst);
    if seat.runner != 0 {
        runner::take_out(&seat.hook.kick, seat.runner);
    }
}

impl State {
    fn runs(&self, space: SpaceId) -> bool {
        self.seats.iter().any(|seat| seat.running.is_some_and(|(_, of, _)| of == space))
    }

    /// A thread that shall not be known any more, wherever it is.
    fn forget(&mut self, id: ThreadId) -> Option<Thread> {
        let thread = self.threads.remove(&id)?;
        self.queue.retain(|queued| *queued != id);
        self.events.retain(|event| !matches!(event, Event::Trap(who, _) if *who == id));
        for seat in &mut self.seats {
            seat.next = seat.next.filter(|next| *next != id);
            seat.loaded = seat.loaded.filter(|loaded| *loaded != id);
            if seat.running.is_some_and(|(running, _, _)| running == id) {
                take_out(seat);
            }
        }
        Some(thread)
    }

    /// A thread's turn is over.
    fn leave(&mut self, index: usize, id: ThreadId, registers: &Registers, outcome: Outcome) {
        let Some(thread) = self.threads.get_mut(&id) else {
            self.seats[index].loaded = None; // of a thread that is no more
            return;
        };
        (thread.registers, thread.place) = (*registers, Place::Still);
        let event = match outcome {
            Outcome::Trap(trap) => Event::Trap(id, trap),
            Outcome::Kicked if thread.kicked => Event::Trap(id, Trap::Kicked),
            // Its time was over; or memory was short: somebody's space goes, perhaps its own.
            Outcome::Kicked | Outcome::NoMemory => {
                thread.place = Place::Queued;
                self.queue.push_back(id);
                return;
            }
            Outcome::Broken => Event::Died(thread.space),
        };
        self.events.push(event);
    }
}
