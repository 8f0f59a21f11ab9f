"""File operations inside a container's root, given a descriptor of it. Blocking: call them in a thread.

Descriptors passed in for data are owned and closed here. All may raise NotFound, InvalidArgument, PermissionDenied,
ResourceExhausted with the path in the message.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat as st

from drupe.errors import AlreadyExists, InvalidArgument, InvalidState
from drupe.linux.openat2 import RESOLVE_NO_XDEV, open_regular, openat2
from drupe.resources.archives import copy_tree, get_archive, put_archive
from drupe.resources.inroot import (
    check_depth,
    copy_bytes,
    explained,
    file_info,
    follow,
    info_at,
    is_mount_point,
    make_directory,
    make_parents,
    opened,
    parent,
)
from drupe.spec.control import FileInfo, FileList

__all__ = [
    "copy_tree", "get_archive", "list_dir", "mkdir", "put_archive", "read", "remove", "rename", "stat", "write",
]  # fmt: skip

_DEFAULT_MODE = 0o644


def stat(root_fd: int, path: str) -> FileInfo:
    """What lies at `path`; a link at its end is not followed but described."""
    if _is_root(path):
        with explained(path):
            return file_info(os.stat(".", dir_fd=root_fd), "/")
    with parent(root_fd, path) as (fd, name), explained(path):
        return info_at(fd, name, path)


def list_dir(root_fd: int, path: str) -> FileList:
    """The entries of a directory by name; one that vanishes meanwhile is left out."""
    found = []
    base = path.rstrip("/")
    with opened(root_fd, path, os.O_RDONLY | os.O_DIRECTORY) as fd, explained(path):
        for name in sorted(os.listdir(fd)):  # noqa: PTH208 - by descriptor
            try:
                found.append(info_at(fd, name, f"{base}/{name}"))
            except FileNotFoundError:
                continue
    return FileList(files=found)


def read(root_fd: int, path: str, target: int, *, offset: int = 0, length: int | None = None) -> FileInfo:
    """Write the bytes of a regular file to descriptor `target`. Raises InvalidArgument for what is no file."""
    try:
        if offset < 0 or (length is not None and length < 0):
            raise InvalidArgument(f"{path}: offset and length are not negative")
        with opened(root_fd, path, os.O_PATH) as handle:
            info = file_info(os.fstat(handle), path)
            if info.type != "file":
                raise InvalidArgument(f"{path}: is a {info.type}, not a file")
            with explained(path):
                # Only now is it opened: opening a FIFO would wait, a device might do something.
                source = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if offset:
                        os.lseek(source, offset, os.SEEK_SET)
                    copy_bytes(source, target, length=length)
                finally:
                    os.close(source)
            return info
    finally:
        os.close(target)


def write(
    root_fd: int,
    path: str,
    source: int,
    *,
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    append: bool = False,
    parents: bool = True,
) -> FileInfo:
    """Write a file from descriptor `source`: all or nothing by rename, unless appending.

    Mode and owner stay those of the file replaced; a new one is 0644 and the root directory's owner's. A link at the
    end is followed. A file that is a mount point itself (/etc/hosts) cannot be replaced and is written in place.
    """
    try:
        real = follow(root_fd, path)
        if parents:
            make_parents(root_fd, real)
        with parent(root_fd, real) as (fd, name), explained(path):
            old = _existing(fd, name, path)
            owner = os.stat(".", dir_fd=root_fd) if old is None else old
            if append:
                _write_in_place(fd, name, source, os.O_APPEND | os.O_CREAT)
            elif not _replace(fd, name, source, old=old, owner=owner):
                _write_in_place(fd, name, source, os.O_TRUNC)
            if old is None and append:
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=fd, follow_symlinks=False)
            _set_owner_and_mode(fd, name, mode=mode, uid=uid, gid=gid)
            return info_at(fd, name, path)
    finally:
        os.close(source)


def mkdir(root_fd: int, path: str, *, parents: bool = True, mode: int = 0o755) -> FileInfo:
    """Make a directory. parents: those above too, and an existing one is success; else AlreadyExists."""
    if _is_root(path):
        return stat(root_fd, "/")
    if parents:
        make_parents(root_fd, path)
    try:
        make_directory(root_fd, path, mode)
    except AlreadyExists:
        if not parents:
            raise
    with opened(root_fd, path, os.O_PATH | os.O_DIRECTORY) as fd:
        return file_info(os.fstat(fd), path)


def remove(root_fd: int, path: str, *, recursive: bool = False) -> None:
    """Remove a file, a link or an empty directory; recursive: a whole tree, but never across a mount.

    Raises InvalidState for a mount point, which only an unmount takes away.
    """
    if _is_root(path):
        raise InvalidArgument("the root directory cannot be removed")
    with parent(root_fd, path) as (fd, name), explained(path):
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not st.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=fd)
        elif recursive:
            _remove_tree(fd, name, path)
        else:
            os.rmdir(name, dir_fd=fd)


def rename(root_fd: int, path: str, target: str) -> FileInfo:
    """rename(2) inside the root: an existing file at `target` is replaced."""
    with parent(root_fd, path) as (old_fd, old), parent(root_fd, target) as (new_fd, new):
        with explained(path):
            os.stat(old, dir_fd=old_fd, follow_symlinks=False)
        with explained(target):
            os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
            return info_at(new_fd, new, target)


def _is_root(path: str) -> bool:
    return all(part in ("", ".", "..") for part in path.split("/"))


def _existing(fd: int, name: str, path: str) -> os.stat_result | None:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    info = file_info(found, path)
    if info.type != "file":
        raise InvalidArgument(f"{path}: is a {info.type}, not a file")
    return found


def _mode(old: os.stat_result | None) -> int:
    return _DEFAULT_MODE if old is None else st.S_IMODE(old.st_mode)


def _replace(fd: int, name: str, source: int, *, old: os.stat_result | None, owner: os.stat_result) -> bool:
    """Write beside the file and rename over it. False: it is a mount point, and nothing was read yet."""
    if old is not None and is_mount_point(fd, name):
        return False
    temporary = f".{name[:200]}.{secrets.token_hex(6)}"
    out = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        try:
            copy_bytes(source, out)
            os.fchown(out, owner.st_uid, owner.st_gid)
            os.fchmod(out, _mode(old))
        finally:
            os.close(out)
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
    except BaseException:
        os.unlink(temporary, dir_fd=fd)
        raise
    return True


def _write_in_place(fd: int, name: str, source: int, flags: int) -> None:
    flags |= os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        out = open_regular(fd, name, flags & ~os.O_CREAT)
    except FileNotFoundError:
        out = os.open(name, flags | os.O_EXCL, _DEFAULT_MODE, dir_fd=fd)
    try:
        copy_bytes(source, out)
    finally:
        os.close(out)


def _set_owner_and_mode(fd: int, name: str, *, mode: int | None, uid: int | None, gid: int | None) -> None:
    file = open_regular(fd, name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if uid is not None or gid is not None:
            keep = st.S_IMODE(os.fstat(file).st_mode)
            os.fchown(file, -1 if uid is None else uid, -1 if gid is None else gid)
            os.fchmod(file, keep)  # chown(2) clears setuid bits
        if mode is not None:
            os.fchmod(file, mode)
    finally:
        os.close(file)


def _remove_tree(dir_fd: int, name: str, path: str, depth: int = 0) -> None:
    """Depth first, by descriptors; O_NOFOLLOW: what became a link meanwhile is an error, not a way out."""
    check_depth(depth, path)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = openat2(dir_fd, name, flags, resolve=RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        hint = "what is mounted there is not the container's own"
        raise InvalidState(f"{path}: is a mount point", hint=hint) from None
    try:
        for entry in os.listdir(fd):  # noqa: PTH208 - by descriptor
            if st.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                _remove_tree(fd, entry, f"{path.rstrip('/')}/{entry}", depth + 1)
            else:
                os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)
