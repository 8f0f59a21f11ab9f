"""Waiting in asyncio tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
    """Return once `condition()` holds; TimeoutError when it does not come to."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 whatever is waited for sets no event
            await asyncio.sleep(0.001)
