"""containerd.*"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drupe.errors import Unsupported
from drupe.rpc.call import Call
from drupe.services.control.registry import method
from drupe.spec.containerd import ShimDeleted, ShimStarted

if TYPE_CHECKING:
    from drupe.services.containerd.hub import Hub
    from drupe.services.control.service import ControlService


async def _hub(service: ControlService) -> Hub:
    if service.containerd is None:
        raise Unsupported("a runtime inside a program serves no containerd", hint="start the daemon: drupe serve")
    return await service.containerd.hub()


@method("containerd.start", changes=True)
async def start(service: ControlService, call: Call) -> ShimStarted:
    from drupe.services.containerd.shim import started

    return await started(await _hub(service), call.params)


@method("containerd.delete", changes=True)
async def delete(service: ControlService, call: Call) -> ShimDeleted:
    from drupe.services.containerd.shim import deleted

    return await deleted(await _hub(service), call.params)
