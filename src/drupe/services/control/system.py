"""system.*"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING

from drupe.errors import Unsupported
from drupe.rpc.call import Call
from drupe.rpc.timeouts import timeout
from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.kinds import KINDS, Kind
from drupe.sandboxers.wasm.cache import CodeCache
from drupe.services.control.registry import method
from drupe.spec.control import (
    DiskUsage,
    DiskUsageList,
    EventList,
    Events,
    Pruned,
    SystemInfo,
)
from drupe.spec.host import CapabilityTable, KindInfo, ProbeList
from drupe.spec.status import Choice, Event
from drupe.state.machine import State

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService


@method("system.info")
async def info(service: ControlService, call: Call) -> SystemInfo:
    from drupe import __version__

    node, core = service.node, service.core
    return SystemInfo(
        version=__version__,
        pid=os.getpid(),
        root=str(node.paths.root),
        run=str(node.paths.run),
        keeper_pid=service.storage.keeper_pid,
        started_at=service.started_at,
        kernel=os.uname().release,
        cgroup=f"v{node.cgroups.version}: {' '.join(sorted(node.cgroups.controllers))}",
        sandboxes=[kind.name for kind in KINDS.values() if not kind.is_planned],
        pods=len(core.pods),
        containers=sum(len(pod.containers) for pod in core.pods.values()),
        images=len(service.storage.images.list().images),
        recovery=list(node.notes),
    )


@method("system.df")
async def df(service: ControlService, call: Call) -> DiskUsageList:
    return DiskUsageList(items=await asyncio.to_thread(_disk_usage, service))


def _disk_usage(service: ControlService) -> list[DiskUsage]:
    from drupe.services.control.volumes import used_by

    storage, core = service.storage, service.core
    containers = [c for pod in core.pods.values() for c in pod.containers.values()]
    sizes = {c.id: storage.layer_bytes(c.id) for c in containers}
    idle = [c for c in containers if not c.is_live]
    volumes = {v.name: storage.volumes.size_bytes(v.name) for v in storage.volumes.list()}
    unused = [name for name in volumes if not used_by(service, name)]
    compiled = [CodeCache(service.node.paths.root / "wasm").usage()]
    return [
        storage.images.disk_usage(core.images_in_use()),
        DiskUsage(
            type="containers",
            total=len(containers),
            active=len(containers) - len(idle),
            size_bytes=sum(sizes.values()),
            reclaimable_bytes=sum(sizes[c.id] for c in idle),
        ),
        DiskUsage(
            type="volumes",
            total=len(volumes),
            active=len(volumes) - len(unused),
            size_bytes=sum(volumes.values()),
            reclaimable_bytes=sum(volumes[name] for name in unused),
        ),
        *compiled,
    ]


@method("system.capabilities")
async def capabilities(service: ControlService, call: Call) -> CapabilityTable:
    kinds = service.node.kinds.values()
    return CapabilityTable(
        kinds={kind.name: dict(kind.able()) for kind in kinds if not kind.is_planned},
        features=FEATURES,
        about=list(await asyncio.gather(*(_about(service, kind) for kind in kinds))),
    )


async def _about(service: ControlService, kind: Kind) -> KindInfo:
    if kind.is_planned:
        state, cause = "planned", "not built in this version"
    elif cause := await service.node.probe(kind.name):
        state = "ok" if await _runs_by_name(service, kind) else "fail"
    else:
        state = "ok"
    return KindInfo(name=kind.name, level=kind.level, isolates=kind.isolates, state=state, cause=cause)


async def _runs_by_name(service: ControlService, kind: Kind) -> bool:
    """Whether pods of a kind that `auto` passes over run when they are asked for: machines on an emulator do."""
    from drupe.services.doctor import why_not

    return not await asyncio.to_thread(why_not, kind, cache=service.node.paths.run / "doctor.json", named=True)


@method("system.choose")
async def choose(service: ControlService, call: Call) -> Choice:
    return await service.core.choose(call.params.spec)


@method("system.doctor")
async def doctor(service: ControlService, call: Call) -> ProbeList:
    from drupe.services.doctor import probe_all

    cache = service.node.paths.run / "doctor.json"
    return ProbeList(probes=await asyncio.to_thread(probe_all, fresh=call.params.fresh, cache=cache))


@method("system.events")
async def events(service: ControlService, call: Call) -> EventList:
    """Past ones first, then (follow) what comes, without a gap or a duplicate between."""
    wanted: Events = call.params
    bus = service.node.events
    with bus.listen() as coming:
        past = bus.past(wanted.since, wanted.until) if wanted.since is not None else []
        for event in past:
            await _send(call, event, wanted)
        left_s = None if wanted.until is None else max(0.0, wanted.until - time.time())
        if wanted.follow:
            with contextlib.suppress(TimeoutError):
                async with timeout(left_s):
                    while True:
                        await _send(call, await coming.get(), wanted)
    return EventList(events=[])


async def _send(call: Call, event: Event, wanted: Events) -> None:
    if (not wanted.types or event.type in wanted.types) and (not wanted.ids or event.id in wanted.ids):
        await call.send_item(event)


@method("system.prune", changes=True)
async def prune(service: ControlService, call: Call) -> Pruned:
    """Stopped and failed pods, unused networks, dangling images (with `all`: every unused one), anonymous volumes,
    compiled modules, and templates from which no pod can start any more (with `all`: all of them)."""
    from drupe.services.control.images import prune as prune_images
    from drupe.services.control.networks import prune as prune_networks
    from drupe.services.control.volumes import prune as prune_volumes

    pods = [p for p in service.core.pods.values() if not p.spec.owner and p.state in (State.STOPPED, State.FAILED)]
    for pod in pods:
        await service.core.delete_pod(pod)
    total = Pruned(removed=[pod.id for pod in pods])
    for work in (prune_networks, prune_images, prune_volumes, _prune_compiled, _prune_templates):
        part = await work(service, call)
        total.removed += part.removed
        total.reclaimed_bytes += part.reclaimed_bytes
    return total


async def _prune_compiled(service: ControlService, call: Call) -> Pruned:
    """All compiled modules: what runs goes on, and what starts is compiled again."""
    return await asyncio.to_thread(CodeCache(service.node.paths.root / "wasm").prune)


async def _prune_templates(service: ControlService, call: Call) -> Pruned:
    from drupe.services.control.templates import prune

    pruned = Pruned(removed=[])
    if (service.node.paths.root / "vm").exists():
        with contextlib.suppress(Unsupported):  # the kind cannot be opened here any more
            pruned = await prune(service, call)
    return pruned


@method("system.shutdown")
async def shutdown(service: ControlService, call: Call) -> None:
    """End the daemon; pods go on under the keeper."""
    if service.on_shutdown is not None:
        asyncio.get_running_loop().call_soon(service.on_shutdown)
