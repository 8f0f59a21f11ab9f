"""The daemon's duplicates of what the keeper holds: either may die, and no workload notices."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Held:
    """What a new keeper must be told to take over one task; `fds` are owned by the escrow."""

    task: str
    fields: dict[str, Any]
    fds: dict[str, int] = field(default_factory=dict)


class Escrow:
    """Descriptors of live tasks by name of the task, and of the keeper's mount namespace.

    The daemon's duplicate of a task's stdin has to be closed when the keeper closes its own, or the task would never
    read the end: `Keeper` calls `close_stdin` for that.
    """

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.mount_namespace: int | None = None

    def hold(self, held: Held) -> None:
        self.drop(held.task)
        self.held[held.task] = held

    def close_stdin(self, task: str) -> None:
        self.let_go(task, ("stdin",))

    def let_go(self, task: str, names: Iterable[str]) -> None:
        """Closes these of a task's descriptors, those that are held."""
        held = self.held.get(task)
        for name in names:
            if held is not None and (fd := held.fds.pop(name, None)) is not None:
                os.close(fd)

    def drop(self, task: str) -> None:
        """Closes what is held of a task; nothing held is fine."""
        held = self.held.pop(task, None)
        for fd in held.fds.values() if held else ():
            os.close(fd)

    def close(self) -> None:
        for task in list(self.held):
            self.drop(task)
        if self.mount_namespace is not None:
            os.close(self.mount_namespace)
            self.mount_namespace = None
