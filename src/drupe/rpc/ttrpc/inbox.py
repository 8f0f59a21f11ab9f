"""Messages of one stream that arrived and were not taken yet."""

from __future__ import annotations

import asyncio
from collections import deque

from drupe.errors import DrupeError

CAPACITY_BYTES = 1024 * 1024


class Inbox:
    """A queue bounded by bytes: who puts waits while it is full, and so the peer's writes wait too.

    It ends once: well (`end`), or with an error, which is told after what came before it. `abandon` lets go of all.
    """

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._ended = False
        self._error: DrupeError | None = None
        self._abandoned = False
        self._changed = asyncio.Event()

    def prime(self, data: bytes) -> None:
        """Put the first message, for which there is room."""
        self._waiting.append(data)
        self._bytes += len(data)

    async def put(self, data: bytes) -> None:
        """Add a message once there is room for it; nothing happens after the end."""
        while self._waiting and self._bytes + len(data) > CAPACITY_BYTES and not self._abandoned:
            await self._change()
        if self._ended or self._abandoned:
            return
        self.prime(data)
        self._changed.set()

    def end(self, error: DrupeError | None = None) -> None:
        """No more will come. Only the first end counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._changed.set()

    def abandon(self) -> None:
        """Nobody will take any more: forget what is here, let who puts go on."""
        self._abandoned = self._ended = True
        self._waiting.clear()
        self._changed.set()

    async def get(self) -> bytes | None:
        """The next message, None at the good end. Raises the error that ended the stream."""
        while not self._waiting and not self._ended:
            await self._change()
        if not self._waiting:
            if self._error is not None:
                raise self._error
            return None
        data = self._waiting.popleft()
        self._bytes -= len(data)
        self._changed.set()
        return data

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
