"""Where kinds are tried whose tasks the keeper holds: a keeper in a directory of its own, pods below one cgroup."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import Any

from sandboxer_suite import Site, logged, until

from drupe.errors import DrupeError
from drupe.keeper.client import Keeper
from drupe.keeper.start import ensure_keeper
from drupe.resources.cgroups import detect
from drupe.sandboxers.contract import SandboxConfig, Sandboxer, SandboxInfo, TaskConfig
from drupe.spec import Resources
from framework import probes
from framework.leaks import mounts
from framework.residue import children, names

SCRIPTS = {
    "exit": 'exit "$1"',
    "complain": 'echo "$@" >&2; exit 1',
    "patient": "trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done",
    "stubborn": "trap '' TERM; while :; do sleep 0.02; done",
    "spin": "while :; do :; done",
    "size": "read line; stty size",
    "printenv": 'eval "echo \\"\\$$1\\""',
}
PTS = ["newinstance", "ptmxmode=0666"]
APPLETS = ("sh", "true", "false", "echo", "seq", "cat", "sleep", "pwd", "tty", "stty")


def make_rootfs(root: Path) -> Path:
    """A root with busybox under the names the suite uses, and its programs as scripts."""
    probes.needs_program("busybox")
    for name in ("bin", "proc", "dev", "tmp"):
        (root / name).mkdir()
    shutil.copyfile(str(probes.program("busybox")), root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    for name, body in SCRIPTS.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (root / "bin" / name).chmod(0o755)
    (root / "bin/plain-file").write_text("no program\n")
    return root


class KeptSite(Site):
    """A keeper in a directory of its own; pods below one cgroup."""

    states: str  # directory of the runtime's own state

    def __init__(self, directory: Path, rootfs: Path) -> None:
        super().__init__(directory)
        self.rootfs = rootfs
        self.cgroups = detect()
        self.configs: list[SandboxConfig] = []
        self.keeper: Keeper
        self.sandboxer: Sandboxer

    @abstractmethod
    def make(self) -> Sandboxer:
        """The sandboxer, over `self.keeper`."""

    async def open(self) -> Sandboxer:
        self.keeper = await ensure_keeper(self.directory, log=self.directory / "keeper.log")
        self.sandboxer = self.make()
        return self.sandboxer

    async def reopen(self) -> Sandboxer:
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
            await self.sandboxer.retire()
            left = self.left()
            for _ in range(250):  # a helper that has done its work may take a moment to be reaped
                if not left:
                    break
                await asyncio.sleep(0.02)
                left = self.left()
        finally:
            await asyncio.to_thread(self.cgroups.kill_all, self.cgroup_parent)
            await asyncio.to_thread(self.cgroups.delete, self.cgroup_parent)
            self.sandboxer.close()
            await self.keeper.shutdown(force=True)
            self.keeper.close()
        assert left == {}, f"left behind: {left}"

    async def ready(self, task: TaskConfig) -> None:
        await until(lambda: logged(task), "it said that it is ready")

    def left(self) -> dict[str, Any]:
        """What should have gone with the sandboxes."""
        pods = [c.cgroup for c in self.configs]
        found = {
            "processes": children(self.keeper.pid),
            "mounts": [m for m in mounts(self.keeper.pid) if m.startswith(str(self.directory) + "/pod")],
            "states of the runtime": names(self.directory / self.states),
            "cgroups": [f"{pod}/{child}" for pod in pods for child in self.cgroups.children(pod)],
        }
        return {kind: what for kind, what in found.items() if what}

    def oci(self, task: str, process: dict[str, Any], info: SandboxInfo, cgroup: str) -> dict[str, Any]:
        own = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts") if kind not in info.namespaces]
        shared = [{"type": kind, "path": path} for kind, path in info.namespaces.items()]
        return {
            "ociVersion": "1.0.2",
            "process": process | {"noNewPrivileges": True},
            "root": {"path": str(self.rootfs), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": PTS},
            ],
            "linux": {"namespaces": [*shared, *own], "cgroupsPath": cgroup},
        }  # fmt: skip
