"""ioctl_ns(2): what a namespace belongs to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

_NS_GET_USERNS: Final = 0xB701


def owning_user_namespace(namespace: str) -> int | None:
    """A descriptor of the user namespace that owns the one at `namespace`; None where it is the caller's own. Raises
    OSError (EPERM: one that is outside of the caller's)."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(fd, _NS_GET_USERNS)
    finally:
        os.close(fd)
    if os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user")):  # noqa: PTH116 beside one of a descriptor
        os.close(owner)
        return None
    return owner


def id_maps(pid: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Of a process's user namespace: uids and gids, each (inside, outside, count). Raises OSError."""
    return _map(f"/proc/{pid}/uid_map"), _map(f"/proc/{pid}/gid_map")


def _map(path: str) -> list[tuple[int, int, int]]:
    lines = ([int(word) for word in line.split()] for line in Path(path).read_text().splitlines())
    return [(inside, outside, count) for inside, outside, count in lines]
