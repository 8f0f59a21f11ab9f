"""Block devices and images of the host that a container is given: disks of its machine, plugged in before it starts.

Whatever file system is on them, the guest's kernel reads it, and never the host's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.errors import (
    DeadlineExceeded,
    DrupeError,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unsupported,
    from_os_error,
)
from drupe.hypervisors.contract import Disk
from drupe.oci.mounts import FILESYSTEMS
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.pods import VmPod

_COMES_WITHIN_S = 20.0
_GOES_WITHIN_S = 10.0
_GUEST_DISKS = "/run/drupe/disks"  # where the agent mounts them
_SYSFS = Path("/sys/dev/block")
_MAGIC = {"ext4": (1080, b"\x53\xef"), "erofs": (1024, b"\xe2\xe1\xf5\xe0")}  # where, and what


@dataclass(frozen=True, slots=True)
class Wanted:
    """A disk, and the part of config.json that speaks of it: an entry of its devices, or of its mounts."""

    disk: Disk
    entry: dict[str, Any]


def wanted(oci: Mapping[str, Any], task: str) -> list[Wanted]:
    """The disks that a container asks for. Unsupported for other devices than block devices, NotFound for one that is
    not there."""
    found = [*_devices(oci), *_mounts(oci)]
    return [
        Wanted(Disk(id=f"d{number}-{task}"[:20], path=path, read_only=read_only), entry)
        for number, (path, read_only, entry) in enumerate(found)
    ]


def require_none(oci: Mapping[str, Any], task: str) -> None:
    """Unsupported for a container that has disks of the host: two machines would write to them."""
    if wanted(oci, task):
        raise Unsupported(
            f"container {task} has a disk of the host, which two machines cannot have", kind="vm", feature="snapshot"
        )


def _devices(oci: Mapping[str, Any]) -> Iterator[tuple[Path, bool, dict[str, Any]]]:
    """Those that were asked for one by one: they have a rule each."""
    linux = oci.get("linux", {})
    rules = {_number(rule): rule for rule in linux.get("resources", {}).get("devices", ()) if "minor" in rule}
    for entry in linux.get("devices", ()):
        if (rule := rules.get(_number(entry))) is None:
            continue
        if entry["type"] != "b":
            raise Unsupported(
                f"{entry['path']} is no block device: the guest has no driver for what it stands for",
                kind="vm",
                feature="devices",
                hint="machines take block devices of the host",
            )
        yield _path_of(entry), "w" not in rule.get("access", "rwm"), entry


def _number(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry.get("type"), entry.get("major"), entry.get("minor")


def _path_of(entry: Mapping[str, Any]) -> Path:
    """The device's node on the host, by the name that the kernel has for it."""
    number = f"{entry['major']}:{entry['minor']}"
    try:
        text = (_SYSFS / number / "uevent").read_text()
    except OSError:
        raise NotFound(f"there is no block device {number}", stage="devices") from None
    return Path("/dev") / dict(line.split("=", 1) for line in text.splitlines())["DEVNAME"]


def _mounts(oci: Mapping[str, Any]) -> Iterator[tuple[Path, bool, dict[str, Any]]]:
    for mount in oci.get("mounts", ()):
        if mount.get("type") in FILESYSTEMS:
            source = Path(mount["source"])
            if not (source.is_file() or source.is_block_device()):
                raise NotFound(f"{source} is no file or block device with a file system", stage="devices")
            yield source, "ro" in mount.get("options", ()) or mount["type"] == "erofs", mount


def require_filesystem(one: Wanted) -> None:
    """InvalidArgument for a disk that is to be mounted and has no such file system: what the guest's kernel says of
    that is not to the point. Nothing but two words of it is read here."""
    kind = one.entry.get("type", "")
    if kind not in _MAGIC:
        return
    offset, magic = _MAGIC[kind]
    try:
        with one.disk.path.open("rb", buffering=0) as file:
            found = os.pread(file.fileno(), len(magic), offset)
    except OSError as error:
        raise from_os_error(error) from None
    if found != magic:
        what = f"{one.disk.path} has no file system of the kind {kind}"
        raise InvalidArgument(what, stage="devices", hint=f"mkfs.{kind} makes one; fstype= of a mount names another")


async def plug(pod: VmPod, oci: Mapping[str, Any], config: dict[str, Any], task: str) -> None:
    """Plug in what a container asks for, and have its config speak of what the guest has then. oci: as the host has
    it, config: as the guest's runtime will. On failure nothing is left."""
    plugged: list[Wanted] = []
    disks = wanted(oci, task)
    for one in disks:
        await asyncio.to_thread(require_filesystem, one)
    async with pod.plugging:
        try:
            for one in disks:
                await pod.require().add(one.disk)
                plugged.append(one)
                await (_mount if "destination" in one.entry else _number_anew)(pod, one, config)
        except BaseException:
            await _remove(pod, plugged)
            raise


async def _mount(pod: VmPod, one: Wanted, config: dict[str, Any]) -> None:
    """By the agent: the container's own cgroup may not open the device."""
    place = f"{_GUEST_DISKS}/{one.disk.id}"
    options = [word for word in one.entry["options"] if word in ("ro", "nosuid", "nodev", "noexec")]
    device = pb.Device(disk_serial=one.disk.id)
    mount = pb.GuestMount(type=one.entry["type"], target=place, options=options, device=device)
    try:
        await pod.agent.guest("Mount", pb.MountRequest(mount=mount))
    except (Unavailable, DeadlineExceeded):
        raise
    except DrupeError as error:
        what = f"the guest cannot mount {one.disk.path}"
        raise InvalidArgument(
            what, stage="devices", cause=error.message, hint=f"fsck.{one.entry['type']} says more"
        ) from None
    here = next(entry for entry in config["mounts"] if entry["destination"] == one.entry["destination"])
    here |= {"type": "bind", "source": place, "options": ["rbind", *here["options"]]}


async def _number_anew(pod: VmPod, one: Wanted, config: dict[str, Any]) -> None:
    """The guest's numbers for the host's."""
    device = pb.Device(disk_serial=one.disk.id)
    request = pb.AwaitDeviceRequest(device=device, timeout_ms=round(_COMES_WITHIN_S * 1000))
    told = await pod.agent.guest("AwaitDevice", request, pb.AwaitDeviceResponse)
    linux = config["linux"]
    for entry in (*linux["devices"], *linux["resources"]["devices"]):
        if _number(entry) == _number(one.entry) and not entry.get("renamed"):
            entry |= {"major": told.major, "minor": told.minor, "renamed": True}


async def unplug(pod: VmPod, oci: Mapping[str, Any], task: str) -> None:
    """Take them away again. Idempotent."""
    found: list[Wanted] = []
    with contextlib.suppress(DrupeError):  # what has gone meanwhile
        found = wanted(oci, task)
    if found:
        async with pod.plugging:
            await _remove(pod, found)


async def _remove(pod: VmPod, found: list[Wanted]) -> None:
    """Unmounted first, so that what was written is on them."""
    await asyncio.gather(*(_remove_one(pod, one) for one in found))


async def _remove_one(pod: VmPod, one: Wanted) -> None:
    if "destination" in one.entry:
        with contextlib.suppress(DrupeError):
            await pod.agent.guest("Unmount", pb.UnmountRequest(target=f"{_GUEST_DISKS}/{one.disk.id}"))
    if pod.machine is not None:
        with contextlib.suppress(DrupeError):
            await pod.machine.remove(one.disk.id, timeout_s=_GOES_WITHIN_S)


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """Without the marks of what was renamed: the guest's numbers may be another device's of the host."""
    linux = config.get("linux", {})
    for one in (*linux.get("devices", ()), *linux.get("resources", {}).get("devices", ())):
        one.pop("renamed", None)
    return config
