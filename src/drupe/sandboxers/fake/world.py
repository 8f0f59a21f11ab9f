"""What goes on living when the runtime dies: the kernel's and the keeper's part of the fake."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from drupe.errors import NotFound
from drupe.sandboxers.contract import OnExit, SandboxConfig, TaskConfig, TaskExit
from drupe.sandboxers.fake.process import FakeProcess
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus

FIRST_PID = 1 << 30  # beyond any pid of Linux (2^22): a signal to one by mistake reaches nobody


@dataclass
class FakeTask:
    """A container: its first process and its execs."""

    config: TaskConfig
    process: FakeProcess
    started: bool = False
    exit: ExitStatus | None = None
    resources: Resources = field(default_factory=Resources)
    execs: dict[str, FakeProcess] = field(default_factory=dict)
    paused: bool = False
    cpu_ns: int = 0  # of execs that ended

    def living(self) -> list[FakeProcess]:
        return [p for p in (self.process, *self.execs.values()) if not p.ended]


@dataclass
class FakeSandbox:
    config: SandboxConfig
    started: bool = False
    paused: bool = False


@dataclass
class FakeWorld:
    """Give the same world to a second FakeSandboxer to act a restart. on_exit: who hears of ends now."""

    sandboxes: dict[str, FakeSandbox] = field(default_factory=dict)
    tasks: dict[str, FakeTask] = field(default_factory=dict)
    on_exit: OnExit | None = None
    _last_pid: int = FIRST_PID

    def new_pid(self) -> int:
        self._last_pid += 1
        return self._last_pid

    def sandbox(self, sandbox_id: str) -> FakeSandbox:
        try:
            return self.sandboxes[sandbox_id]
        except KeyError:
            raise NotFound(f"sandbox {sandbox_id} is not here") from None

    def task(self, task_id: str) -> FakeTask:
        try:
            return self.tasks[task_id]
        except KeyError:
            raise NotFound(f"container {task_id} has no processes here") from None

    def task_ended(self, task_id: str, code: int, signal: int) -> None:
        """The first process ended: so do the others, its end is recorded, and whoever listens hears of it."""
        task = self.tasks[task_id]
        task.exit = _status(code, signal)
        for process in task.living():
            process.thaw()
            process.signal(9)
        _write_exit_file(task)
        self._tell(task_id, "", task.exit)

    def exec_ended(self, task_id: str, exec_id: str, code: int, signal: int) -> None:
        task = self.tasks.get(task_id)
        if task is not None and exec_id in task.execs:
            task.cpu_ns += task.execs.pop(exec_id).cpu_ns
        self._tell(task_id, exec_id, _status(code, signal))

    def _tell(self, task_id: str, exec_id: str, status: ExitStatus) -> None:
        if self.on_exit is not None:
            self.on_exit(TaskExit(task=task_id, exec_id=exec_id, status=status))


def _status(code: int, signal: int) -> ExitStatus:
    return ExitStatus(code=code, signal=signal, at=time.time(), reason="Error" if code else "")


def _write_exit_file(task: FakeTask) -> None:
    end = task.exit
    if end is None or not task.config.exit_file.parent.is_dir():
        return
    record = {"task": task.config.id, "pid": task.process.pid, "code": end.code, "signal": end.signal, "core": False}
    record["at"] = end.at
    task.config.exit_file.write_text(json.dumps(record))
