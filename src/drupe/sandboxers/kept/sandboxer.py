"""What a sandboxer does whose tasks the keeper holds: it tells their ends and takes them over after a restart.

All such kinds hear of every task of the keeper; each acts on those it knows, by `KeptTasks.know` or because it made
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from drupe.errors import NotFound
from drupe.keeper.client import Keeper
from drupe.keeper.records import Exit, TaskInfo
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.contract import OnExit, SandboxConfig, Sandboxer, TaskExit, TaskState
from drupe.sandboxers.kept.exits import exit_status
from drupe.sandboxers.kept.tasks import KeptTasks
from drupe.spec.status import Stats

_FORGET_AFTER_S = 1.0


class KeptSandboxer(Sandboxer):
    """Base of those kinds. A kind gives `tasks` and overrides `_was_started` where a task may wait to be started."""

    def __init__(self, *, keeper: Keeper, cgroups: Cgroups, on_exit: OnExit, tasks: KeptTasks) -> None:
        self._keeper = keeper
        self._cgroups = cgroups
        self._on_exit = on_exit
        self._kept = tasks
        self._configs: dict[str, SandboxConfig] = {}
        self._forgetting: set[asyncio.Future[None]] = set()
        keeper.on_exit(self._exited)

    async def pause(self, sandbox_id: str) -> None:
        await asyncio.to_thread(self._cgroups.freeze, self._cgroup(sandbox_id))

    async def resume(self, sandbox_id: str) -> None:
        await asyncio.to_thread(self._cgroups.thaw, self._cgroup(sandbox_id))

    async def stats(self, sandbox_id: str) -> Stats:
        return self._cgroups.stats(self._cgroup(sandbox_id))

    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        """Tasks that this kind does not know are answered too: nobody else may know them."""
        self._configs.update(configs)
        found: dict[str, TaskState] = {}
        for entry in await self._keeper.list():
            if "." in entry.task and not entry.running:
                self._kept.note_left(entry.task)
            if not self._is_mine(entry.task):
                found[entry.task] = TaskState(entry.task, entry.pid, started=True, exit=None)
                continue
            found[entry.task] = await self._task_state(entry)
            if entry.running:
                await self._keeper.take_escrow(entry.task)
        return found

    def _is_mine(self, key: str) -> bool:
        """Whether a task of the keeper is one of this kind's, by its key."""
        return self._kept.knows(key)

    async def _task_state(self, entry: TaskInfo) -> TaskState:
        if entry.exit is not None:
            status = exit_status(entry.exit)
            self._kept.mark_oom(entry.task, status)
            return TaskState(entry.task, entry.pid, started=True, exit=status)
        started = "." in entry.task or await self._was_started(entry.task)
        return TaskState(entry.task, entry.pid, started=started, exit=None)

    async def _was_started(self, task: str) -> bool:
        """Whether a container that lives runs its workload, and is not only made."""
        return True

    def _exited(self, record: Exit) -> None:
        """Take the end of one of this kind's processes from the keeper."""
        if not self._is_mine(record.task):
            return
        task, _, exec_id = record.task.partition(".")
        status = exit_status(record)
        if not exec_id:
            self._kept.mark_oom(task, status)
            self._kept.note_end(task)
        self._on_exit(TaskExit(task=task, exec_id=exec_id, status=status))
        if exec_id:
            self._kept.forget_exec(record.task)
            self._forget_later(record.task)

    def _forget_later(self, key: str) -> None:
        """Have the keeper drop its record of an exec that has ended."""
        self._forgetting.add(forget := asyncio.ensure_future(self._forget(key)))
        forget.add_done_callback(self._forgetting.discard)

    def close(self) -> None:
        """What the keeper was still to forget is forgotten with its container."""
        for forget in self._forgetting:
            forget.cancel()

    async def _forget(self, key: str) -> None:
        """After a while: whoever waits for the end writes it down first, and the daemon may die before that."""
        self._kept.note_left(key)
        await asyncio.sleep(_FORGET_AFTER_S)
        await self._kept.forget_left(key)

    def _cgroup(self, sandbox_id: str) -> str:
        try:
            return self._configs[sandbox_id].cgroup
        except KeyError:
            raise NotFound(f"sandbox {sandbox_id} is not here") from None
