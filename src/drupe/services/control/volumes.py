"""volume.*"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from drupe.resources.volumes import Volumes
from drupe.rpc.call import Call
from drupe.runtime.names import new_id
from drupe.services.control.registry import method
from drupe.spec.control import Pruned, VolumeInfo, VolumeList

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService


def used_by(service: ControlService, name: str) -> list[str]:
    """Names of the containers that mount a volume."""
    return [
        c.name
        for pod in service.core.pods.values()
        for c in pod.containers.values()
        if any(m.get("name") == name for m in c.status.mounts)
    ]


def _volumes(service: ControlService) -> Volumes:
    return service.storage.volumes


def _info(service: ControlService, info: VolumeInfo) -> VolumeInfo:
    info.used_by = used_by(service, info.name)
    return info


@method("volume.create", changes=True)
async def create(service: ControlService, call: Call) -> VolumeInfo:
    info = _volumes(service).create(call.params.name or new_id(), labels=call.params.labels)
    service.node.events.publish("volume", "create", info.name)
    return info


@method("volume.inspect")
async def inspect(service: ControlService, call: Call) -> VolumeInfo:
    return _info(service, _volumes(service).inspect(call.params.ref))


@method("volume.list")
async def list_(service: ControlService, call: Call) -> VolumeList:
    return VolumeList(volumes=[_info(service, info) for info in _volumes(service).list()])


@method("volume.delete", changes=True)
async def delete(service: ControlService, call: Call) -> None:
    ref = call.params.ref
    users = used_by(service, ref)
    await asyncio.to_thread(_volumes(service).delete, ref, used_by=users, force=call.params.force)
    service.node.events.publish("volume", "destroy", ref)


@method("volume.prune", changes=True)
async def prune(service: ControlService, call: Call) -> Pruned:
    """Anonymous volumes nobody uses; with `all` named ones too."""
    removed, freed = [], 0
    for info in _volumes(service).list():
        if (info.anonymous or call.params.all) and not used_by(service, info.name):
            freed += await asyncio.to_thread(_volumes(service).size_bytes, info.name)
            await asyncio.to_thread(_volumes(service).delete, info.name, used_by=[])
            removed.append(info.name)
    return Pruned(removed=removed, reclaimed_bytes=freed)
