"""file.*: blocking work on a container's root, in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drupe.resources import archives, files
from drupe.rpc.call import Call
from drupe.rpc.transfers import in_thread, own
from drupe.runtime.idmap import Owners
from drupe.services.control.registry import method
from drupe.spec.control import FileInfo, FileList

if TYPE_CHECKING:
    from drupe.services.control.service import ControlService


async def _with_data(service: ControlService, call: Call, work: Any, *args: Any, **options: Any) -> Any:
    """Like `_in_root`, for work that reads or writes the descriptor `data`, and closes it. When its caller goes away
    such a call uses up what it was sent (`changes`); it ends where it would have to wait."""

    def with_data(root: int, path: str) -> Any:
        # taken in the thread: if that never runs, the call closes it
        return work(root, path, own(call.take_fd("data")), *args, **options)

    return await _in_root(service, call, with_data, call.params.path)


async def _in_root(service: ControlService, call: Call, work: Any, *args: Any, **options: Any) -> Any:
    """The thread owns the root's descriptor, as it may outlive a cancelled call. Owners are told as they are inside."""
    container = service.core.container(call.params.ref)
    container.check_allowed("access to files of", {"files"})
    for path in (getattr(call.params, name, None) for name in ("path", "target")):
        if path is not None:
            container.check_seen(path)
    owners = _owners(service, call)

    def job() -> Any:
        with service.storage.root_fd(container) as root:
            found = work(root, *args, **options)
        for info in found.files if isinstance(found, FileList) else [found] if isinstance(found, FileInfo) else []:
            info.uid, info.gid = owners.inside(info.uid, info.gid)
        return found

    return await in_thread(call, job)


def _owners(service: ControlService, call: Call) -> Owners:
    return Owners(service.core.container(call.params.ref).pod.spec)


@method("file.read", changes=True)
async def read(service: ControlService, call: Call) -> FileInfo:
    options = {"offset": call.params.offset, "length": call.params.length}
    return await _with_data(service, call, files.read, **options)  # type: ignore[no-any-return]


@method("file.write", changes=True)
async def write(service: ControlService, call: Call) -> FileInfo:
    w = call.params
    uid, gid = _owners(service, call).on_host(w.uid or 0, w.gid or 0)
    owner = {"uid": None if w.uid is None else uid, "gid": None if w.gid is None else gid}
    options = {"mode": w.mode, "append": w.append, "parents": w.parents, **owner}
    return await _with_data(service, call, files.write, **options)  # type: ignore[no-any-return]


@method("file.stat")
async def stat(service: ControlService, call: Call) -> FileInfo:
    return await _in_root(service, call, files.stat, call.params.path)  # type: ignore[no-any-return]


@method("file.list")
async def list_(service: ControlService, call: Call) -> FileList:
    return await _in_root(service, call, files.list_dir, call.params.path)  # type: ignore[no-any-return]


@method("file.mkdir", changes=True)
async def mkdir(service: ControlService, call: Call) -> FileInfo:
    options = {"parents": call.params.parents, "mode": call.params.mode}
    return await _in_root(service, call, files.mkdir, call.params.path, **options)  # type: ignore[no-any-return]


@method("file.remove", changes=True)
async def remove(service: ControlService, call: Call) -> None:
    await _in_root(service, call, files.remove, call.params.path, recursive=call.params.recursive)


@method("file.rename", changes=True)
async def rename(service: ControlService, call: Call) -> FileInfo:
    return await _in_root(service, call, files.rename, call.params.path, call.params.target)  # type: ignore[no-any-return]


@method("file.get_archive", changes=True)
async def get_archive(service: ControlService, call: Call) -> FileInfo:
    options = {"follow": call.params.follow, "owner": _owners(service, call).inside}
    return await _with_data(service, call, archives.get_archive, **options)  # type: ignore[no-any-return]


@method("file.put_archive", changes=True)
async def put_archive(service: ControlService, call: Call) -> None:
    options = {"keep_ids": call.params.keep_ids, "owner": _owners(service, call).on_host}
    await _with_data(service, call, archives.put_archive, **options)
