"""The system calls that a child of the zygote may make once a guest is near: files below its root, its own memory and
threads, and, where it runs a guest, sockets of the internet families. Everything else is EPERM.

Denied above all: new processes and programs, signals to others in any form, namespaces, mounts, tracing, limits of
others, keys, BPF, io_uring. A guest's user may be 0, and to the kernel that is the host's root, though without
capabilities: so what users may do among themselves (kill, prlimit, F_SETOWN) is denied here.
"""

from __future__ import annotations

import os
import platform
import struct

from drupe.linux.libseccomp import ACTIONS, OPERATORS, FilterRule, action, compile_filter

_FREE = (
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek "
    "open openat openat2 access faccessat faccessat2 stat lstat fstat newfstatat statx readlink readlinkat getdents64 "
    "mkdirat unlinkat renameat renameat2 linkat symlinkat ftruncate fallocate fadvise64 fsync fdatasync utimensat "
    "fchmod fchmodat fstatfs getcwd chdir dup dup2 dup3 pipe2 eventfd2 copy_file_range sendfile memfd_create "
    "mmap munmap mprotect mremap madvise brk membarrier mincore "
    "futex futex_waitv set_robust_list rseq set_tid_address exit exit_group gettid getpid getppid sched_yield "
    "sched_getaffinity restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack pause "
    "poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 "
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom uname sysinfo getrusage "
    "timerfd_create timerfd_settime getuid geteuid getgid getegid getrlimit socketpair"
)
_SOCKETS = (
    " bind connect listen accept accept4 getsockname getpeername setsockopt getsockopt sendto recvfrom sendmsg recvmsg"
    " sendmmsg recvmmsg shutdown"
)
# call, which of its arguments, the values that it may have
_BOUND: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("ioctl", 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5451)),  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIOCLEX
    ("fcntl", 1, (0, 1, 2, 3, 4, 1030)),  # F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC
    ("prctl", 0, (15, 0x53564D41)),  # PR_SET_NAME PR_SET_VMA
    ("prlimit64", 0, (0,)),  # of itself
)
_FAMILIES = ("socket", 0, (2, 10))  # AF_INET AF_INET6
_THREAD = 0x10000  # CLONE_THREAD
_SIGABRT, _ENOSYS, _EPERM = 6, 38, 1
_OWN_PID = 0x7FFF_FFF1  # stands in the compiled program for the pid of the process that loads it


def compiled(*, sockets: bool) -> bytes:
    """The BPF program; load it with `own` in each process. Raises OSError."""
    allow = ACTIONS["SCMP_ACT_ALLOW"]
    equal, masked = OPERATORS["SCMP_CMP_EQ"], OPERATORS["SCMP_CMP_MASKED_EQ"]
    rules = [FilterRule(allow, (_FREE + (_SOCKETS if sockets else "")).split())]
    for name, argument, values in (*_BOUND, *([_FAMILIES] if sockets else [])):
        rules += [FilterRule(allow, [name], ((argument, equal, value, 0),)) for value in values]
    rules.append(FilterRule(allow, ["clone"], ((0, masked, _THREAD, _THREAD),)))
    rules.append(FilterRule(action("SCMP_ACT_ERRNO", _ENOSYS), ["clone3"]))  # glibc then uses clone
    rules.append(FilterRule(allow, ["tgkill"], ((0, equal, _OWN_PID, 0), (2, equal, _SIGABRT, 0))))
    return compile_filter(action("SCMP_ACT_ERRNO", _EPERM), [platform.machine()], rules)


def own(program: bytes) -> bytes:
    """`program` for this process alone: the one it may abort is itself."""
    return program.replace(struct.pack("=I", _OWN_PID), struct.pack("=I", os.getpid()))
