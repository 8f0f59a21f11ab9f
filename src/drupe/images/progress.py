"""Telling how far long work is: few enough reports that telling costs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from drupe.spec.control import Progress

Report = Callable[[Progress], None]
_EVERY_S = 0.1


def silent(_: Progress) -> None:
    """For callers that do not want to know."""


class Meter:
    """Progress of one item: at most ten reports a second, and always the last one."""

    def __init__(self, report: Report, item: str, status: str, total: int = 0) -> None:
        self._report, self._item, self._status, self._total = report, item, status, total
        self._next = 0.0
        self(0)

    def __call__(self, current: int) -> None:
        now = time.monotonic()
        if now >= self._next or (self._total and current >= self._total):
            self._next = now + _EVERY_S
            self._report(Progress(id=self._item, status=self._status, current=current, total=self._total))
