"""Children made ready ahead: the second call into a running container finds its process there already.

Such a child is in the container's cgroup and namespaces, has no rights, has the module's code mapped, and has run
nothing. It takes one call and ends with it: nothing passes from one call to the next, let alone to another container.
At most one waits per container, only after a first call, and it goes when none follows for a while.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import msgspec

from drupe.errors import DrupeError
from drupe.sandboxers.wasm.job import Job
from drupe.sandboxers.wasm.launch import Coming, Launcher
from drupe.sandboxers.wasm.zygotes import REFILL_AFTER_S

KEPT_S = 30.0


@dataclass(slots=True)
class _Waiting:
    job: Job
    coming: Coming | None = None
    timer: asyncio.TimerHandle | None = None
    work: asyncio.Future[None] | None = None


class ReadyChildren:
    """By container."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._waiting: dict[str, _Waiting] = {}

    def take(self, task: str, job: Job) -> Coming | None:
        """The child that waits for just this job, if it is ready. It is the caller's then."""
        found = self._waiting.get(task)
        if found is None or found.coming is None or found.job != ahead(job) or not found.coming.is_ready:
            return None
        coming, found.coming = found.coming, None
        return coming

    def prepare(self, task: str, job: Job, engine: str) -> None:
        """Have one made, in a moment, when the present call is out of the way."""
        found = self._waiting.get(task)
        if found is not None and found.coming is not None and found.job == ahead(job):
            self._keep(task, found)
            return
        self.drop(task)
        made = self._waiting[task] = _Waiting(ahead(job))
        loop = asyncio.get_running_loop()
        made.timer = loop.call_later(REFILL_AFTER_S, self._begin, task, made, engine)

    def _begin(self, task: str, made: _Waiting, engine: str) -> None:
        made.work = asyncio.ensure_future(self._make(task, made, engine))

    async def _make(self, task: str, made: _Waiting, engine: str) -> None:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            coming = await self._launcher.told(made.job, [null, null, null], engine)
        except DrupeError:
            return  # it only saves time
        finally:
            os.close(null)
        if self._waiting.get(task) is not made:
            coming.kill()
            return
        made.coming = coming
        self._keep(task, made)

    def _keep(self, task: str, found: _Waiting) -> None:
        if found.timer is not None:
            found.timer.cancel()
        found.timer = asyncio.get_running_loop().call_later(KEPT_S, self.drop, task)

    def pids(self, task: str) -> set[int]:
        """Of the child that waits."""
        found = self._waiting.get(task)
        return {found.coming.child.pid} if found is not None and found.coming is not None else set()

    def drop(self, task: str) -> None:
        """None is to wait there any more."""
        found = self._waiting.pop(task, None)
        if found is None:
            return
        if found.timer is not None:
            found.timer.cancel()
        if found.coming is not None:
            found.coming.kill()

    def close(self) -> None:
        """End all."""
        for task in list(self._waiting):
            self.drop(task)


def ahead(job: Job) -> Job:
    """A job as it is before it is known what exactly will be called."""
    return msgspec.structs.replace(job, argv=(), env=(), hold=False, later=True)
