"""A container's log, written here because its output comes from a machine and through no pipe of the keeper's.

The forms are the keeper's (docs/keeper.md): CRI and json-file, rotated by size. `Place` is what a daemon that takes
over needs, so that no line is lost or written twice: it is on disk before the agent is told to forget the bytes.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from drupe.sandboxers.kept.records import Record
from drupe.spec.container import LogSpec

_MAX_LINE = 16 * 1024


class Place(Record, kw_only=True):
    """How far a process's output has come. offsets: bytes taken from the agent, by stream. partial: what of them is
    no whole line yet. size: of the log then. begun: whether that is the size of a log."""

    offsets: dict[str, int] = {}
    partial: dict[str, bytes] = {}
    size: int = 0
    begun: bool = False


class LogWriter:
    """One log file. A disk that is full drops lines and harms nobody."""

    def __init__(self, spec: LogSpec | None, place: Place) -> None:
        self._spec = spec if spec is not None and spec.driver != "none" else None
        self._place = place
        self._file: int | None = None
        self._dropped = 0
        if self._spec is not None:
            self._open(self._spec.path)
            self._take_back()

    def write(self, stream: str, data: bytes) -> None:
        """Log all whole lines; what is left waits in the place."""
        waiting = self._place.partial.pop(stream, b"") + data
        if self._spec is None:
            return
        *lines, rest = waiting.split(b"\n")
        out = [self._line(stream, part, full) for line in lines for part, full in _parts(line, ended=True)]
        for part, full in _parts(rest, ended=False):
            if full is None:
                self._place.partial[stream] = part
            else:
                out.append(self._line(stream, part, full))
        self._put(b"".join(out))

    def end(self) -> None:
        """Log what has no end of line, and close."""
        for stream, rest in sorted(self._place.partial.items()):
            if rest:
                self._put(self._line(stream, rest, full=True, newline=False))
        self._place.partial.clear()
        self.close()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _line(self, stream: str, data: bytes, full: bool | None, *, newline: bool = True) -> bytes:
        now = time.time_ns()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"
        if self._spec is not None and self._spec.driver == "json-file":
            text = data.decode(errors="replace") + ("\n" if full and newline else "")
            return json.dumps({"log": text, "stream": stream, "time": at}, separators=(",", ":")).encode() + b"\n"
        return f"{at} {stream} {'F' if full else 'P'} ".encode() + data + b"\n"

    def _put(self, data: bytes) -> None:
        if not data or self._spec is None or self._file is None:
            return
        try:
            if self._spec.max_bytes and self._place.size and self._place.size + len(data) > self._spec.max_bytes:
                self._rotate(self._spec)
            os.write(self._file, data)
            self._place.size += len(data)
        except OSError:
            self._dropped += data.count(b"\n")

    def _rotate(self, spec: LogSpec) -> None:
        path = Path(spec.path)
        for number in range(spec.max_files - 1, 0, -1):
            older = path if number == 1 else Path(f"{path}.{number - 1}")
            if older.exists():
                older.replace(f"{path}.{number}")
        if spec.max_files <= 1:
            os.truncate(path, 0)
        self.close()
        self._open(spec.path)
        self._place.size = 0

    def _open(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._file = os.open(path, flags, 0o640)
        except OSError:
            self._file = None
            return
        if not self._place.begun:  # what an earlier run of the container wrote stays
            self._place.size, self._place.begun = os.fstat(self._file).st_size, True

    def _take_back(self) -> None:
        """Drop lines that were written and not recorded: their bytes come again. A shorter log was rotated since."""
        if self._file is None:
            return
        size = os.fstat(self._file).st_size
        self._place.size = min(self._place.size, size)
        if size > self._place.size:
            os.ftruncate(self._file, self._place.size)


def _parts(line: bytes, *, ended: bool) -> list[tuple[bytes, bool | None]]:
    """A line in pieces of at most 16 KiB: (piece, True: ends the line, False: goes on, None: not known yet)."""
    pieces: list[tuple[bytes, bool | None]] = []
    while len(line) > _MAX_LINE:
        pieces.append((line[:_MAX_LINE], False))
        line = line[_MAX_LINE:]
    if line or ended:
        pieces.append((line, True if ended else None))
    return pieces
