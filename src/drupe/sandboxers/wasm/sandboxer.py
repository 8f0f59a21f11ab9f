"""The Wasm kind: a pod's namespaces pinned as for runc, its containers modules in processes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drupe.keeper.client import Keeper
from drupe.keeper.records import TaskInfo
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.contract import OnExit, SandboxConfig, SandboxInfo, TaskState
from drupe.sandboxers.kept.sandboxer import KeptSandboxer
from drupe.sandboxers.kinds import Means
from drupe.sandboxers.wasm.able import ABLE
from drupe.sandboxers.wasm.compiler import Compiler
from drupe.sandboxers.wasm.known import version
from drupe.sandboxers.wasm.options import WasmOptions
from drupe.sandboxers.wasm.spaces import Spaces
from drupe.sandboxers.wasm.tasks import WasmTasks
from drupe.sandboxers.wasm.zygotes import Zygotes


class WasmSandboxer(KeptSandboxer):
    """Sandboxes of WebAssembly: what a module can reach is what its engine offers, inside what the kernel allows.

    root: where compiled modules are kept. options: the node's settings.
    """

    kind = "wasm"
    runs_modules = True

    def __init__(
        self,
        *,
        keeper: Keeper,
        cgroups: Cgroups,
        root: Path,
        on_exit: OnExit,
        options: WasmOptions = WasmOptions(),  # noqa: B008 - it is immutable
    ) -> None:
        self._zygotes = Zygotes(keeper)
        self._spaces = Spaces(keeper, keeper.run_dir / "wasm/ns")
        self.compiler = Compiler(root, self._zygotes, options)
        self._tasks = WasmTasks(
            keeper=keeper, cgroups=cgroups, zygotes=self._zygotes, compiler=self.compiler, engine=options.engine
        )
        super().__init__(keeper=keeper, cgroups=cgroups, on_exit=on_exit, tasks=self._tasks)

    def capabilities(self) -> Mapping[str, str]:
        return ABLE

    def tasks(self) -> WasmTasks:
        return self._tasks

    def close(self) -> None:
        super().close()
        self._spaces.close()
        self._tasks.close()
        self._zygotes.close()

    async def create(self, config: SandboxConfig) -> SandboxInfo:
        self._configs[config.id] = config
        return await self._spaces.make(config)

    async def start(self, sandbox_id: str) -> None:
        """Namespaces need no starting: they live as soon as they are made."""

    async def stop(self, sandbox_id: str, *, deadline_s: float) -> None:
        """Containers are stopped by now, and nothing else runs for a pod."""

    async def delete(self, sandbox_id: str) -> None:
        """Unpin the pod's namespaces; they end with their last process."""
        config = self._configs.pop(sandbox_id, None)
        if config is not None:
            await self._spaces.drop(config)

    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        found = await super().recover(configs)
        await self._spaces.recover(configs.values())
        return found

    async def _task_state(self, entry: TaskInfo) -> TaskState:
        state = await super()._task_state(entry)
        if state.exit is not None:
            self._tasks.note_end(entry.task)  # what ran beside it must not go on
        return state

    async def _was_started(self, task: str) -> bool:
        return self._tasks.was_started(task)


def open_wasm(means: Means) -> WasmSandboxer:
    """The sandboxer of a runtime. Unsupported when the engine that the node chose is not installed."""
    options = means.options
    assert isinstance(options, WasmOptions)  # noqa: S101 - the table of kinds gives each its own
    version(options.engine)
    (means.run / "wasm").mkdir(mode=0o700, exist_ok=True)
    return WasmSandboxer(
        keeper=means.keeper,
        cgroups=means.cgroups,
        root=means.root / "wasm",
        on_exit=means.on_exit,
        options=options,
    )
