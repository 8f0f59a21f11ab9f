"""The runc kind: pod namespaces pinned as files (no pause process), containers by crun or runc, kept by the keeper."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from typing import cast

from drupe.errors import DrupeError
from drupe.keeper.client import Keeper
from drupe.keeper.records import Exit
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.bundles import BundleProgram
from drupe.sandboxers.contract import OnExit, SandboxConfig, SandboxInfo, TaskState
from drupe.sandboxers.kept.namespaces import drop_namespaces, make_namespaces, namespace_types
from drupe.sandboxers.kept.sandboxer import KeptSandboxer
from drupe.sandboxers.kinds import Means
from drupe.sandboxers.runc.able import ABLE
from drupe.sandboxers.runc.checkpoints import Checkpoints
from drupe.sandboxers.runc.command import RuntimeCommand
from drupe.sandboxers.runc.infra import InfraProcess
from drupe.sandboxers.runc.options import RuncOptions
from drupe.sandboxers.runc.program import RuntimeProgram, find_runtime
from drupe.sandboxers.runc.tasks import RuncTasks


class RuncSandboxer(KeptSandboxer):
    """Sandboxes made of Linux namespaces, cgroups, capabilities and seccomp."""

    kind = "runc"

    def __init__(self, *, keeper: Keeper, command: RuntimeCommand, cgroups: Cgroups, on_exit: OnExit) -> None:
        self._command = command
        self._bundles = BundleProgram(
            self.kind,
            command.program.name,
            path=str(command.program.path),
            executable=command.program.executable,
            keeper=keeper,
        )
        checkpoints = Checkpoints(keeper=keeper, command=command, program=self._bundles)
        self._tasks = RuncTasks(keeper=keeper, command=command, cgroups=cgroups, checkpoints=checkpoints)
        super().__init__(keeper=keeper, cgroups=cgroups, on_exit=on_exit, tasks=self._tasks)
        self._infra = InfraProcess(keeper=keeper, tasks=self._tasks)

    def capabilities(self) -> Mapping[str, str]:
        return ABLE

    def tasks(self) -> RuncTasks:
        return self._tasks

    def bundle_program(self) -> BundleProgram:
        return self._bundles

    def close(self) -> None:
        super().close()
        self._command.program.close()

    async def create(self, config: SandboxConfig) -> SandboxInfo:
        self._configs[config.id] = config
        info = await make_namespaces(self._keeper, config, namespace_types(config.spec))
        if config.spec.namespaces.pid == "pod":
            info.namespaces["pid"] = await self._infra.start(config, info.namespaces)
        return info

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
        await drop_namespaces(self._keeper, config)

    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        found = await super().recover(configs)
        if half_made := self._tasks.known() - found.keys():
            await self._tasks.end_makers(half_made)
        await self._forget_orphans(found.keys() | self._tasks.known() | self._configs.keys())
        return found

    async def _forget_orphans(self, known: set[str]) -> None:
        """Remove what the OCI runtime remembers of containers that neither the journal nor the keeper knows."""
        with contextlib.suppress(FileNotFoundError):
            for entry in list(self._command.root.iterdir()):
                if entry.name.partition(".")[0] not in known:
                    with contextlib.suppress(DrupeError):
                        await self._tasks.delete(entry.name)

    def _is_mine(self, key: str) -> bool:
        return self._infra.owns(key) or super()._is_mine(key)

    async def _was_started(self, task: str) -> bool:
        answer = await self._keeper.run(self._command.state(task), timeout_s=10.0)
        try:
            return str(json.loads(answer.stdout)["status"]) != "created"
        except (ValueError, KeyError):
            return False

    def _exited(self, record: Exit) -> None:
        if not self._infra.owns(record.task):
            super()._exited(record)


def open_runc(means: Means) -> RuncSandboxer:
    """The kind on this host. Raises NotFound when its OCI runtime is not installed."""
    options = cast(RuncOptions, means.options)
    command = RuntimeCommand(program=RuntimeProgram(find_runtime(options.program)), root=means.run / "oci")
    return RuncSandboxer(keeper=means.keeper, command=command, cgroups=means.cgroups, on_exit=means.on_exit)


def remove_runtime_root(command: RuntimeCommand) -> None:
    """Forget what the OCI runtime remembers; for a root that is given up."""
    shutil.rmtree(command.root, ignore_errors=True)
