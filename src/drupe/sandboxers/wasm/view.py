"""The files that a guest sees: a mount namespace with its root, its mounts and nothing else.

The zygote makes one namespace with an empty, read-only file system. Guests without files live in that very one; others
in a copy of it, in which their own root takes the place of the empty one.
"""

from __future__ import annotations

import errno
import os
import stat

from drupe.linux.mounts import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    enter_root,
    mount,
    move_tree,
    set_tree_flags,
)
from drupe.linux.open_tree import open_tree
from drupe.linux.openat2 import O_PATH, open_in_root
from drupe.linux.processes import CLONE_NEWNS, setns, unshare
from drupe.sandboxers.wasm.job import Bind, Place

_NEW = "/new"
_SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC


def make_empty(scratch: str) -> int:
    """A descriptor of a new mount namespace that holds an empty file system. `scratch`: a directory to mount on.

    The calling process is left in it: let a child that ends do this.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("empty", scratch, "tmpfs", _SAFE, "mode=0555,size=64k")
    os.mkdir(scratch + _NEW, 0o555)  # noqa: PTH102 - the zygote's children import as little as they can
    enter_root(scratch)
    mount("empty", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | _SAFE)
    return os.getpid()


class View:
    """The trees of one guest's view, taken while the host's files are still in sight; `enter` then leaves those."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._root = open_tree(place.root) if place.root else -1
        self._trees = [open_tree(bind.source) if bind.source else -1 for bind in place.binds]

    def enter(self, empty: int) -> None:
        """Go into it. empty: the zygote's empty namespace."""
        setns(empty, CLONE_NEWNS)
        if self._root < 0 and not self._trees:
            return
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        self._mount_root()
        root = os.open(_NEW, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for bind, tree in zip(self._place.binds, self._trees, strict=True):
            _mount_bind(root, bind, tree)
        if self._root < 0 or self._place.root_read_only:
            os.fchdir(root)
            mount("none", ".", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
        enter_root(_NEW)

    def _mount_root(self) -> None:
        if self._root < 0:
            mount("root", _NEW, "tmpfs", _SAFE, "mode=0755,size=1m")
            return
        set_tree_flags(self._root, read_only=False)
        target = os.open(_NEW, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        move_tree(self._root, target)
        os.close(target)


def _mount_bind(root: int, bind: Bind, tree: int) -> None:
    if tree < 0:
        target = _place(root, bind.target, directory=True)
        os.fchdir(target)
        mount("tmpfs", ".", "tmpfs", _SAFE | (MS_RDONLY if bind.read_only else 0), bind.data)
    else:
        set_tree_flags(tree, read_only=bind.read_only)
        target = _place(root, bind.target, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
        move_tree(tree, target)
        os.close(tree)
    os.close(target)


def _place(root: int, path: str, *, directory: bool) -> int:
    """What to mount on, made where it is missing. Links of the image lead to places inside its own root only."""
    parts = [part for part in path.split("/") if part]
    for depth in range(1, len(parts) + 1):
        last = depth == len(parts)
        try:
            found = open_in_root(root, "/".join(parts[:depth]), O_PATH)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            parent = open_in_root(root, "/".join(parts[: depth - 1]) or ".", O_PATH | os.O_DIRECTORY)
            _make(parent, parts[depth - 1], directory=directory or not last)
            os.close(parent)
            found = open_in_root(root, "/".join(parts[:depth]), O_PATH)
        if last:
            return found
        os.close(found)
    raise OSError(errno.EINVAL, "a mount cannot cover the root", path)


def _make(parent: int, name: str, *, directory: bool) -> None:
    if directory:
        os.mkdir(name, 0o755, dir_fd=parent)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
