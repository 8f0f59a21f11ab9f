"""What clients have attached to tasks: their descriptors in duplicate, so that a new keeper goes on where one died."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Attached:
    """One attachment. number: the keeper's own name for it, another one with each keeper; 0 while there is none."""

    task: str
    fds: dict[str, int]
    close_stdin: bool
    number: int = 0
    forgotten: bool = False
    end: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def over(self, reason: str) -> None:
        """Its end, told once: "exit", "closed", "detach", or "lost" when nobody goes on."""
        self.close(*self.fds)
        if not self.end.done():
            self.end.set_result(reason)

    def close(self, *names: str) -> None:
        """Let go of these descriptors, those that are there."""
        for name in names:
            if (fd := self.fds.pop(name, None)) is not None:
                with suppress(OSError):
                    os.close(fd)


class Attachments:
    """All of them by a number that outlives keepers."""

    def __init__(self) -> None:
        self._all: dict[int, Attached] = {}
        self._last = 0

    def add(self, task: str, fds: Mapping[str, int], number: int, *, close_stdin: bool) -> int:
        """Remember one that a keeper has made; returns its number here. `fds` are duplicated."""
        copies = {name: os.dup(fd) for name, fd in fds.items()}
        self._last += 1
        self._all[self._last] = Attached(task, copies, close_stdin, number)
        return self._last

    def __getitem__(self, number: int) -> Attached:
        return self._all[number]

    def find(self, number: int) -> int | None:
        """Our number for the present keeper's."""
        return next((own for own, attached in self._all.items() if attached.number == number), None)

    def of(self, task: str) -> Iterator[Attached]:
        """Those of one task that have not ended."""
        return (attached for attached in list(self._all.values()) if attached.task == task and not attached.end.done())

    def end(self, own: int, reason: str) -> None:
        """One has ended; it is kept until somebody has asked how, unless nobody will."""
        attached = self._all[own]
        attached.over(reason)
        attached.number = 0
        if attached.forgotten:
            del self._all[own]

    def forget(self, own: int) -> None:
        self._all.pop(own, None)

    def forget_task(self, task: str) -> None:
        """Nobody will ask for those of a task that is no more; its last output may still be on its way."""
        for own, attached in list(self._all.items()):
            if attached.task == task:
                attached.close(*attached.fds)
                attached.forgotten = True
                if attached.end.done():
                    del self._all[own]

    def keeper_lost(self) -> None:
        """No keeper knows them now."""
        for attached in self._all.values():
            attached.number = 0

    def end_unknown(self) -> None:
        """End those that no keeper has taken over."""
        for own, attached in list(self._all.items()):
            if not attached.number and not attached.end.done():
                self.end(own, "lost")
