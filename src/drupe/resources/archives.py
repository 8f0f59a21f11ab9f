"""Tars out of and into a container's root (`docker cp`), and copying a tree out of it. Blocking: call in a thread.

A tar that comes in is hostile until proven otherwise: every member is reached through the root's descriptor, names
with `..` and device nodes are refused, header records are bounded.
"""

from __future__ import annotations

import errno
import lzma
import os
import posixpath
import stat as st
import tarfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, cast

from drupe.errors import AlreadyExists, InvalidArgument, NotFound
from drupe.linux.openat2 import open_regular
from drupe.resources.inroot import (
    check_depth,
    copy_bytes,
    explained,
    info_at,
    make_directory,
    make_parents,
    opened,
    parent,
)
from drupe.resources.inroot import follow as _follow
from drupe.rpc.transfers import read_some, write_all
from drupe.spec.control import FileInfo

Owner = Callable[[int, int], tuple[int, int]]  # (uid, gid) in other words: those of the host, of a user namespace


def same_owner(uid: int, gid: int) -> tuple[int, int]:
    return uid, gid


_MAX_HEADER_BYTES = 1 << 20  # of one extended header; tarfile would read any size into memory
_KERNEL_DIRS: Final = ("proc", "sys", "dev")  # a live container's: mounted by the runtime, endless, not its files
_CAPABILITY = "security.capability"
_PAX_CAPABILITY = f"SCHILY.xattr.{_CAPABILITY}"


class _Pipe:
    """A descriptor as the file object tarfile streams to and from."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (chunk := read_some(self._fd, size - len(data))):
            data += chunk
        return bytes(data)

    def write(self, data: bytes) -> int:
        if not write_all(self._fd, data):
            raise BrokenPipeError
        return len(data)


class _BoundedInfo(tarfile.TarInfo):
    """A member whose extended headers (long names, PAX records) are bounded."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        extended = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
        if self.type in extended and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"extended header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def get_archive(root_fd: int, path: str, target: int, *, follow: bool = False, owner: Owner = same_owner) -> FileInfo:
    """Write a tar of `path` (file, link or tree) to descriptor `target`, which is closed. Names start with its last.

    follow: a link at the end stands for what it names. owner: how a file's owner is to be told. Raises NotFound.
    """
    try:
        real = _follow(root_fd, path) if follow else path
        whole = _is_root(real)
        name = "." if whole else posixpath.basename(posixpath.normpath("/" + path)) or "."
        with ExitStack() as stack:
            fd, last = (root_fd, ".") if whole else stack.enter_context(parent(root_fd, real))
            stack.enter_context(explained(path))
            info = info_at(fd, last, path)
            stack.enter_context(suppress(BrokenPipeError))  # the reader had enough
            pipe: Any = _Pipe(target)
            with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                _Writer(tar, root_fd, owner).add(fd, last, name)
        return info
    finally:
        os.close(target)


def put_archive(root_fd: int, path: str, source: int, *, keep_ids: bool = False, owner: Owner = same_owner) -> None:
    """Unpack a tar (also compressed) read from descriptor `source`, which is closed, below directory `path`.

    keep_ids: owners as in the tar (owner: what they are on the host), else the root directory's. Existing files are
    replaced, directories kept.
    Raises InvalidArgument for a bad or hostile tar (the members before it stay), NotFound.
    """
    try:
        with opened(root_fd, path, os.O_PATH | os.O_DIRECTORY):
            pass  # the clear error first: no such directory
        reader = _Reader(root_fd, path, owner if keep_ids else _root_owner(root_fd))
        try:
            pipe: Any = _Pipe(source)
            with tarfile.open(fileobj=pipe, mode="r|*", tarinfo=_BoundedInfo) as tar:
                for member in tar:
                    reader.add(tar, member)
                    cast(Any, tar).members.clear()  # else each of a million members stays in memory
        except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise InvalidArgument("not a sound tar archive", cause=str(error)) from None
        reader.finish()
        while read_some(source, 1 << 16):
            pass  # padding after the end: a writer that is cut off there would see an error
    finally:
        os.close(source)


def copy_tree(root_fd: int, path: str, target: Path) -> None:
    """Copy what directory `path` of the root holds into the empty host directory `target`, which takes its owner and
    mode: how a new volume starts with the image's files. Without such a directory nothing is copied."""
    try:
        with opened(root_fd, path, os.O_RDONLY | os.O_DIRECTORY) as source, explained(path):
            out = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _copy_entries(source, out, path, 0)
                found = os.fstat(source)
                os.fchown(out, found.st_uid, found.st_gid)
                os.fchmod(out, st.S_IMODE(found.st_mode))
            finally:
                os.close(out)
    except (NotFound, NotADirectoryError):
        return


class _Writer:
    """Adds what lies below a root to a tar, hard links as such."""

    def __init__(self, tar: tarfile.TarFile, root_fd: int, owner: Owner) -> None:
        self._owner = owner
        self._tar = tar
        root = os.fstat(root_fd)
        self._root = (root.st_dev, root.st_ino)
        self._linked: dict[tuple[int, int], str] = {}

    def add(self, fd: int, name: str, arcname: str, depth: int = 0) -> None:
        check_depth(depth, arcname)
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        member = self._member(found, arcname)
        if st.S_ISDIR(found.st_mode):
            self._tar.addfile(member)
            self._directory(fd, name, arcname, depth)
        elif st.S_ISREG(found.st_mode):
            self._file(fd, name, member, found)
        elif st.S_ISLNK(found.st_mode):
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=fd)
            self._tar.addfile(member)
        elif not st.S_ISSOCK(found.st_mode):  # a socket means nothing without its process
            member.type = _SPECIAL[st.S_IFMT(found.st_mode)]
            member.devmajor, member.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
            self._tar.addfile(member)

    def _member(self, found: os.stat_result, name: str) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.mode, member.mtime = st.S_IMODE(found.st_mode), found.st_mtime
        member.uid, member.gid = self._owner(found.st_uid, found.st_gid)
        member.size = found.st_size if st.S_ISREG(found.st_mode) else 0
        member.type = tarfile.DIRTYPE if st.S_ISDIR(found.st_mode) else tarfile.REGTYPE
        return member

    def _directory(self, fd: int, name: str, arcname: str, depth: int) -> None:
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            here = os.fstat(below)
            at_root = (here.st_dev, here.st_ino) == self._root
            for entry in sorted(os.listdir(below)):  # noqa: PTH208 - by descriptor
                path = f"{arcname}/{entry}"
                if at_root and entry in _KERNEL_DIRS and _device(below, entry) != here.st_dev:
                    self._tar.addfile(self._member(os.stat(entry, dir_fd=below), path))
                    continue
                with suppress(FileNotFoundError):  # it vanished meanwhile
                    self.add(below, entry, path, depth + 1)
        finally:
            os.close(below)

    def _file(self, fd: int, name: str, member: tarfile.TarInfo, found: os.stat_result) -> None:
        identity = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and identity in self._linked:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, self._linked[identity], 0
            self._tar.addfile(member)
            return
        try:
            file = open_regular(fd, name, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ELOOP):
                return  # it was swapped for something else meanwhile
            raise
        self._linked[identity] = member.name
        try:
            with suppress(OSError):
                value = os.getxattr(file, _CAPABILITY)
                member.pax_headers = {_PAX_CAPABILITY: value.decode("utf-8", "surrogateescape")}
            self._tar.addfile(member, _Padded(file))  # type: ignore[arg-type]
        finally:
            os.close(file)


class _Padded:
    """A file that may shrink while it is read: the tar's header has promised its size, zeros fill the gap."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (chunk := os.read(self._fd, size - len(data))):
            data += chunk
        return bytes(data).ljust(size, b"\0")


class _Reader:
    """Unpacks members below a directory of a root."""

    def __init__(self, root_fd: int, path: str, owner: Owner) -> None:
        self._root = root_fd
        self._base = path.rstrip("/")
        self._owner = owner
        self._directories: list[tuple[str, float]] = []

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        if path == self._base:
            return  # "./": the directory unpacked into stays as it is
        _refuse_special(member)
        make_parents(self._root, path)
        if member.isdir():
            self._add_directory(member, path)
            return
        with parent(self._root, path) as (fd, name), explained(path):
            if member.isreg():
                self._add_file(tar, member, fd, name)
                return
            _clear(fd, name, path)
            if member.islnk():
                self._add_link(member, fd, name)
                return
            if member.issym():
                os.symlink(member.linkname, name, dir_fd=fd)
            else:
                os.mkfifo(name, 0o600, dir_fd=fd)
            os.chown(name, *self._ids(member), dir_fd=fd, follow_symlinks=False)
            if not member.issym():
                os.chmod(name, member.mode & 0o7777, dir_fd=fd)  # just made by us: no link
            os.utime(name, (member.mtime, member.mtime), dir_fd=fd, follow_symlinks=False)

    def finish(self) -> None:
        """Directories get their times last: what was put into them changed them."""
        for path, mtime in reversed(self._directories):
            with suppress(OSError), parent(self._root, path) as (fd, name):
                os.utime(name, (mtime, mtime), dir_fd=fd, follow_symlinks=False)

    def _path(self, name: str) -> str:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise InvalidArgument(f"the tar names {name!r}, which leaves its directory")
        return "/".join([self._base, *parts])

    def _ids(self, member: tarfile.TarInfo) -> tuple[int, int]:
        return self._owner(member.uid, member.gid)

    def _add_directory(self, member: tarfile.TarInfo, path: str) -> None:
        with suppress(AlreadyExists):
            make_directory(self._root, path, 0o755)
        with opened(self._root, path, os.O_RDONLY | os.O_DIRECTORY) as fd, explained(path):
            os.fchown(fd, *self._ids(member))
            os.fchmod(fd, member.mode & 0o7777)
        self._directories.append((path, member.mtime))

    def _add_file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, fd: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if _clear(fd, name, member.name):
            out = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
        else:  # a file mounted by itself cannot be replaced
            out = open_regular(fd, name, flags | os.O_TRUNC)
        try:
            data = tar.extractfile(member)
            while data is not None and (chunk := data.read(1 << 18)):
                write_all(out, chunk)
            os.fchown(out, *self._ids(member))
            os.fchmod(out, member.mode & 0o7777)
            if value := member.pax_headers.get(_PAX_CAPABILITY):
                os.setxattr(out, _CAPABILITY, value.encode("utf-8", "surrogateescape"))
            os.utime(out, (member.mtime, member.mtime))
        finally:
            os.close(out)

    def _add_link(self, member: tarfile.TarInfo, fd: int, name: str) -> None:
        target = self._path(member.linkname)
        with parent(self._root, target) as (from_fd, from_name), explained(target):
            os.link(from_name, name, src_dir_fd=from_fd, dst_dir_fd=fd, follow_symlinks=False)


def _root_owner(root_fd: int) -> Owner:
    found = os.stat(".", dir_fd=root_fd)
    return lambda uid, gid: (found.st_uid, found.st_gid)


def _refuse_special(member: tarfile.TarInfo) -> None:
    if member.ischr() or member.isblk():
        raise InvalidArgument(
            f"the tar holds a device node, {member.name!r}", hint="give the container the device when you create it"
        )
    if member.issparse():
        raise InvalidArgument(f"the tar holds a sparse file, {member.name!r}", hint="pack it without --sparse")


def _clear(fd: int, name: str, path: str) -> bool:
    """Take away what is at `name`. False: it is a mount point and stays. Raises InvalidArgument for a directory."""
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        raise InvalidArgument(f"{path}: a directory is there already") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


_SPECIAL = {st.S_IFCHR: tarfile.CHRTYPE, st.S_IFBLK: tarfile.BLKTYPE, st.S_IFIFO: tarfile.FIFOTYPE}


def _device(fd: int, name: str) -> int:
    return os.stat(name, dir_fd=fd, follow_symlinks=False).st_dev


def _is_root(path: str) -> bool:
    return posixpath.normpath("/" + path) == "/" or not [p for p in path.split("/") if p not in ("", ".", "..")]


def _copy_entries(source: int, target: int, path: str, depth: int) -> None:
    check_depth(depth, path)
    for name in os.listdir(source):
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = st.S_IFMT(found.st_mode)
        if kind == st.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            with opened(source, name, _DIR) as below, opened(target, name, _DIR) as out:
                _copy_entries(below, out, f"{path}/{name}", depth + 1)
        elif kind == st.S_IFREG:
            _copy_file(source, target, name)
        elif kind == st.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif kind != st.S_IFSOCK:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
        if kind != st.S_IFSOCK:
            _copy_metadata(found, target, name)


_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def _copy_file(source: int, target: int, name: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with opened(source, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as data:
        out = os.open(name, flags, 0o600, dir_fd=target)
        try:
            copy_bytes(data, out)
        finally:
            os.close(out)


def _copy_metadata(found: os.stat_result, target: int, name: str) -> None:
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    if not st.S_ISLNK(found.st_mode):
        os.chmod(name, st.S_IMODE(found.st_mode), dir_fd=target)  # a directory only we write to
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)
