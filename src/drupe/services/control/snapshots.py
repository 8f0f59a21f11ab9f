"""snapshot.* and pod.fork"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drupe.rpc.call import Call
from drupe.services.control.registry import method
from drupe.spec.snapshot import SnapshotInfo, SnapshotList, SnapshotManifest
from drupe.spec.status import PodStatus

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService


@method("snapshot.create", changes=True)
async def create(service: ControlService, call: Call) -> SnapshotInfo:
    pod = service.core.pod(call.params.ref)
    return await service.core.snapshots.create(pod, call.params.name)


@method("snapshot.list")
async def list_(service: ControlService, call: Call) -> SnapshotList:
    return SnapshotList(snapshots=service.core.snapshots.list())


@method("snapshot.inspect")
async def inspect(service: ControlService, call: Call) -> SnapshotManifest:
    return service.core.snapshots.manifest(call.params.ref)


@method("snapshot.restore", changes=True)
async def restore(service: ControlService, call: Call) -> PodStatus:
    wanted = call.params
    pod = await service.core.snapshots.restore(wanted.ref, wanted.name, other_ports=wanted.other_ports)
    return pod.record()


@method("snapshot.delete", changes=True)
async def delete(service: ControlService, call: Call) -> None:
    await service.core.snapshots.remove(call.params.ref)


@method("pod.fork", changes=True)
async def fork(service: ControlService, call: Call) -> PodStatus:
    pod = service.core.pod(call.params.ref)
    return (await service.core.snapshots.fork(pod, call.params.name)).record()
