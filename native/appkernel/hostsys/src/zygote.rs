//! The first stub process: a process with nothing in it but the stub's page and slots, from which all others are forked.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::filter;
use crate::identity::Identity;
use crate::layout::{self, CODE, CODE_SIZE, INPUTS, KICK, SLOTS, SLOTS_SIZE, SLOT_SIZE, STACK, STACK_SIZE};
use crate::notify::{own, Listener};
use crate::slot::{Op, Slot};
use crate::{inputs, memory, stub};

/// What a started zygote is known by.
pub struct Zygote {
    pub process: i32,
    pub listener: Listener,
    pub slot: Slot,
    pub slots: OwnedFd,
    /// The host's vDSO, which guests use too; 0 where there is none.
    pub vdso: u64,
}

/// One that waits for its cgroup, before it becomes a stub.
pub struct Waiting {
    process: i32,
    slot: Slot,
    slots: OwnedFd,
    /// Both ends of a pipe: it has no descriptors of its own.
    gate: (OwnedFd, OwnedFd),
}

/// Signals that the stub's handler takes: traps, faults, and the kick.
const HANDLED: [libc::c_int; 7] =
    [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, KICK];

/// The host's struct sigaction (not libc's).
#[repr(C)]
struct KernelSigaction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

const SA_RESTORER: u64 = 0x0400_0000;
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Start the zygote, in a PID namespace of its own where that is permitted: then no stub outlives it, nor it this process.
/// The caller has one thread, whose death kills it. Its first doorbell is still to be answered, with `first_ops`.
/// `identity`: who it and all stubs are; the caller must be root. None: who the caller is. `restores`: the kernel goes on
/// from a snapshot.
pub fn start(identity: Option<&Identity>, restores: bool) -> io::Result<Zygote> {
    begin(identity, restores)?.finish(&[])
}

/// The first half of `start`.
pub fn begin(identity: Option<&Identity>, restores: bool) -> io::Result<Waiting> {
    let slots = memory::memfd("drupe-slots", SLOTS_SIZE)?;
    let slot = Slot::map(slots.as_fd(), 0)?;
    slot.prepare_stack();
    let program = filter::program(restores);
    let gate = drupe_sys::fd::pipe()?;
    let process = match identity {
        Some(identity) => identity.expendable(|| clone_process(true))?,
        None => clone_process(false)?,
    };
    if process == 0 {
        become_stub(slots.as_fd(), &program, identity, gate.0.as_fd());
    }
    Ok(Waiting { process, slot, slots, gate })
}

/// Cgroups that the first stub may be moved into.
pub const MAX_CGROUPS: usize = 32;

impl Waiting {
    /// The second half: it moves itself into these cgroups (`drupe_sys::cgroup::join`), and becomes a stub.
    pub fn finish(self, cgroups: &[OwnedFd]) -> io::Result<Zygote> {
        let Waiting { process, slot, slots, gate } = self;
        let mut order = [-1; MAX_CGROUPS];
        if cgroups.len() > order.len() {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        order.iter_mut().zip(cgroups).for_each(|(number, file)| *number = file.as_raw_fd());
        let bytes: Vec<u8> = order.iter().flat_map(|number: &i32| number.to_ne_bytes()).collect();
        crate::files::write(gate.1.as_fd(), &bytes)?;
        let fd = wait_for_listener(&slot, process)?;
        Ok(Zygote { process, listener: Listener::new(own(fd)?), slot, slots, vdso: memory::vdso()?.0 })
    }
}

/// `placed`: children of this process have namespaces already.
fn clone_process(placed: bool) -> io::Result<i32> {
    let base = libc::CLONE_FILES | libc::SIGCHLD;
    let own = [libc::CLONE_NEWPID, libc::CLONE_NEWUSER | libc::CLONE_NEWPID];
    for extra in if placed { &[0][..] } else { &own } {
        // SAFETY: as fork; the child makes plain system calls until it jumps into the stub's page.
        let pid = unsafe { libc::syscall(libc::SYS_clone, base | extra, 0, 0, 0, 0) };
        if pid >= 0 {
            return Ok(pid as i32);
        }
    }
    Err(io::Error::last_os_error())
}

fn wait_for_listener(slot: &Slot, process: i32) -> io::Result<i32> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match slot.load(layout::READY) as i64 {
            0 => {}
            n if n > 0 => return Ok(n as i32 - 1),
            n => return Err(io::Error::from_raw_os_error(-n as i32)),
        }
        let mut status = 0;
        // SAFETY: `status` is ours.
        if unsafe { libc::waitpid(process, &raw mut status, libc::WNOHANG) } == process || Instant::now() > deadline {
            return Err(io::Error::other("the first stub process did not start"));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// What the zygote does first: let go of everything that it has from this process.
pub fn first_ops() -> io::Result<Vec<Op>> {
    let unmap = |from: u64, to: u64| Op { number: libc::SYS_munmap as u64, args: [from, to - from, 0, 0, 0, 0] };
    let close = Op { number: libc::SYS_close_range as u64, args: [0, u64::from(u32::MAX), 2, 0, 0, 0] }; // UNSHARE
    let (_, kept_from, kept_to) = memory::vdso()?;
    let end = 0x7fff_ffff_f000;
    let gs = Op { number: libc::SYS_arch_prctl as u64, args: [0x1001, SLOTS, 0, 0, 0, 0] };
    let mut ops = vec![gs, close, unmap(0, CODE), unmap(CODE + CODE_SIZE, SLOTS)];
    if kept_from == 0 {
        ops.push(unmap(SLOTS + SLOTS_SIZE, end));
    } else {
        ops.extend([unmap(SLOTS + SLOTS_SIZE, kept_from), unmap(kept_to, end)]);
    }
    Ok(ops)
}

/// In the child: no allocation, no library but system calls.
fn become_stub(
    slots: BorrowedFd<'_>,
    program: &[libc::sock_filter],
    identity: Option<&Identity>,
    waits: BorrowedFd<'_>,
) -> ! {
    let assumed = || identity.map_or(Ok(()), |identity| identity.assume().map_err(|error| code(&error)));
    let prepared = prepare(slots, assumed);
    let done = join_cgroups(waits).and(prepared).and_then(|()| install(program));
    let word = (SLOTS as usize + layout::READY) as *mut i64;
    // SAFETY: the slots are mapped there, unless `prepare` failed before; then this faults and the parent sees it.
    unsafe { word.write_volatile(done.map_or_else(|errno| -i64::from(errno), |fd| i64::from(fd) + 1)) };
    // SAFETY: the stub's page is mapped there, and wants its slot in rbx and a stack pointer in the slot.
    unsafe {
        std::arch::asm!("mov rbx, {slot}", "lea rsp, [rbx + {stack}]", "jmp {entry}", slot = in(reg) SLOTS,
            stack = const SLOT_SIZE - 64, entry = in(reg) stub::entry(), options(noreturn));
    }
}

fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn last_errno() -> i32 {
    code(&io::Error::last_os_error())
}

fn done(result: libc::c_long) -> Result<libc::c_long, i32> {
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(result)
    }
}

/// Everything but the filter.
fn prepare(slots: BorrowedFd<'_>, assume: impl FnOnce() -> Result<(), i32>) -> Result<(), i32> {
    map_fixed(SLOTS, SLOTS_SIZE, libc::MAP_SHARED, slots.as_raw_fd())?;
    assume()?;
    map_fixed(CODE, CODE_SIZE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    let code = stub::code();
    let table = inputs::table();
    // SAFETY: the page was mapped just now, and has room for the code and the table (asserted by a test).
    unsafe {
        std::ptr::copy_nonoverlapping(code.as_ptr(), CODE as *mut u8, code.len());
        std::ptr::copy_nonoverlapping(table.as_ptr(), (CODE + INPUTS as u64) as *mut u16, table.len());
    };
    // SAFETY: plain system calls on this process.
    unsafe {
        done(libc::mprotect(CODE as *mut libc::c_void, CODE_SIZE as usize, 5).into())?;
        done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0).into())?;
        done(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        // The kernel's process, of the same user, reads and writes the memory of stubs.
        done(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0).into())?;
        done(libc::setsid().into())?;
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        done(libc::setrlimit(libc::RLIMIT_CORE, &raw const none).into())?;
        // What the library has registered lies in memory that will be gone.
        done(libc::syscall(libc::SYS_set_robust_list, 0, 24))?;
    }
    memory::unregister_rseq();
    handle_signals()
}

fn map_fixed(at: u64, size: u64, flags: i32, fd: i32) -> Result<(), i32> {
    // SAFETY: nothing of this process lies there (layout).
    let got = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            size as usize,
            3,
            flags | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE,
            fd,
            0,
        )
    };
    if got as u64 == at {
        Ok(())
    } else {
        Err(last_errno())
    }
}

fn handle_signals() -> Result<(), i32> {
    let stack = libc::stack_t { ss_sp: (SLOTS + STACK as u64) as *mut libc::c_void, ss_flags: 0, ss_size: STACK_SIZE };
    // SAFETY: `stack` describes mapped memory.
    done(unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) }.into())?;
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART) as u64 | SA_RESTORER;
    // Not these two: the stub's copies may meet memory that is not there.
    let faults = 1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGBUS - 1);
    let handled = KernelSigaction { handler: stub::handler(), flags, restorer: CODE, mask: !faults };
    let ignored = KernelSigaction { handler: libc::SIG_IGN as u64, flags: 0, restorer: 0, mask: 0 };
    for signal in HANDLED {
        sigaction(signal, &handled)?;
    }
    // Children need no reaping.
    sigaction(libc::SIGCHLD, &ignored)?;
    // A kick waits until the thread is in guest code, whose frame lets it in: in the stub it would take the place of that frame,
    // and the thread would return to itself for ever.
    let kick = 1u64 << (KICK - 1);
    // SAFETY: `kick` is a set of the host's size.
    done(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const kick, 0, 8) })?;
    Ok(())
}

fn sigaction(signal: i32, action: &KernelSigaction) -> Result<(), i32> {
    // SAFETY: `action` is laid out as the host's.
    done(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, std::ptr::from_ref(action), 0, 8) }).map(drop)
}

/// Waits for the order, and moves this process into the cgroups whose files it names: descriptors are shared with the parent.
fn join_cgroups(waits: BorrowedFd<'_>) -> Result<(), i32> {
    let mut order = [0i32; MAX_CGROUPS];
    let size = size_of_val(&order);
    // SAFETY: `order` has the size that is said; then one byte is read.
    unsafe {
        let count = libc::read(waits.as_raw_fd(), order.as_mut_ptr().cast(), size);
        if done(count as libc::c_long)? != size as libc::c_long {
            return Err(libc::EIO);
        }
        done(libc::prctl(libc::PR_SET_NAME, c"drupe-guest".as_ptr(), 0, 0, 0).into())?;
        for file in order.into_iter().filter(|&file| file >= 0) {
            done(libc::write(file, c"0".as_ptr().cast(), 1) as libc::c_long)?;
        }
    }
    Ok(())
}

/// From here on only the stub's calls pass. Returns the listener, in the table shared with the parent.
fn install(program: &[libc::sock_filter]) -> Result<i32, i32> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: `filter` describes `program`.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    done(fd).map(|fd| fd as i32)
}

const _: () = assert!(SLOT_SIZE as usize == STACK + STACK_SIZE);
