//! The kernel: what there is, and the loop that turns traps into calls and answers.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::socket::Network;
use drupe_appkernel_vfs::{tty, SpecialFiles};

use crate::bounds::Bounds;
use crate::calls::mq::MessageQueues;
use crate::census::Census;
use crate::host::Host;
use crate::jobs::Board;
use crate::mm::{Mm, MmId};
use crate::nursery::Nurseries;
use crate::pids;
use crate::platform::{Event, MemoryOp, Platform, SpaceId, ThreadId, Trap};
use crate::quota::Quotas;
use crate::rest::Rest;
use crate::seat::Looks;
use crate::seccomp;
use crate::signal::{self, Info};
use crate::sysctl::IpcLimits;
use crate::sysv::SysV;
use crate::table;
use crate::task::{
    Exit, PendingCall, Pid, Process, ReadyList, State, Task, TaskWaker, Tasks, Tid, PROCESSOR_ALARM, TIMER,
};
use crate::timers::Timers;

/// How a call ended, if not with an error.
pub enum Done {
    Value(i64),
    /// The value, once the address space has been changed so.
    Change(i64, Vec<MemoryOp>),
    /// It waits, and is tried again when something it has registered with wakes it.
    Wait,
    /// Registers are as they shall be (execve, sigreturn).
    Registers,
    /// The caller has ended.
    Gone,
}

impl From<i64> for Done {
    fn from(value: i64) -> Done {
        Done::Value(value)
    }
}

pub type Answer = Result<Done>;

/// A first process of a container: what to run, as whom.
pub struct Program {
    pub path: Vec<u8>,
    pub arguments: Vec<Vec<u8>>,
    pub environment: Vec<Vec<u8>>,
}

pub struct Kernel {
    pub(crate) platform: Box<dyn Platform>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) tasks: Tasks,
    pub(crate) mms: BTreeMap<MmId, Mm>,
    pub(crate) by_thread: BTreeMap<ThreadId, Tid>,
    pub(crate) ready: Arc<ReadyList>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) specials: Arc<dyn SpecialFiles>,
    pub(crate) network: Arc<Network>,
    pub(crate) census: Arc<Census>,
    pub(crate) board: Arc<Board>,
    pub(crate) bounds: Bounds,
    pub(crate) sysv: SysV,
    pub(crate) message_queues: MessageQueues,
    /// Who does not go on now.
    pub(crate) rest: Rest,
    pub(crate) ipc: IpcLimits,
    pub(crate) nurseries: Nurseries,
    pub(crate) quotas: Quotas,
    pub(crate) domainname: Vec<u8>,
    /// A process has come, gone, or become another since the last census.
    pub(crate) has_changed: bool,
    /// Rewrite places of programs that call often (rewrite.rs).
    pub rewrites: bool,
    /// Tell the host of every call.
    pub trace: bool,
    pub(crate) hostname: Vec<u8>,
    pub(crate) next_mm: u32,
    /// Processor time that programs have had in spaces that are gone.
    pub(crate) gone_ns: u64,
    pub(crate) table: &'static [Option<table::Entry>],
    /// Processes from outside that have ended, for whoever runs the kernel.
    pub(crate) ended: BTreeMap<Pid, Exit>,
    pub(crate) is_first: BTreeSet<Pid>,
    /// Further processes from outside: their ends are told too.
    pub(crate) joined: BTreeSet<Pid>,
    /// Calls that are not there and were asked for.
    pub(crate) missed: BTreeSet<u64>,
    /// Calls that a filter has told to the log.
    pub(crate) logged: BTreeSet<u64>,
    /// How much the filters of the pod's processes take.
    pub(crate) filters: seccomp::Budget,
    events: Vec<Event>,
}

impl Kernel {
    pub fn new(platform: Box<dyn Platform>, host: Arc<dyn Host>, specials: Arc<dyn SpecialFiles>) -> Kernel {
        Kernel {
            platform,
            timers: Timers::new(Arc::clone(&host)),
            census: Census::new(Arc::clone(&host)),
            network: Network::new(),
            board: Board::new(),
            bounds: Bounds::default(),
            sysv: SysV::default(),
            message_queues: MessageQueues::default(),
            rest: Rest::default(),
            ipc: IpcLimits::default(),
            nurseries: Nurseries::new(),
            quotas: Quotas::new(),
            domainname: b"(none)".to_vec(),
            has_changed: true,
            rewrites: true,
            trace: false,
            host,
            tasks: Tasks::default(),
            mms: BTreeMap::new(),
            by_thread: BTreeMap::new(),
            ready: Arc::default(),
            specials,
            hostname: b"drupe".to_vec(),
            next_mm: 0,
            gone_ns: 0,
            table: table::table(),
            ended: BTreeMap::new(),
            is_first: BTreeSet::new(),
            joined: BTreeSet::new(),
            missed: BTreeSet::new(),
            logged: BTreeSet::new(),
            filters: Arc::default(),
            events: Vec::new(),
        }
    }

    pub fn timers(&self) -> &Arc<Timers> {
        &self.timers
    }

    /// What procfs is to show.
    pub fn census(&self) -> Arc<Census> {
        Arc::clone(&self.census)
    }

    /// Have terminals tell this board, which `specials` asks for them.
    pub fn set_terminals(&mut self, board: Arc<Board>) {
        self.board = board;
    }

    pub fn set_hostname(&mut self, name: &[u8]) {
        self.hostname = name.to_vec();
    }

    /// Numbers of calls that somebody made and that are not there.
    pub fn missed(&self) -> impl Iterator<Item = u64> + '_ {
        self.missed.iter().copied()
    }

    /// Processes from outside that have ended since the last time.
    pub fn take_ended(&mut self) -> BTreeMap<Pid, Exit> {
        std::mem::take(&mut self.ended)
    }

    /// Serve what is to be done, then wait for what happens next, at most so long, and serve that.
    pub fn step(&mut self, limit_ns: Option<u64>) -> Result<()> {
        self.serve_all();
        let timeout = match (self.timers.until_next_ns(), limit_ns) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut events = std::mem::take(&mut self.events);
        self.platform.wait(timeout, &mut events)?;
        self.timers.fire();
        for event in events.drain(..) {
            let who = self.cause(event);
            self.carefully(who, |kernel| kernel.serve(event));
        }
        self.events = events;
        self.serve_all();
        Ok(())
    }

    /// Until nobody can go on, and the host has nothing to move.
    fn serve_all(&mut self) {
        loop {
            self.take_signals_of_terminals();
            self.serve_ready();
            if !self.host.pump() {
                return;
            }
        }
    }

    fn serve_ready(&mut self) {
        while !self.ready.is_empty() {
            for tid in self.take_ready() {
                let number = tid & !PROCESSOR_ALARM;
                self.carefully(number, |kernel| match tid & PROCESSOR_ALARM {
                    0 => kernel.try_again(tid),
                    TIMER => kernel.timers_due(number),
                    PROCESSOR_ALARM => kernel.processor_alarms_due(number),
                    _ => kernel.alarm_due(number),
                });
            }
        }
    }

    fn serve(&mut self, event: Event) {
        match event {
            Event::Trap(thread, trap) => self.trapped(thread, trap),
            Event::Died(space) => self.space_died(space),
            Event::Ready(word, events) => self.host.ready(word, events),
        }
    }

    fn trapped(&mut self, thread: ThreadId, trap: Trap) {
        let Some(&tid) = self.by_thread.get(&thread) else {
            self.platform.end_thread(thread);
            return;
        };
        let Some(task) = self.tasks.tasks.get_mut(&tid) else { return };
        task.trapped = true;
        if task.state == State::Dying {
            self.bury_thread(tid);
            return;
        }
        match trap {
            Trap::Call { number, args } => {
                task.call = Some(PendingCall { number, args, ..PendingCall::default() });
                let filtered = task.seccomp.is_on();
                self.count_site(tid, number);
                if !filtered || self.permits(tid) {
                    self.call(tid);
                }
            }
            Trap::Fault { signal, .. } if self.redirect(tid, signal) => self.go_on(tid, None, Vec::new()),
            Trap::Fault { signal, code, address } if self.grow(tid, (signal, code, address)) => {
                self.go_on(tid, None, Vec::new());
            }
            Trap::Fault { signal, code, address } => {
                self.force_signal(tid, Info { signal, code, errno: 0, fields: [address, 0] });
                self.go_on(tid, None, Vec::new());
            }
            Trap::Kicked => self.go_on(tid, None, Vec::new()),
        }
    }

    /// Do the call that the task is in, as far as it goes now.
    fn call(&mut self, tid: Tid) {
        let Some(call) = self.tasks.tasks.get(&tid).and_then(|task| task.call.as_ref()) else { return };
        let (number, view) = (call.number, pids::view_of(tid));
        let args = pids::inward(view, number, &call.args);
        let entry = usize::try_from(number).ok().and_then(|n| self.table.get(n)).and_then(Option::as_ref);
        let answer = match entry.and_then(|entry| entry.handler) {
            Some(handler) => {
                match self.looks_at_proc(tid, number, &args) {
                    Looks::No => {}
                    Looks::Maybe => self.take_census(tid, false),
                    Looks::Surely => {
                        self.take_census(tid, true);
                        self.look_into(tid, args[0]);
                    }
                }
                handler(self, tid, &args)
            }
            None => {
                self.missed.insert(number);
                Err(Errno::NOSYS)
            }
        };
        let answer = pids::outward(view, number, &args, answer);
        self.take_names();
        self.take_signals_of_terminals();
        if self.trace {
            self.tell(tid, number, &args, &answer);
        }
        self.answered(tid, answer);
    }

    /// A bug of the kernel's ends the process for which it worked, with a word about why, and nobody else.
    fn carefully(&mut self, tid: Tid, work: impl FnOnce(&mut Kernel)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            let pid = self.pid(tid);
            self.host.log(&format!("a bug of the kernel's: process {pid} is ended"));
            self.end_process(pid, Exit::Signal(signal::SIGKILL));
        }
    }

    fn cause(&self, event: Event) -> Tid {
        match event {
            Event::Trap(thread, _) => self.by_thread.get(&thread).copied().unwrap_or(0),
            _ => 0,
        }
    }

    fn tell(&self, tid: Tid, number: u64, args: &[u64; 6], answer: &Answer) {
        let name = self.table.get(number as usize).and_then(Option::as_ref).map_or("?", |entry| entry.name);
        let end = match answer {
            Ok(Done::Value(value) | Done::Change(value, _)) => format!("{value:#x}"),
            Ok(Done::Wait) => String::from("waits"),
            Ok(Done::Registers | Done::Gone) => String::from("-"),
            Err(errno) => errno.to_string(),
        };
        self.host.log(&format!("{tid} {name}({number}) {args:x?} = {end}"));
    }

    fn answered(&mut self, tid: Tid, answer: Answer) {
        match answer {
            Ok(Done::Value(value)) => self.finish(tid, Some(value), Vec::new()),
            Ok(Done::Change(value, ops)) => self.finish(tid, Some(value), ops),
            Err(tty::RESTART) => self.signalled(tid),
            Err(errno) => self.finish(tid, Some(errno.as_return()), Vec::new()),
            Ok(Done::Registers) => self.finish(tid, None, Vec::new()),
            Ok(Done::Gone) => {}
            Ok(Done::Wait) => {
                if let Some(task) = self.tasks.tasks.get_mut(&tid) {
                    task.state = State::Blocked;
                    // What the call has given so far is there while it waits.
                    let _nowhere = self.platform.change(task.thread, &[]);
                    self.platform.blocked(task.thread);
                }
                if self.has_signal(tid) {
                    self.ready.push(tid);
                }
            }
        }
    }

    /// A signal was sent to the caller instead: first that, then the call again.
    fn signalled(&mut self, tid: Tid) {
        if let Some(task) = self.tasks.tasks.get_mut(&tid) {
            task.state = State::Blocked;
            self.platform.blocked(task.thread);
        }
        self.ready.push(tid);
    }

    pub(crate) fn finish(&mut self, tid: Tid, value: Option<i64>, ops: Vec<MemoryOp>) {
        if let Some(task) = self.tasks.tasks.get_mut(&tid) {
            task.call = None;
            task.state = State::Running;
            self.go_on(tid, value, ops);
        }
    }

    /// Back to guest code, unless a signal or a stop comes first.
    pub(crate) fn go_on(&mut self, tid: Tid, value: Option<i64>, ops: Vec<MemoryOp>) {
        let Some(task) = self.tasks.tasks.get(&tid) else { return };
        let undisturbed = task.pending.is_empty() && task.saved_mask.is_none();
        let process = self.tasks.processes.get(&task.pid);
        let undisturbed = undisturbed && process.is_some_and(|p| p.pending.is_empty() && !p.stopped);
        if undisturbed && !self.must_be_done_now(tid, &ops) {
            return self.resume(tid, value, &ops);
        }
        let changed = self.platform.change(task.thread, &ops);
        let value = changed.map_or_else(|errno| Some(errno.as_return()), |()| value);
        self.set_result(tid, value);
        if self.deliver(tid) {
            self.resume(tid, None, &[]);
        }
    }

    /// Addresses that become free may be given to another thread as soon as its call comes: its new memory must not go with a
    /// change that this thread, which the host does not let run, makes later.
    fn must_be_done_now(&self, tid: Tid, ops: &[MemoryOp]) -> bool {
        let frees = |op: &MemoryOp| matches!(op, MemoryOp::Unmap { .. } | MemoryOp::Move { .. });
        let has_company = || {
            let threads = self.process(tid).map_or(1, |process| process.threads.len());
            threads > 1 || self.mm(tid).is_ok_and(|mm| mm.users > 1)
        };
        ops.iter().any(frees) && has_company()
    }

    pub(crate) fn set_result(&mut self, tid: Tid, value: Option<i64>) {
        let (Some(value), Ok(thread)) = (value, self.thread(tid)) else { return };
        if let Ok(mut registers) = self.platform.registers(thread) {
            registers.rax = value as u64;
            let _broken = self.platform.set_registers(thread, &registers); // seen again when it is resumed
        }
    }

    fn resume(&mut self, tid: Tid, value: Option<i64>, ops: &[MemoryOp]) {
        if self.is_held(tid) {
            return self.park(tid, value, ops);
        }
        let Some(task) = self.tasks.tasks.get_mut(&tid) else { return };
        task.trapped = false;
        task.state = State::Running;
        let (thread, pid) = (task.thread, task.pid);
        if self.platform.resume(thread, value, ops).is_err() {
            // The guest has written nonsense over its frame.
            self.end_process(pid, Exit::Signal(signal::SIGKILL));
        }
    }

    /// A blocked task was woken.
    fn try_again(&mut self, tid: Tid) {
        let Some(task) = self.tasks.tasks.get_mut(&tid) else { return };
        let stopped = self.tasks.processes.get(&task.pid).is_some_and(|p| p.stopped);
        match task.state {
            State::Parked if !stopped => {
                task.state = State::Running;
                self.go_on(tid, None, Vec::new());
            }
            State::Blocked => {
                if self.has_signal(tid) && self.interrupt(tid) {
                    return;
                }
                if self.tasks.processes.get(&self.pid(tid)).is_none_or(|p| p.stopped) {
                    return;
                }
                if let Some(call) = self.tasks.tasks.get_mut(&tid).and_then(|task| task.call.as_mut()) {
                    call.registrations.clear();
                }
                self.call(tid);
            }
            _ => {}
        }
    }

    pub(crate) fn waker(&self, tid: Tid) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { tid, ready: Arc::clone(&self.ready) })
    }

    pub(crate) fn pid(&self, tid: Tid) -> Pid {
        self.tasks.tasks.get(&tid).map_or(0, |task| task.pid)
    }

    pub(crate) fn task(&self, tid: Tid) -> Result<&Task> {
        self.tasks.tasks.get(&tid).ok_or(Errno::SRCH)
    }

    pub(crate) fn task_mut(&mut self, tid: Tid) -> Result<&mut Task> {
        self.tasks.tasks.get_mut(&tid).ok_or(Errno::SRCH)
    }

    pub(crate) fn thread(&self, tid: Tid) -> Result<ThreadId> {
        Ok(self.task(tid)?.thread)
    }

    pub(crate) fn space(&self, tid: Tid) -> Result<SpaceId> {
        Ok(self.task(tid)?.space)
    }

    pub(crate) fn process(&self, tid: Tid) -> Result<&Process> {
        let pid = self.task(tid)?.pid;
        self.tasks.processes.get(&pid).ok_or(Errno::SRCH)
    }

    pub(crate) fn process_mut(&mut self, tid: Tid) -> Result<&mut Process> {
        let pid = self.task(tid)?.pid;
        self.tasks.processes.get_mut(&pid).ok_or(Errno::SRCH)
    }

    pub(crate) fn mm(&self, tid: Tid) -> Result<&Mm> {
        self.mms.get(&self.process(tid)?.mm).ok_or(Errno::SRCH)
    }

    pub(crate) fn mm_mut(&mut self, tid: Tid) -> Result<&mut Mm> {
        let id = self.process(tid)?.mm;
        self.mms.get_mut(&id).ok_or(Errno::SRCH)
    }

    /// The call that the task is in.
    pub(crate) fn pending(&mut self, tid: Tid) -> Result<&mut PendingCall> {
        self.task_mut(tid)?.call.as_mut().ok_or(Errno::INVAL)
    }

    /// Have the call wait until this time at most (None: for ever).
    pub(crate) fn wait_until(&mut self, tid: Tid, deadline_ns: Option<u64>) -> Result<Done> {
        let waker = self.waker(tid);
        let timers = Arc::clone(&self.timers);
        let call = self.pending(tid)?;
        call.deadline_ns = deadline_ns;
        if let (Some(deadline), None) = (deadline_ns, &call.timer) {
            call.timer = Some(timers.at(deadline, waker));
        }
        Ok(Done::Wait)
    }

    /// Whether the call's time is over.
    pub(crate) fn is_over(&self, tid: Tid) -> bool {
        let deadline = self.task(tid).ok().and_then(|t| t.call.as_ref()).and_then(|c| c.deadline_ns);
        deadline.is_some_and(|deadline| self.timers.now_ns() >= deadline)
    }
}
