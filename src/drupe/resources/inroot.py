"""Reaching files below a root descriptor and nowhere else, and putting the kernel's refusals in words.

Every name is walked by openat2(2) with RESOLVE_IN_ROOT: `..` and links, absolute ones too, stay inside. What is then
created, renamed or removed is named relative to its parent's descriptor, so that a workload that swaps a directory for
a link meanwhile gains nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from drupe.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidState,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from drupe.linux.openat2 import RESOLVE_NO_XDEV, open_in_root, openat2
from drupe.rpc.transfers import read_some, write_all
from drupe.spec.control import FileInfo

_MAX_LINKS = 40  # the kernel's own bound (path_resolution(7))
_CHUNK = 1 << 18
_MAX_DEPTH = 400
_WORDS = {
    errno.ENOENT: (NotFound, "no such file or directory"),
    errno.ENOTDIR: (InvalidArgument, "a part of the path is not a directory"),
    errno.EISDIR: (InvalidArgument, "is a directory"),
    errno.ENOTEMPTY: (InvalidArgument, "directory is not empty"),
    errno.EEXIST: (AlreadyExists, "exists already"),
    errno.ELOOP: (InvalidArgument, "too many levels of links"),
    errno.ENAMETOOLONG: (InvalidArgument, "name is too long"),
    errno.EXDEV: (InvalidArgument, "is on another file system"),
    errno.EBUSY: (InvalidState, "is a mount point or in use"),
    errno.EROFS: (PermissionDenied, "is on a read-only file system"),
    errno.EACCES: (PermissionDenied, "not allowed"),
    errno.EPERM: (PermissionDenied, "not allowed"),
    errno.ENOSPC: (ResourceExhausted, "no space left"),
    errno.EDQUOT: (ResourceExhausted, "disk quota exceeded"),
    errno.EMFILE: (ResourceExhausted, "too many open files"),
}
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def refuse(path: str, error: OSError) -> NoReturn:
    """Raise what `error` about `path` means: NotFound, PermissionDenied, ResourceExhausted, InvalidArgument…"""
    kind, words = _WORDS.get(error.errno or 0, (InvalidArgument, error.strerror or "failed"))
    raise kind(f"{path}: {words}", errno=errno.errorcode.get(error.errno or 0, "")) from None


@contextmanager
def explained(path: str) -> Iterator[None]:
    """OSErrors of the body become the project's own."""
    try:
        yield
    except OSError as error:
        refuse(path, error)


@contextmanager
def opened(root_fd: int, path: str, flags: int, *, mode: int = 0) -> Iterator[int]:
    """A descriptor of `path` below the root, closed at the end; errors in words."""
    with explained(path):
        fd = open_in_root(root_fd, path.lstrip("/") or ".", flags, mode=mode)
    try:
        yield fd
    finally:
        os.close(fd)


def open_parent(root_fd: int, path: str) -> tuple[int, str]:
    """The directory of `path` and the last name in it, which need not exist. The caller closes the descriptor.

    Raises InvalidArgument when the path ends in no name ("/", "..", "."), NotFound for a missing directory.
    """
    directory, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", "..") or "\0" in path:
        raise InvalidArgument(f"{path!r}: a name is needed at the end of the path")
    with explained(path):
        return open_in_root(root_fd, directory.lstrip("/") or ".", os.O_PATH | os.O_DIRECTORY), name


@contextmanager
def parent(root_fd: int, path: str) -> Iterator[tuple[int, str]]:
    """`open_parent`, closed at the end."""
    fd, name = open_parent(root_fd, path)
    try:
        yield fd, name
    finally:
        os.close(fd)


def follow(root_fd: int, path: str) -> str:
    """`path` with links at its end followed inside the root, so that its parent is where the file really lies."""
    for _ in range(_MAX_LINKS):
        if path.rstrip("/") == "":
            return path
        try:
            with parent(root_fd, path) as (fd, name), explained(path):
                target = _link_target(fd, name)
        except NotFound:
            return path  # nothing there yet, perhaps not even the directory
        if target is None:
            return path
        directory = path.rstrip("/").rpartition("/")[0]
        path = target if target.startswith("/") else f"{directory}/{target}"
    raise InvalidArgument(f"{path}: too many levels of links")


def make_parents(root_fd: int, path: str) -> None:
    """Make the directories above the last name of `path`. Links among them are followed inside the root."""
    prefix = ""
    for part in filter(None, path.rstrip("/").split("/")[:-1]):
        prefix = f"{prefix}/{part}"
        if part in (".", ".."):
            continue
        try:
            make_directory(root_fd, prefix, 0o755)
        except AlreadyExists:
            continue


def make_directory(root_fd: int, path: str, mode: int) -> None:
    """Make one directory, owned as the root directory is, with just this mode. Raises AlreadyExists."""
    with parent(root_fd, path) as (fd, name), explained(path):
        os.mkdir(name, mode, dir_fd=fd)
        owner = os.stat(".", dir_fd=root_fd)
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=fd, follow_symlinks=False)
        with opened(fd, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as made:
            os.fchmod(made, mode)  # mkdir(2) left out what the umask says


def check_depth(depth: int, path: str) -> None:
    """Raise InvalidArgument for a tree too deep to walk: each level holds a descriptor and a stack frame."""
    if depth > _MAX_DEPTH:
        raise InvalidArgument(f"{path[:200]}…: the tree is deeper than {_MAX_DEPTH} levels")


def _link_target(fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno == errno.EINVAL:  # not a link
            return None
        raise


def is_mount_point(dir_fd: int, name: str) -> bool:
    """Whether something is mounted at `name`; a bind of the same file system too, which st_dev would not tell."""
    try:
        os.close(openat2(dir_fd, name, os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_NO_XDEV))
    except OSError as error:
        if error.errno == errno.EXDEV:
            return True
        raise
    return False


def info_at(dir_fd: int, name: str, path: str) -> FileInfo:
    """What lies at `name` of a directory, a link not followed. path: how to call it. Raises OSError."""
    found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    target = os.readlink(name, dir_fd=dir_fd) if stat.S_ISLNK(found.st_mode) else ""
    return file_info(found, path, target=target)


def file_info(found: os.stat_result, path: str, *, target: str = "") -> FileInfo:
    """What lstat(2) found at `path`, in our words. target: where a symbolic link points."""
    return FileInfo(
        path=path,
        type=_TYPES.get(stat.S_IFMT(found.st_mode), "file"),
        size=found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime=found.st_mtime,
        target=target,
    )


def copy_bytes(source: int, target: int, *, length: int | None = None) -> int:
    """Copy between descriptors, blocking or not, up to the end or `length`; returns how many. Raises OSError.

    A reader that went away ends the copy: it has what it wanted.
    """
    done = 0
    while length is None or done < length:
        chunk = read_some(source, _CHUNK if length is None else min(_CHUNK, length - done))
        if not chunk or not write_all(target, chunk):
            break
        done += len(chunk)
    return done
