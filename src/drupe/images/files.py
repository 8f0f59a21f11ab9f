"""Small file-system tools of the image store: atomic writes, locks, errors of the disk in our own words."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drupe.errors import DrupeError, InternalError, PermissionDenied, ResourceExhausted, Unavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFBIG, errno.EMLINK}
_REFUSED = {errno.EPERM, errno.EACCES, errno.EROFS}


def storage_error(error: OSError, what: str) -> DrupeError:
    """The typed error for a failed file operation of ours (not of a user's path)."""
    cause = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return ResourceExhausted(what, cause=cause, hint="make room: drupe image prune")
    if error.errno in _REFUSED:
        return PermissionDenied(what, cause=cause, hint="the image store needs root and a writable file system")
    if error.errno in (errno.EIO, errno.ESTALE):
        return Unavailable(what, cause=cause)
    return InternalError(what, cause=f"{cause} ({error.filename})" if error.filename else cause)


def source_error(error: OSError, path: object) -> DrupeError:
    """The typed error for a file of the user's that could not be read, or changed while it was."""
    if error.errno in _REFUSED:
        return PermissionDenied(f"cannot read {path}", cause=error.strerror or "")
    return Unavailable(f"cannot read {path}", cause=error.strerror or str(error), hint="did it change meanwhile?")


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn OSError of the block into a typed error that says `what` was being done."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error


@contextmanager
def flock(path: Path) -> Iterator[None]:
    """Hold flock(2) on `path` alone; it holds between processes and threads alike (each call opens the file itself)."""
    with lock_file(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """A descriptor to lock; closing it lets go."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def try_exclusive(fd: int) -> bool:
    """Take the exclusive lock if nobody holds any. `fd` must hold none: a failed conversion loses it (flock(2))."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: readers and a crash see the old or the new file, whole."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make renames in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove `path` whatever it is and however deep; missing is fine; links are never followed."""
    parent_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_at(parent_fd, os.fsencode(path.name))
    finally:
        os.close(parent_fd)


def remove_at(dir_fd: int, name: bytes) -> None:
    """Remove `name` in `dir_fd`. Depth does not matter: subdirectories are moved up first."""
    try:
        os.unlink(name, dir_fd=dir_fd)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):  # POSIX says EPERM for a directory, Linux EISDIR
        if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            raise
    top_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        _empty(top_fd)
    finally:
        os.close(top_fd)
    os.rmdir(name, dir_fd=dir_fd)


_COUNTED_LEVELS = 500  # each costs a descriptor while it is walked


def tree_bytes(path: Path) -> int:
    """Disk space of all below `path`, as far as it can be read; missing is 0. A workload may have made the tree: links
    are not followed, what vanishes meanwhile is left out, and so is what lies deeper than 500 levels."""
    total = 0
    waiting: list[tuple[int, list[str]]] = []  # open directories, outermost first, with the subdirectories to come
    try:
        _enter(waiting, None, str(path))
        while waiting:
            fd, names = waiting[-1]
            if not names:
                os.close(waiting.pop()[0])
                continue
            size, is_dir = _size_at(fd, name := names.pop())
            total += size
            if is_dir and len(waiting) < _COUNTED_LEVELS:
                _enter(waiting, fd, name)
    finally:
        for fd, _ in waiting:
            os.close(fd)
    return total


def _enter(waiting: list[tuple[int, list[str]]], dir_fd: int | None, name: str) -> None:
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        waiting.append((fd, []))
        waiting[-1][1].extend(os.listdir(fd))  # noqa: PTH208 - by descriptor


def _size_at(dir_fd: int, name: str) -> tuple[int, bool]:
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return 0, False
    return found.st_blocks * 512, stat.S_ISDIR(found.st_mode)


def _empty(top_fd: int) -> None:
    token = secrets.token_hex(8).encode()  # no archive can have a member that collides with our names
    waiting = _unlink_files(top_fd)
    number = 0
    while waiting:
        directory = waiting.pop()
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top_fd)
        try:
            for child in _unlink_files(fd):
                number += 1
                moved = b"%s.%d" % (token, number)
                os.rename(child, moved, src_dir_fd=fd, dst_dir_fd=top_fd)
                waiting.append(moved)
        finally:
            os.close(fd)
        os.rmdir(directory, dir_fd=top_fd)


def _unlink_files(dir_fd: int) -> list[bytes]:
    """Unlink all but directories; the names of those."""
    with os.scandir(dir_fd) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in found:
        if not is_dir:
            with suppress(FileNotFoundError):  # somebody else removes here too
                os.unlink(name, dir_fd=dir_fd)
    return [name for name, is_dir in found if is_dir]
