"""The contract on runc sandboxes: the real keeper, with crun and with runc as the OCI runtime."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from sandboxer_suite import SandboxerSuite, Site

from drupe.errors import DrupeError
from drupe.keeper.client import Keeper
from drupe.keeper.start import ensure_keeper
from drupe.resources.cgroups import detect
from drupe.sandboxers.contract import SandboxConfig, SandboxInfo
from drupe.sandboxers.runc.command import RuntimeCommand
from drupe.sandboxers.runc.program import RuntimeProgram, find_runtime
from drupe.sandboxers.runc.sandboxer import RuncSandboxer
from drupe.spec import Resources
from framework import probes
from framework.leaks import mounts
from framework.residue import children, names

SCRIPTS = {
    "exit": 'exit "$1"',
    "complain": 'echo "$@" >&2; exit 1',
    "patient": "trap 'exit 0' TERM; while :; do sleep 0.02; done",
    "stubborn": "trap '' TERM; while :; do sleep 0.02; done",
    "spin": "while :; do :; done",
    "size": "read line; stty size",
    "printenv": 'eval "echo \\"\\$$1\\""',
}
PTS = ["newinstance", "ptmxmode=0666"]
APPLETS = ("sh", "true", "false", "echo", "seq", "cat", "sleep", "pwd", "tty", "stty")


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with busybox under the names the suite uses, and its programs as scripts."""
    probes.needs_program("busybox")
    root = tmp_path_factory.mktemp("rootfs")
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


class RuncSite(Site):
    """A keeper in a directory of its own; pods below one cgroup."""

    def __init__(self, directory: Path, rootfs: Path, runtime: str) -> None:
        super().__init__(directory)
        self.rootfs = rootfs
        self.runtime = runtime
        self.cgroups = detect()
        self.configs: list[SandboxConfig] = []
        self.keeper: Keeper

    async def open(self) -> RuncSandboxer:
        self.keeper = await ensure_keeper(self.directory, log=self.directory / "keeper.log")
        program = RuntimeProgram(find_runtime(self.runtime))
        command = RuntimeCommand(program=program, root=self.directory / "oci")
        self.sandboxer = RuncSandboxer(keeper=self.keeper, command=command, cgroups=self.cgroups, on_exit=self.ended)
        return self.sandboxer

    async def reopen(self) -> RuncSandboxer:
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
            left = self.left()
            for _ in range(50):  # a helper that has done its work may take a moment to be reaped
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

    def left(self) -> dict[str, Any]:
        """What should have gone with the sandboxes."""
        pods = [c.cgroup for c in self.configs]
        found = {
            "processes": children(self.keeper.pid),
            "mounts": [m for m in mounts(self.keeper.pid) if m.startswith(str(self.directory) + "/pod")],
            "states of the runtime": names(self.directory / "oci"),
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


class RuncSuite(SandboxerSuite):
    runtime = ""

    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path) -> RuncSite:
        probes.needs_root()
        probes.needs_keeper()
        probes.needs_program(self.runtime)
        return RuncSite(tmp_path, rootfs, self.runtime)


@pytest.mark.root
class TestCrun(RuncSuite):
    runtime = "crun"


@pytest.mark.root
class TestRunc(RuncSuite):
    runtime = "runc"


def test_a_runtime_that_is_not_installed() -> None:
    """The error names it and how to get it."""
    with pytest.raises(DrupeError, match="OCI runtime 'crane' is not installed") as caught:
        find_runtime("crane")
    assert caught.value.hint == "apt-get install crane"
