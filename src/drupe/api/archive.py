"""Tar streams between this machine and a container, through a descriptor. Blocking; shared by both twins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from drupe.errors import AlreadyExists, InvalidArgument

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
    """Read a tar of one file or tree from `fd`, which is closed, and put that at `target`.

    Raises AlreadyExists when a directory is there, InvalidArgument for a hostile or broken tar. Set-user-id bits and
    file capabilities are dropped: what comes out of a sandbox gets no rights on this machine.
    """
    from drupe.resources.files import put_archive

    target = target.absolute()
    try:
        if target.is_dir() and not target.is_symlink():
            raise AlreadyExists(f"directory {target} exists", hint="give the path that the copy shall have")
        target.parent.mkdir(parents=True, exist_ok=True)
        source = os.dup(fd)
    finally:
        os.close(fd)
    with _scratch(target) as (scratch, root):
        put_archive(root, "/", source)
        for found in list(scratch.iterdir()):
            _tame(found)
            found.rename(target)


@contextmanager
def _scratch(target: Path) -> Iterator[tuple[Path, int]]:
    """A new private directory beside `target`, and a descriptor of it; removed in the end."""
    from shutil import rmtree
    from tempfile import mkdtemp

    scratch = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    root = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield scratch, root
    finally:
        os.close(root)
        rmtree(scratch)


def _tame(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o1777)
            with suppress(OSError):
                os.removexattr(path, "security.capability")


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
