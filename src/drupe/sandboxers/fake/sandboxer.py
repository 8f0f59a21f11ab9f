"""The fake sandboxer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from drupe.errors import AlreadyExists
from drupe.sandboxers.capabilities import needed, refuse_unless_able
from drupe.sandboxers.contract import OnExit, SandboxConfig, Sandboxer, SandboxInfo, TaskState
from drupe.sandboxers.fake.faults import Faults
from drupe.sandboxers.fake.table import Table
from drupe.sandboxers.fake.tasks import FakeTasks, stats_of
from drupe.sandboxers.fake.world import FakeSandbox, FakeTask, FakeWorld
from drupe.spec.status import Stats


class FakeSandboxer(Sandboxer):
    """world: what an earlier one left (a restart). faults: where a test asks for failures. without: features denied."""

    kind = "fake"

    def __init__(self, *, on_exit: OnExit, world: FakeWorld | None = None, without: Iterable[str] = ()) -> None:
        self.world = world or FakeWorld()
        self.world.on_exit = on_exit
        self.faults = Faults()
        self._table = Table(without)
        self._tasks = FakeTasks(self.world, self._table, self.faults)

    def capabilities(self) -> Mapping[str, str]:
        return self._table.able

    def tasks(self) -> FakeTasks:
        return self._tasks

    async def create(self, config: SandboxConfig) -> SandboxInfo:
        refuse_unless_able(self.kind, self._table.able, needed(config.spec))
        await self.faults.passing("create")
        if config.id in self.world.sandboxes:
            raise AlreadyExists(f"sandbox {config.id} exists")
        self.world.sandboxes[config.id] = FakeSandbox(config)
        return SandboxInfo(netns=f"fake:{config.id}", namespaces={"network": f"fake:{config.id}"})

    async def start(self, sandbox_id: str) -> None:
        await self.faults.passing("start")
        self.world.sandbox(sandbox_id).started = True

    async def stop(self, sandbox_id: str, *, deadline_s: float) -> None:
        await self.faults.passing("stop")
        sandbox = self.world.sandboxes.get(sandbox_id)
        if sandbox is not None:
            sandbox.started = False

    async def delete(self, sandbox_id: str) -> None:
        await self.faults.passing("delete")
        for task in self._tasks_of(sandbox_id):
            await self._tasks.delete(task.config.id)
        self.world.sandboxes.pop(sandbox_id, None)

    async def pause(self, sandbox_id: str) -> None:
        self._table.require("pause")
        await self.faults.passing("pause")
        self.world.sandbox(sandbox_id).paused = True
        for task in self._tasks_of(sandbox_id):
            for process in task.living():
                process.freeze()

    async def resume(self, sandbox_id: str) -> None:
        self._table.require("pause")
        await self.faults.passing("resume")
        self.world.sandbox(sandbox_id).paused = False
        for task in self._tasks_of(sandbox_id):
            for process in [] if task.paused else task.living():
                process.thaw()

    async def stats(self, sandbox_id: str) -> Stats:
        self._table.require("stats")
        await self.faults.passing("stats")
        self.world.sandbox(sandbox_id)
        return stats_of(self._tasks_of(sandbox_id))

    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        await self.faults.passing("recover")
        for sandbox_id in set(self.world.sandboxes) - set(configs):
            await self.delete(sandbox_id)
        found = {}
        for key, task in self.world.tasks.items():
            found[key] = TaskState(key, task.process.pid, started=task.started, exit=task.exit)
            for exec_id, process in task.execs.items():
                found[f"{key}.{exec_id}"] = TaskState(f"{key}.{exec_id}", process.pid, started=True, exit=None)
        return found

    def _tasks_of(self, sandbox_id: str) -> list[FakeTask]:
        return [task for task in self.world.tasks.values() if task.config.sandbox == sandbox_id]
