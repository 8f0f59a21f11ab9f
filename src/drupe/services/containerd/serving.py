"""What the daemon serves to containerd, where the node's configuration says so."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from drupe.runtime.core import Core

if TYPE_CHECKING:
    import grpc.aio

    from drupe.services.containerd.sandboxes import Sandboxes

_GRACE_S = 1.0
log = logging.getLogger("drupe")


async def serve_containerd(core: Core) -> None:
    """Until cancelled. That it cannot be is said in the log and on the node: pods of others go on."""
    if not core.node.config.containerd.sandboxer:
        return
    socket = Path(core.node.config.containerd.socket or core.node.paths.run / "sandboxer.sock")
    try:
        sandboxes, server = await _start(core, socket)
    except (ImportError, OSError) as error:
        hint = " (hint: pip install 'drupe[containerd]')" if isinstance(error, ImportError) else ""
        core.node.note(f"containerd's sandboxer is not served: {error}{hint}")
        log.error("containerd's sandboxer is not served: %s%s", error, hint)
        return
    log.info("serving containerd's sandboxer at %s", socket)
    try:
        await sandboxes.watch()
    finally:
        await asyncio.shield(server.stop(_GRACE_S))
        socket.unlink(missing_ok=True)


async def _start(core: Core, socket: Path) -> tuple[Sandboxes, grpc.aio.Server]:
    from drupe.services.containerd.controller import Controller, serve
    from drupe.services.containerd.sandboxes import Sandboxes

    sandboxes = Sandboxes(core)
    controller = Controller(sandboxes, address=f"ttrpc+unix://{core.node.paths.run / 'task.sock'}")
    return sandboxes, await serve(controller, socket)
