//! Filters of system calls (seccomp(2)): what a thread may call, and what happens when it calls something else.

pub mod bpf;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::kernel::Kernel;
use crate::signal::{Info, SIGKILL, SIGSYS};
use crate::task::{Exit, Tid};
use bpf::{Program, Words};

pub const KILL_PROCESS: u32 = 0x8000_0000;
pub const KILL_THREAD: u32 = 0;
pub const TRAP: u32 = 0x0003_0000;
pub const ERRNO: u32 = 0x0005_0000;
pub const USER_NOTIF: u32 = 0x7fc0_0000;
pub const TRACE: u32 = 0x7ff0_0000;
pub const LOG: u32 = 0x7ffc_0000;
pub const ALLOW: u32 = 0x7fff_0000;
const ACTION: u32 = 0xffff_0000;
const DATA: u32 = 0xffff;
const MAX_ERRNO: u32 = 4095;

/// AUDIT_ARCH_X86_64: the only one whose calls come here.
const ARCH: u32 = 0xc000_003e;
const SYS_SECCOMP: i32 = 1;
/// read, write, exit, rt_sigreturn: what SECCOMP_MODE_STRICT leaves.
const STRICT_CALLS: [u64; 4] = [0, 1, 60, 15];
/// Instructions on the way through all filters of a thread (MAX_INSNS_PER_PATH), where each filter costs some more.
const MAX_PATH: usize = 32_768;
const PATH_EXTRA: usize = 4;
/// Instructions of all the filters in the pod: some 16 MiB.
const MAX_IN_POD: usize = 1 << 20;
/// Numbers for which it is remembered that they are always allowed.
const REMEMBERED: usize = 512;
/// Numbers that are told to the log, at most.
const MAX_LOGGED: usize = 1024;

/// What the filters of a pod take of the kernel's memory.
pub type Budget = Arc<AtomicUsize>;

/// One filter, and those that were there before it.
#[derive(Debug)]
pub struct Filter {
    program: Program,
    below: Option<Arc<Filter>>,
    asks_where: bool,
    path: usize,
    count: u32,
    budget: Budget,
    /// Numbers that this filter and all below it allow whatever the arguments are.
    allowed: [AtomicU64; REMEMBERED / 64],
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.budget.fetch_sub(self.program.size(), Ordering::Relaxed);
    }
}

impl Filter {
    /// ENOMEM when there would be too many of them.
    pub fn new(program: Program, below: Option<Arc<Filter>>, budget: &Budget) -> Result<Arc<Filter>> {
        let size = program.size();
        let path = size + below.as_ref().map_or(0, |filter| filter.path + PATH_EXTRA);
        if path > MAX_PATH || budget.load(Ordering::Relaxed) + size > MAX_IN_POD {
            return Err(Errno::NOMEM);
        }
        budget.fetch_add(size, Ordering::Relaxed);
        Ok(Arc::new(Filter {
            asks_where: program.asks_where() || below.as_ref().is_some_and(|filter| filter.asks_where),
            count: 1 + below.as_ref().map_or(0, |filter| filter.count),
            program,
            below,
            path,
            budget: Arc::clone(budget),
            allowed: Default::default(),
        }))
    }

    /// The program, and the filter that was there before.
    pub(crate) fn parts(&self) -> (&Program, Option<&Arc<Filter>>) {
        (&self.program, self.below.as_ref())
    }

    fn all(&self) -> impl Iterator<Item = &Filter> {
        std::iter::successors(Some(self), |filter| filter.below.as_deref())
    }

    /// What the filters say together: the strictest, and of equals the newest.
    pub fn verdict(&self, words: &Words) -> u32 {
        let number = words[0] as usize;
        if self.is_known(number) {
            return ALLOW;
        }
        let (mut verdict, mut by_number) = (ALLOW, true);
        for filter in self.all() {
            let said = filter.program.run(words);
            by_number &= said.by_number;
            if strictness(said.verdict) < strictness(verdict) {
                verdict = said.verdict;
            }
        }
        if by_number && verdict & ACTION == ALLOW && number < REMEMBERED {
            self.allowed[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
        verdict
    }

    fn is_known(&self, number: usize) -> bool {
        self.allowed.get(number / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (number % 64) & 1 == 1)
    }
}

/// Lower is stricter: as signed numbers, KILL_PROCESS is below all.
fn strictness(verdict: u32) -> i32 {
    (verdict & ACTION) as i32
}

/// What filters the calls of a thread.
#[derive(Clone, Debug, Default)]
pub enum Seccomp {
    #[default]
    Off,
    Strict,
    Filtered(Arc<Filter>),
}

impl Seccomp {
    pub fn is_on(&self) -> bool {
        !matches!(self, Seccomp::Off)
    }

    /// As prctl(2), PR_GET_SECCOMP, and /proc/PID/status have it.
    pub fn mode(&self) -> u32 {
        match self {
            Seccomp::Off => 0,
            Seccomp::Strict => 1,
            Seccomp::Filtered(_) => 2,
        }
    }

    /// How many filters there are.
    pub fn count(&self) -> u32 {
        self.newest().map_or(0, |filter| filter.count)
    }

    pub fn newest(&self) -> Option<&Arc<Filter>> {
        match self {
            Seccomp::Filtered(filter) => Some(filter),
            _ => None,
        }
    }

    /// Whether these filters are among those of `other`: what TSYNC asks of each thread.
    pub fn is_below(&self, other: &Seccomp) -> bool {
        match (self, other) {
            (Seccomp::Off, _) => true,
            (Seccomp::Filtered(mine), Seccomp::Filtered(other)) => {
                other.all().any(|filter| std::ptr::eq(filter, mine.as_ref()))
            }
            _ => false,
        }
    }
}

impl Kernel {
    /// A first filter of a container. ENOMEM.
    pub fn filter(&self, program: Program) -> Result<Seccomp> {
        Filter::new(program, None, &self.filters).map(Seccomp::Filtered)
    }

    /// Whether a thread whose calls are filtered may make the call that it is in; else that was answered.
    pub(crate) fn permits(&mut self, tid: Tid) -> bool {
        let Ok(task) = self.task(tid) else { return false };
        let Some(call) = task.call.as_ref() else { return true };
        let (number, args) = (call.number, call.args);
        let filter = match &task.seccomp {
            Seccomp::Off => return true,
            Seccomp::Strict if STRICT_CALLS.contains(&number) => return true,
            Seccomp::Strict => {
                self.kill_caller(tid, SIGKILL, false);
                return false;
            }
            Seccomp::Filtered(filter) => Arc::clone(filter),
        };
        let at = if filter.asks_where { self.address_of_call(tid) } else { 0 };
        let verdict = filter.verdict(&words(number, at, &args));
        self.carry_out(tid, number, verdict)
    }

    /// True: the call goes on.
    fn carry_out(&mut self, tid: Tid, number: u64, verdict: u32) -> bool {
        let data = verdict & DATA;
        match verdict & ACTION {
            ALLOW => return true,
            LOG => {
                self.log_call(number);
                return true;
            }
            ERRNO => self.finish(tid, Some(-i64::from(data.min(MAX_ERRNO))), Vec::new()),
            TRAP => self.trap(tid, number, data),
            // Nobody traces, and nobody listens.
            TRACE | USER_NOTIF => self.finish(tid, Some(Errno::NOSYS.as_return()), Vec::new()),
            action => self.kill_caller(tid, SIGSYS, action != KILL_THREAD),
        }
        false
    }

    /// SIGSYS, as if the call had not been made yet.
    fn trap(&mut self, tid: Tid, number: u64, data: u32) {
        self.set_result(tid, Some(number as i64));
        let fields = [self.address_of_call(tid), number & 0xffff_ffff | u64::from(ARCH) << 32];
        self.force_signal(tid, Info { signal: SIGSYS, code: SYS_SECCOMP, errno: data as i32, fields });
        self.finish(tid, None, Vec::new());
    }

    fn address_of_call(&self, tid: Tid) -> u64 {
        let registers = self.thread(tid).and_then(|thread| self.platform.registers(thread));
        registers.map_or(0, |registers| self.as_written(tid, &registers).rip)
    }

    fn kill_caller(&mut self, tid: Tid, signal: i32, whole_process: bool) {
        let alone = self.process(tid).is_ok_and(|process| process.threads.len() <= 1);
        match whole_process || alone {
            true => self.end_process(self.pid(tid), Exit::Signal(signal)),
            false => self.exit_thread(tid, 0),
        }
    }

    /// Once for each number: a program could fill the log otherwise.
    fn log_call(&mut self, number: u64) {
        if self.logged.len() < MAX_LOGGED && self.logged.insert(number) {
            self.host.log(&format!("seccomp: call {number} was made (SCMP_ACT_LOG; told once)"));
        }
    }
}

fn words(number: u64, at: u64, args: &[u64; 6]) -> Words {
    let mut words = [0; bpf::WORDS];
    (words[0], words[1]) = (number as u32, ARCH);
    for (place, value) in words[2..].chunks_exact_mut(2).zip(std::iter::once(&at).chain(args)) {
        place.copy_from_slice(&[*value as u32, (value >> 32) as u32]);
    }
    words
}
