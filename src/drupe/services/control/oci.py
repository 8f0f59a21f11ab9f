"""oci.*"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

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
        return await answer(call.params, root_fd=root_fd, pid=call.peer.pid, node=service.node)
    finally:
        os.close(root_fd)
