"""Tar streams between this machine and a container, through a descriptor. Blocking; shared by both twins."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from drupe.errors import DataLoss, InvalidArgument

if TYPE_CHECKING:
    import tarfile


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` to a blocking descriptor. Raises BrokenPipeError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def close(fd: int) -> None:
    """close(2)."""
    os.close(fd)


def split_target(target: str) -> tuple[str, str]:
    """(directory, name) of an absolute path in a container. Raises InvalidArgument."""
    path = PurePosixPath(target)
    if not path.is_absolute() or not path.name or ".." in path.parts:
        raise InvalidArgument(f"bad target {target!r}", hint="give an absolute path with a name, without '..'")
    return str(path.parent), path.name


def pack(fd: int, source: Path, name: str) -> None:
    """Write a tar of `source` whose top entry is called `name`."""
    import tarfile

    with (
        os.fdopen(fd, "wb", closefd=False) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.add(source, arcname=name, filter=_owned_by_root)


def unpack(fd: int, target: Path) -> None:
    """Read a tar of one file or tree and put that at `target`. Raises DataLoss for one that would write elsewhere.

    The top entry's name is replaced by the target's; an empty stream (the other side failed) makes nothing.
    """
    import tarfile

    os.set_blocking(fd, True)
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(fd, "rb", closefd=False) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    _extract(tar, member, target)
        except tarfile.ReadError as error:
            if stream.read(1) or "empty" not in str(error):
                raise DataLoss("the container's answer is not a tar", cause=str(error)) from None


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    from tarfile import FilterError

    member.name = _renamed(member.name, target.name)
    if member.islnk():
        member.linkname = _renamed(member.linkname, target.name)
    try:
        tar.extract(member, path=target.parent, filter="data", set_attrs=True)
    except FilterError as error:
        raise DataLoss("the container's answer would write outside of the target", cause=str(error)) from None


def _renamed(name: str, top: str) -> str:
    parts = PurePosixPath(name).parts
    return str(PurePosixPath(top, *parts[1:])) if parts and parts[0] not in ("/", "..") else name


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
