"""How long a machine could have answered: what tells one that hangs from one that is slow.

A thread of the monitor that sleeps has nothing to do, and one that runs gets on; one that waits for a processor of the
host, or for the host's memory or disk, can do neither, however long that lasts. So time counts for a thread as far as
it ran, or slept of its own will, and for the machine as far as it does for the thread that had least of it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

_NS = 1e9
_SLEEPS = "SI"


class Seen(NamedTuple):
    """A thread at one moment (proc_pid_stat(5); kernel, Documentation/scheduler/sched-stats.rst). ran_s: on a
    processor, so far. waited_s: for one."""

    state: str
    ran_s: float
    waited_s: float


class Patience:
    """Of one machine, from its making on. pid: its monitor. running_counts: what a second on a processor is worth: less
    than one where the processor is emulated."""

    def __init__(self, pid: int, *, running_counts: float = 1.0) -> None:
        self._pid = pid
        self._running_counts = running_counts
        self._last = threads_of(pid)
        self._had = dict.fromkeys(self._last, 0.0)
        self._at = time.monotonic()

    def had_s(self, *, at_most_s: float) -> float:
        """Seconds so far. at_most_s: that the time since the last look may count for: whoever looks may be late
        himself. Threads that came later do not count, nor those that ended."""
        now, seen = time.monotonic(), threads_of(self._pid)
        passed_s, self._at = min(now - self._at, at_most_s), now
        for thread in self._had.keys() - seen.keys():
            del self._had[thread]
        for thread in self._had:
            self._had[thread] += self._counts(self._last[thread], seen[thread], passed_s)
        self._last = seen
        return min(self._had.values(), default=0.0)

    def _counts(self, before: Seen, now: Seen, passed_s: float) -> float:
        ran_s = min(now.ran_s - before.ran_s, passed_s)
        slept_s = passed_s - ran_s - (now.waited_s - before.waited_s) if now.state in _SLEEPS else 0.0
        return max(ran_s, 0.0) * self._running_counts + max(slept_s, 0.0)


def threads_of(pid: int) -> dict[int, Seen]:
    """Those of a process, by their numbers; none when it has ended."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return {}
    found = ((int(thread.name), look(thread)) for thread in threads)
    return {number: seen for number, seen in found if seen is not None}


def look(thread: Path) -> Seen | None:
    """None when it has ended."""
    try:
        state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
        ran, waited, _ = (thread / "schedstat").read_text().split()
    except (OSError, IndexError, ValueError):
        return None
    return Seen(state, int(ran) / _NS, int(waited) / _NS)
