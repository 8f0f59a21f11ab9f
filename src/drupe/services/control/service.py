"""Takes a call to the function that serves it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from drupe.errors import Unsupported
from drupe.rpc.call import Call
from drupe.runtime.core import Core
from drupe.services.control import (
    containerd,
    containers,
    execs,
    files,
    images,
    networks,
    oci,
    pods,
    snapshots,
    system,
    templates,
    volumes,
)
from drupe.services.control.registry import HANDLERS

if TYPE_CHECKING:
    from drupe.services.containerd.front import Front
    from drupe.services.oci.kept import Bundles

_MODULES = (
    containerd,
    containers,
    execs,
    files,
    images,
    networks,
    oci,
    pods,
    snapshots,
    system,
    templates,
    volumes,
)  # importing them fills HANDLERS


BUNDLES = "oci-bundle"  # records in the journal


class ControlService:
    """Serves the control API for one core. on_shutdown: called when a client asks the daemon to end. containerd: its
    other face, where there is one."""

    def __init__(
        self, core: Core, *, on_shutdown: Callable[[], None] | None = None, containerd: Front | None = None
    ) -> None:
        self.core = core
        self.node = core.node
        self.storage = core.node.storage
        self.started_at = time.time()
        self.on_shutdown = on_shutdown
        self.containerd = containerd
        self._bundles: Bundles | None = None

    def bundles(self) -> Bundles:
        """Those of drupe-oci, known by the first who asks, or by `open`."""
        if self._bundles is None:
            from drupe.services.oci.kept import Bundles

            self._bundles = Bundles(self.core)
            self._bundles.recover()
        return self._bundles

    def open(self) -> None:
        """At the daemon's start: go on with what an earlier one kept for others."""
        if self.node.journal.records(BUNDLES):
            self.bundles()

    def close(self) -> None:
        """Let go of that."""
        if self._bundles is not None:
            self._bundles.close()

    async def handle(self, call: Call) -> Any:
        """Serve one call. Raises drupe.errors."""
        try:
            serve, changes = HANDLERS[call.method]
        except KeyError:
            raise Unsupported(f"this daemon does not serve {call.method}") from None
        if changes:
            call.detach()
        return await serve(self, call)
