"""template.*"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drupe.errors import InvalidArgument, NotFound
from drupe.resources.cgroups.limits import limits_of
from drupe.rpc.call import Call
from drupe.services.control.registry import method
from drupe.spec.control import Pruned
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.template import TemplateInfo, TemplateList

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService

_KINDS = ("vm",)  # those that have any


@method("template.create", changes=True)
async def create(service: ControlService, call: Call) -> TemplateInfo:
    wanted, node = call.params, service.node
    spec = PodSpec(resources=Resources(memory_bytes=wanted.memory_bytes, cpus=wanted.cpus))
    limits_of(spec.resources)  # one that no pod may have is of no use
    return await node.sandboxer(wanted.kind).make_template(spec, f"{node.paths.cgroup}/template")


@method("template.list")
async def list_(service: ControlService, call: Call) -> TemplateList:
    return TemplateList(templates=[one for kind in _KINDS for one in service.node.sandboxer(kind).templates()])


@method("template.prune", changes=True)
async def prune(service: ControlService, call: Call) -> Pruned:
    total = Pruned(removed=[])
    for kind in _KINDS:
        part = await service.node.sandboxer(kind).prune_templates(everything=call.params.all)
        total.removed += part.removed
        total.reclaimed_bytes += part.reclaimed_bytes
    return total


@method("template.delete", changes=True)
async def delete(service: ControlService, call: Call) -> None:
    for kind in _KINDS if call.params.ref else ():
        sandboxer = service.node.sandboxer(kind)
        found = [one.id for one in sandboxer.templates() if one.id.startswith(call.params.ref)]
        if len(found) > 1:
            raise InvalidArgument(f"several templates begin with {call.params.ref}")
        if found:
            sandboxer.remove_template(found[0])
            return
    raise NotFound(f"there is no template {call.params.ref!r}", hint="drupe template ls")
