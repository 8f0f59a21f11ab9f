"""containerd's face as the daemon has it: opened when somebody uses it.

Protobuf and the messages cost each start of a daemon 4 MiB and tens of milliseconds; most daemons meet no containerd.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from drupe.runtime.core import Core
from drupe.services.containerd.peers import Peers

if TYPE_CHECKING:
    from drupe.services.containerd.hub import Hub


class Front:
    """One per daemon."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._hub: Hub | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """At the daemon's start: serve containerds that have used it before, and the sandboxer where it is wanted."""
        if self._core.node.config.containerd.sandboxer:
            from drupe.services.containerd.serving import serve_sandboxes

            self._core.node.spawn(serve_sandboxes(await self.hub()), "serving containerd")
        elif any(Peers(self._core.node.journal)):
            await self.hub()

    async def hub(self) -> Hub:
        """What serves tasks; made by the first who asks."""
        async with self._opening:
            if self._hub is None:
                from drupe.services.containerd.hub import Hub

                hub = Hub(self._core, self._core.node.storage.keeper)
                await hub.open()
                self._hub = hub
        return self._hub

    async def close(self) -> None:
        """Stop serving."""
        if self._hub is not None:
            await self._hub.close()
