"""User namespaces on disk: whose ids are root's inside a pod, and giving it its files (user_namespaces(7))."""

from __future__ import annotations

import os
from pathlib import Path

from drupe.spec.pod import PodSpec


def root_ids(spec: PodSpec) -> tuple[int, int]:
    """Host uid and gid that are 0 inside the pod."""
    user = spec.namespaces.user
    if user is None:
        return 0, 0
    uid = next((m.outside - m.inside for m in user.uids if m.inside == 0), 0)
    gid = next((m.outside - m.inside for m in user.gids if m.inside == 0), 0)
    return uid, gid


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
