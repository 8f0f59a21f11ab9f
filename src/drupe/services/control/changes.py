"""container.rename, container.diff, container.commit"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from drupe.rpc.call import Call
from drupe.runtime.container import Container
from drupe.runtime.layers import changes_of, layer_of, section_of
from drupe.services.control.images import Report, long_work, told_of
from drupe.services.control.registry import method
from drupe.spec.changes import ChangeList, Commit, FileChange
from drupe.spec.control import ImageInfo
from drupe.spec.status import ContainerStatus
from drupe.state.machine import State

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService


@method("container.rename", changes=True)
async def rename(service: ControlService, call: Call) -> ContainerStatus:
    container = service.core.container(call.params.ref)
    await service.core.rename(container, call.params.name)
    return container.status


@method("container.diff")
async def diff(service: ControlService, call: Call) -> ChangeList:
    container = service.core.container(call.params.ref)
    container.check_allowed("the changes of", {"files"})
    found = await asyncio.to_thread(changes_of, container)
    return ChangeList(changes=[FileChange(kind=one.kind, path=one.path) for one in found])


@method("container.commit")
async def commit(service: ControlService, call: Call) -> ImageInfo:
    """Its files are read while it stands still."""
    from drupe.images.commit import commit as make

    wanted: Commit = call.params
    container = service.core.container(wanted.ref)
    container.check_allowed("an image of", {"files"})
    layer = layer_of(container)
    said = {"created_by": " ".join(container.status.argv), "comment": wanted.message, "author": wanted.author}

    def work(report: Report) -> ImageInfo:
        return make(
            service.storage.images,
            base=container.status.image_digest,
            tag=wanted.tag,
            upper=layer.upper,
            merged=layer.merged,
            found=changes_of(container),
            section=section_of(container, wanted.config),
            said=said,
            progress=report,
        )

    async with _still(container):
        return told_of(service, "commit", await long_work(call, work))


@contextlib.asynccontextmanager
async def _still(container: Container) -> AsyncIterator[None]:
    """Nothing in it runs, and nothing begins to."""
    async with container.pod.lock:
        if container.state is not State.RUNNING:
            yield
            return
        await container.pause()
        try:
            yield
        finally:
            await container.resume()
