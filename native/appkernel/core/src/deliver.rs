//! Signals at their target: default effects, frames of handlers, and the way back (sigreturn(2)).

use drupe_appkernel_abi::{Errno, Registers, Result};

use crate::kernel::{Done, Kernel};
use crate::signal::{
    self, bit, default_of, take_pending, Action, AltStack, Effect, Info, SA_NODEFER, SA_ONSTACK, SA_RESETHAND,
    SA_RESTART, SIGKILL, SIGSEGV, SIGSTOP, SIGSYS, SIG_DFL, SIG_IGN, SI_KERNEL, UNBLOCKABLE,
};
use crate::table;
use crate::task::{Exit, PendingCall, Report, State, Tid};

const RED_ZONE: u64 = 128;
const UCONTEXT_BYTES: usize = 304;
const INFO_BYTES: usize = 128;
const FRAME_BYTES: u64 = (8 + UCONTEXT_BYTES + INFO_BYTES) as u64;
const UC_FLAGS: u64 = 7; // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
const SEGMENTS: u64 = 0x002b_0000_0000_0033;
/// Flags that a program may set by sigreturn: arithmetic, direction, trap, alignment.
const USER_FLAGS: u64 = 0x0004_0dd5;
const ALWAYS_FLAGS: u64 = 0x202;

impl Kernel {
    fn take_signal(&mut self, tid: Tid) -> Option<Info> {
        let task = self.tasks.tasks.get_mut(&tid)?;
        // A fault of its own goes first: it is at the head, and comes from where the thread stands.
        let process = self.tasks.processes.get_mut(&task.pid)?;
        if let Some(at) = process.pending.iter().position(|info| info.signal == SIGKILL) {
            return Some(process.pending.remove(at));
        }
        take_pending(&mut task.pending, task.mask).or_else(|| take_pending(&mut process.pending, task.mask))
    }

    fn action(&mut self, tid: Tid, signal: i32) -> Action {
        let Ok(process) = self.process(tid) else { return Action::default() };
        let mut actions = process.actions.lock();
        let action = actions.get(signal);
        if action.flags & SA_RESETHAND != 0 && action.handler > SIG_IGN {
            actions.set(signal, Action { handler: SIG_DFL, ..action });
        }
        action
    }

    /// Deliver what waits to a thread that stands still, on its way to guest code. False: it does not go on now.
    pub(crate) fn deliver(&mut self, tid: Tid) -> bool {
        while let Some(mut info) = self.take_signal(tid) {
            self.taken(self.pid(tid), &mut info);
            self.note_pending(self.pid(tid));
            let action = self.action(tid, info.signal);
            match action.handler {
                SIG_IGN => {}
                SIG_DFL if !self.default_effect(tid, info) => return false,
                SIG_DFL => {}
                _ => {
                    if self.enter_handler(tid, &action, &info).is_err() {
                        if info.signal == SIGSEGV {
                            self.end_process(self.pid(tid), Exit::Signal(SIGSEGV));
                            return false;
                        }
                        // No room for the frame: that is a fault, which may have a handler on another stack.
                        self.force_signal(tid, Info::new(SIGSEGV, SI_KERNEL));
                    }
                }
            }
        }
        let Ok(task) = self.task_mut(tid) else { return false };
        if let Some(mask) = task.saved_mask.take() {
            task.mask = mask;
            if self.has_signal(tid) {
                return self.deliver(tid);
            }
        }
        self.is_going(tid)
    }

    fn is_going(&mut self, tid: Tid) -> bool {
        let stopped = self.process(tid).is_ok_and(|p| p.stopped);
        if stopped {
            if let Ok(task) = self.task_mut(tid) {
                task.state = State::Parked;
            }
        }
        !stopped
    }

    /// False: the thread is gone.
    fn default_effect(&mut self, tid: Tid, info: Info) -> bool {
        let pid = self.pid(tid);
        let forced = info.code == SI_KERNEL && [SIGKILL, SIGSEGV].contains(&info.signal);
        let protected = self.is_first.contains(&pid) && !forced && !is_fault(&info);
        match default_of(info.signal) {
            Effect::Ignore | Effect::Continue => true,
            // As in a PID namespace: what the pod itself sends its first process, and it does not handle, does nothing.
            Effect::Terminate if protected => true,
            Effect::Terminate => {
                self.end_process(pid, Exit::Signal(info.signal));
                false
            }
            // Nobody would set an orphaned group going again.
            Effect::Stop if info.signal != SIGSTOP && self.is_orphaned(self.process(tid).map_or(0, |p| p.group)) => {
                true
            }
            Effect::Stop => {
                self.stop(tid, info.signal);
                true
            }
        }
    }

    fn stop(&mut self, tid: Tid, signal: i32) {
        let Ok(process) = self.process_mut(tid) else { return };
        process.stopped = true;
        process.report = Some(Report::Stopped(signal));
        let (pid, others) = (process.pid, process.threads.clone());
        for other in others.into_iter().filter(|&other| other != tid) {
            if let Some(task) = self.tasks.tasks.get(&other).filter(|t| t.state == State::Running && !t.trapped) {
                self.platform.kick(task.thread);
            }
        }
        self.tell_parent(pid, crate::exit::CLD_STOPPED, signal);
    }

    /// A signal has come to a thread that waits in a call. True: the call is over.
    pub(crate) fn interrupt(&mut self, tid: Tid) -> bool {
        let Ok(task) = self.task(tid) else { return true };
        let (mask, pid) = (task.mask, task.pid);
        if task.call.as_ref().is_some_and(PendingCall::is_vfork) {
            let deadly = self.deadly_signal(tid);
            deadly.into_iter().for_each(|signal| self.end_process(pid, Exit::Signal(signal)));
            return deadly.is_some();
        }
        let process = self.tasks.processes.get(&pid);
        let open = |info: &&Info| mask & bit(info.signal) == 0 || UNBLOCKABLE & bit(info.signal) != 0;
        let process_pending = process.map(|p| p.pending.as_slice()).unwrap_or_default();
        let waiting: Vec<i32> = task.pending.iter().chain(process_pending).filter(open).map(|i| i.signal).collect();
        let handled = |signal: &i32| process.is_some_and(|p| p.actions.lock().get(*signal).handler > SIG_IGN);
        match waiting.iter().find(|signal| handled(signal)) {
            Some(&signal) => self.end_call(tid, signal),
            None => {
                // Nothing that the program sees: the call goes on afterwards, unless this is the end.
                let saved = self.task_mut(tid).ok().and_then(|task| task.saved_mask.take());
                let goes_on = self.deliver(tid);
                let Ok(task) = self.task_mut(tid) else { return true };
                task.saved_mask = saved;
                task.state = State::Blocked;
                return !goes_on;
            }
        }
        true
    }

    fn end_call(&mut self, tid: Tid, signal: i32) {
        let Some(call) = self.tasks.tasks.get_mut(&tid).and_then(|task| task.call.take()) else { return };
        let restarts = self.process(tid).is_ok_and(|p| p.actions.lock().get(signal).flags & SA_RESTART != 0);
        let result = match call.progress {
            n if n > 0 && table::counts(call.number) => Some(n as i64),
            _ if restarts && table::restarts(call.number) => None,
            _ => Some(Errno::INTR.as_return()),
        };
        self.leave_call(tid, &call);
        match result {
            Some(value) => self.set_result(tid, Some(value)),
            None => self.rewind(tid, call.number),
        }
        if let Ok(task) = self.task_mut(tid) {
            task.state = State::Running;
        }
        drop(call);
        self.go_on(tid, None, Vec::new());
    }

    fn rewind(&mut self, tid: Tid, number: u64) {
        const SYSCALL_BYTES: u64 = 2;
        let Ok(thread) = self.thread(tid) else { return };
        if let Ok(mut registers) = self.platform.registers(thread) {
            registers.rax = number;
            registers.rip = registers.rip.wrapping_sub(SYSCALL_BYTES);
            let _broken = self.platform.set_registers(thread, &registers);
        }
    }

    /// Put a handler's frame on the stack. EFAULT when there is no room.
    fn enter_handler(&mut self, tid: Tid, action: &Action, info: &Info) -> Result<()> {
        let task = self.task(tid)?;
        let (thread, alt, mask) = (task.thread, task.alt_stack, task.saved_mask.unwrap_or(task.mask));
        let registers = self.platform.registers(thread)?;
        let registers = self.as_written(tid, &registers);
        let state = self.platform.extended_state(thread);
        let onto_alt = action.flags & SA_ONSTACK != 0 && alt.size > 0 && !alt.contains(registers.rsp);
        let top = if onto_alt { alt.address.wrapping_add(alt.size) } else { registers.rsp.wrapping_sub(RED_ZONE) };
        let state_at = top.checked_sub(state.len() as u64).ok_or(Errno::FAULT)? & !63;
        let frame =
            (state_at.checked_sub(FRAME_BYTES).ok_or(Errno::FAULT)? & !15).checked_sub(8).ok_or(Errno::FAULT)?;
        let state_at = if state.is_empty() { 0 } else { state_at };
        let mut bytes = action.restorer.to_le_bytes().to_vec();
        bytes.extend(ucontext(&registers, alt, mask, state_at, info));
        bytes.extend(info.to_bytes());
        self.put_now(tid, frame, &bytes)?;
        self.put_now(tid, state_at, &state)?;
        let entered = Registers {
            rip: action.handler,
            rsp: frame,
            rax: 0,
            rdi: info.signal as u64,
            rsi: frame + 8 + UCONTEXT_BYTES as u64,
            rdx: frame + 8,
            eflags: registers.eflags & !0x0001_0500, // trap, direction, resume
            ..registers
        };
        self.platform.set_registers(thread, &entered)?;
        let own = if action.flags & SA_NODEFER != 0 { 0 } else { bit(info.signal) };
        let task = self.task_mut(tid)?;
        task.saved_mask = None;
        task.mask = (mask | action.mask | own) & !UNBLOCKABLE;
        Ok(())
    }
}

/// An exception of the processor's, not a signal that somebody has sent.
fn is_fault(info: &Info) -> bool {
    const FAULTS: [i32; 6] = [4, 5, 7, 8, SIGSEGV, SIGSYS]; // SIGILL, SIGTRAP, SIGBUS, SIGFPE
    info.code > 0 && FAULTS.contains(&info.signal)
}

fn ucontext(registers: &Registers, alt: AltStack, mask: signal::Set, state_at: u64, info: &Info) -> Vec<u8> {
    let flags = if state_at == 0 { UC_FLAGS & !1 } else { UC_FLAGS };
    let stack_flags = if alt.size == 0 { signal::SS_DISABLE } else { 0 };
    let mut words = vec![flags, 0, alt.address, u64::from(stack_flags), alt.size];
    words.extend(registers.to_words());
    let fault = if info.code > 0 { info.fields[0] } else { 0 };
    words.extend([SEGMENTS, 0, 0, mask, fault, state_at]);
    words.extend([0; 8]);
    words.push(mask);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// rt_sigreturn(2).
pub(crate) fn sigreturn(kernel: &mut Kernel, tid: Tid, _: &[u64; 6]) -> Result<Done> {
    if restore(kernel, tid).is_err() {
        kernel.force_signal(tid, Info::new(SIGSEGV, SI_KERNEL));
    }
    Ok(Done::Registers)
}

fn restore(kernel: &mut Kernel, tid: Tid) -> Result<()> {
    let thread = kernel.thread(tid)?;
    let now = kernel.platform.registers(thread)?;
    // The return address has been popped: the stack pointer is at the ucontext.
    let words: [u64; 38] = kernel.get_words(tid, now.rsp)?;
    let mut saved = [0; 18];
    saved.copy_from_slice(&words[5..23]);
    let mut registers = Registers::from_words(saved);
    registers.eflags = registers.eflags & USER_FLAGS | ALWAYS_FLAGS;
    let state_at = words[28];
    let size = kernel.platform.extended_state(thread).len();
    if state_at != 0 && size > 0 {
        let state = kernel.get_bytes(tid, state_at, size)?;
        kernel.platform.set_extended_state(thread, &state);
    }
    let registers = kernel.going_on(tid, &registers);
    kernel.platform.set_registers(thread, &registers)?;
    let task = kernel.task_mut(tid)?;
    task.mask = words[37] & !UNBLOCKABLE;
    task.alt_stack =
        AltStack { address: words[2], size: if words[3] as u32 & signal::SS_DISABLE != 0 { 0 } else { words[4] } };
    Ok(())
}
