"""Tasks that the keeper holds: it is their parent and has their streams; cgroups limit, freeze and count them.

A kind derives from `KeptTasks` and adds how its tasks are made, started and unmade.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from drupe.errors import DeadlineExceeded, DrupeError, NotFound
from drupe.keeper.client import Keeper
from drupe.keeper.records import LogFile
from drupe.resources.cgroups import Cgroups
from drupe.resources.limits import apply_verified, end_and_remove
from drupe.resources.process_tree import end_commands
from drupe.sandboxers.contract import Attachment, ExecConfig, TaskService
from drupe.sandboxers.kept.dropping import drop_task
from drupe.spec.container import LogSpec
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus, Stats

END_TIMEOUT_S = 10.0
QUIET_S = 0.05


def task_key(task_id: str, exec_id: str = "") -> str:
    """The keeper's name for a container's first process, or for one of its execs."""
    return f"{task_id}.{exec_id}" if exec_id else task_id


class KeptTasks(TaskService):
    """See the contract. Holds only where each container's cgroup and bundle are; the keeper has everything else."""

    def __init__(self, *, keeper: Keeper, cgroups: Cgroups) -> None:
        self._keeper = keeper
        self._cgroups = cgroups
        self._cgroup_of: dict[str, str] = {}
        self._bundle_of: dict[str, Path] = {}
        self._ended: set[str] = set()
        self._left: dict[str, set[str]] = {}  # by container: ended execs that the keeper still remembers
        self._exec_keys: set[str] = set()  # an exec may outlive what is known of its container

    def know(self, task_id: str, *, cgroup: str, bundle: Path) -> None:
        """Remember a container made earlier (recovery)."""
        self._cgroup_of[task_id] = cgroup
        self._bundle_of[task_id] = bundle

    def knows(self, key: str) -> bool:
        """Whether a task of the keeper is of this kind: a container made or recovered here, or an exec in one."""
        return key in self._exec_keys or key.partition(".")[0] in self._cgroup_of

    def known(self) -> set[str]:
        """The containers made or remembered here, and not deleted."""
        return set(self._cgroup_of)

    def note_end(self, task_id: str) -> None:
        """Remember that a container's first process has ended."""
        if task_id in self._cgroup_of:
            self._ended.add(task_id)

    def mark_oom(self, task_id: str, status: ExitStatus) -> None:
        """Say in an exit status that the kernel killed for memory (a shell answers 137 for its killed child too)."""
        cgroup = self._cgroup_of.get(task_id)
        status.oom_kills = self._cgroups.oom_kills(cgroup) if cgroup else 0
        if status.oom_kills and status.code == 137:
            status.reason = "OOMKilled"

    async def kill(self, task_id: str, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        if everything:
            await asyncio.to_thread(self._cgroups.kill_all, self._cgroup(task_id), signal)
            return
        await self._keeper.kill(task_key(task_id, exec_id), signal)

    async def attach(
        self, task_id: str, fds: Mapping[str, int], *, exec_id: str = "", keep_stdin: bool = False
    ) -> Attachment:
        close_stdin = "stdin" in fds and not keep_stdin
        task = task_key(task_id, exec_id)
        return KeptAttachment(self._keeper, task, await self._keeper.attach(task, fds, close_stdin=close_stdin))

    async def resize(self, task_id: str, rows: int, cols: int, *, exec_id: str = "") -> None:
        await self._keeper.resize(task_key(task_id, exec_id), rows, cols)

    async def close_stdin(self, task_id: str) -> None:
        await self._keeper.close_stdin(task_id)

    async def pause(self, task_id: str) -> None:
        await asyncio.to_thread(self._cgroups.freeze, self._cgroup(task_id))

    async def resume(self, task_id: str) -> None:
        await asyncio.to_thread(self._cgroups.thaw, self._cgroup(task_id))

    async def update(self, task_id: str, resources: Resources) -> None:
        apply_verified(self._cgroups, self._cgroup(task_id), resources)

    async def stats(self, task_id: str) -> Stats:
        return self._cgroups.stats(self._cgroup(task_id))

    async def pids(self, task_id: str) -> list[int]:
        return self._cgroups.pids(self._cgroup(task_id))

    def note_left(self, key: str) -> None:
        """An exec has ended: the keeper remembers how, until its container is deleted if nobody has it forgotten."""
        self._left.setdefault(key.partition(".")[0], set()).add(key)

    async def forget_left(self, key: str) -> None:
        """Have the keeper forget an exec that has ended."""
        container = key.partition(".")[0]
        left = self._left.get(container, set())
        if key in left:
            left.discard(key)
            if not left:
                del self._left[container]
            with contextlib.suppress(DrupeError):
                await self._keeper.forget(key)

    def forget_exec(self, key: str) -> None:
        """An exec's end has been told."""
        self._exec_keys.discard(key)

    # -- for the kinds ------------------------------------------------------------------------------------------

    def _exec_key(self, config: ExecConfig) -> str:
        """The keeper's name for a new exec, which is from now on known as one of this kind's."""
        key = task_key(config.task, config.id)
        self._exec_keys.add(key)
        return key

    async def _end_makers(self, makes: Callable[[list[bytes]], bool]) -> None:
        """End the helpers that `makes` knows by their arguments: one whose keeper died in the midst of its work goes
        on, and would make again what is removed."""
        if not await asyncio.to_thread(end_commands, makes, quiet_s=QUIET_S, timeout_s=END_TIMEOUT_S):
            raise DeadlineExceeded("a helper whose keeper has died does not end", hint="it may hang in the kernel")

    def _drop_cgroup(self, cgroup: str) -> None:
        """A process that outlived its container's first one (PIDs shared with the pod or the host) ends here."""
        end_and_remove(self._cgroups, cgroup)

    async def _forget(self, key: str, *, kill: bool) -> None:
        """Drop the keeper's record. Where nothing else has ended the process that is our work: it takes a moment."""
        if kill:
            with contextlib.suppress(NotFound):
                await self._keeper.kill(key, 9)
        for left in list(self._left.get(key, ())):
            await self.forget_left(left)
        await drop_task(self._keeper, key, kill=False)

    def _cgroup(self, task_id: str) -> str:
        try:
            return self._cgroup_of[task_id]
        except KeyError:
            raise NotFound(f"container {task_id} has no processes here") from None


class KeptAttachment(Attachment):
    """An attachment of the keeper's."""

    __slots__ = ("_keeper", "_number", "_task")

    def __init__(self, keeper: Keeper, task: str, number: int) -> None:
        self._keeper = keeper
        self._task = task
        self._number = number

    def __await__(self) -> Generator[Any, None, str]:
        return self._keeper.wait_detached(self._number).__await__()

    async def detach(self) -> None:
        with contextlib.suppress(NotFound):
            await self._keeper.detach(self._task, self._number)


def log_file(log: LogSpec | None) -> LogFile | None:
    """Where the keeper is to write a container's output; None for nowhere."""
    if log is None or log.driver == "none":
        return None
    return LogFile(path=log.path, format=log.driver, max_bytes=log.max_bytes, max_files=log.max_files)
