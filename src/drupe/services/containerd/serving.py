"""The Sandbox Controller, served where the node's configuration says so."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from drupe.errors import DrupeError
from drupe.services.containerd.hub import Hub
from drupe.services.containerd.peers import Door, configured

if TYPE_CHECKING:
    import grpc.aio

_GRACE_S = 1.0
log = logging.getLogger("drupe")


async def serve_sandboxes(hub: Hub) -> None:
    """Until cancelled. That it cannot be is said in the log and on the node: pods of others go on."""
    node = hub.core.node
    if not node.config.containerd.sandboxer:
        return
    socket = Path(node.config.containerd.socket or node.paths.run / "sandboxer.sock")
    try:
        server = await _start(hub, socket)
    except (ImportError, OSError, DrupeError) as error:
        hint = " (hint: pip install 'drupe[containerd]')" if isinstance(error, ImportError) else ""
        node.note(f"containerd's sandboxer is not served: {error}{hint}")
        log.error("containerd's sandboxer is not served: %s%s", error, hint)
        return
    log.info("serving containerd's sandboxer at %s", socket)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.shield(server.stop(_GRACE_S))
        socket.unlink(missing_ok=True)


async def _start(hub: Hub, socket: Path) -> grpc.aio.Server:
    from drupe.services.containerd.controller import Controller, serve

    config = hub.core.node.config.containerd
    peer = configured(config)
    controller = Controller(
        hub.sandboxes, address=lambda namespace: hub.address(peer, Door(namespace=namespace)), owner=peer.owner
    )
    return await serve(controller, socket)
