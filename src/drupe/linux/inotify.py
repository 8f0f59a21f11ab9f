"""inotify(7): be told when files change."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, NamedTuple

IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000

_EVENT = struct.Struct("=iIII")  # struct inotify_event: wd, mask, cookie, len; then the name
_libc = ctypes.CDLL(None, use_errno=True)


class InotifyEvent(NamedTuple):
    """One event. name: the entry of a watched directory, else ""."""

    wd: int
    mask: int
    name: str


def inotify_init() -> int:
    """inotify_init1(2): a descriptor, non-blocking and close-on-exec. Raises OSError (EMFILE at the user's limit)."""
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """inotify_add_watch(2): watch `path`; returns the watch's number. Raises OSError."""
    return _checked(_libc.inotify_add_watch(fd, os.fsencode(path), mask), path)


def inotify_read(fd: int) -> list[InotifyEvent]:
    """All events that wait; [] when there are none."""
    found: list[InotifyEvent] = []
    try:
        while data := os.read(fd, 65536):
            offset = 0
            while offset < len(data):
                wd, mask, _, length = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size
                found.append(InotifyEvent(wd, mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0"))))
                offset += length
    except BlockingIOError:
        pass
    return found


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
