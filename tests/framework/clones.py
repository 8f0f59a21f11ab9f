"""What checks of one clone leave for those of the next: below ~/.cache, and one clone at a time has it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework.guests import cache

ROOT = Path(__file__).parents[2]
BESIDE = ("docs/syscalls.md",)  # what a native test compares itself with


@contextmanager
def held(name: str) -> Iterator[Path]:
    """A cached directory, and nobody else's until the end."""
    home = cache() / name
    home.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield home


@contextmanager
def native() -> Iterator[Path]:
    """The native workspace, copied to where other clones had theirs: cargo takes a file for unchanged by its path and
    time, and those of a new clone are all new. Only what differs is written."""
    with held("native/sources") as home:
        wanted = {path.relative_to(ROOT): path.read_bytes() for path in _sources()}
        for old in [path for path in home.rglob("*") if path.is_file()]:
            if old.relative_to(home) not in wanted:
                old.unlink()
        for name, content in wanted.items():
            _put(home / name, content)
        yield home / "native"


def _sources() -> Iterator[Path]:
    yield from (ROOT / name for name in BESIDE)
    for path in (ROOT / "native").rglob("*"):
        if path.is_file() and "target" not in path.relative_to(ROOT).parts:
            yield path


def _put(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
