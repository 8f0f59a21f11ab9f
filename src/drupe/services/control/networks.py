"""network.*"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drupe.rpc.call import Call
from drupe.services.control.registry import method
from drupe.spec.control import NetworkInfo, NetworkList, Pruned
from drupe.spec.status import PodStatus

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService


@method("network.create", changes=True)
async def create(service: ControlService, call: Call) -> NetworkInfo:
    info = await service.node.network.create(call.params)
    service.node.events.publish("network", "create", info.name)
    return info


@method("network.inspect")
async def inspect(service: ControlService, call: Call) -> NetworkInfo:
    return await service.node.network.inspect(call.params.ref)


@method("network.list")
async def list_(service: ControlService, call: Call) -> NetworkList:
    return NetworkList(networks=list(await service.node.network.list()))


@method("network.delete", changes=True)
async def delete(service: ControlService, call: Call) -> None:
    await service.node.network.delete(call.params.ref)
    service.node.events.publish("network", "destroy", call.params.ref)


@method("network.connect", changes=True)
async def connect(service: ControlService, call: Call) -> PodStatus:
    pod = service.core.pod_of(call.params.ref)
    async with pod.lock:
        await pod.join_network(call.params.attachment)
    return pod.record()


@method("network.disconnect", changes=True)
async def disconnect(service: ControlService, call: Call) -> PodStatus:
    pod = service.core.pod_of(call.params.ref)
    async with pod.lock:
        await pod.leave_network(call.params.network)
    return pod.record()


@method("network.prune", changes=True)
async def prune(service: ControlService, call: Call) -> Pruned:
    return Pruned(removed=list(await service.node.network.prune()))
