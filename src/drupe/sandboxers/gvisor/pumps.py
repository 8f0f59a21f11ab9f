"""Regular files as the streams of a process in a sandbox.

The sentry reads and writes a file at positions of its own: what others write to it is overwritten, what they have read
is read again. Such a stream becomes a pipe here, and a thread copies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import Mapping

_STREAMS = ("stdin", "stdout", "stderr")
_CHUNK = 65536
DRAINED_WITHIN_S = 5.0


class Pumps:
    """The streams of one process. `fds` are what the sentry gets, in the order 0, 1, 2; `sent` closes our copies."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        self.fds: list[int] = []
        self._made: list[int] = []
        self._copies: list[tuple[int, int]] = []  # from, to
        self._outputs: list[threading.Thread] = []
        for name in _STREAMS:
            self.fds.append(self._piped(name, fds[name]) if _is_file(fds[name]) else fds[name])

    def _piped(self, name: str, fd: int) -> int:
        reading, writing = os.pipe()
        theirs, ours = (reading, writing) if name == "stdin" else (writing, reading)
        self._made.append(theirs)
        own = os.dup(fd)
        self._copies.append((own, ours) if name == "stdin" else (ours, own))
        return theirs

    def sent(self) -> None:
        """The sentry has them: from now on data flows."""
        self._close_made()
        for source, target in self._copies:
            thread = threading.Thread(target=_copy, args=(source, target), daemon=True, name="stream of an exec")
            if not _is_file(source):
                self._outputs.append(thread)
            thread.start()  # last: it closes both when it is done
        self._copies = []

    def drop(self) -> None:
        """Nobody got them."""
        self._close_made()
        for pair in self._copies:
            for fd in pair:
                os.close(fd)
        self._copies = []

    async def drained(self) -> None:
        """Until all that the process wrote is where it belongs; what it left behind may hold the pipe longer."""
        for thread in self._outputs:
            await asyncio.to_thread(thread.join, DRAINED_WITHIN_S)

    def _close_made(self) -> None:
        while self._made:
            os.close(self._made.pop())


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _copy(source: int, target: int) -> None:
    try:
        with contextlib.suppress(OSError):  # the other side has gone, or the disk is full
            while data := os.read(source, _CHUNK):
                _write_all(target, data)
    finally:
        os.close(source)
        os.close(target)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
