"""oci.*"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from drupe.errors import Unsupported
from drupe.rpc.call import Call
from drupe.services.control.registry import method
from drupe.spec.oci import OciAnswer

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService


@method("oci.ask")
async def ask(service: ControlService, call: Call) -> OciAnswer:
    from drupe.services.oci.service import answer

    root_fd = call.take_fd("root")
    try:
        return await answer(call.params, root_fd=root_fd, pid=call.peer.pid, bundles=service.bundles())
    finally:
        os.close(root_fd)


@method("oci.act", changes=True)
async def act(service: ControlService, call: Call) -> OciAnswer:
    from drupe.services.oci.service import answer

    if service.containerd is None:
        raise Unsupported("a runtime inside a program keeps no bundles of others", hint="start the daemon: drupe serve")
    root_fd = call.take_fd("root")
    try:
        return await answer(call.params, root_fd=root_fd, pid=call.peer.pid, bundles=service.bundles(), fds=call.fds)
    finally:
        os.close(root_fd)
