"""pidfd_open(2) and what can be asked of a process by such a descriptor."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_NR_PIDFD_GETFD: Final = 438  # the same number on every architecture

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A duplicate of another process's descriptor, close-on-exec (pidfd_getfd(2)). Raises OSError: EBADF for a number
    that is not open there, EPERM without the right to trace it."""
    fd: int = _syscall(ctypes.c_long(_NR_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"descriptor {number}")
    return fd


def pid_of(pidfd: int) -> int:
    """The process's number in our PID namespace; 0 or less: it has none there, or has ended (proc_pid_fdinfo(5))."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.partition(":")[2])
    return 0


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot (proc_pid_stat(5), field 22): with its number it names one
    process for good. Raises OSError."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[19])


def open_same(pid: int, ticks: int) -> int:
    """A pidfd of the process that had this number when it began at `ticks`. Raises ProcessLookupError."""
    pidfd = os.pidfd_open(pid)
    try:
        if start_ticks(pid) != ticks:
            raise ProcessLookupError(f"process {pid} is another one")
    except OSError as error:
        os.close(pidfd)
        raise ProcessLookupError(str(error)) from None
    return pidfd
