"""Standard streams of a new process: the ends it gets, and ours, which go to the keeper and into the escrow."""

from __future__ import annotations

import os
import termios
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NAMES = ("stdin", "stdout", "stderr")


@dataclass(slots=True)
class Streams:
    """theirs: stdin, stdout, stderr of the process. ours, mode: as the keeper's op `adopt` takes them."""

    mode: Literal["pipes", "tty", "fds"]
    theirs: list[int] = field(default_factory=list)
    ours: dict[str, int] = field(default_factory=dict)

    def close_theirs(self) -> None:
        """Once the process has them."""
        for fd in self.theirs:
            os.close(fd)
        self.theirs.clear()

    def close(self) -> None:
        """All that is still here."""
        self.close_theirs()
        for fd in self.ours.values():
            os.close(fd)
        self.ours.clear()


def pipes(*, stdin: bool) -> Streams:
    """Pipes for output, and for input if asked; else its end."""
    made = Streams("pipes")
    if stdin:
        reader, made.ours["stdin"] = os.pipe()
        made.theirs.append(reader)
    else:
        made.theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    for name in NAMES[1:]:
        made.ours[name], writer = os.pipe()
        made.theirs.append(writer)
    return made


def terminal(rows: int | None, columns: int | None) -> Streams:
    """A pty."""
    master, slave = os.openpty()
    if rows and columns:
        termios.tcsetwinsize(master, (rows, columns))
    return Streams("tty", [slave, os.dup(slave), os.dup(slave)], {"tty": master})


def given(fds: Mapping[str, int]) -> Streams:
    """Duplicates of the caller's own; nothing is kept of them."""
    made = Streams("fds")
    for name in NAMES:
        mode = os.O_RDONLY if name == "stdin" else os.O_WRONLY
        made.theirs.append(os.dup(fds[name]) if name in fds else os.open(os.devnull, mode | os.O_CLOEXEC))
    return made
