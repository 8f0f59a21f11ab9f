"""A limit on how often something may be done for one peer, so that it cannot take all of our time."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """per_s: how often in the long run. burst: how often at once."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = self._left = burst
        self._at = time.monotonic()

    async def take(self, count: float = 1) -> None:
        """Do it `count` times; waits until that is within the limit."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s) - count
        self._at = now
        if self._left < 0:
            await asyncio.sleep(-self._left / self._per_s)
