"""A journal in which the process dies at the N-th write: how recovery is tested at every step there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from drupe.state.journal import Journal


class CountingJournal(Journal):
    """Calls `at_write(number, "before" or "after")` around each write. writes: how many; writing: the one at hand."""

    at_write: Callable[[int, str], None] = staticmethod(lambda number, moment: None)

    def __init__(self, path: Path) -> None:
        self.writes = 0
        self.writing = ""
        super().__init__(path)

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        self.writes += 1
        number = self.writes
        self.writing = f"{statement} {[value for value in values if not isinstance(value, bytes)]}"
        self.at_write(number, "before")
        super()._write(statement, values)
        self.at_write(number, "after")
