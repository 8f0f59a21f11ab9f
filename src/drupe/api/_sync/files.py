# Written by scripts/unasync.py from api/_async/files.py; change that file, not this one.
"""The files of a container, also of a stopped one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from drupe.api import archive
from drupe.api._sync.pipes import Reader, Writer, feed, finish, in_thread, make_pipe
from drupe.errors import InvalidArgument, NotFound
from drupe.rpc.connection import Connection, RunningCall
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


class Files:
    """Files below a container's root. Paths are absolute in the container; symbolic links are followed inside it."""

    def __init__(self, connection: Connection, ref: str) -> None:
        self._connection = connection
        self._ref = ref

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The file's bytes. Raises NotFound, InvalidArgument (a directory)."""
        params = FileRead(ref=self._ref, path=path, offset=offset, length=length)
        return self._receive("file.read", params)

    def read_text(self, path: str, *, encoding: str = "utf-8") -> str:
        """The file's text."""
        return (self.read(path)).decode(encoding)

    def write(
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
        info: FileInfo = self._send("file.write", params, lambda fd: archive.write_all(fd, content))
        return info

    def list(self, path: str = "/") -> list[FileInfo]:
        """What is in a directory, by name."""
        found: FileList = self._call("file.list", FileRef(ref=self._ref, path=path))
        return found.files

    def stat(self, path: str) -> FileInfo:
        """Type, size, mode, owner, time of one file. Raises NotFound."""
        info: FileInfo = self._call("file.stat", FileRef(ref=self._ref, path=path))
        return info

    def exists(self, path: str) -> bool:
        """Whether there is such a file or directory."""
        try:
            self.stat(path)
        except NotFound as error:
            if error.details.get("what", "file") not in ("file", "path"):
                raise
            return False
        return True

    def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> FileInfo:
        """Make a directory; one that exists is left as it is when `parents` is set."""
        params = FileMake(ref=self._ref, path=path, parents=parents, mode=mode)
        info: FileInfo = self._call("file.mkdir", params)
        return info

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory, or with `recursive` a whole tree."""
        self._call("file.remove", FileRemove(ref=self._ref, path=path, recursive=recursive))

    def rename(self, path: str, target: str) -> FileInfo:
        """Rename within the container's root."""
        params = FileRename(ref=self._ref, path=path, target=target)
        info: FileInfo = self._call("file.rename", params)
        return info

    def upload(self, source: str | Path, target: str) -> None:
        """Copy a file or tree of this machine to `target`. Owners become root; modes, times and links are kept."""
        source = Path(source)
        if not source.exists() and not source.is_symlink():
            raise NotFound(f"no such file on this machine: {source}")
        directory, name = archive.split_target(target)
        self.mkdir(directory)
        params = ArchivePut(ref=self._ref, path=directory)
        self._send("file.put_archive", params, lambda fd: archive.pack(fd, source, name))

    def download(self, source: str, target: str | Path) -> None:
        """Copy a file or tree of the container to `target` on this machine. Nothing is written outside of it.

        Raises AlreadyExists when `target` is a directory. Set-user-id bits and file capabilities are dropped.
        """
        ours, theirs = make_pipe(write=False)
        try:
            running = self._start("file.get_archive", ArchiveGet(ref=self._ref, path=source), theirs)
        except BaseException:
            archive.close(ours)
            raise
        with running:
            try:
                in_thread(archive.unpack, ours, Path(target))
            except InvalidArgument:
                running.wait()  # when the other side failed, its reason is the better one
                raise
            running.wait()

    def _receive(self, method: str, params: Any) -> bytes:
        ours, theirs = make_pipe(write=False)
        reader = Reader(ours)
        try:
            with self._start(method, params, theirs) as running:
                return finish(running, reader)
        finally:
            reader.close()

    def _send(self, method: str, params: Any, write: Callable[[int], object]) -> Any:
        ours, theirs = make_pipe(write=True)
        writer = Writer(ours)
        try:
            with self._start(method, params, theirs) as running:
                feed(running, writer, write)
                return running.result
        finally:
            writer.close()

    def _start(self, method: str, params: Any, theirs: int) -> RunningCall:
        try:
            return self._connection.stream(method, params, fds={"data": theirs})
        finally:
            archive.close(theirs)

    def _call(self, method: str, params: Any) -> Any:
        return self._connection.call(method, params)
