"""A container's root by block: disks with EROFS images, and what is written in the guest's memory over them. Nothing of
the host is shared then, so that the machine can be saved.

The lowest disk is the container's image, from the image store, where every machine that has it open shares its pages;
above it is what the container had before its start (files that were copied in). A root that is of no image is one disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.errors import Unsupported
from drupe.hypervisors.contract import Disk
from drupe.images.erofs import PROGRAM, erofs_of, tree_erofs
from drupe.images.media import hex_of
from drupe.images.store import ImageStore
from drupe.keeper.client import Keeper
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.contract import TaskConfig
from drupe.sandboxers.kept.records import Record
from drupe.sandboxers.vm.oci import brings
from drupe.sandboxers.vm.options import ROOTFS

if TYPE_CHECKING:
    from drupe.sandboxers.vm.records import PodRecord, TaskRecord

_MAKES_WITHIN_S = 600.0
_SERIAL_BYTES = 20  # of a virtio disk
_GUEST_ETC = "/run/drupe/etc"  # where the agent has the pod's files of /etc
_ETC = ("hosts", "hostname", "resolv.conf")


class RootDisk(Record, kw_only=True):
    """id: its serial. image: digest of the image that it is; "" for one of a container's own."""

    id: str
    path: str
    image: str = ""

    def disk(self) -> Disk:
        """As the driver wants it."""
        return Disk(id=self.id, path=Path(self.path), read_only=True)


class RootOf(Record, kw_only=True):
    """What a root is made of: an image, and what was written over it by now in the directory `upper`; or, without an
    image, the directory `path` as the keeper sees it."""

    image: str = ""
    upper: str = ""
    path: str = ""

    @classmethod
    def task(cls, task: TaskConfig) -> RootOf:
        """That of a container."""
        return cls(image=task.image_digest, upper=str(task.upper or ""), path=task.oci["root"]["path"])


class Roots:
    """Makes disks. images: the node's image store."""

    def __init__(self, keeper: Keeper, images: ImageStore) -> None:
        self._keeper = keeper
        self._images = images

    async def of_images(self, refs: Sequence[str]) -> list[RootDisk]:
        """The disks of some images, each once. NotFound, and what `erofs_of` raises."""
        found: dict[str, RootDisk] = {}
        for ref in refs:
            info = self._images.resolve(ref)
            if info.digest not in found and not info.module:
                path = await asyncio.to_thread(erofs_of, self._images, info)
                name = f"image-{hex_of(info.digest)}"[:_SERIAL_BYTES]
                found[info.digest] = RootDisk(id=name, path=str(path), image=info.digest)
        return list(found.values())

    async def make(self, task_id: str, root: RootOf, home: Path) -> list[RootDisk]:
        """Those of a container's root, the lowest first; its own are files in `home`."""
        own = RootDisk(id=f"root-{task_id}"[:_SERIAL_BYTES], path=str(home / f"{task_id}.erofs"))
        if not root.image:
            argv = [PROGRAM, "-T", "0", "--preserve-mtime", "--quiet", own.path, root.path]
            await self._keeper.run(argv, timeout_s=_MAKES_WITHIN_S, check=True)  # the keeper has it mounted
            return [own]
        disks = await self.of_images([root.image])
        if bool(root.upper) and await asyncio.to_thread(_holds_something, Path(root.upper)):
            await asyncio.to_thread(tree_erofs, Path(root.upper), Path(own.path), name=task_id)
            disks.append(own)
        return disks


def cold(pod: PodRecord, able: str, tasks: Sequence[TaskRecord]) -> list[RootDisk]:
    """Those that a machine must have from its start, where its program adds no disks later (able: what it says of
    that). Unsupported for a pod that ran before: its roots come only after its machine."""
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
    return [disk for task in tasks for disk in task.disks]


def _holds_something(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def binds_of(oci: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    """Where the guest has what is bind-mounted. known: sources that it has anyhow. Unsupported for what a machine
    without a shared directory cannot have."""
    binds = dict(known)
    for mount in (mount for mount in oci.get("mounts", ()) if brings(mount) and mount["source"] not in known):
        name = mount["destination"].removeprefix("/etc/")
        if name not in _ETC:
            raise Unsupported(
                f"{mount['destination']} cannot be mounted: the machine has its roots by block and shares no directory",
                kind="vm",
                feature="bind-mounts",
                hint=f"annotation {ROOTFS}=virtiofs",
            )
        binds[mount["source"]] = f"{_GUEST_ETC}/{name}"
    return binds


def plan(
    bundle: pb.PutBundleRequest,
    disks: Sequence[RootDisk],
    *,
    read_only: bool,
    serial: Callable[[Disk], str] = lambda disk: disk.id,
) -> pb.PutBundleRequest:
    """Have the guest mount them. serial: what the guest knows a disk by."""
    for one in disks:
        device = pb.Device(disk_serial=serial(one.disk()))
        bundle.rootfs.append(pb.GuestMount(type="erofs", device=device, options=["ro"]))
    bundle.writable_upper = not read_only
    return bundle


def remove_own(disks: Sequence[RootDisk]) -> None:
    """The files of a container's own disks."""
    for disk in disks:
        if not disk.image:
            Path(disk.path).unlink(missing_ok=True)
