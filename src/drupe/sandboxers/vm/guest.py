"""Which kernel and which initramfs a machine boots."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from drupe.errors import NotFound


class Guest(NamedTuple):
    """A guest image's files, and its digest."""

    kernel: Path
    initrd: Path
    digest: str


def find_guest(root: Path, name: str) -> Guest:
    """The guest image of that name. NotFound says how to build it."""
    directory = Path(name) if name.startswith("/") else root / "guests" / name
    kernel, initrd = directory / "kernel", directory / "initrd"
    if not kernel.exists() or not initrd.exists():
        raise NotFound(f"guest image {name!r} is not there", hint="drupe guest build")
    return Guest(kernel, initrd, directory.name)
