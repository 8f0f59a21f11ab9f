"""Unpack one layer below a directory from which nothing in it can escape.

Every path is walked by the kernel with openat2(2) RESOLVE_IN_ROOT, every change is made relative to a directory
descriptor got that way, and the last component is never followed. Whiteouts (image-spec layer.md) become overlayfs's
own form, or, with `flatten`, remove what is there.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from drupe.errors import DataLoss, DrupeError, InvalidArgument
from drupe.images.files import remove_at, storage_error
from drupe.images.limits import DEFAULT_LIMITS, Limits
from drupe.images.streams import Readable, TarStream
from drupe.images.tar import Entry, TarReader
from drupe.linux.openat2 import open_in_root

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"
_AUFS_PREFIX = b".wh..wh."  # bookkeeping of aufs that old Docker layers still carry; means nothing elsewhere
_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STALE = b"\0"  # no path has a NUL


@dataclass(frozen=True, slots=True)
class Unpacked:
    """diff_id: digest of the uncompressed tar. size_bytes: length of that tar."""

    diff_id: str
    entries: int
    size_bytes: int


def unpack_layer(source: Readable, root_fd: int, *, limits: Limits = DEFAULT_LIMITS, flatten: bool = False) -> Unpacked:
    """Unpack the tar (plain, gzip or zstd) read from `source` below the directory `root_fd`.

    Raises DataLoss, InvalidArgument or ResourceExhausted naming the entry. The caller removes what is half there.
    """
    stream = TarStream(source, limits=limits)
    reader = TarReader(stream, limits=limits)
    with _Extractor(root_fd, limits=limits, flatten=flatten) as extractor:
        for entry in reader:
            try:
                extractor.extract(entry, reader)
            except OSError as error:
                raise _entry_error(error, entry) from error
        extractor.finish()
    return Unpacked(stream.drain(), reader.entries, stream.total)


def _entry_error(error: OSError, entry: Entry) -> DrupeError:
    what = f"cannot unpack {entry}"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return InvalidArgument(what, cause=os.strerror(error.errno))
    return storage_error(error, what)


def split_path(name: bytes, *, limits: Limits, what: str) -> tuple[bytes, bytes]:
    """(parent, last component) of a member's name, cleaned lexically as path.Clean does; ("", "") is the root.

    Raises InvalidArgument when `..` would climb out or a component is too long.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts:
                raise InvalidArgument(f"{what} climbs out of the image")
            parts.pop()
        else:
            if len(part) > limits.max_component_bytes:
                raise InvalidArgument(f"{what} has a name component of {len(part)} bytes, too long")
            parts.append(part)
    return (b"/".join(parts[:-1]), parts[-1]) if parts else (b"", b"")


class _Extractor:
    def __init__(self, root_fd: int, *, limits: Limits, flatten: bool) -> None:
        self._root_fd = root_fd
        self._limits = limits
        self._flatten = flatten
        self._parent = (b"", os.dup(root_fd))
        self._dir_times: dict[bytes, int] = {}

    def __enter__(self) -> _Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._parent[1])

    def extract(self, entry: Entry, reader: TarReader) -> None:
        parent, base = split_path(entry.name, limits=self._limits, what=f"archive entry {entry}")
        if not base:
            self._root_entry(entry)
        elif base.startswith(WHITEOUT_PREFIX):
            self._whiteout(self._open_parent(parent), base, entry)
        else:
            self._member(self._open_parent(parent), parent, base, entry, reader)

    def finish(self) -> None:
        """Times of directories, last: unpacking into them changed them."""
        for path, mtime_ns in self._dir_times.items():
            try:
                fd = open_in_root(self._root_fd, path or b".", _DIRECTORY | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                continue  # a later entry replaced it
            try:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    # finding the place

    def _open_parent(self, path: bytes) -> int:
        """A descriptor of directory `path`, made with its parents when missing; the last one is kept open."""
        if self._parent[0] != path:
            fd = self._open_dir(path)
            os.close(self._parent[1])
            self._parent = (path, fd)
        return self._parent[1]

    def _open_dir(self, path: bytes) -> int:
        try:
            return open_in_root(self._root_fd, path or b".", _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return self._make_dirs(path)

    def _make_dirs(self, path: bytes) -> int:
        done = b""
        fd = os.dup(self._root_fd)
        for part in path.split(b"/"):
            done = done + b"/" + part if done else part
            try:
                status = _lstat(fd, part)
                if self._is_whiteout(status):
                    self._replace_whiteout_by_dir(fd, part)
                elif status is None:
                    os.mkdir(part, 0o755, dir_fd=fd)
                following = open_in_root(self._root_fd, done, _DIRECTORY)
            finally:
                os.close(fd)
            fd = following
        return fd

    def _is_whiteout(self, status: os.stat_result | None) -> bool:
        return status is not None and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 and not self._flatten

    def _replace_whiteout_by_dir(self, dir_fd: int, base: bytes) -> None:
        """This layer removed `base` and made it anew: the new directory must hide the old one."""
        os.unlink(base, dir_fd=dir_fd)
        os.mkdir(base, 0o755, dir_fd=dir_fd)
        self._set_opaque(dir_fd, base)

    # whiteouts

    def _whiteout(self, dir_fd: int, base: bytes, entry: Entry) -> None:
        if base == OPAQUE_MARKER:
            self._opaque(dir_fd)
            return
        if base.startswith(_AUFS_PREFIX):
            return
        target = base[len(WHITEOUT_PREFIX) :]
        if target in (b"", b".", b".."):
            raise InvalidArgument(f"archive entry {entry} is a whiteout of nothing")
        status = _lstat(dir_fd, target)
        if self._flatten:
            self._remove(dir_fd, target, status)
        elif status is None:
            os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=dir_fd)
        elif stat.S_ISDIR(status.st_mode):  # made by this layer before: it stays, the lower one is hidden
            self._set_opaque(dir_fd, target)

    def _opaque(self, dir_fd: int) -> None:
        if not self._flatten:
            os.setxattr(dir_fd, OPAQUE_XATTR, b"y")
            return
        for name in os.listdir(dir_fd):
            raw = os.fsencode(name)
            self._remove(dir_fd, raw, _lstat(dir_fd, raw))

    def _set_opaque(self, dir_fd: int, base: bytes) -> None:
        fd = os.open(base, _DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            os.setxattr(fd, OPAQUE_XATTR, b"y")
        finally:
            os.close(fd)

    # members

    def _root_entry(self, entry: Entry) -> None:
        if entry.kind != b"5":
            raise InvalidArgument(f"archive entry {entry} would replace the root directory")
        self._set_metadata(self._root_fd, entry)
        self._dir_times[b""] = entry.mtime_ns

    def _member(self, dir_fd: int, parent: bytes, base: bytes, entry: Entry, reader: TarReader) -> None:
        status = _lstat(dir_fd, base)
        hides = self._is_whiteout(status)
        if status is not None and not (entry.kind == b"5" and stat.S_ISDIR(status.st_mode)):
            self._check_not_own_link(entry, parent, base)
            self._remove(dir_fd, base, status)
        match entry.kind:
            case b"0":
                self._file(dir_fd, base, entry, reader)
            case b"1":
                self._hard_link(dir_fd, base, entry)
            case b"2":
                self._symlink(dir_fd, base, entry)
            case b"5":
                self._directory(dir_fd, base, entry, opaque=hides)
                self._dir_times[parent + b"/" + base if parent else base] = entry.mtime_ns
            case _:
                self._special(dir_fd, base, entry)

    def _check_not_own_link(self, entry: Entry, parent: bytes, base: bytes) -> None:
        """A hard link to its own name would remove what it names."""
        if entry.kind == b"1" and split_path(entry.link, limits=self._limits, what="link") == (parent, base):
            raise InvalidArgument(f"archive entry {entry} is a hard link to itself")

    def _file(self, dir_fd: int, base: bytes, entry: Entry, reader: TarReader) -> None:
        fd = os.open(base, _NEW_FILE, 0o600, dir_fd=dir_fd)
        try:
            if entry.sparse is None:
                for _, piece in reader.data(entry):
                    _write_all(fd, piece)
            else:
                for offset, piece in reader.data(entry):
                    os.lseek(fd, offset, os.SEEK_SET)
                    _write_all(fd, piece)
                os.ftruncate(fd, entry.size)
            self._set_metadata(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, dir_fd: int, base: bytes, entry: Entry, *, opaque: bool) -> None:
        if _lstat(dir_fd, base) is None:
            os.mkdir(base, 0o755, dir_fd=dir_fd)
        fd = os.open(base, _DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            self._set_metadata(fd, entry)
            if opaque:
                os.setxattr(fd, OPAQUE_XATTR, b"y")
        finally:
            os.close(fd)

    def _hard_link(self, dir_fd: int, base: bytes, entry: Entry) -> None:
        what = f"archive entry {entry}: its link target"
        parent, target = split_path(entry.link, limits=self._limits, what=what)
        if not target:
            raise InvalidArgument(f"{what} is empty or the root directory")
        try:
            target_fd = open_in_root(self._root_fd, parent or b".", _DIRECTORY)
        except OSError:
            raise DataLoss(f"{what} {entry.link!r} is not in this layer") from None
        try:
            status = _lstat(target_fd, target)
            if status is None or self._is_whiteout(status):
                raise DataLoss(f"{what} {entry.link!r} is not in this layer")
            if stat.S_ISDIR(status.st_mode):
                raise InvalidArgument(f"{what} {entry.link!r} is a directory")
            os.link(target, base, src_dir_fd=target_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        finally:
            os.close(target_fd)

    def _symlink(self, dir_fd: int, base: bytes, entry: Entry) -> None:
        if not entry.link:
            raise InvalidArgument(f"archive entry {entry} is a symlink to nothing")
        os.symlink(entry.link, base, dir_fd=dir_fd)
        self._set_inode(dir_fd, base, entry)

    def _special(self, dir_fd: int, base: bytes, entry: Entry) -> None:
        kind = {b"3": stat.S_IFCHR, b"4": stat.S_IFBLK, b"6": stat.S_IFIFO}[entry.kind]
        if entry.major >= 1 << 12 or entry.minor >= 1 << 20:
            raise InvalidArgument(f"archive entry {entry} has device number {entry.major}:{entry.minor}, out of range")
        os.mknod(base, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=dir_fd)
        self._set_inode(dir_fd, base, entry)

    # metadata

    def _set_metadata(self, fd: int, entry: Entry) -> None:
        """Owner first, then mode (chown clears setuid), then xattrs (chown drops capabilities)."""
        self._check_owner(entry)
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for name, value in entry.xattrs.items():
            _set_xattr(fd, name, value, entry, follow=True)

    def _set_inode(self, dir_fd: int, base: bytes, entry: Entry) -> None:
        """Metadata of what must not be opened: symlinks, devices, fifos."""
        self._check_owner(entry)
        os.chown(base, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=False)
        if entry.kind != b"2":
            os.chmod(base, entry.mode, dir_fd=dir_fd)
        for name, value in entry.xattrs.items():
            _set_xattr(os.fsencode(f"/proc/self/fd/{dir_fd}/") + base, name, value, entry, follow=False)
        os.utime(base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)

    def _check_owner(self, entry: Entry) -> None:
        if not (0 <= entry.uid < 0xFFFFFFFF and 0 <= entry.gid < 0xFFFFFFFF):
            raise InvalidArgument(f"archive entry {entry} has owner {entry.uid}:{entry.gid}, out of range")

    def _remove(self, dir_fd: int, base: bytes, status: os.stat_result | None) -> None:
        if status is not None:
            remove_at(dir_fd, base)
            self._parent = (_STALE, self._parent[1])  # the path of the open parent may lead elsewhere now


def _set_xattr(target: int | bytes, name: bytes, value: bytes, entry: Entry, *, follow: bool) -> None:
    """Overlayfs's own attributes could redirect into other layers, so an archive may not bring them."""
    if name.startswith(_OVERLAY_XATTRS):
        raise InvalidArgument(
            f"archive entry {entry} carries the reserved attribute {name.decode('utf-8', 'replace')!r}"
        )
    try:
        os.setxattr(target, name, value, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM) or name == b"security.capability":
            raise
        # A label of another host's security module, or user.* on a symlink: the kernel here has no such thing.


def _lstat(dir_fd: int, base: bytes) -> os.stat_result | None:
    try:
        return os.stat(base, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
