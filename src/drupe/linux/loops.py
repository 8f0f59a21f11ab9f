"""Loop devices (loop(4), LOOP_CONFIGURE of linux/loop.h): a file of the host as a block device."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

_CTL_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4
# struct loop_config: fd, block_size; struct loop_info64 with lo_flags after five u64 and three u32; reserved
_CONFIG = struct.Struct("=II 5Q 3I I 64s 64s 32s 2Q 8Q")
_TRIES = 16


def attach(path: Path, *, read_only: bool = False) -> int:
    """A descriptor of a free loop device that is joined to `path`, until the last descriptor of it is closed. Raises
    OSError."""
    mode = os.O_RDONLY if read_only else os.O_RDWR
    flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    file = os.open(path, mode | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):  # another may take what was free
            device = os.open(f"/dev/loop{_free()}", mode | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(file, 0, *[0] * 8, flags, b"", b"", b"", *[0] * 10))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device
        raise OSError(errno.EBUSY, "no loop device is free")
    finally:
        os.close(file)


def _free() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _CTL_GET_FREE)
    finally:
        os.close(control)
