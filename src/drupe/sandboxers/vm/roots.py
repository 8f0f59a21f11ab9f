"""A container's root by block: an EROFS image of what the host shows, a disk of the machine, and what is written in the
guest's memory over it. Nothing of the host is shared then, so that the machine can be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.errors import Unsupported
from drupe.hypervisors.contract import Disk
from drupe.keeper.client import Keeper
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.oci import brings
from drupe.sandboxers.vm.options import ROOTFS
from drupe.sandboxers.vm.records import PodRecord, TaskRecord

_MAKES_WITHIN_S = 600.0
_SERIAL_BYTES = 20  # of a virtio disk
_GUEST_ETC = "/run/drupe/etc"  # where the agent has the pod's files of /etc
_ETC = ("hosts", "hostname", "resolv.conf")


def disk_of(task: str, home: Path) -> Disk:
    """The disk with a container's root. task: the id that the guest knows."""
    return Disk(id=f"root-{task}"[:_SERIAL_BYTES], path=image_of(task, home), read_only=True)


def image_of(task: str, home: Path) -> Path:
    return home / f"{task}.erofs"


def cold(pod: PodRecord, able: str, tasks: Sequence[TaskRecord]) -> list[Disk]:
    """Those that a machine must have from its start, where its program adds no disks later (able: what it says of
    that); their records say so then. Unsupported for a pod that ran before: its roots come only after its machine."""
    if pod.shares or not able.startswith("no"):
        return []
    if any(task.started or task.exit for task in tasks):
        raise Unsupported(
            "the machine of this pod has its disks from its start: it cannot be started again",
            kind="vm",
            feature="hotplug-disk",
            cause=able.partition(": ")[2],
            hint="make the pod anew",
        )
    for task in tasks:
        task.cold = True
        task.save()
    return [disk_of(task.guest, pod.home) for task in tasks]


async def make(keeper: Keeper, task: str, home: Path, oci: Mapping[str, Any]) -> dict[str, str]:
    """Make the image; answers where the guest has what is bind-mounted. Unsupported for what a machine without a
    shared directory cannot have."""
    binds: dict[str, str] = {}
    for mount in (mount for mount in oci.get("mounts", ()) if brings(mount)):
        name = mount["destination"].removeprefix("/etc/")
        if name not in _ETC:
            raise Unsupported(
                f"{mount['destination']} cannot be mounted: the machine has its roots by block and shares no directory",
                kind="vm",
                feature="bind-mounts",
                hint=f"annotation {ROOTFS}=virtiofs, which is the default",
            )
        binds[mount["source"]] = f"{_GUEST_ETC}/{name}"
    argv = ["mkfs.erofs", "-T", "0", "--preserve-mtime", "--quiet", str(image_of(task, home)), oci["root"]["path"]]
    await keeper.run(argv, timeout_s=_MAKES_WITHIN_S, check=True)
    return binds


def plan(bundle: pb.PutBundleRequest, serial: str, *, read_only: bool) -> pb.PutBundleRequest:
    """Have the guest mount it. serial: what the guest knows the disk by."""
    device = pb.Device(disk_serial=serial)
    bundle.rootfs.append(pb.GuestMount(type="erofs", device=device, options=["ro"]))
    bundle.writable_upper = not read_only
    return bundle
