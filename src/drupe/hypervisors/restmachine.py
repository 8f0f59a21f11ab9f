"""What machines have in common whose program is spoken to by HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod

from drupe.errors import DrupeError, Unavailable
from drupe.hypervisors.contract import Machine, MachineConfig
from drupe.hypervisors.rest import Lifeline, Rest
from drupe.rpc.timeouts import timeout


class RestMachine(Machine):
    """Its end is the end of a connection that is held open."""

    def __init__(self, rest: Rest, config: MachineConfig, lifeline: Lifeline) -> None:
        self._rest = rest
        self._config = config
        self._lifeline = lifeline
        self._end = asyncio.ensure_future(self._await_end())

    async def _await_end(self) -> str:
        await self._lifeline.ended()
        return self._why()

    @abstractmethod
    def _why(self) -> str:
        """What the program wrote of its end, once it has ended."""

    async def wait(self) -> str:
        return await asyncio.shield(self._end)

    async def _gone_within(self, timeout_s: float) -> None:
        """Wait for the end, as long as that may take: whoever started it kills it then."""
        with contextlib.suppress(TimeoutError):
            async with timeout(timeout_s):
                await self.wait()

    async def close(self) -> None:
        self._lifeline.close()
        self._end.cancel()
        with contextlib.suppress(asyncio.CancelledError, DrupeError):
            await self._end


async def connected(rest: Rest, *, timeout_s: float) -> Lifeline:
    """Wait until the program listens, and hold a connection."""
    await rest.ready(timeout_s=timeout_s)
    with contextlib.suppress(Unavailable):  # it ended in between: the next call tells
        return await rest.lifeline()
    raise Unavailable("the program ended as soon as it was ready", stage="vmm")
