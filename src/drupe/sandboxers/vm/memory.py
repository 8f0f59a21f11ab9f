"""Volumes in memory that are a pod's alone: file systems of its guest, one for each, whichever containers have it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence

from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.contract import MemoryDir
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import PodRecord, TaskRecord

_GUEST_MEMORY = "/run/drupe/memory"


def take(pod: PodRecord, task: TaskRecord, memory: Mapping[str, MemoryDir]) -> dict[str, str]:
    """Note which volumes a container has in the guest; answers where, by their sources. It is settled for each when
    the first container has it: what holds files by then is the host's, for all of them."""
    if not memory:
        return {}
    for one in memory.values():
        pod.memory.setdefault(one.volume, one.is_new)
    pod.save()
    found = {source: one for source, one in memory.items() if pod.memory[one.volume]}
    task.memory = list(found.values())
    return {source: place_of(one) for source, one in found.items()}


def place_of(one: MemoryDir) -> str:
    """Where the guest has it."""
    return posixpath.join(_GUEST_MEMORY, one.volume.replace(":", "-"), one.below).rstrip("/")


async def mount(pod: VmPod, memory: Sequence[MemoryDir]) -> None:
    """Have the guest make those that it has not yet since its start."""
    for one in (mount for dir_ in memory for mount in _mounts(dir_)):
        if one.target not in pod.record.mounted:
            await pod.agent.guest("Mount", pb.MountRequest(mount=one))
            pod.record.mounted.append(one.target)
            pod.record.save()


def _mounts(one: MemoryDir) -> Iterator[pb.GuestMount]:
    """The volume; and a directory in it that has to be there, mounted on itself, as that makes it."""
    top = posixpath.join(_GUEST_MEMORY, one.volume.replace(":", "-"))
    uid, gid, mode = one.owner
    options = ["nosuid", "nodev", f"size={one.size_bytes}", f"mode={mode:o}", f"uid={uid}", f"gid={gid}"]
    yield pb.GuestMount(type="tmpfs", source="memory", target=top, options=options)
    if one.below:
        uid, gid, mode = one.below_owner
        options = [f"X-mount.owner={uid}", f"X-mount.group={gid}", f"X-mount.mode={mode:o}"]
        yield pb.GuestMount(type="bind", source=place_of(one), target=place_of(one), options=options)
