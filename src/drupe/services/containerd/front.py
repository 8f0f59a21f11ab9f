"""containerd's face as the daemon has it: opened when somebody uses it.

Protobuf and the messages cost each start of a daemon 4 MiB and tens of milliseconds; most daemons meet no containerd.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from drupe.errors import DrupeError
from drupe.runtime.core import Core
from drupe.services.containerd.peers import Peers
from drupe.services.containerd.wake import leave_word, take_word

if TYPE_CHECKING:
    from drupe.services.containerd.hub import Hub

log = logging.getLogger("drupe")


class Front:
    """One per daemon. socket, config: of that, for the one after it."""

    def __init__(self, core: Core, *, socket: Path, config: Path | None) -> None:
        self._core = core
        self._socket = socket
        self._config = config
        self._hub: Hub | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """At the daemon's start: serve containerds that have used it before, and the sandboxer where it is wanted. That
        they cannot be is said in the log and on the node: pods of others go on."""
        node = self._core.node
        try:
            if node.config.containerd.sandboxer:
                from drupe.services.containerd.serving import serve_sandboxes

                node.spawn(serve_sandboxes(await self.hub()), "serving containerd")
            elif any(Peers(node.journal)):
                await self.hub()
        except DrupeError as error:
            node.note(f"containerd is not served: {error}{f' (hint: {error.hint})' if error.hint else ''}")
            log.error("containerd is not served: %s", error)

    async def hub(self) -> Hub:
        """What serves tasks; made by the first who asks. Raises NotFound, Unavailable without a relay."""
        async with self._opening:
            if self._hub is None:
                from drupe.services.containerd.hub import Hub
                from drupe.services.containerd.relay import Relay

                node, paths = self._core.node, self._core.node.paths
                relay = Relay(paths.run / "containerd", node)
                await relay.open()
                leave_word(relay.directory, root=paths.root, run=paths.run, socket=self._socket, config=self._config)
                self._hub = Hub(self._core, node.storage.keeper, relay)
                await self._hub.open()
        return self._hub

    async def close(self, *, until_called: bool = True) -> None:
        """Stop serving. until_called: what containerd asks next may start another daemon."""
        if self._hub is not None:
            take_word(self._core.node.paths.run / "containerd", until_called=until_called)
            await self._hub.close()
