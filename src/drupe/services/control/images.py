"""image.*: long work runs in threads and reports progress as it goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from drupe.errors import InvalidArgument
from drupe.rpc.call import Call
from drupe.rpc.transfers import Stream, in_thread
from drupe.services.control.registry import method
from drupe.spec.base import decode
from drupe.spec.changes import History, HistoryStep
from drupe.spec.control import ImageInfo, ImageList, Progress, Pruned

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService

Report = Callable[[Progress], None]


async def long_work(call: Call, work: Callable[[Report], Any]) -> Any:
    """Run `work(report)` in a thread; what it reports is streamed in order, the newest winning when the reader is
    slow."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Progress | None] = asyncio.Queue()

    def report(progress: Progress) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, progress)

    job = asyncio.ensure_future(in_thread(call, lambda: work(report)))
    job.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (progress := await queue.get()) is not None:
            await call.send_item(progress)
        return await job
    finally:
        job.cancel()


@contextlib.contextmanager
def _data(call: Call) -> Iterator[BinaryIO | None]:
    """The descriptor sent along, as a file that is closed when the work is done; None when none was sent."""
    if "data" not in call.fds:
        yield None
        return
    with Stream(call.take_fd("data")) as stream:
        yield cast(BinaryIO, stream)


def told_of(service: ControlService, action: str, info: ImageInfo) -> ImageInfo:
    service.node.events.publish("image", action, info.id, name=(info.names or [""])[0])
    return info


@method("image.pull")
async def pull(service: ControlService, call: Call) -> ImageInfo:
    store = service.storage.images
    return told_of(service, "pull", await long_work(call, lambda report: store.pull(call.params, progress=report)))


@method("image.push")
async def push(service: ControlService, call: Call) -> ImageInfo:
    store = service.storage.images
    return told_of(service, "push", await long_work(call, lambda report: store.push(call.params, progress=report)))


@method("image.import")
async def import_(service: ControlService, call: Call) -> ImageList:
    store = service.storage.images

    def work(report: Report) -> ImageList:
        with _data(call) as data:
            return store.import_image(call.params, data, progress=report)

    found: ImageList = await long_work(call, work)
    for info in found.images:
        told_of(service, "import", info)
    return found


@method("image.export")
async def export(service: ControlService, call: Call) -> None:
    store = service.storage.images

    def work(report: Report) -> None:
        with _data(call) as data:
            if data is None:
                raise InvalidArgument("image.export needs the descriptor 'data' to write to")
            store.export(call.params, data, progress=report)

    await long_work(call, work)


@method("image.build")
async def build(service: ControlService, call: Call) -> ImageInfo:
    store = service.storage.images

    def work(report: Report) -> ImageInfo:
        with _data(call) as data:
            return store.build(call.params, data, progress=report)

    return told_of(service, "build", await long_work(call, work))


@method("image.list")
async def list_(service: ControlService, call: Call) -> ImageList:
    return service.storage.images.list(call.params.labels)


@method("image.inspect")
async def inspect(service: ControlService, call: Call) -> ImageInfo:
    return service.storage.images.inspect(call.params.ref)


@method("image.history")
async def history(service: ControlService, call: Call) -> History:
    from drupe.images.commit import history as steps_of

    store = service.storage.images
    steps = [decode(HistoryStep, step, where="history") for step in steps_of(store, call.params.ref)]
    return History(id=store.resolve(call.params.ref).id, steps=steps)


@method("image.tag", changes=True)
async def tag(service: ControlService, call: Call) -> ImageInfo:
    return told_of(service, "tag", service.storage.images.tag(call.params.source, call.params.target))


@method("image.delete", changes=True)
async def delete(service: ControlService, call: Call) -> Pruned:
    store, used = service.storage.images, service.core.images_in_use()
    pruned = await asyncio.to_thread(store.delete, call.params.ref, force=call.params.force, in_use=used)
    service.node.events.publish("image", "delete", call.params.ref)
    return pruned


@method("image.prune", changes=True)
async def prune(service: ControlService, call: Call) -> Pruned:
    store, used = service.storage.images, service.core.images_in_use()
    return await asyncio.to_thread(store.prune, all=call.params.all, in_use=used)
