"""User namespaces on disk: whose ids are root's inside a pod, and giving it its files (user_namespaces(7))."""

from __future__ import annotations

import os
from pathlib import Path

from drupe.errors import InvalidArgument, PermissionDenied
from drupe.spec.pod import IdMap, PodSpec

UNMAPPED = 65534  # how an id without a map shows inside (/proc/sys/kernel/overflowuid)


def check_reachable(path: Path) -> None:
    """PermissionDenied unless everybody may walk down to `path`: the ids of a user namespace must."""
    for directory in (path, *path.parents):
        if not directory.stat().st_mode & 0o001:
            raise PermissionDenied(
                f"{directory} keeps the ids of a user namespace out",
                hint=f"chmod o+x {directory}, or have {path} elsewhere",
            )


class Owners:
    """A pod's owners, told inside and on the host. Without a user namespace both are the same."""

    def __init__(self, spec: PodSpec) -> None:
        user = spec.namespaces.user
        self._uids = user.uids if user else ()
        self._gids = user.gids if user else ()

    def on_host(self, uid: int, gid: int) -> tuple[int, int]:
        """InvalidArgument for an id that the pod's user namespace does not have."""
        return _on_host(self._uids, uid), _on_host(self._gids, gid)

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        return _inside(self._uids, uid), _inside(self._gids, gid)


def _on_host(maps: tuple[IdMap, ...], id_: int) -> int:
    if not maps:
        return id_
    for m in maps:
        if m.inside <= id_ < m.inside + m.count:
            return id_ - m.inside + m.outside
    raise InvalidArgument(f"owner {id_} is not among the ids of the pod's user namespace")


def _inside(maps: tuple[IdMap, ...], id_: int) -> int:
    if not maps:
        return id_
    return next((id_ - m.outside + m.inside for m in maps if m.outside <= id_ < m.outside + m.count), UNMAPPED)


def shift_ids(root: Path, uid0: int, gid0: int) -> None:
    """Move every owner up by the namespace's offset. With overlay's metacopy no file content is copied.

    The mode is set again afterwards, since chown(2) clears set-user-ID bits.
    """
    for directory, names, files in os.walk(root):
        for name in (".", *names, *files):
            path = os.path.normpath(os.path.join(directory, name)) if name != "." else directory  # noqa: PTH118
            if name in names and not os.path.islink(path):  # noqa: PTH114 walked as a directory of its own
                continue
            stat = os.lstat(path)
            if stat.st_uid >= uid0 or stat.st_gid >= gid0:
                continue
            os.lchown(path, stat.st_uid + uid0, stat.st_gid + gid0)
            if stat.st_mode & 0o6000:
                Path(path).chmod(stat.st_mode & 0o7777)
