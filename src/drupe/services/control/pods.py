"""pod.*"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from drupe.errors import DeadlineExceeded
from drupe.rpc.call import Call
from drupe.rpc.timeouts import timeout
from drupe.sandboxers.contract import hold
from drupe.services.control.outside import client_pod
from drupe.services.control.registry import method
from drupe.spec.control import LogLine, PodList
from drupe.spec.status import ExitStatus, PodStatus, Stats
from drupe.state.machine import State

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService


@method("pod.create", changes=True)
async def create(service: ControlService, call: Call) -> PodStatus:
    return (await service.core.create_pod(client_pod(call.params.spec), auto_stop=call.params.auto_stop)).record()


@method("pod.run", changes=True)
async def run(service: ControlService, call: Call) -> PodStatus:
    window = (call.params.rows, call.params.cols)
    pod = await service.core.run_pod(client_pod(call.params.spec), call.fds, window=window)
    for container in pod.containers.values():
        if container.attachment is not None:
            call.while_here(hold(container.attachment))
    return pod.record()


@method("pod.start", changes=True)
async def start(service: ControlService, call: Call) -> PodStatus:
    pod = service.core.pod(call.params.ref)
    async with pod.lock:
        await pod.start()
    return pod.record()


@method("pod.stop", changes=True)
async def stop(service: ControlService, call: Call) -> PodStatus:
    pod = service.core.pod(call.params.ref)
    async with pod.lock:
        await pod.stop(timeout_s=call.params.timeout_s, force=call.params.force)
        if pod.spec.remove and pod.state is State.STOPPED:
            await pod.delete()
    return pod.record()


@method("pod.pause", changes=True)
async def pause(service: ControlService, call: Call) -> PodStatus:
    pod = service.core.pod(call.params.ref)
    async with pod.lock:
        await pod.pause()
    return pod.record()


@method("pod.resume", changes=True)
async def resume(service: ControlService, call: Call) -> PodStatus:
    pod = service.core.pod(call.params.ref)
    async with pod.lock:
        await pod.resume()
    return pod.record()


@method("pod.status")
async def status(service: ControlService, call: Call) -> PodStatus:
    return await service.core.pod(call.params.ref).measured()


@method("pod.list")
async def list_(service: ControlService, call: Call) -> PodList:
    return PodList(pods=service.core.list_pods(call.params))


@method("pod.delete", changes=True)
async def delete(service: ControlService, call: Call) -> None:
    pod = service.core.pod(call.params.ref)
    for container in pod.containers.values():
        container.keep_volumes = not call.params.volumes
    await service.core.delete_pod(pod, force=call.params.force)


@method("pod.wait")
async def wait(service: ControlService, call: Call) -> ExitStatus:
    """The pod's end: that of its last container; its exit is the first non-zero one."""
    pod = service.core.pod(call.params.ref)
    try:
        async with timeout(call.params.timeout_s):
            if call.params.condition == "removed":
                await pod.gone.wait()
            else:
                await asyncio.gather(*(c.wait() for c in pod.containers.values()))
    except TimeoutError:
        raise DeadlineExceeded(f"{pod.what} has not ended within {call.params.timeout_s:g} s") from None
    return pod.last_exit() or ExitStatus(code=0)


@method("pod.update", changes=True)
async def update(service: ControlService, call: Call) -> PodStatus:
    pod = service.core.pod(call.params.ref)
    async with pod.lock:
        await pod.update(call.params.resources)
    return pod.record()


@method("pod.logs")
async def logs(service: ControlService, call: Call) -> None:
    """What the sandbox itself wrote, one file after the other; a line's stream is the file's name."""
    pod = service.core.pod(call.params.ref)
    for name, path in pod.sandboxer.logs(pod.config).items():
        data = await asyncio.to_thread(path.read_bytes)
        for line in data.splitlines(keepends=True):
            await call.send_item(LogLine(at=path.stat().st_mtime, stream=name, data=line))


@method("pod.stats")
async def stats(service: ControlService, call: Call) -> Stats:
    return await service.core.pod(call.params.ref).stats()
