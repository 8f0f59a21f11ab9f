"""asyncio.timeout that also holds inside a task that is being cancelled.

Python before 3.11.3 (Debian 12 has 3.11.2) lets CancelledError out of an expired `asyncio.timeout` when the task has
been asked to cancel before: every clean-up with a time limit would then end at its first wait. Later versions compare
with the number of requests there were on entry (gh-102780), and so does this.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Timeout:
    """Use `timeout` or `timeout_at`. Raises TimeoutError at the end of the block when the time was over."""

    def __init__(self, when: float | None) -> None:
        self._inner = asyncio.timeout_at(when)  # noqa: TID251 the one place
        self._cancelling = 0

    def expired(self) -> bool:
        """Whether the time was over before the block ended."""
        return self._inner.expired()

    async def __aenter__(self) -> Timeout:
        self._cancelling = _cancelling()
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)
        ours = _cancelling() <= self._cancelling  # nobody else asked meanwhile
        if self._inner.expired() and kind is asyncio.CancelledError and ours:
            raise TimeoutError from error


def _cancelling() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def timeout(delay_s: float | None) -> Timeout:
    """End the block after `delay_s` seconds; None: never."""
    return timeout_at(None if delay_s is None else asyncio.get_running_loop().time() + delay_s)


def timeout_at(when: float | None) -> Timeout:
    """End the block at `when` of the event loop's clock; None: never."""
    return Timeout(when)
