"""The contract on Wasm sandboxes: the real keeper, the real engine, a module compiled from C."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from sandboxer_suite import SandboxerSuite, Site

from drupe.errors import DrupeError
from drupe.keeper.client import Keeper
from drupe.keeper.start import ensure_keeper
from drupe.resources.cgroups import detect
from drupe.sandboxers.contract import SandboxConfig, SandboxInfo
from drupe.sandboxers.wasm.sandboxer import WasmSandboxer
from drupe.spec import Resources
from framework import guests, probes
from framework.leaks import mounts
from framework.residue import children


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guests.make_rootfs(tmp_path_factory.mktemp("rootfs") / "root")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled modules, shared by the module's tests."""
    return tmp_path_factory.mktemp("code")


class WasmSite(Site):
    """A keeper in a directory of its own; pods below one cgroup."""

    def __init__(self, directory: Path, rootfs: Path, code: Path) -> None:
        super().__init__(directory)
        self.rootfs = rootfs
        self.code = code
        self.cgroups = detect()
        self.configs: list[SandboxConfig] = []
        self.keeper: Keeper

    async def open(self) -> WasmSandboxer:
        self.keeper = await ensure_keeper(self.directory, log=self.directory / "keeper.log")
        self.sandboxer = WasmSandboxer(keeper=self.keeper, cgroups=self.cgroups, root=self.code, on_exit=self.ended)
        return self.sandboxer

    async def reopen(self) -> WasmSandboxer:
        self.sandboxer.close()
        self.keeper.close()
        self.keeper.escrow.close()
        return await self.open()

    def prepare(self, config: SandboxConfig) -> None:
        self.configs.append(config)
        self.cgroups.create(config.cgroup, Resources())

    async def close(self) -> None:
        try:
            for task, exec_id in list(self.exits):
                if not exec_id:
                    await self.sandboxer.tasks().delete(task)
            for config in self.configs:
                with contextlib.suppress(DrupeError):  # a test that failed may have left it paused
                    await self.sandboxer.resume(config.id)
                for bundle in config.dir.glob("task*"):
                    await self.sandboxer.tasks().delete(bundle.name)
                await self.sandboxer.delete(config.id)
            self.sandboxer.close()
            left = self.left()
            for _ in range(50):  # what has ended may take a moment to be reaped
                if not left:
                    break
                await asyncio.sleep(0.02)
                left = self.left()
        finally:
            await asyncio.to_thread(self.cgroups.kill_all, self.cgroup_parent)
            await asyncio.to_thread(self.cgroups.delete, self.cgroup_parent)
            await self.keeper.shutdown(force=True)
            self.keeper.close()
        assert left == {}, f"left behind: {left}"

    def left(self) -> dict[str, Any]:
        """What should have gone with the sandboxes."""
        pods = [c.cgroup for c in self.configs]
        found = {
            "processes": children(self.keeper.pid),
            "mounts": [m for m in mounts(self.keeper.pid) if m.startswith(str(self.directory) + "/pod")],
            "cgroups": [f"{pod}/{child}" for pod in pods for child in self.cgroups.children(pod)],
        }
        return {kind: what for kind, what in found.items() if what}

    def oci(self, task: str, process: dict[str, Any], info: SandboxInfo, cgroup: str) -> dict[str, Any]:
        shared = [{"type": kind, "path": path} for kind, path in info.namespaces.items()]
        return {
            "process": process,
            "root": {"path": str(self.rootfs), "readonly": True},
            "linux": {"namespaces": shared, "cgroupsPath": cgroup},
        }


@pytest.mark.root
class TestWasmtime(SandboxerSuite):
    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path, compiled: Path) -> WasmSite:
        probes.needs_root()
        probes.needs_keeper()
        pytest.importorskip("wasmtime")
        return WasmSite(tmp_path, rootfs, compiled)
