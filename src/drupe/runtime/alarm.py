"""Memory running out, heard from the kernel while a container runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from drupe.errors import Unsupported
from drupe.resources.cgroups import CgroupEvent, Cgroups, Watcher

_NAMES = {
    CgroupEvent.OOM: "oom",
    CgroupEvent.OOM_KILL: "oom_kill",
    CgroupEvent.MEMORY_PRESSURE: "memory_pressure",
}
PRESSURE_MS = {"memory": 100.0}  # a tenth of each second stalled on memory
# Version 1 wakes us before it kills, and says nothing after it: the counter is read again after these pauses.
_LOOK_AGAIN_S = (0.01, 0.05, 0.25, 1.0)


class Alarm:
    """Calls `tell` with "oom", "oom_kill" or "memory_pressure". Two descriptors; no polling. What happens between its
    making and `listen` is told then: made before the workload runs, it misses nothing."""

    def __init__(self, cgroups: Cgroups, path: str, tell: Callable[[str], None]) -> None:
        self._watcher = _watch(cgroups, path)
        self._tell = tell
        self._listens = False
        self._pauses_s: tuple[float, ...] = ()  # before the looks to come
        self._timer: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Tell from now on. Idempotent."""
        if not self._listens:
            asyncio.get_running_loop().add_reader(self._watcher.fileno(), self._heard)
            self._listens = True

    def close(self) -> None:
        if self._listens:
            self._heard()  # what came just before the end
            asyncio.get_running_loop().remove_reader(self._watcher.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._watcher.close()

    def _heard(self) -> None:
        events = self._watcher.read()
        for event in events:
            if event in _NAMES:
                self._tell(_NAMES[event])
        if CgroupEvent.OOM in events:
            self._pauses_s = _LOOK_AGAIN_S
        elif CgroupEvent.OOM_KILL in events:
            self._pauses_s = ()
        if self._pauses_s and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._pauses_s[0], self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._pauses_s = self._pauses_s[1:]
        self._heard()


def _watch(cgroups: Cgroups, path: str) -> Watcher:
    try:
        return cgroups.watch(path, pressure=PRESSURE_MS)
    except Unsupported:  # a kernel without pressure information still tells of OOM
        return cgroups.watch(path)
