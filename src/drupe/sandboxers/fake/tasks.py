"""Containers of fake sandboxes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from drupe.errors import AlreadyExists, InvalidState, NotFound, PermissionDenied
from drupe.sandboxers.contract import Attachment, ExecConfig, TaskConfig, TaskService
from drupe.sandboxers.fake.faults import Faults
from drupe.sandboxers.fake.process import FakeProcess
from drupe.sandboxers.fake.programs import NOT_EXECUTABLE, PROGRAMS
from drupe.sandboxers.fake.streams import Streams
from drupe.sandboxers.fake.table import Table
from drupe.sandboxers.fake.world import FakeTask, FakeWorld
from drupe.spec.resources import Resources
from drupe.spec.status import Stats

RSS_BYTES = 1 << 20


class FakeTasks(TaskService):
    """See the contract."""

    def __init__(self, world: FakeWorld, table: Table, faults: Faults) -> None:
        self._world = world
        self._table = table
        self._faults = faults

    def know(self, task_id: str, *, cgroup: str, bundle: Path) -> None:
        """The world knows its tasks by itself."""

    async def create(self, task: TaskConfig) -> int:
        if task.tty:
            self._table.require("tty")
        others = [t for t in self._world.tasks.values() if t.config.sandbox == task.sandbox and t.config.id != task.id]
        if others:
            self._table.require("multi-container")
        await self._faults.passing("task.create")
        if task.id in self._world.tasks:
            raise AlreadyExists(f"container {task.id} exists")
        self._world.sandbox(task.sandbox)
        (task.bundle / "config.json").write_text(json.dumps(task.oci))
        streams = Streams(stdin=task.stdin or task.tty, tty=task.tty, log=task.log)
        ended = partial(self._world.task_ended, task.id)
        process = self._process(task.oci["process"], streams, first=True, on_end=ended)
        self._world.tasks[task.id] = FakeTask(config=task, process=process)
        return process.pid

    async def start(self, task_id: str) -> None:
        await self._faults.passing("task.start")
        task = self._world.task(task_id)
        if task.started or task.exit is not None:
            raise InvalidState(f"container {task_id} was started already")
        check_program(task.process.argv)
        task.started = True
        task.process.start()

    async def exec(self, config: ExecConfig) -> int:
        self._table.require("exec")
        if config.tty:
            self._table.require("tty")
        await self._faults.passing("task.exec")
        task = self._world.task(config.task)
        if not task.started or task.exit is not None:
            raise InvalidState(f"container {config.task} does not run")
        check_program(config.process["args"])
        streams = Streams(stdin="stdin" in config.fds, tty=config.tty)
        streams.attach(config.fds)
        ended = partial(self._world.exec_ended, config.task, config.id)
        process = self._process(config.process, streams, first=False, on_end=ended)
        process.size = (config.rows or 0, config.cols or 0)
        task.execs[config.id] = process
        if task.paused:
            process.freeze()
        process.start()
        return process.pid

    async def kill(self, task_id: str, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        if signal not in (9, 15):
            self._table.require("signals")
        await self._faults.passing("task.kill")
        task = self._world.task(task_id)
        targets = task.living() if everything else [self._living(task, exec_id)]
        for process in reversed(targets):
            process.signal(signal)

    async def attach(
        self, task_id: str, fds: Mapping[str, int], *, exec_id: str = "", keep_stdin: bool = False
    ) -> Attachment:
        self._table.require("attach")
        await self._faults.passing("task.attach")
        return self._living(self._world.task(task_id), exec_id).streams.attach(fds, keep_stdin=keep_stdin)

    async def resize(self, task_id: str, rows: int, cols: int, *, exec_id: str = "") -> None:
        self._table.require("tty")
        await self._faults.passing("task.resize")
        self._living(self._world.task(task_id), exec_id).size = (rows, cols)

    async def close_stdin(self, task_id: str) -> None:
        self._table.require("attach")
        self._living(self._world.task(task_id), "").streams.close_input()

    async def pause(self, task_id: str) -> None:
        self._table.require("pause")
        await self._faults.passing("task.pause")
        task = self._world.task(task_id)
        task.paused = True
        for process in task.living():
            process.freeze()

    async def resume(self, task_id: str) -> None:
        self._table.require("pause")
        await self._faults.passing("task.resume")
        task = self._world.task(task_id)
        task.paused = False
        if not self._world.sandbox(task.config.sandbox).paused:
            for process in task.living():
                process.thaw()

    async def update(self, task_id: str, resources: Resources) -> None:
        self._table.require("update")
        await self._faults.passing("task.update")
        self._world.task(task_id).resources = resources

    async def stats(self, task_id: str) -> Stats:
        self._table.require("stats")
        await self._faults.passing("task.stats")
        return stats_of([self._world.task(task_id)])

    async def pids(self, task_id: str) -> list[int]:
        return [process.pid for process in self._world.task(task_id).living()]

    async def delete(self, task_id: str) -> None:
        await self._faults.passing("task.delete")
        task = self._world.tasks.get(task_id)
        if task is None:
            return
        for process in reversed(task.living()):
            process.thaw()
            process.signal(9)
        await asyncio.sleep(0)
        self._world.tasks.pop(task_id, None)

    def _living(self, task: FakeTask, exec_id: str) -> FakeProcess:
        process = task.execs.get(exec_id) if exec_id else task.process
        if process is None or process.ended:
            raise NotFound(f"process {exec_id or task.config.id} has ended")
        return process

    def _process(self, process: dict[str, Any], streams: Streams, *, first: bool, on_end: Any) -> FakeProcess:
        env = dict(entry.partition("=")[::2] for entry in process.get("env", ()))
        return FakeProcess(
            process["args"],
            pid=self._world.new_pid(),
            env=env,
            cwd=process.get("cwd", "/"),
            streams=streams,
            first=first,
            on_end=on_end,
        )


def check_program(argv: list[str]) -> None:
    """NotFound, PermissionDenied: as a start on a real system ends."""
    name = argv[0].rpartition("/")[2]
    if name == NOT_EXECUTABLE:
        raise PermissionDenied(f"program {argv[0]!r} cannot be executed", stage="start", exit_code="126")
    if name not in PROGRAMS:
        raise NotFound(f"program {argv[0]!r} is not in the container", stage="start", exit_code="127")


def stats_of(tasks: list[FakeTask]) -> Stats:
    """Counters of what lives in `tasks`."""
    living = [process for task in tasks for process in task.living()]
    limits = [task.resources for task in tasks]
    used = len(living) * RSS_BYTES
    return Stats(
        at=time.time(),
        cpu_usage_ns=sum(p.cpu_ns for p in living) + sum(task.cpu_ns for task in tasks),
        memory_usage_bytes=used,
        memory_working_set_bytes=used,
        memory_limit_bytes=sum(limit.memory_bytes or 0 for limit in limits),
        pids=len(living),
        pids_limit=sum(limit.pids or 0 for limit in limits),
    )
