"""Families of processes, held by pidfd so that a signal never reaches a recycled pid (pidfd_open(2))."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path


class ProcessRef:
    """A process that can be sent one signal."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def signal(self, number: int) -> None:
        """Send it the signal if it still lives, and let go of it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
        os.close(self._pidfd)


def descendants(pid: int, *, among: Iterable[int]) -> list[ProcessRef]:
    """The living descendants of `pid` among the given host pids."""
    parents = {child: parent for child in among if (parent := _parent(child)) is not None}
    family = {pid}
    grew = True
    while grew:
        more = {child for child, parent in parents.items() if parent in family} - family
        family |= more
        grew = bool(more)
    return [ref for child in family - {pid} if (ref := _open(child)) is not None]


def end_commands(matches: Callable[[list[bytes]], bool], *, quiet_s: float, timeout_s: float) -> bool:
    """SIGKILL for every process whose arguments match, until none was seen for `quiet_s`: a process that is just being
    started still has its parent's arguments. False when some are left after `timeout_s`."""
    ends_at = time.monotonic() + timeout_s
    quiet_at = time.monotonic() + quiet_s
    while time.monotonic() < quiet_at:
        for ref in filter(None, [_open(pid) for pid in _pids() if matches(_arguments(pid))]):
            ref.signal(signal.SIGKILL)
            quiet_at = time.monotonic() + quiet_s
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.005)
    return True


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names are all we want


def _arguments(pid: int) -> list[bytes]:
    """Without a process, and for a zombie, there are none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    return []


def _open(pid: int) -> ProcessRef | None:
    with contextlib.suppress(OSError):
        return ProcessRef(pid, os.pidfd_open(pid))
    return None


def _parent(pid: int) -> int | None:
    """ppid from /proc/PID/stat (proc(5)); the command in parentheses may hold anything."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return int(text[text.rindex(")") + 2 :].split()[1])
    return None
