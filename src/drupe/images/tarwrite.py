"""Writing layer tars: from a directory of the host or from another tar, the same bytes for the same input."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from drupe.errors import InvalidArgument
from drupe.images.blobs import BlobWriter
from drupe.images.files import source_error
from drupe.images.streams import CHUNK_BYTES
from drupe.images.tar import Entry, TarReader

_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")
_KINDS = {
    stat.S_IFREG: "0",
    stat.S_IFLNK: "2",
    stat.S_IFCHR: "3",
    stat.S_IFBLK: "4",
    stat.S_IFDIR: "5",
    stat.S_IFIFO: "6",
}
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TarOptions:
    """prefix: where in the image the members go ("" is the root). mtime_s: time of all members, None keeps each one's
    own. owner: (uid, gid) of all members, None keeps each one's own."""

    prefix: str = ""
    mtime_s: int | None = None
    owner: tuple[int, int] | None = None


class LayerWriter:
    """A PAX tar over a blob that is being written."""

    def __init__(self, blob: BlobWriter, options: TarOptions) -> None:
        self._tar = tarfile.open(  # noqa: SIM115 - closed by finish()
            fileobj=cast("IO[bytes]", blob),
            mode="w",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        )
        self._options = options
        self._first_names: dict[tuple[int, int], str] = {}  # of each inode that has several

    def finish(self) -> None:
        self._tar.close()

    def directory(self, name: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """A directory entry at `name` in the image, the prefix not applied."""
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, uid, gid
        info.mtime = self._options.mtime_s or 0
        self._tar.addfile(info)

    def path(self, path: Path, name: str) -> None:
        """Add one file or directory of the host as `name`, without what is below it. A socket is left out."""
        try:
            status = path.lstat()
            if not stat.S_ISSOCK(status.st_mode):
                self._add_path(path, name, status)
        except OSError as error:
            raise source_error(error, path) from error

    def empty(self, name: str) -> None:
        """An empty file, such as those that say what is gone."""
        self._tar.addfile(tarfile.TarInfo(name))

    def tree(self, root: Path) -> list[str]:
        """Add everything below `root`, sorted; the names left out because a tar cannot hold sockets."""
        skipped = []
        path = root
        try:
            for path, name in _walk(root):
                status = path.lstat()
                if stat.S_ISSOCK(status.st_mode):
                    skipped.append(name)
                else:
                    self._add_path(path, name, status)
        except OSError as error:  # of reading: what is written goes through a BlobWriter, whose errors are typed
            raise source_error(error, path) from error
        return skipped

    def repack(self, reader: TarReader) -> None:
        """Add all members of another tar."""
        for entry in reader:
            info = self._from_entry(entry)
            body = _EntryData(reader, entry) if entry.kind == b"0" else None
            self._tar.addfile(info, cast("IO[bytes] | None", body))
            _forget_members(self._tar)

    def _add_path(self, path: Path, name: str, status: os.stat_result) -> None:
        info = self._info(self._place(name), status)
        key = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            if key in self._first_names:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, self._first_names[key], 0
            else:
                self._first_names[key] = info.name
        elif stat.S_ISLNK(status.st_mode):
            info.linkname = str(path.readlink())
        _add_xattrs(info, {os.fsencode(key): value for key, value in xattrs_of(path).items()})
        if info.type == tarfile.REGTYPE:
            with path.open("rb") as file:
                self._tar.addfile(info, file)
        else:
            self._tar.addfile(info)
        _forget_members(self._tar)

    def _info(self, name: str, status: os.stat_result) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type = _KINDS[stat.S_IFMT(status.st_mode)].encode()
        info.mode = stat.S_IMODE(status.st_mode)
        info.size = status.st_size if info.type == tarfile.REGTYPE else 0
        if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        self._stamp(info, status.st_uid, status.st_gid, status.st_mtime_ns)
        return info

    def _stamp(self, info: tarfile.TarInfo, uid: int, gid: int, mtime_ns: int) -> None:
        info.uid, info.gid = self._options.owner or (uid, gid)
        if self._options.mtime_s is not None:
            info.mtime = self._options.mtime_s
        else:
            info.mtime = mtime_ns // _NS
            if part := mtime_ns % _NS:
                _records(info)["mtime"] = f"{mtime_ns // _NS}.{part:09d}"

    def _from_entry(self, entry: Entry) -> tarfile.TarInfo:
        info = tarfile.TarInfo(self._place(os.fsdecode(entry.name)))
        info.type, info.mode, info.size = entry.kind, entry.mode, entry.size
        info.linkname = os.fsdecode(entry.link)
        if entry.kind == b"1":
            info.linkname = self._place(info.linkname)
        info.devmajor, info.devminor = entry.major, entry.minor
        self._stamp(info, entry.uid, entry.gid, entry.mtime_ns)
        _add_xattrs(info, entry.xattrs)
        return info

    def _place(self, name: str) -> str:
        name = name.strip("/").removeprefix("./")
        if any(part == ".." for part in name.split("/")):
            raise InvalidArgument(f"archive entry {name!r} climbs out of the image")
        prefix = self._options.prefix.strip("/")
        return "/".join(part for part in (prefix, "" if name == "." else name) if part) or "./"


def _add_xattrs(info: tarfile.TarInfo, xattrs: dict[bytes, bytes]) -> None:
    for key, value in xattrs.items():
        _records(info)[f"SCHILY.xattr.{os.fsdecode(key)}"] = value.decode("utf-8", "surrogateescape")


def _records(info: tarfile.TarInfo) -> dict[str, str]:
    return cast("dict[str, str]", info.pax_headers)


def _forget_members(tar: tarfile.TarFile) -> None:
    """tarfile keeps a record of every member, which a writer never looks at."""
    tar.__dict__["members"].clear()


class _EntryData(io.RawIOBase):
    """The data of one member as a file, holes filled with zeros."""

    def __init__(self, reader: TarReader, entry: Entry) -> None:
        super().__init__()
        self._pieces = self._dense(reader, entry)
        self._rest = memoryview(b"")

    @staticmethod
    def _dense(reader: TarReader, entry: Entry) -> Iterator[memoryview]:
        at = 0
        for offset, piece in reader.data(entry):
            yield from _zeros(offset - at)
            yield piece
            at = offset + len(piece)
        yield from _zeros(entry.size - at)

    def read(self, size: int = -1, /) -> bytes:
        out = bytearray()
        while len(out) < size:
            if not self._rest:
                self._rest = next(self._pieces, memoryview(b""))
                if not self._rest:
                    break
            part, self._rest = self._rest[: size - len(out)], self._rest[size - len(out) :]
            out += part
        return bytes(out)


def _zeros(count: int) -> Iterator[memoryview]:
    while count > 0:
        piece = min(count, CHUNK_BYTES)
        yield memoryview(bytes(piece))
        count -= piece


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """(path, name) of `root` itself and all below it, parents first, always in the same order."""
    waiting = [(root, "./")]
    while waiting:
        path, name = waiting.pop()
        yield path, name
        if path.is_dir() and (name == "./" or not path.is_symlink()):
            base = "" if name == "./" else f"{name}/"
            waiting += [(child, base + child.name) for child in sorted(path.iterdir(), reverse=True)]


def xattrs_of(path: Path) -> dict[str, bytes]:
    """The extended attributes that belong into an image."""
    names = os.listxattr(path, follow_symlinks=False)
    return {n: os.getxattr(path, n, follow_symlinks=False) for n in sorted(names) if n.startswith(_KEPT_XATTRS)}
