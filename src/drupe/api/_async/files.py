"""The files of a container, also of a stopped one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from drupe.api import archive
from drupe.api._async.pipes import AsyncReader, AsyncWriter, feed, finish, in_thread, make_pipe
from drupe.errors import InvalidArgument, NotFound
from drupe.rpc.connection import AsyncConnection, AsyncRunningCall
from drupe.spec.control import (
    ArchiveGet,
    ArchivePut,
    FileInfo,
    FileList,
    FileMake,
    FileRead,
    FileRef,
    FileRemove,
    FileRename,
    FileWrite,
)


class AsyncFiles:
    """Files below a container's root. Paths are absolute in the container; symbolic links are followed inside it."""

    def __init__(self, connection: AsyncConnection, ref: str) -> None:
        self._connection = connection
        self._ref = ref

    async def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The file's bytes. Raises NotFound, InvalidArgument (a directory)."""
        params = FileRead(ref=self._ref, path=path, offset=offset, length=length)
        return await self._receive("file.read", params)

    async def read_text(self, path: str, *, encoding: str = "utf-8") -> str:
        """The file's text."""
        return (await self.read(path)).decode(encoding)

    async def write(
        self,
        path: str,
        data: bytes | str,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        append: bool = False,
        parents: bool = True,
    ) -> FileInfo:
        """Write the file whole (atomically, unless `append`), making missing directories unless told not to."""
        content = data.encode() if isinstance(data, str) else data
        params = FileWrite(ref=self._ref, path=path, mode=mode, uid=uid, gid=gid, append=append, parents=parents)
        info: FileInfo = await self._send("file.write", params, lambda fd: archive.write_all(fd, content))
        return info

    async def list(self, path: str = "/") -> list[FileInfo]:
        """What is in a directory, by name."""
        found: FileList = await self._call("file.list", FileRef(ref=self._ref, path=path))
        return found.files

    async def stat(self, path: str) -> FileInfo:
        """Type, size, mode, owner, time of one file. Raises NotFound."""
        info: FileInfo = await self._call("file.stat", FileRef(ref=self._ref, path=path))
        return info

    async def exists(self, path: str) -> bool:
        """Whether there is such a file or directory."""
        try:
            await self.stat(path)
        except NotFound as error:
            if error.details.get("what", "file") not in ("file", "path"):
                raise
            return False
        return True

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> FileInfo:
        """Make a directory; one that exists is left as it is when `parents` is set."""
        params = FileMake(ref=self._ref, path=path, parents=parents, mode=mode)
        info: FileInfo = await self._call("file.mkdir", params)
        return info

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory, or with `recursive` a whole tree."""
        await self._call("file.remove", FileRemove(ref=self._ref, path=path, recursive=recursive))

    async def rename(self, path: str, target: str) -> FileInfo:
        """Rename within the container's root."""
        params = FileRename(ref=self._ref, path=path, target=target)
        info: FileInfo = await self._call("file.rename", params)
        return info

    async def upload(self, source: str | Path, target: str) -> None:
        """Copy a file or tree of this machine to `target`. Owners become root; modes, times and links are kept."""
        source = Path(source)
        if not source.exists() and not source.is_symlink():
            raise NotFound(f"no such file on this machine: {source}")
        directory, name = archive.split_target(target)
        await self.mkdir(directory)
        params = ArchivePut(ref=self._ref, path=directory)
        await self._send("file.put_archive", params, lambda fd: archive.pack(fd, source, name))

    async def download(self, source: str, target: str | Path) -> None:
        """Copy a file or tree of the container to `target` on this machine. Nothing is written outside of it.

        Raises AlreadyExists when `target` is a directory. Set-user-id bits and file capabilities are dropped.
        """
        ours, theirs = make_pipe(write=False)
        try:
            running = await self._start("file.get_archive", ArchiveGet(ref=self._ref, path=source), theirs)
        except BaseException:
            archive.close(ours)
            raise
        async with running:
            try:
                await in_thread(archive.unpack, ours, Path(target))
            except InvalidArgument:
                await running.wait()  # when the other side failed, its reason is the better one
                raise
            await running.wait()

    async def _receive(self, method: str, params: Any) -> bytes:
        ours, theirs = make_pipe(write=False)
        reader = AsyncReader(ours)
        try:
            async with await self._start(method, params, theirs) as running:
                return await finish(running, reader)
        finally:
            await reader.close()

    async def _send(self, method: str, params: Any, write: Callable[[int], object]) -> Any:
        ours, theirs = make_pipe(write=True)
        writer = AsyncWriter(ours)
        try:
            async with await self._start(method, params, theirs) as running:
                await feed(running, writer, write)
                return running.result
        finally:
            await writer.close()

    async def _start(self, method: str, params: Any, theirs: int) -> AsyncRunningCall:
        try:
            return await self._connection.stream(method, params, fds={"data": theirs})
        finally:
            archive.close(theirs)

    async def _call(self, method: str, params: Any) -> Any:
        return await self._connection.call(method, params)
