"""The runc kind: pod namespaces pinned as files (no pause process), containers by crun or runc, kept by the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from drupe.errors import DrupeError, NotFound
from drupe.keeper.client import Keeper
from drupe.keeper.records import Exit, TaskInfo
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.capabilities import FEATURES
from drupe.sandboxers.contract import (
    OnExit,
    SandboxConfig,
    Sandboxer,
    SandboxInfo,
    TaskExit,
    TaskState,
)
from drupe.sandboxers.runc.command import RuntimeCommand
from drupe.sandboxers.runc.infra import InfraProcess
from drupe.sandboxers.runc.tasks import RuncTasks
from drupe.spec.pod import IdMap, PodSpec
from drupe.spec.status import ExitStatus, Stats

_DENIED = {
    "checkpoint": "no: crun here is built without CRIU",
    "snapshot": "no: a process of the host's kernel cannot be snapshot without CRIU",
}
_NETNS_MODES = ("none", "bridge", "cni", "cnm")


class RuncSandboxer(Sandboxer):
    """Sandboxes made of Linux namespaces, cgroups, capabilities and seccomp."""

    kind = "runc"

    def __init__(self, *, keeper: Keeper, command: RuntimeCommand, cgroups: Cgroups, on_exit: OnExit) -> None:
        self._keeper = keeper
        self._command = command
        self._cgroups = cgroups
        self._on_exit = on_exit
        self._tasks = RuncTasks(keeper=keeper, command=command, cgroups=cgroups)
        self._infra = InfraProcess(keeper=keeper, tasks=self._tasks)
        self._configs: dict[str, SandboxConfig] = {}
        self._forgetting: set[asyncio.Future[None]] = set()
        keeper.on_exit(self._exited)

    def capabilities(self) -> Mapping[str, str]:
        return {feature: _DENIED.get(feature, "yes") for feature in FEATURES}

    def tasks(self) -> RuncTasks:
        return self._tasks

    def close(self) -> None:
        self._command.program.close()

    async def create(self, config: SandboxConfig) -> SandboxInfo:
        self._configs[config.id] = config
        ns_dir = config.dir / "ns"
        types = namespace_types(config.spec)
        user = config.spec.namespaces.user
        if types:
            await self._keeper.create_namespaces(
                ns_dir,
                types,
                hostname=config.hostname if "uts" in types else None,
                sysctls=dict(config.spec.sysctls) or None,
                uid_map=_plain_map(user.uids) if user else None,
                gid_map=_plain_map(user.gids) if user else None,
            )
        paths = {_OCI_NAME[kind]: str(ns_dir / kind) for kind in types}
        netns = paths.get("network", "")
        if config.spec.network.mode == "path":
            netns = paths["network"] = config.spec.network.netns_path
        if config.spec.namespaces.pid == "pod":
            paths["pid"] = await self._infra.start(config, paths)
        return SandboxInfo(netns=netns, namespaces=paths)

    async def start(self, sandbox_id: str) -> None:
        """Namespaces need no starting: they live as soon as they are made."""

    async def stop(self, sandbox_id: str, *, deadline_s: float) -> None:
        """Containers are stopped by now; what is left is the holder of a shared PID namespace."""
        if sandbox_id in self._configs and self._configs[sandbox_id].spec.namespaces.pid == "pod":
            await self._infra.stop(sandbox_id)

    async def delete(self, sandbox_id: str) -> None:
        """Unpin the pod's namespaces; they end with their last process."""
        config = self._configs.pop(sandbox_id, None)
        if config is None:
            return
        if config.spec.namespaces.pid == "pod":
            await self._infra.stop(sandbox_id)
        await self._keeper.release(config.dir / "ns")

    async def pause(self, sandbox_id: str) -> None:
        await asyncio.to_thread(self._cgroups.freeze, self._cgroup(sandbox_id))

    async def resume(self, sandbox_id: str) -> None:
        await asyncio.to_thread(self._cgroups.thaw, self._cgroup(sandbox_id))

    async def stats(self, sandbox_id: str) -> Stats:
        return self._cgroups.stats(self._cgroup(sandbox_id))

    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        self._configs.update(configs)
        found: dict[str, TaskState] = {}
        for entry in await self._keeper.list():
            found[entry.task] = await self._task_state(entry)
            if entry.running:
                await self._keeper.take_escrow(entry.task)
        return found

    async def forget_orphan(self, task: str) -> None:
        """Remove a task that belongs to no pod of the journal."""
        with contextlib.suppress(DrupeError):
            await self._tasks.delete(task)

    async def _task_state(self, entry: TaskInfo) -> TaskState:
        if entry.exit is not None:
            status = exit_status(entry.exit)
            self._tasks.mark_oom(entry.task, status)
            return TaskState(entry.task, entry.pid, started=True, exit=status)
        started = "." in entry.task or await self._was_started(entry.task)
        return TaskState(entry.task, entry.pid, started=started, exit=None)

    async def _was_started(self, task: str) -> bool:
        answer = await self._keeper.run(self._command.state(task), timeout_s=10.0)
        try:
            return str(json.loads(answer.stdout)["status"]) != "created"
        except (ValueError, KeyError):
            return False

    def _exited(self, record: Exit) -> None:
        task, _, exec_id = record.task.partition(".")
        if not self._infra.owns(record.task):
            status = exit_status(record)
            if not exec_id:
                self._tasks.mark_oom(task, status)
                self._tasks.note_end(task)
            self._on_exit(TaskExit(task=task, exec_id=exec_id, status=status))
        if exec_id:
            self._forgetting.add(forget := asyncio.ensure_future(self._forget(record.task)))
            forget.add_done_callback(self._forgetting.discard)

    async def _forget(self, task: str) -> None:
        with contextlib.suppress(DrupeError):
            await self._keeper.forget(task)

    def _cgroup(self, sandbox_id: str) -> str:
        try:
            return self._configs[sandbox_id].cgroup
        except KeyError:
            raise NotFound(f"sandbox {sandbox_id} is not here") from None


_OCI_NAME = {"net": "network", "ipc": "ipc", "uts": "uts", "user": "user"}


def namespace_types(spec: PodSpec) -> list[str]:
    """Namespaces the pod owns, named as in /proc/PID/ns. A container's own mount and PID ones are crun's work."""
    types = ["user"] if spec.namespaces.user is not None else []
    if spec.network.mode in _NETNS_MODES:
        types.append("net")
    if spec.namespaces.ipc == "pod":
        types.append("ipc")
    if spec.namespaces.uts == "pod":
        types.append("uts")
    return types


def _plain_map(maps: tuple[IdMap, ...]) -> list[tuple[int, int, int]]:
    return [(m.inside, m.outside, m.count) for m in maps]


def exit_status(record: Exit) -> ExitStatus:
    """The keeper's exit record in our words. `unknown`: nobody could learn the code."""
    if record.unknown:
        return ExitStatus(code=255, at=record.at, reason="Lost", message="nobody was there to learn the exit code")
    reason = "Error" if record.code else ""
    return ExitStatus(code=record.code, signal=record.signal, at=record.at, reason=reason)


def read_exit_file(path: Path) -> ExitStatus | None:
    """An end that the keeper wrote down; None when there is none (or half of one)."""
    try:
        return exit_status(msgspec.json.decode(path.read_bytes(), type=Exit))
    except (OSError, msgspec.DecodeError):
        return None


def remove_runtime_root(command: RuntimeCommand) -> None:
    """Forget what the OCI runtime remembers; for a root that is given up."""
    shutil.rmtree(command.root, ignore_errors=True)
