"""The one extra process a runc pod may have: PID 1 of a *shared* PID namespace, which the kernel cannot keep without
one.

Only pods that ask for `pid: pod` get it. It is catatonit in pause mode: it reaps orphans and does nothing else.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from drupe.errors import NotFound
from drupe.keeper.client import Keeper
from drupe.sandboxers.contract import SandboxConfig, TaskConfig
from drupe.sandboxers.runc.tasks import RuncTasks
from drupe.spec.pod import root_ids

SUFFIX = ".pause"  # no id has a dot


def find_init() -> str:
    """The tiny init program (reaper and pause). NotFound says how to install it."""
    found = shutil.which("catatonit")
    if found is None:
        raise NotFound("the init program catatonit is not installed", hint="apt-get install catatonit")
    return found


class InfraProcess:
    """Starts and stops the pause containers."""

    def __init__(self, *, keeper: Keeper, tasks: RuncTasks) -> None:
        self._keeper = keeper
        self._tasks = tasks

    def owns(self, task: str) -> bool:
        return task.endswith(SUFFIX)

    async def start(self, config: SandboxConfig, namespaces: dict[str, str]) -> str:
        """Run it; returns the path of its PID namespace."""
        bundle = config.dir / "pause"
        _make_root(bundle / "rootfs", config)
        task = TaskConfig(
            id=config.id + SUFFIX,
            sandbox=config.id,
            oci=_oci(config, str(bundle / "rootfs"), namespaces),
            bundle=bundle,
            cgroup=f"{config.cgroup}/pause",
            tty=False,
            stdin=False,
            log=None,
            exit_file=bundle / "exit.json",
        )
        pid = await self._tasks.create(task)
        await self._tasks.start(task.id)
        return f"/proc/{pid}/ns/pid"

    async def stop(self, sandbox_id: str) -> None:
        await self._tasks.delete(sandbox_id + SUFFIX)


def _make_root(root: Path, config: SandboxConfig) -> None:
    """Whoever is root in the pod's user namespace makes devices in it."""
    for directory in (root.parent, root, root / "proc", root / "dev"):
        directory.mkdir(exist_ok=True)
        os.chown(directory, *root_ids(config.spec))
    (root / "catatonit").touch()


def _oci(config: SandboxConfig, rootfs: str, namespaces: dict[str, str]) -> dict[str, Any]:
    shared = [{"type": kind, "path": path} for kind, path in namespaces.items()]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/catatonit", "-P"],
            "cwd": "/",
            "env": ["PATH=/"],
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "root": {"path": rootfs, "readonly": True},
        "mounts": [
            {"destination": "/catatonit", "source": find_init(), "type": "bind", "options": ["bind", "ro"]},
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ],
        "linux": {
            "namespaces": [*shared, {"type": "pid"}, {"type": "mount"}],
            "cgroupsPath": f"{config.cgroup}/pause",
        },
    }
