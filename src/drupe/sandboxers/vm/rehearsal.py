"""A container that runs once in a machine before it is saved as a template: what a first container makes a guest load
(modules, the runtime's program and libraries) is in its memory then, and no pod that starts from it waits for that."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from drupe.errors import DrupeError
from drupe.guest.build import find_agent
from drupe.hypervisors.contract import SPARE_DISK_BYTES, Machine, Share
from drupe.images.erofs import tree_erofs
from drupe.rpc.containerd import task_v3_pb2 as tasks_pb
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.agent import Agent
from drupe.sandboxers.vm.oci import adapted
from drupe.sandboxers.vm.roots import RootDisk, plan

_ID = "rehearsal"
_MOUNTED = f"/run/drupe/{_ID}"
_PROGRAM = "drupe-agent"
_STREAM = "agent"
_LOOKS_FOR_S, _MOUNTS_WITHIN_S = 1.0, 60.0
_DEV = ["nosuid", "strictatime", "mode=755", "size=65536k"]
_PTS = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
_PLAIN = ["nosuid", "noexec", "nodev"]
_OCI: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": False, "user": {"uid": 0, "gid": 0}, "args": [f"/{_PROGRAM}", "--version"], "env": [], "cwd": "/",
        "noNewPrivileges": True,
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": _PLAIN},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": _DEV},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": _PTS},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_PLAIN, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*_PLAIN, "ro"]},
    ],
    "linux": {"resources": {}, "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]},
}  # fmt: skip


def make_disk(directory: Path) -> RootDisk:
    """The root of that container, below `directory`: the agent's program, which also tells its version."""
    tree = directory / _ID
    tree.mkdir(mode=0o755)
    for name in ("proc", "dev", "sys"):
        (tree / name).mkdir(mode=0o755)
    shutil.copyfile(find_agent(), tree / _PROGRAM)
    (tree / _PROGRAM).chmod(0o755)
    image = tree_erofs(tree, directory / f"{_ID}.erofs", name=_ID)
    os.truncate(image, SPARE_DISK_BYTES)  # a hole: the place that it leaves is for disks of any size
    shutil.rmtree(tree)
    return RootDisk(id=_ID, path=str(image))


async def rehearse(agent: Agent, disk: RootDisk) -> None:
    """Run it to its end and remove it. Raises what the agent says."""
    await _look_for_interface(agent)
    config = adapted(_OCI, guest=_ID, root="/", binds={})
    bundle = pb.PutBundleRequest(id=_ID, config_json=msgspec.json.encode(config))
    put = await agent.guest("PutBundle", plan(bundle, [disk], read_only=False), pb.PutBundleResponse)
    request = tasks_pb.CreateTaskRequest(id=_ID, bundle=put.bundle, stdout=_STREAM, stderr=_STREAM)
    await agent.task("Create", request, tasks_pb.CreateTaskResponse)
    await agent.task("Start", tasks_pb.StartRequest(id=_ID))
    output = pb.ReadOutputRequest(id=_ID, stream=pb.STDOUT, max_bytes=4096)
    await agent.guest("ReadOutput", output, pb.ReadOutputResponse)
    await agent.task("Wait", tasks_pb.WaitRequest(id=_ID), tasks_pb.WaitResponse)
    await agent.task("Delete", tasks_pb.DeleteRequest(id=_ID), tasks_pb.DeleteResponse)


async def rehearse_shares(agent: Agent, machine: Machine, shares: Sequence[Share]) -> None:
    """Plug them in and mount each once. Where there is none, that one is looked for makes the kernel load what pods
    with one need."""
    if not shares:
        with contextlib.suppress(DrupeError):  # it is not there
            await _mount(agent, _ID, timeout_s=_LOOKS_FOR_S)
    for share in shares:
        await machine.add(share)
        await _mount(agent, share.tag, timeout_s=_MOUNTS_WITHIN_S)
        await agent.guest("Unmount", pb.UnmountRequest(target=_MOUNTED))


async def _mount(agent: Agent, tag: str, *, timeout_s: float) -> None:
    mount = pb.GuestMount(type="virtiofs", source=tag, target=_MOUNTED)
    await agent.guest("Mount", pb.MountRequest(mount=mount), timeout_s=timeout_s)


async def _look_for_interface(agent: Agent) -> None:
    """The same of a network: a template is saved without one."""
    nobody = pb.AwaitDeviceRequest(device=pb.Device(mac="00:00:00:00:00:01"), timeout_ms=1)
    with contextlib.suppress(DrupeError):  # there is none
        await agent.guest("AwaitDevice", nobody, pb.AwaitDeviceResponse)
