"""open_tree(2): a copy of a mount, in hand and not mounted anywhere."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

OPEN_TREE_CLONE: Final = 1
AT_RECURSIVE: Final = 0x8000
_AT_FDCWD: Final = -100
_NR_OPEN_TREE: Final = 428  # the same number on every architecture

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def open_tree(path: str) -> int:
    """A descriptor of a copy of what is mounted at `path` (links followed) and below it, as a bind mount makes one.

    It is a peer of the original: mounts travel between the two as its propagation says. Raises OSError (EINVAL: an
    unbindable mount).
    """
    raw = os.fsencode(path)
    if b"\0" in raw:  # what comes before it is another place
        raise OSError(errno.EINVAL, "path contains NUL", path)
    flags = OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC
    fd: int = _syscall(
        ctypes.c_long(_NR_OPEN_TREE), ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(raw), ctypes.c_uint(flags)
    )
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return fd
