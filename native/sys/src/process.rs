//! Processes: start, wait, signal; and the few settings of our own.

use crate::fd::duplicate_above;
use crate::{c_path, check, check_long};
use std::ffi::CString;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

pub type Pid = libc::pid_t;

/// How a process ended. code is 128 + signal when a signal ended it (the shell's convention).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub signal: i32,
    pub core: bool,
}

impl Ended {
    /// From a status as wait(2) gives it.
    pub fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Ended { code: (status >> 8) & 0xff, signal: 0, core: false },
            signal => Ended { code: 128 + signal, signal, core: status & 0x80 != 0 },
        }
    }
}

/// fork(2): runs `child` in the new process, which exits with its result and never returns here.
/// Only for single-threaded processes: the child may then allocate and use everything it inherits.
pub fn fork_child(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the process has one thread (see the crate's contract), so no lock can be held by another one.
    let pid = check(unsafe { libc::fork() })?;
    if pid == 0 {
        let code = child();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) }
    }
    Ok(pid)
}

/// A program to start. Descriptors other than 0, 1, 2 and `pass` (3, 4…) are not inherited. ahead: whenever it can run,
/// it runs before every ordinary process (where that is permitted); what it starts is ordinary again. join: files of
/// cgroups (v1 `tasks`) that it moves itself into before it becomes the program.
pub struct Spawn<'a> {
    pub argv: &'a [String],
    pub env: &'a [String],
    pub cwd: Option<&'a Path>,
    pub stdio: [BorrowedFd<'a>; 3],
    pub pass: &'a [OwnedFd],
    pub ahead: bool,
    pub join: &'a [String],
}

/// sched_setscheduler(2). Errors: EPERM without CAP_SYS_NICE or a real-time share of the cgroup.
fn set_scheduler(pid: Pid, policy: i32, priority: i32) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: `parameter` is valid and only read.
    check(unsafe { libc::sched_setscheduler(pid, policy, &parameter) })?;
    Ok(())
}

/// Lets this thread run before all ordinary ones, whatever they do. What it starts, threads too, is ordinary again.
pub fn be_prompt() -> io::Result<()> {
    set_scheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1)
}

pub(crate) fn c_strings(list: &[String]) -> io::Result<(Vec<CString>, Vec<*mut libc::c_char>)> {
    let strings: Result<Vec<CString>, _> = list.iter().map(|text| CString::new(text.as_bytes())).collect();
    let strings = strings.map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut pointers: Vec<*mut libc::c_char> = strings.iter().map(|text| text.as_ptr().cast_mut()).collect();
    pointers.push(ptr::null_mut());
    Ok((strings, pointers))
}

fn code(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// Starts a program.
pub fn spawn(spawn: &Spawn) -> io::Result<Pid> {
    if !spawn.join.is_empty() {
        return fork_exec(spawn);
    }
    // We stand above it until its own children are sure to be ordinary: posix_spawn cannot say that.
    if !spawn.ahead || set_scheduler(0, libc::SCHED_FIFO, 2).is_err() {
        return posix_spawn(spawn, false);
    }
    let started = posix_spawn(spawn, true);
    if let Ok(pid) = started {
        let _ = set_scheduler(pid, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
    }
    let _ = set_scheduler(0, libc::SCHED_OTHER, 0);
    started
}

/// posix_spawnp(3): glibc does it with CLONE_VM | CLONE_VFORK, so nothing of our memory is copied. The child leads a
/// process group of its own, has no blocked signal and every signal at its default.
fn posix_spawn(spawn: &Spawn, ahead: bool) -> io::Result<Pid> {
    if spawn.argv.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let (_argv, argv_pointers) = c_strings(spawn.argv)?;
    let (_env, env_pointers) = c_strings(spawn.env)?;
    // Sources must lie above every target, or one dup2 would overwrite the source of the next.
    let targets = 3 + spawn.pass.len() as i32;
    let stdio = spawn.stdio.iter().map(|fd| duplicate_above(fd, targets));
    let pass = spawn.pass.iter().map(|fd| duplicate_above(fd, targets));
    let sources = stdio.chain(pass).collect::<io::Result<Vec<OwnedFd>>>()?;
    let cwd = spawn.cwd.map(c_path).transpose()?;

    let mut actions = MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    let mut attributes = MaybeUninit::<libc::posix_spawnattr_t>::uninit();
    let mut pid: Pid = 0;
    // SAFETY: both objects are initialised before use and destroyed once afterwards; every pointer handed over
    // (strings, vectors ending in null, signal sets) outlives the call of posix_spawnp.
    unsafe {
        code(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        code(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
        let result = (|| {
            for (target, source) in sources.iter().enumerate() {
                let target = target as i32;
                code(libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), source.as_raw_fd(), target))?;
            }
            if let Some(cwd) = &cwd {
                code(libc::posix_spawn_file_actions_addchdir_np(actions.as_mut_ptr(), cwd.as_ptr()))?;
            }
            let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(signals.as_mut_ptr());
            code(libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), signals.as_ptr()))?;
            libc::sigfillset(signals.as_mut_ptr());
            code(libc::posix_spawnattr_setsigdefault(attributes.as_mut_ptr(), signals.as_ptr()))?;
            code(libc::posix_spawnattr_setpgroup(attributes.as_mut_ptr(), 0))?;
            let mut flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETPGROUP;
            if ahead {
                let lowest = libc::sched_param { sched_priority: 1 };
                code(libc::posix_spawnattr_setschedpolicy(attributes.as_mut_ptr(), libc::SCHED_FIFO))?;
                code(libc::posix_spawnattr_setschedparam(attributes.as_mut_ptr(), &lowest))?;
                flags |= libc::POSIX_SPAWN_SETSCHEDULER;
            }
            code(libc::posix_spawnattr_setflags(attributes.as_mut_ptr(), flags as libc::c_short))?;
            code(libc::posix_spawnp(
                &mut pid,
                argv_pointers[0],
                actions.as_ptr(),
                attributes.as_ptr(),
                argv_pointers.as_ptr(),
                env_pointers.as_ptr(),
            ))
        })();
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        result?;
    }
    Ok(pid)
}

/// What posix_spawn cannot: a child that does something before it becomes the program. When it cannot, it says so on its
/// standard error and exits with 127.
fn fork_exec(spawn: &Spawn) -> io::Result<Pid> {
    let (_argv, argv) = c_strings(spawn.argv)?;
    let (_env, env) = c_strings(spawn.env)?;
    let targets = 3 + spawn.pass.len() as i32;
    let stdio = spawn.stdio.iter().map(|fd| duplicate_above(fd, targets));
    let pass = spawn.pass.iter().map(|fd| duplicate_above(fd, targets));
    let sources = stdio.chain(pass).collect::<io::Result<Vec<OwnedFd>>>()?;
    fork_child(|| {
        let result = become_child(spawn, &sources).map(|()| {
            // SAFETY: both vectors end in null and outlive the call, which returns only when it failed.
            unsafe { libc::execvpe(argv[0], argv.as_ptr().cast(), env.as_ptr().cast()) };
            format!("cannot start {}: {}\n", spawn.argv[0], io::Error::last_os_error())
        });
        let words = result.unwrap_or_else(|(what, error)| format!("cannot {what}: {error}\n"));
        // SAFETY: pointer and length describe `words`.
        unsafe { libc::write(2, words.as_ptr().cast(), words.len()) };
        127
    })
}

/// In the forked child: descriptors, signals, process group, directory and cgroups as `Spawn` has them.
fn become_child(spawn: &Spawn, sources: &[OwnedFd]) -> Result<(), (String, io::Error)> {
    let failed = |what: &str| {
        let what = what.to_string();
        move |error: io::Error| (what, error)
    };
    for (target, source) in sources.iter().enumerate() {
        // SAFETY: no pointers. The child owns none of the numbers that are replaced.
        check(unsafe { libc::dup2(source.as_raw_fd(), target as i32) }).map_err(failed("pass descriptors on"))?;
    }
    for file in spawn.join {
        join_cgroup(file).map_err(failed(&format!("join cgroup {file}")))?;
    }
    reset_signals().map_err(failed("reset signals"))?;
    if let Some(cwd) = spawn.cwd {
        std::env::set_current_dir(cwd).map_err(failed(&format!("enter {}", cwd.display())))?;
    }
    lead_group().map_err(failed("lead a process group"))
}

/// Every signal at its default and none blocked.
pub fn reset_signals() -> io::Result<()> {
    (1..=64).for_each(default_signal);
    set_blocked_signals(0)
}

/// setpgid(2): a process group of our own.
pub fn lead_group() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setpgid(0, 0) })?;
    Ok(())
}

/// Moves this thread, the only one of its process, into a cgroup: 0 in the v1 file `tasks`. Other ways to move a process
/// wait for an RCU grace period, which takes the kernel many milliseconds after some rest.
pub fn join_cgroup(file: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(file)?.write_all(b"0")
}

/// waitid(2) for any child that has ended, without waiting; it is reaped. None: no more of them.
pub fn reap() -> Option<(Pid, Ended)> {
    let mut status = 0;
    // SAFETY: `status` is valid and written by the kernel. __WALL: children made by clone without SIGCHLD as well.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then(|| (pid, Ended::from_wait_status(status)))
}

/// waitpid(2) for one child; waits until it has ended.
pub fn wait_for(pid: Pid) -> io::Result<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid and written by the kernel.
        match check(unsafe { libc::waitpid(pid, &mut status, 0) }) {
            Ok(_) => return Ok(Ended::from_wait_status(status)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// kill(2).
pub fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// killpg(3): SIGKILL for the process group that `pid` leads.
pub fn kill_group(pid: Pid) {
    if pid > 1 {
        // SAFETY: no pointers. ESRCH means that nothing is left to kill.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
}

/// pidfd_open(2).
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is ours (the kernel sets close-on-exec).
    unsafe {
        let fd = check_long(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// pidfd_send_signal(2).
pub fn pidfd_send_signal(pidfd: &impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed and means what kill(2) does.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, ptr::null::<libc::c_void>(), 0) };
    check_long(result)?;
    Ok(())
}

/// The exit status behind a pidfd, for processes that are not our children (PIDFD_GET_INFO with PIDFD_INFO_EXIT,
/// Linux 6.15). None: not reaped yet. Errors: ENOTTY on kernels without it.
pub fn pidfd_exit(pidfd: &impl AsFd) -> io::Result<Option<Ended>> {
    /// struct pidfd_info of linux/pidfd.h, PIDFD_INFO_SIZE_VER0 (64 bytes) and the fields up to it.
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroupid: u64,
        pid: u32,
        tgid: u32,
        ppid: u32,
        ids: [u32; 8],
        exit_code: i32,
    }
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    // _IOWR(PIDFS_IOCTL_MAGIC = 0xff, 11, struct pidfd_info)
    const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xff << 8) | 11;
    const { assert!(std::mem::size_of::<PidfdInfo>() == 64) };
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: `info` has the size that is encoded in the request; the kernel writes no more than that.
    check(unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &mut info) })?;
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then(|| Ended::from_wait_status(info.exit_code)))
}

/// The exit status of a process that has ended and is not reaped yet, whoever its parent is (proc_pid_stat(5), field 52).
/// pidfd: of the same process; it proves that the pid was still its own. Tells nothing without the right to trace it.
pub fn zombie_exit(pid: Pid, pidfd: &impl AsFd) -> Option<Ended> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let status = fields.get(49)?.parse().ok()?;
    let same = pidfd_send_signal(pidfd, 0).is_ok();
    (fields.first() == Some(&"Z") && same && text.starts_with(&format!("{pid} ")))
        .then(|| Ended::from_wait_status(status))
}

/// prctl(2) PR_SET_CHILD_SUBREAPER.
pub fn set_child_subreaper() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    Ok(())
}

/// prctl(2) PR_SET_NAME: the name in /proc/self/comm, 15 bytes at most.
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: NUL-terminated; the kernel reads 16 bytes at most and stops at the NUL.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// setsid(2).
pub fn setsid() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setsid() })?;
    Ok(())
}

/// Blocks `signals` and returns a signalfd(2) that reports them.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before use; the new descriptor is ours.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Every signal that a program may handle, except those that tell it of itself: its faults, its children, its limits.
pub fn forwardable_signals() -> Vec<i32> {
    use libc::*;
    let own = [SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS, SIGPIPE, SIGCHLD, SIGXCPU, SIGXFSZ];
    let never = [SIGKILL, SIGSTOP, 32, 33]; // the last two are the C library's
    (1..=64).filter(|signal| !own.contains(signal) && !never.contains(signal)).collect()
}

/// The next signal waiting in a signalfd, if any.
pub fn next_signal(fd: &impl AsFd) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = std::mem::size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has the size that is passed, and is read only when the kernel filled all of it.
    unsafe {
        let count = libc::read(fd.as_fd().as_raw_fd(), info.as_mut_ptr().cast(), size);
        (count == size as isize).then(|| info.assume_init().ssi_signo as i32)
    }
}

/// signal(2) SIG_IGN.
pub fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// signal(2) SIG_DFL: for one that the process may have inherited as ignored.
pub fn default_signal(signal: i32) {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// sigprocmask(2): the blocked signals, signal n as bit n - 1.
pub fn blocked_signals() -> io::Result<u64> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: without a new set the call only fills `set`, which is read afterwards.
    unsafe {
        check(libc::sigprocmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr()))?;
        let set = set.assume_init();
        Ok((1..=64).filter(|signal| libc::sigismember(&set, *signal) == 1).fold(0, |bits, n| bits | 1 << (n - 1)))
    }
}

/// sigprocmask(2) SIG_SETMASK. Signals that waited and are not blocked any more act before this returns.
pub fn set_blocked_signals(bits: u64) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in (1..=64).filter(|n| bits & 1 << (n - 1) != 0) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        check(libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()))?;
    }
    Ok(())
}

/// execv(3): the environment is passed as it is. Returns only when it failed.
pub fn exec(program: &Path, argv: &[CString]) -> io::Error {
    let Ok(program) = c_path(program) else { return io::Error::from_raw_os_error(libc::EINVAL) };
    let mut pointers: Vec<*const libc::c_char> = argv.iter().map(|text| text.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: both outlive the call; the vector ends in null.
    unsafe { libc::execv(program.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// umask(2), the one in force.
pub fn umask() -> u32 {
    // SAFETY: no pointers, cannot fail. It can only be read by setting it; this process has one thread.
    unsafe {
        let mask = libc::umask(0o077);
        libc::umask(mask);
        mask as u32
    }
}

/// umask(2).
pub fn set_umask(mask: u32) {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::umask(mask) };
}

/// getrlimit(2) RLIMIT_NOFILE: (soft, hard).
pub fn nofile_limit() -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid and written by the kernel.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// setrlimit(2) RLIMIT_NOFILE.
pub fn set_nofile_limit(soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is valid and only read.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(())
}

/// close_range(2): closes every descriptor from `first` up. Only for a child that owns none of them any more.
pub fn close_from(first: u32) {
    // SAFETY: no pointers; the caller (a forked child that never returns to the parent's code) uses none of them again.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// For a forked child, which owns none of its parent's descriptors any more: closes every one but 0, 1, 2 and `fd`, which
/// it returns under the number 3.
pub fn keep_only(fd: &OwnedFd) -> io::Result<OwnedFd> {
    keep_number(fd.as_raw_fd())
}

/// For a forked child, which owns none of its parent's descriptors any more: `stdio` become 0, 1 and 2, each of `kept` a
/// descriptor of this process, and every other one is closed.
pub fn keep_these(stdio: &[OwnedFd; 3], kept: &[&OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    let first = 3 + kept.len() as i32;
    let above = |fd: &OwnedFd| duplicate_above(fd, first);
    let stdio = stdio.iter().map(above).collect::<io::Result<Vec<_>>>()?;
    let kept = kept.iter().map(|fd| above(fd)).collect::<io::Result<Vec<_>>>()?;
    // SAFETY: the caller owns no descriptors; those numbered from 3 become ours, once each. dup2 leaves 0, 1 and 2 open
    // across execve, dup3 closes the others there.
    unsafe {
        for (number, fd) in stdio.iter().enumerate() {
            check(libc::dup2(fd.as_raw_fd(), number as i32))?;
        }
        for (number, fd) in kept.iter().enumerate() {
            check(libc::dup3(fd.as_raw_fd(), 3 + number as i32, libc::O_CLOEXEC))?;
        }
        std::mem::forget((stdio, kept)); // their numbers are closed at once
        close_from(first as u32);
        Ok((3..first).map(|number| OwnedFd::from_raw_fd(number)).collect())
    }
}

/// For the start of a program: closes all that it inherited but 0, 1, 2 and the descriptor of the number `keep`.
pub fn shed_descriptors(keep: Option<i32>) -> io::Result<Option<OwnedFd>> {
    match keep {
        Some(number) => keep_number(number).map(Some),
        None => {
            close_from(3);
            Ok(None)
        }
    }
}

fn keep_number(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the callers own no descriptors; 3 becomes ours.
    unsafe {
        if number == 3 {
            check(libc::fcntl(3, libc::F_SETFD, libc::FD_CLOEXEC))?;
        } else {
            check(libc::dup3(number, 3, libc::O_CLOEXEC))?;
        }
        close_from(4);
        Ok(OwnedFd::from_raw_fd(3))
    }
}

/// setgroups(2) with none, setgid(2), setuid(2): becomes root of a user namespace just made or joined.
pub fn become_root() -> io::Result<()> {
    // SAFETY: no pointers (a null list of length 0).
    unsafe {
        // EPERM where setgroups is denied for the namespace: the old groups then stay, and mean nothing inside.
        libc::setgroups(0, ptr::null());
        check(libc::setresgid(0, 0, 0))?;
        check(libc::setresuid(0, 0, 0))?;
    }
    Ok(())
}

/// geteuid(2).
pub fn effective_uid() -> u32 {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::geteuid() }
}

/// pause(2) for ever, while the kernel reaps ended children: the life of the first process of a PID namespace. There is
/// one for each pod, so it keeps no memory but its stack.
pub fn rest_for_ever() -> ! {
    // SAFETY: SIG_IGN installs no handler (signal(2): ended children then leave no zombies).
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let mut ranges = [(0, 0); 32];
    let count = writable_memory(&mut ranges);
    rest_without(&ranges[..count])
}

/// Our private writable mappings but the stack, as (address, length); how many were found.
fn writable_memory(ranges: &mut [(usize, usize)]) -> usize {
    let here = ranges.as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let ours = maps.lines().filter(|line| line.contains(" rw-p ")).filter_map(|line| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
    });
    let mut count = 0;
    for ((from, to), range) in ours.filter(|(from, to)| !(*from..*to).contains(&here)).zip(ranges) {
        *range = (from, to - from);
        count += 1;
    }
    count
}

#[cfg(target_arch = "x86_64")]
fn rest_without(ranges: &[(usize, usize)]) -> ! {
    // SAFETY: madvise(2) with MADV_DONTNEED for each range, then pause(2) for ever. Nothing else runs from the first call
    // on: no function, static, heap or thread-local is used. `ranges` is on the stack, which is none of them.
    unsafe {
        std::arch::asm!(
            "2:", "test r13, r13", "jz 3f", "mov rdi, [r12]", "mov rsi, [r12 + 8]", "mov edx, {dontneed}",
            "mov eax, {madvise}", "syscall", "add r12, 16", "dec r13", "jmp 2b",
            "3:", "mov eax, {pause}", "syscall", "jmp 3b",
            dontneed = const libc::MADV_DONTNEED, madvise = const libc::SYS_madvise, pause = const libc::SYS_pause,
            in("r12") ranges.as_ptr(), in("r13") ranges.len(),
            options(noreturn)
        )
    }
}

/// Elsewhere it only rests.
#[cfg(not(target_arch = "x86_64"))]
fn rest_without(_: &[(usize, usize)]) -> ! {
    loop {
        // SAFETY: no arguments.
        unsafe { libc::pause() };
    }
}

/// malloc_trim(3): gives free memory back to the system.
pub fn trim_memory() {
    // SAFETY: no pointers. Only glibc has it.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether `path` is on a file system of this magic number (statfs(2)).
#[allow(clippy::unnecessary_cast)] // the field's type differs between architectures
pub fn is_filesystem(path: &Path, magic: i64) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut info = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` is NUL-terminated; `info` is read only after the kernel filled it.
    unsafe { libc::statfs(path.as_ptr(), info.as_mut_ptr()) == 0 && info.assume_init().f_type as i64 == magic }
}
