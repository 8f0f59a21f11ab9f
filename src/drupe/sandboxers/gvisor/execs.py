"""Further processes in gVisor's containers: started and waited for by the sentry itself, with the caller's descriptors.

No program on the host stands for such a process. What `runsc exec` does with one client per process is here one request
and one answer that comes when the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from drupe.errors import DrupeError, HelperFailed, NotFound
from drupe.sandboxers.contract import ExecConfig, TaskExit
from drupe.sandboxers.gvisor.ends import from_wait_status, killed
from drupe.sandboxers.gvisor.failures import explain, gone
from drupe.sandboxers.gvisor.pumps import Pumps
from drupe.sandboxers.gvisor.records import TaskRecord
from drupe.sandboxers.gvisor.sentry import Sentry
from drupe.sandboxers.kept.records import Record


class ExecRecord(Record, kw_only=True):
    """pid: as the sentry counts. tty: a client on the host, held by the keeper, stands for it."""

    pid: int
    tty: bool = False


class GuestExecs:
    """Those of all containers, by (task, exec). on_end: told each end that no keeper tells."""

    def __init__(self, on_end: Callable[[TaskExit], None]) -> None:
        self._on_end = on_end
        self._pids: dict[tuple[str, str], int] = {}
        self._waits: set[asyncio.Task[None]] = set()

    async def start(self, sentry: Sentry, task: TaskRecord, config: ExecConfig) -> int:
        """Run it; returns its pid."""
        pumps = Pumps(config.fds)
        try:
            pid = await sentry.execute(task.guest, config.process, pumps.fds)
        except BaseException as error:
            pumps.drop()
            raise explain(error, config.process) if isinstance(error, HelperFailed) else error from None
        pumps.sent()
        ExecRecord(pid=pid).write(_path(task, config.id))
        self.watch(sentry, task, config.id, pid, pumps)
        return pid

    def note(self, task: TaskRecord, exec_id: str, pid: int) -> None:
        """Know one whose end the keeper tells."""
        self._pids[task.id, exec_id] = pid
        ExecRecord(pid=pid, tty=True).write(_path(task, exec_id))

    def watch(self, sentry: Sentry, task: TaskRecord, exec_id: str, pid: int, pumps: Pumps | None = None) -> None:
        """Tell its end when it comes, and its output is complete."""
        self._pids[task.id, exec_id] = pid
        waiting = asyncio.ensure_future(self._wait(sentry, task, exec_id, pid, pumps))
        self._waits.add(waiting)
        waiting.add_done_callback(self._waits.discard)

    async def kill(self, sentry: Sentry, task: TaskRecord, exec_id: str, signal: int) -> None:
        """NotFound once it has ended."""
        try:
            await sentry.signal(task.guest, signal, pid=self.pid(task.id, exec_id))
        except HelperFailed as error:
            raise gone(error) from None

    def pid(self, task_id: str, exec_id: str) -> int:
        """NotFound when there is no such exec now."""
        try:
            return self._pids[task_id, exec_id]
        except KeyError:
            raise NotFound(f"container {task_id} has no exec {exec_id} now") from None

    def forget(self, task: TaskRecord, exec_id: str) -> None:
        """It has ended."""
        self._pids.pop((task.id, exec_id), None)
        _path(task, exec_id).unlink(missing_ok=True)

    def recorded(self, task: TaskRecord) -> Iterator[tuple[str, ExecRecord]]:
        """Those that an earlier daemon wrote down."""
        for path in Path(task.bundle).glob("guest-*.json"):
            record = ExecRecord.read(path)
            if record is not None:
                yield path.stem.removeprefix("guest-"), record

    def close(self) -> None:
        """Wait no longer; they go on."""
        for waiting in self._waits:
            waiting.cancel()

    async def _wait(self, sentry: Sentry, task: TaskRecord, exec_id: str, pid: int, pumps: Pumps | None) -> None:
        try:
            status = from_wait_status(await sentry.wait_pid(task.guest, pid), at=time.time())
        except DrupeError:  # it ended with its container
            status = killed(at=time.time())
        if pumps is not None:
            await pumps.drained()
        with contextlib.suppress(OSError):
            self.forget(task, exec_id)
        self._on_end(TaskExit(task=task.id, exec_id=exec_id, status=status))


def _path(task: TaskRecord, exec_id: str) -> Path:
    return Path(task.bundle) / f"guest-{exec_id}.json"
