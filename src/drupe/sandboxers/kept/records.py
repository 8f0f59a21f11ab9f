"""What a kind writes down, so that another daemon can go on with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T", bound="Record")
_AT_ONCE_BYTES = 4096  # the first page of a file: the kernel writes it, or has not begun to (killed in between or not)


class Record(msgspec.Struct, kw_only=True):
    """A file of JSON."""

    def write(self, path: Path) -> None:
        """Whole or not at all, whenever this process ends. What is there is overwritten where one call can do it: to
        take another file's place costs a disk milliseconds."""
        data = msgspec.json.encode(self)
        if not _overwrite(path, data):
            partial = path.with_name(path.name + ".part")
            partial.write_bytes(data)
            partial.replace(path)

    @classmethod
    def read(cls: type[T], path: Path) -> T | None:
        """None when there is none, or half of one."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError):
            return None


def _overwrite(path: Path, data: bytes) -> bool:
    """False where there is no file, or more than one call can write; what is shorter than before ends in blanks."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(fd).st_size
        fits = max(size, len(data)) <= _AT_ONCE_BYTES
        return fits and os.pwrite(fd, data.ljust(size), 0) >= len(data)
    finally:
        os.close(fd)
