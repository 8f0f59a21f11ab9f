"""exec.*"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from drupe.errors import NotFound
from drupe.oci.signals import parse_signal
from drupe.rpc.call import Call
from drupe.services.control.registry import method
from drupe.spec.control import ExecStarted
from drupe.spec.status import ExitStatus

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService

STREAMS = ("stdin", "stdout", "stderr")


@method("exec.start")
async def start(service: ControlService, call: Call) -> ExitStatus:
    """When the caller goes away while it waits, the process goes on (as with Docker); a timeout kills it."""
    container = service.core.container(call.params.ref)
    spec = call.params.spec
    with contextlib.ExitStack() as opened:
        fds = dict(call.fds)
        if not spec.tty:
            for name in STREAMS:
                if name not in fds:
                    fds[name] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    opened.callback(os.close, fds[name])
        exec_id, pid = await container.execs.start(spec, fds)
    call.close()  # the process has its own copies: ours would keep the caller from seeing the end of output
    if call.params.detach:
        container.execs.keep_end(exec_id)
        await call.send_item(ExecStarted(exec_id=exec_id, pid=pid))
        return ExitStatus(code=0, reason="Detached")
    try:
        await call.send_item(ExecStarted(exec_id=exec_id, pid=pid))
        status = await container.execs.wait(exec_id)
    except asyncio.CancelledError:
        container.execs.keep_end(exec_id)
        raise
    container.execs.forget(exec_id)
    return status


@method("exec.wait")
async def wait(service: ControlService, call: Call) -> ExitStatus:
    return await service.core.container(call.params.ref).execs.wait(call.params.exec_id)


@method("exec.kill")
async def kill(service: ControlService, call: Call) -> None:
    container = service.core.container(call.params.ref)
    number = parse_signal(call.params.signal)
    try:
        await container.execs.kill(call.params.exec_id, number, tree=call.params.tree)
    except NotFound as error:
        raise NotFound(f"exec {call.params.exec_id} has ended", cause=str(error)) from None
