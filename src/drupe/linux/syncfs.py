"""syncfs(2): write one file system's data to its disk."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Write everything of the file system that holds `fd`. Raises OSError, also for writes that failed before."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
