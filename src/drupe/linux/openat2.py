"""openat2(2): open a path with the kernel's own containment rules."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import Final

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

O_PATH: Final = 0o10000000  # asm-generic/fcntl.h; os.O_PATH is missing from typing on some platforms

_NR_OPENAT2: Final = 437  # the same number on every architecture (unified since Linux 5.1)
_OPEN_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_EAGAIN_TRIES: Final = 64

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def openat2(dir_fd: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` relative to `dir_fd` under the RESOLVE_* rules; O_CLOEXEC is always set.

    Raises OSError with the kernel's errno. EAGAIN (a rename raced with the walk, openat2(2)) is tried again.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise OSError(errno.EINVAL, "path contains NUL", os.fsdecode(raw))
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_EAGAIN_TRIES):
        fd: int = _syscall(
            ctypes.c_long(_NR_OPENAT2), ctypes.c_int(dir_fd), ctypes.c_char_p(raw), ctypes.c_char_p(how),
            ctypes.c_size_t(_OPEN_HOW.size),
        )  # fmt: skip
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        if error != errno.EAGAIN:
            break
    raise OSError(error, os.strerror(error), os.fsdecode(raw))


def open_in_root(root_fd: int, path: str | bytes, flags: int, *, mode: int = 0) -> int:
    """openat2 with RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS: `..`, absolute names and links stay below `root_fd`."""
    return openat2(root_fd, path, flags, mode=mode, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def stat_in_root(root_fd: int, path: str | bytes, *, links: bool = True) -> os.stat_result:
    """fstat(2) of what `open_in_root` finds. links: follow them; else one on the way is OSError ELOOP, and one at the
    end is itself what is found."""
    how = 0 if links else RESOLVE_NO_SYMLINKS
    flags = O_PATH if links else O_PATH | os.O_NOFOLLOW
    descriptor = openat2(root_fd, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | how)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def open_regular(dir_fd: int, path: str | bytes, flags: int, *, resolve: int = RESOLVE_IN_ROOT) -> int:
    """Open what exists at `path` only if it is a regular file; RESOLVE_NO_MAGICLINKS is always on.

    Merely opening a device can have effects, and a FIFO waits: what it is, is asked of an O_PATH descriptor, and just
    that is then opened. Raises OSError EINVAL for anything but a regular file.
    """
    handle = openat2(dir_fd, path, O_PATH | flags & os.O_NOFOLLOW, resolve=resolve | RESOLVE_NO_MAGICLINKS)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
        return os.open(f"/proc/self/fd/{handle}", flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
    finally:
        os.close(handle)
