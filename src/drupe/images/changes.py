"""What a container has changed of its image: read from the writable layer of its overlay (overlayfs.rst, "Upper and
Lower", "whiteouts and opaque directories")."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

OPAQUE = "trusted.overlay.opaque"
REDIRECT = "trusted.overlay.redirect"


@dataclass(frozen=True, slots=True)
class Change:
    """kind: "A", "C" or "D" (added, changed, deleted), as Docker has it. path: absolute, in the container. opaque: a
    directory in whose place the image has another, of which nothing is left."""

    kind: str
    path: str
    opaque: bool = False


def changes(upper: Path, lowers: Sequence[Path], *, mounted: Collection[str] = ()) -> list[Change]:
    """All changes, parents first. lowers: the image's layers, top-most first. mounted: paths where something is
    mounted, whose places were made for that. Raises OSError."""
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return list(_below(fd, "/", list(lowers), frozenset(posixpath.normpath(path) for path in mounted)))
    finally:
        os.close(fd)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a name says that there is nothing."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _below(fd: int, path: str, lowers: list[Path], mounted: frozenset[str]) -> Iterator[Change]:
    for name in sorted(os.listdir(fd)):
        place = posixpath.join(path, name)
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        known, below = _in_layers(lowers, name)
        if is_whiteout(status):
            if known:
                yield Change("D", place)
        elif not stat.S_ISDIR(status.st_mode):
            if place not in mounted:
                yield Change("C" if known else "A", place)
        else:
            yield from _directory(fd, name, place, (below, known), mounted)


def _directory(
    fd: int, name: str, place: str, image: tuple[list[Path], bool], mounted: frozenset[str]
) -> Iterator[Change]:
    below, known = image
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        opaque = _has(inner, OPAQUE)
        found = list(_below(inner, place, [] if opaque else below, mounted))
    finally:
        os.close(inner)
    is_place = any(one == place or one.startswith(f"{place}/") for one in mounted)
    if found or not is_place:
        yield Change("C" if known else "A", place, opaque=opaque and known)
    yield from found


def _in_layers(lowers: list[Path], name: str) -> tuple[bool, list[Path]]:
    """Whether the image has that name, and the directories of its layers that lie there."""
    known, found = False, []
    for lower in lowers:
        path = lower / name
        try:
            status = path.lstat()
        except OSError:
            continue
        if is_whiteout(status):
            break
        known = True
        if not stat.S_ISDIR(status.st_mode):
            break
        found.append(path)
        if _has(path, OPAQUE):
            break
    return known, found


def _has(where: int | Path, name: str) -> bool:
    try:
        return os.getxattr(where, name) == b"y"
    except OSError:
        return False


def is_redirected(path: Path) -> bool:
    """Whether a directory of the writable layer shows what the image has elsewhere: it was renamed."""
    try:
        return bool(os.getxattr(path, REDIRECT, follow_symlinks=False))
    except OSError:
        return False
