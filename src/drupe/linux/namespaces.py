"""ioctl_ns(2): what a namespace belongs to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

_NS_GET_USERNS: Final = 0xB701
_NS_GET_NSTYPE: Final = 0xB703
_CLONE_NEWNET: Final = 0x40000000
_LOOKING: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def owning_user_namespace(namespace: str) -> int | None:
    """A descriptor of the user namespace that owns the one at `namespace`; None where it is the caller's own. Raises
    OSError (EPERM: one that is outside of the caller's)."""
    fd = os.open(namespace, _LOOKING)
    try:
        owner = fcntl.ioctl(fd, _NS_GET_USERNS)
    finally:
        os.close(fd)
    if os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user")):  # noqa: PTH116 beside one of a descriptor
        os.close(owner)
        return None
    return owner


def is_network_namespace(path: str) -> bool:
    """Whether a file is one: it may be anything else, and nobody is waited for. Raises OSError."""
    fd = os.open(path, _LOOKING)
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False
    finally:
        os.close(fd)


def id_maps(pid: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Of a process's user namespace: uids and gids, each (inside, outside, count). Raises OSError."""
    return _map(f"/proc/{pid}/uid_map"), _map(f"/proc/{pid}/gid_map")


def _map(path: str) -> list[tuple[int, int, int]]:
    lines = ([int(word) for word in line.split()] for line in Path(path).read_text().splitlines())
    return [(inside, outside, count) for inside, outside, count in lines]
