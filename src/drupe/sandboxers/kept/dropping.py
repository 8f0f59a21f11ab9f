"""The end of a task of the keeper's, whatever state it is in."""

from __future__ import annotations

import asyncio
import contextlib
import time

from drupe.errors import DeadlineExceeded, InvalidState, NotFound
from drupe.keeper.client import Keeper

_ENDS_WITHIN_S = 10.0
_PAUSE_S = 0.005


async def drop_task(keeper: Keeper, key: str, *, kill: bool = True) -> None:
    """Have the keeper forget a task, when it has ended. kill: end it first. Idempotent.

    Raises DeadlineExceeded for a process that does not end.
    """
    if kill:
        with contextlib.suppress(NotFound):
            await keeper.kill(key, 9)
    deadline = time.monotonic() + _ENDS_WITHIN_S
    with contextlib.suppress(NotFound):
        while await _runs(keeper, key):
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"task {key} does not end", stage="delete", hint="it may hang in the kernel")
            await asyncio.sleep(_PAUSE_S)


async def _runs(keeper: Keeper, key: str) -> bool:
    try:
        await keeper.forget(key)
    except InvalidState:
        return True
    return False
