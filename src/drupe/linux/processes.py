"""Making and confining processes: clone(2), prctl(2), capset(2), seccomp(2), setns(2), unshare(2)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
import termios
from collections.abc import Sequence
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
_CLONE_PIDFD: Final = 0x00001000
_CLONE_PARENT: Final = 0x00008000
_SIGCHLD: Final = 17

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_NAME = 23, 24, 38, 15
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_SECCOMP_SET_MODE_FILTER: Final = 1
# clone, seccomp, capset
_NUMBERS: Final = {"x86_64": (56, 317, 126), "aarch64": (220, 277, 91), "riscv64": (220, 277, 91)}

_libc = ctypes.CDLL(None, use_errno=True)
# a clone(2) must not give up the interpreter's lock on the way: in the child nobody would give it back
_held = ctypes.PyDLL(None, use_errno=True)


def _numbers() -> tuple[int, int, int]:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(38, f"no system call numbers for {machine}")
    return _NUMBERS[machine]


def _check(result: int, what: str = "") -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what or None)
    return result


def fork_sibling() -> tuple[int, int]:
    """fork(2) a process whose parent is *our* parent (CLONE_PARENT): (pid, pidfd), or (0, -1) in the new one.

    For a process of one thread only: handlers of pthread_atfork(3) are not called. Raises OSError.
    """
    number = _numbers()[0]
    pidfd = ctypes.c_int(-1)
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid = _held.syscall(number, ctypes.c_long(_CLONE_PARENT | _CLONE_PIDFD | _SIGCHLD), None, ctypes.byref(pidfd), 0, 0)
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return 0, -1
    error = ctypes.get_errno()
    api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error), "clone")
    return pid, pidfd.value


def setns(fd: int, kind: int) -> None:
    """Join the namespace of `fd`, which must be of `kind` (CLONE_NEW…; 0: any). Raises OSError."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def unshare(kinds: int) -> None:
    """Leave the namespaces of `kinds` for new ones. Raises OSError."""
    _check(_libc.unshare(ctypes.c_int(kinds)), "unshare")


def drop_bounding_set() -> None:
    """No program and no change of user will ever bring a capability back. Raises OSError."""
    for number in range(64):
        if _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) < 0:
            return  # the kernel has no more
        _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "capbset")


def drop_capabilities() -> None:
    """Give up every capability of this thread, of which there should be one only. Raises OSError."""
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.syscall(_numbers()[2], ctypes.c_char_p(header), ctypes.c_char_p(bytes(24))), "capset")


def no_new_privileges() -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def set_name(name: str) -> None:
    """The process's name as ps(1) shows it: 15 bytes."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def take_terminal(fd: int) -> None:
    """A new session with `fd` as its controlling terminal (tty_ioctl(4), TIOCSCTTY). Raises OSError."""
    os.setsid()
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


class CommandLine:
    """Where this process's arguments stand in its memory, which is where ps(1) reads them (proc_pid_cmdline(5)); found
    once, and the same in what it forks."""

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - /proc
            fields = file.read().rpartition(b")")[2].split()
        self._start, self._end = int(fields[45]), int(fields[46])  # arg_start, arg_end: 48 and 49, counted from 3

    def show(self, argv: Sequence[str]) -> None:
        """Show these, as far as there is room."""
        room = self._end - self._start
        if self._start and room > 0:
            words = "\0".join(argv).encode(errors="replace")[: room - 1]
            ctypes.memmove(self._start, words.ljust(room, b"\0"), room)


class _Program(ctypes.Structure):
    """struct sock_fprog (linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def load_filter(program: bytes) -> None:
    """Put this thread, and all that it makes, under a compiled system-call filter. Raises OSError."""
    loaded = _Program(len(program) // 8, program)
    _check(_libc.syscall(_numbers()[1], _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(loaded)), "seccomp")
