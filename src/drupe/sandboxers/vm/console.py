"""What a machine's console says of its end. A guest wrote that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from drupe.hypervisors.words import readable

_LAST_WORDS_BYTES = 16 << 10  # a panic comes with registers and a trace


def named_logs(home: Path) -> Iterator[tuple[str, Path]]:
    """The logs of a machine, the older part of one before the newer."""
    for path in sorted(home.glob("*.log")):
        name, older = path.name.removesuffix(".log"), path.with_name(path.name + ".1")
        if older.exists():
            yield f"{name}.1", older
        yield name, path


def last_words(console: Path) -> str:
    """The last line that says something."""
    return next((line for line in reversed(_tail(console)) if line), "")


def why(end: str, console: Path) -> str:
    """Why a machine ended: the kernel's panic, or its last words."""
    lines = _tail(console)
    panic = next((line for line in lines if "Kernel panic" in line), "")
    return panic or f"{readable(end)}: {last_words(console)}"


def _tail(path: Path) -> list[str]:
    """The last lines, without stamps. Of a file that was just begun anew, those before it too."""
    data = _end_of(path)
    if len(data) < _LAST_WORDS_BYTES:
        data = _end_of(path.with_name(path.name + ".1")) + data
    data = data[-_LAST_WORDS_BYTES:]
    lines = [line.split(b" ", 3)[-1] for line in data.splitlines()[1:] or data.splitlines()]
    return [readable(line.decode(errors="replace")) for line in lines]


def _end_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _LAST_WORDS_BYTES, 0))
            return file.read(_LAST_WORDS_BYTES)
    except OSError:
        return b""
