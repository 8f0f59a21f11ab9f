"""Who attached to a container before it was started: its streams do not exist yet."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Mapping
from typing import Any

from drupe.sandboxers.contract import Attachment


class PendingAttachment(Attachment):
    """Holds duplicates of the descriptors until it is joined to the real streams, or let go."""

    def __init__(self, fds: Mapping[str, int], *, close_stdin: bool) -> None:
        self.fds = {name: os.dup(fd) for name, fd in fds.items()}
        self.close_stdin = close_stdin
        self._real: asyncio.Future[Attachment | None] = asyncio.get_running_loop().create_future()

    def join(self, real: Attachment) -> None:
        """It is attached now."""
        self._settle(real)

    def drop(self) -> None:
        """The container will never run."""
        self._settle(None)

    @property
    def waits(self) -> bool:
        """Whether it is neither joined nor dropped."""
        return not self._real.done()

    def _settle(self, real: Attachment | None) -> None:
        while self.fds:
            os.close(self.fds.popitem()[1])
        if self.waits:
            self._real.set_result(real)

    def __await__(self) -> Generator[Any, None, object]:
        return self._end().__await__()

    async def _end(self) -> None:
        real = await asyncio.shield(self._real)
        if real is not None:
            await real

    async def detach(self) -> None:
        real = self._real.result() if self._real.done() else None
        self.drop()
        if real is not None:
            await real.detach()
