"""Trees of local files to and from tar streams. What comes out of a container is not trusted to stay in its place."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
from typing import IO, NamedTuple, cast

from drupe.errors import DataLoss, InvalidArgument, NotFound, PermissionDenied


class Destination(NamedTuple):
    """Where an unpacked tree goes: below `root`; `rename` is the new name of its first part (None: keep, "": drop)."""

    root: str
    rename: str | None


def pack(fd: int, source: str, name: str, *, follow: bool, keep_ids: bool) -> None:
    """Write the file or tree `source` to `fd` as a tar whose top is called `name`."""

    def owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if not keep_ids:
            member.uid = member.gid = 0
            member.uname = member.gname = ""
        return member

    path = os.path.realpath(source) if follow else source
    try:
        with (
            os.fdopen(os.dup(fd), "wb", buffering=0) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(path, arcname=name, filter=owner)
    except PermissionError as error:
        raise PermissionDenied(f"cannot read {error.filename or source}", cause=error.strerror or "") from None


def destination(goal: str, *, contents_only: bool) -> Destination:
    """By the rules of `docker cp`: into a directory that is there, else under the name that `goal` gives."""
    if os.path.isdir(goal):  # noqa: PTH112
        return Destination(goal, "" if contents_only else None)
    parent, name = os.path.split(goal)
    if not name:
        raise NotFound(f"no such directory: {goal}")
    if parent and not os.path.isdir(parent):  # noqa: PTH112
        raise NotFound(f"no such directory: {parent}")
    return Destination(parent or ".", name)


def unpack(fd: int, into: Destination, *, keep_ids: bool) -> None:
    """Read a tar from `fd` into `into`. Raises DataLoss for a broken stream, InvalidArgument for an escaping member."""
    root = os.path.realpath(into.root)
    directories: list[tuple[str, tarfile.TarInfo]] = []
    try:
        with os.fdopen(os.dup(fd), "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                path = _place(root, member.name, into.rename)
                _extract(archive, member, path, root, into.rename)
                if member.isdir():
                    directories.append((path, member))
                elif not member.islnk():
                    _set_owner(path, member, keep_ids)
            _drain(stream)
    except tarfile.TarError as error:
        raise DataLoss("the tar stream from the container is broken", cause=str(error)) from None
    for path, member in reversed(directories):  # last, or a read-only one would refuse its own content
        _set_owner(path, member, keep_ids)


def _drain(stream: IO[bytes]) -> None:
    while stream.read(65536):
        pass  # padding after the end mark: the writer must not see a broken pipe


def _place(root: str, name: str, rename: str | None) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"the tar from the container has a name that leaves its place: {name!r}")
    if rename is not None and parts:
        parts[:1] = [rename] if rename else []
    path = os.path.join(root, *parts)  # noqa: PTH118
    parent = os.path.realpath(os.path.split(path)[0]) if parts else root
    if parent != root and not parent.startswith(root.rstrip("/") + "/"):
        raise InvalidArgument(f"the tar from the container writes through a link: {name!r}")
    return path


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, root: str, rename: str | None) -> None:
    if member.isdir():
        if os.path.islink(path) or not os.path.isdir(path):  # noqa: PTH112, PTH114
            _clear(path)
            os.mkdir(path, 0o700)  # noqa: PTH102
        return
    _clear(path)
    if member.isreg():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            shutil.copyfileobj(cast("IO[bytes]", archive.extractfile(member)), file, 1 << 20)
    elif member.issym():
        os.symlink(member.linkname, path)  # noqa: PTH211 (kept with its os.link and os.mkfifo)
    elif member.islnk():
        os.link(_place(root, member.linkname, rename), path, follow_symlinks=False)
    elif member.isfifo():
        os.mkfifo(path)
    else:
        raise InvalidArgument(f"{member.name!r} is a device: copy it with a tar stream (… -)")


def _clear(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidArgument(f"{path} is a directory: a file can't be copied over it") from error


def _set_owner(path: str, member: tarfile.TarInfo, keep_ids: bool) -> None:
    if keep_ids:
        try:
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            raise PermissionDenied(f"cannot give {path} to {member.uid}:{member.gid}", hint="leave out -a") from None
    if not member.issym():
        os.chmod(path, member.mode & (0o7777 if keep_ids else 0o777))  # noqa: PTH101
        os.utime(path, (member.mtime, member.mtime))
