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


class Alarm:
    """Calls `tell` with "oom", "oom_kill" or "memory_pressure". Two descriptors; no polling. What happens between its
    making and `listen` is told then: made before the workload runs, it misses nothing."""

    def __init__(self, cgroups: Cgroups, path: str, tell: Callable[[str], None]) -> None:
        self._watcher = _watch(cgroups, path)
        self._tell = tell
        self._listens = False

    def listen(self) -> None:
        """Tell from now on. Idempotent."""
        if not self._listens:
            asyncio.get_running_loop().add_reader(self._watcher.fileno(), self._heard)
            self._listens = True

    def close(self) -> None:
        if self._listens:
            self._heard()  # what came just before the end
            asyncio.get_running_loop().remove_reader(self._watcher.fileno())
        self._watcher.close()

    def _heard(self) -> None:
        for event in self._watcher.read():
            if event in _NAMES:
                self._tell(_NAMES[event])


def _watch(cgroups: Cgroups, path: str) -> Watcher:
    try:
        return cgroups.watch(path, pressure=PRESSURE_MS)
    except Unsupported:  # a kernel without pressure information still tells of OOM
        return cgroups.watch(path)
