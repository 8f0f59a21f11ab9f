"""A process of a container, from a child of the zygote to a task of the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time

from msgspec.structs import replace

from drupe.errors import DrupeError, NotFound, Unavailable
from drupe.keeper.client import Keeper
from drupe.keeper.escrow import Held
from drupe.keeper.records import Io
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.wasm.compiler import refusal
from drupe.sandboxers.wasm.job import Job, Place, Report
from drupe.sandboxers.wasm.streams import Streams
from drupe.sandboxers.wasm.zygotes import Child, Zygotes

READY_TIMEOUT_S = 30.0
_TRIES = 3


class Coming:
    """A child that has been told its job and makes itself ready."""

    def __init__(self, child: Child, program: str) -> None:
        self.child = child
        self._program = program
        self._report = asyncio.ensure_future(child.report(READY_TIMEOUT_S))
        self._report.add_done_callback(_seen)

    async def arrived(self) -> None:
        """Wait until it is ready. Raises what kept it from being so."""
        try:
            report = await asyncio.shield(self._report)
        except TimeoutError:
            raise Unavailable(f"module {self._program!r} was not made ready in time", stage="start") from None
        if report.error:
            raise refusal(report, self._program)

    @property
    def is_ready(self) -> bool:
        """Whether it is known to be."""
        done = self._report.done() and not self._report.cancelled() and self._report.exception() is None
        return done and not self._report.result().error and not has_ended(self.child.pidfd)

    def close(self) -> None:
        """Let go of it."""
        self._report.cancel()
        self.child.close()

    def kill(self) -> None:
        """End it."""
        self._report.cancel()
        self.child.kill()


class Launcher:
    """Makes processes. What fails leaves none."""

    def __init__(self, keeper: Keeper, cgroups: Cgroups, zygotes: Zygotes) -> None:
        self._keeper = keeper
        self._cgroups = cgroups
        self._zygotes = zygotes

    def place_in(self, place: Place, cgroup: str) -> Place:
        """`place` in a cgroup, which a child joins by itself where the kernel lets it do so without a lock."""
        return replace(place, cgroup=cgroup, cgroup_files=tuple(self._cgroups.join_files(cgroup)))

    async def told(self, job: Job, fds: list[int], engine: str) -> Coming:
        """A child with this job. Unavailable when children end again and again before they hear of it."""
        for _ in range(_TRIES):
            child = await self._zygotes.take(engine)
            try:
                if not job.place.cgroup_files:
                    self._cgroups.attach(job.place.cgroup, child.pid)
                child.send(job, fds)
                return Coming(child, job.name)
            except (OSError, NotFound):
                child.kill()
        raise Unavailable("processes of the engine end before they are told their job", stage="create")

    async def launch(self, job: Job, made: Streams, held: Held, engine: str) -> Coming:
        """A child with this job, held by the keeper as a task. Closes `made`."""
        coming: Coming | None = None
        try:
            coming = await self.told(job, made.theirs, engine)
            await self.adopt(coming.child, made, held)
            return coming
        except BaseException:
            if coming is not None:
                coming.kill()
            raise
        finally:
            made.close()

    async def adopt(self, child: Child, made: Streams, held: Held) -> None:
        """Have the keeper hold a child, and the escrow our ends of its streams."""
        held.fds = {**made.ours, "pidfd": os.dup(child.pidfd)}
        made.ours = {}
        held.fields |= {"pid": child.pid, "started_at": time.time(), "io": Io(mode=made.mode)}
        try:
            await self._keeper.adopt(held)
        except BaseException:
            if held.task not in self._keeper.escrow.held:
                for fd in held.fds.values():
                    os.close(fd)
            raise

    async def forget(self, task: str) -> None:
        """A task that was not to be: kill it, and drop its record when it has ended."""
        with contextlib.suppress(DrupeError):
            await self._keeper.kill(task, 9)
        for _ in range(200):
            try:
                await self._keeper.forget(task)
                return
            except NotFound:
                return
            except DrupeError:
                await asyncio.sleep(0.01)


def _seen(report: asyncio.Future[Report]) -> None:
    if not report.cancelled():
        report.exception()


def has_ended(pidfd: int) -> bool:
    """Whether the process is gone."""
    return bool(select.select([pidfd], [], [], 0)[0])
