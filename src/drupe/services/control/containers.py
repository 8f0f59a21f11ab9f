"""container.*"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from drupe.errors import DeadlineExceeded, DrupeError, InvalidState, NotFound, from_os_error
from drupe.rpc.call import Call
from drupe.rpc.timeouts import timeout
from drupe.runtime.container import Container
from drupe.sandboxers.contract import hold
from drupe.services.control.outside import client_container
from drupe.services.control.registry import method
from drupe.spec.base import plain
from drupe.spec.control import ContainerList, Logs, ProcessList, StatsItem, StatsList, Wait
from drupe.spec.status import ContainerStatus, ExitStatus, Stats
from drupe.state.machine import State, require

if TYPE_CHECKING:
    from drupe.runtime.core import Core
    from drupe.services.control.service import ControlService


@method("container.create", changes=True)
async def create(service: ControlService, call: Call) -> ContainerStatus:
    pod = service.core.pod(call.params.pod)
    return (await service.core.create_container(pod, client_container(call.params.spec))).status


@method("container.start", changes=True)
async def start(service: ControlService, call: Call) -> ContainerStatus:
    container = service.core.container(call.params.ref)
    pod = container.pod
    async with pod.lock:
        container.window = (call.params.rows, call.params.cols)
        if pod.auto_stop and pod.state in (State.READY, State.STOPPED):
            await pod.start(call.fds)  # the pod was made for its containers: starting one starts it
        else:
            await container.start(call.fds)
    if container.attachment is not None:
        call.while_here(hold(container.attachment))
    return container.status


@method("container.stop", changes=True)
async def stop(service: ControlService, call: Call) -> ContainerStatus:
    container = service.core.container(call.params.ref)
    pod = container.pod
    async with pod.lock:
        container.require_pod_awake(f"stop {container.what}")
        await container.stop(timeout_s=call.params.timeout_s, force=call.params.force)
        if pod.auto_stop and pod.state is State.RUNNING and not any(c.is_live for c in pod.containers.values()):
            await pod.stop()
            if pod.spec.remove:
                await pod.delete()
    return container.status


@method("container.kill")
async def kill(service: ControlService, call: Call) -> None:
    await service.core.container(call.params.ref).kill(call.params.signal, everything=call.params.all)


@method("container.pause", changes=True)
async def pause(service: ControlService, call: Call) -> ContainerStatus:
    container = service.core.container(call.params.ref)
    async with container.pod.lock:
        await container.pause()
    return container.status


@method("container.resume", changes=True)
async def resume(service: ControlService, call: Call) -> ContainerStatus:
    container = service.core.container(call.params.ref)
    async with container.pod.lock:
        require(container.pod.what, container.pod.state, State.RUNNING, to=f"resume {container.what}")
        await container.resume()
    return container.status


@method("container.status")
async def status(service: ControlService, call: Call) -> ContainerStatus:
    return service.core.container(call.params.ref).status


@method("container.list")
async def list_(service: ControlService, call: Call) -> ContainerList:
    return ContainerList(containers=service.core.list_containers(call.params))


@method("container.delete", changes=True)
async def delete(service: ControlService, call: Call) -> None:
    container = service.core.container(call.params.ref)
    container.keep_volumes = not call.params.volumes
    await service.core.delete_container(container, force=call.params.force)


@method("container.wait")
async def wait(service: ControlService, call: Call) -> ExitStatus:
    wanted: Wait = call.params
    try:
        async with timeout(wanted.timeout_s):
            return await _end(service.core, wanted)
    except TimeoutError:
        raise DeadlineExceeded(f"container {wanted.ref} has not ended within {wanted.timeout_s:g} s") from None


async def _end(core: Core, wanted: Wait) -> ExitStatus:
    """Its end. When the pod is removed with it, "removed" means the pod, with its network and its directories; but
    nobody waits for other containers that keep the pod."""
    pod = core.pod_removed_with(wanted.ref) if wanted.condition == "removed" else None
    try:
        container = core.container(wanted.ref)
    except NotFound:
        end = core.node.end_of_removed(wanted.ref)
        if end is None:
            raise
    else:
        end = await container.wait("stopped" if pod is not None else wanted.condition)
    if pod is not None and not pod.is_kept_up:
        await pod.over.wait()
    return end


@method("container.update", changes=True)
async def update(service: ControlService, call: Call) -> ContainerStatus:
    container = service.core.container(call.params.ref)
    async with container.pod.lock:
        await container.update(call.params.resources)
    return container.status


@method("container.processes")
async def processes(service: ControlService, call: Call) -> ProcessList:
    container = service.core.container(call.params.ref)
    require(container.what, container.state, State.RUNNING, State.PAUSED, to="list processes")
    return ProcessList(processes=await container.processes())


@method("container.attach")
async def attach(service: ControlService, call: Call) -> ExitStatus:
    """Answers at the container's end, or with its state so far when all that was attached has been let go. The
    container's input stays open for the next to attach: `container.close_stdin` closes it."""
    container = service.core.container(call.params.ref)
    require(container.what, container.state, State.RUNNING, State.PAUSED, to="attach")
    attachment = await container.tasks.attach(container.id, call.fds, keep_stdin=True)
    detached = asyncio.ensure_future(hold(attachment))
    ended = asyncio.ensure_future(container.wait())
    try:
        await asyncio.wait({detached, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await asyncio.wait({ended}, timeout=1.0)  # the last output comes just before the exit
        return ended.result() if ended.done() else ExitStatus(code=0, reason="Detached")
    finally:
        if not ended.done():  # else its last words may still be on their way
            detached.cancel()
            await asyncio.gather(detached, return_exceptions=True)
        ended.cancel()


@method("container.resize")
async def resize(service: ControlService, call: Call) -> None:
    container = service.core.container(call.params.ref)
    if call.params.rows <= 0 or call.params.cols <= 0:
        raise InvalidState("a terminal has at least one row and one column")
    await container.tasks.resize(container.id, call.params.rows, call.params.cols, exec_id=call.params.exec_id)
    if not call.params.exec_id:
        container.window = (call.params.rows, call.params.cols)


@method("container.close_stdin")
async def close_stdin(service: ControlService, call: Call) -> None:
    container = service.core.container(call.params.ref)
    await container.tasks.close_stdin(container.id)


@method("container.logs")
async def logs(service: ControlService, call: Call) -> None:
    from drupe.resources.logs import read_logs

    wanted: Logs = call.params
    container = service.core.container(wanted.ref)
    if not container.status.log_path:
        raise InvalidState(f"{container.what} keeps no log", hint="its log driver is none")
    ended = asyncio.ensure_future(container.wait())
    try:
        async for line in read_logs(container.status.log_path, container.spec.log.driver, wanted, ended=ended):
            await call.send_item(line)
    finally:
        ended.cancel()


@method("container.stats")
async def stats(service: ControlService, call: Call) -> StatsList:
    wanted = call.params
    if not wanted.stream:
        return StatsList(items=await _sample(service, wanted.refs))
    while not call.gone:
        for item in await _sample(service, wanted.refs):
            await call.send_item(item)
        await asyncio.sleep(max(0.05, wanted.interval_s))
    return StatsList(items=[])


async def _sample(service: ControlService, refs: tuple[str, ...]) -> list[StatsItem]:
    if refs:
        return [await _counted(container) for container in [service.core.container(ref) for ref in refs]]
    return [await _counted_or_why_not(container) for container in _running(service) if container.is_live]


async def _counted(container: Container) -> StatsItem:
    return StatsItem(id=container.id, name=container.name, pod=container.pod.id, stats=await container.stats())


async def _counted_or_why_not(container: Container) -> StatsItem:
    """One whose sandbox fails meanwhile must not hide all others."""
    try:
        return await _counted(container)
    except (DrupeError, OSError) as error:
        why = str(error if isinstance(error, DrupeError) else from_os_error(error))
        return StatsItem(id=container.id, name=container.name, pod=container.pod.id, stats=Stats(at=0.0), error=why)


def _running(service: ControlService) -> list[Container]:
    ours = [pod for pod in service.core.pods.values() if not pod.spec.owner]
    return [c for pod in ours for c in pod.containers.values() if c.is_live]


@method("container.inspect")
async def inspect(service: ControlService, call: Call) -> dict[str, Any]:
    """Everything known: status, spec (secrets without values), OCI config, places, its pod."""
    from drupe.runtime.container import without_secrets

    container = service.core.container(call.params.ref)
    return {
        "status": plain(container.status),
        "spec": plain(without_secrets(container.spec)),
        "oci": container.oci,
        "paths": {
            "bundle": str(container.bundle),
            "layer": str(service.node.paths.layer(container.id)),
            "cgroup": container.cgroup,
        },
        "pod": plain(container.pod.record()),
    }
