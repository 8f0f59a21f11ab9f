"""memfd_create(2): files in memory, also such that nobody can change any more (fcntl(2), File Sealing)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

F_ADD_SEALS = 1033  # linux/fcntl.h: F_LINUX_SPECIFIC_BASE + 9
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 0x1, 0x2, 0x4, 0x8


def memory_file(name: str, content: bytes) -> int:
    """A descriptor of a file in memory with this content. Raises OSError."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sealed_copy(path: Path) -> int:
    """A descriptor of a sealed, executable copy of a file. Raises OSError."""
    descriptor = os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with path.open("rb") as source:
            while os.sendfile(descriptor, source.fileno(), None, 1 << 30):
                pass
        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
