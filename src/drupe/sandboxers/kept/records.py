"""What a kind writes down, so that another daemon can go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T", bound="Record")


class Record(msgspec.Struct, kw_only=True):
    """A file of JSON."""

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(msgspec.json.encode(self))
        partial.replace(path)

    @classmethod
    def read(cls: type[T], path: Path) -> T | None:
        """None when there is none, or half of one."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError):
            return None
