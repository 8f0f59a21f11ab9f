"""Memory that a kubelet gives to a pod: emptyDir volumes of medium Memory. Each is a tmpfs of its own on the host,
which a sandbox with a kernel of its own may have in its own memory instead: nobody else is to see it.

https://kubernetes.io/docs/concepts/storage/volumes/#emptydir
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from drupe.runtime.binds import binds_of, places
from drupe.sandboxers.contract import MemoryDir
from drupe.spec.container import ContainerSpec

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_VOLUMES = "volumes/kubernetes.io~empty-dir"
# the volume itself, or (subPath) a directory in it, which the kubelet binds to a place of its own
_OF_KUBELET = re.compile(
    rf"(?P<pod>/.*/pods/{_NAME})/(?:{re.escape(_VOLUMES)}/(?P<whole>{_NAME})"
    rf"|volume-subpaths/(?P<part>{_NAME})/{_NAME}/[0-9]+)"
)


def memory_dirs(bundle: Path, spec: ContainerSpec) -> dict[str, MemoryDir]:
    """Those among a container's bind mounts, by the places where `binds.attach` has them."""
    pairs = zip(places(bundle, spec), binds_of(spec), strict=True)
    found = {str(place): memory_dir(mount.source) for place, mount in pairs}
    return {place: one for place, one in found.items() if one is not None}


def memory_dir(source: str) -> MemoryDir | None:
    """What a directory of the host is as a part of such a volume; None when it is none."""
    match = _OF_KUBELET.fullmatch(source)
    if match is None:
        return None
    volume = str(Path(match["pod"], _VOLUMES, match["whole"] or match["part"]))
    table = _mounts()
    top, here = table.get(volume), table.get(source)
    if top is None or here is None or top[2] != "tmpfs" or top[0] != here[0]:
        return None
    inside, whole = Path(source).stat(), os.statvfs(volume)
    if not stat.S_ISDIR(inside.st_mode):
        return None
    return MemoryDir(
        volume=top[0],
        below=os.path.relpath(here[1], top[1]) if here[1] != top[1] else "",
        size_bytes=whole.f_blocks * whole.f_frsize,
        owner=_owner(Path(volume).stat()),
        below_owner=_owner(inside),
        is_new=_holds_no_file(volume),
    )


def _owner(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _holds_no_file(directory: str) -> bool:
    return not any(files for _, _, files in os.walk(directory))


def _mounts() -> dict[str, tuple[str, str, str]]:
    """Device, root within the file system, and its type, by mount point; the last one there counts
    (proc_pid_mountinfo(5))."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        root, point = (field.encode().decode("unicode_escape") for field in fields[3:5])
        found[point] = fields[2], root, right.split()[0]
    return found
