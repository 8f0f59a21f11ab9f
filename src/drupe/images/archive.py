"""The files of an image archive or layout directory, behind one small interface."""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from pathlib import Path
from typing import Protocol

from drupe.errors import DataLoss, InvalidArgument, NotFound
from drupe.images.blobs import BlobStore
from drupe.images.files import remove_tree, storage_errors
from drupe.images.limits import Limits
from drupe.images.media import MAX_DOCUMENT_BYTES, digest_mismatch
from drupe.images.progress import Meter, Report
from drupe.images.streams import Readable, TarStream
from drupe.images.tar import Entry, TarReader
from drupe.images.unpack import split_path
from drupe.linux.openat2 import open_in_root

_MAX_LINKS = 16


class ImageFiles(Protocol):
    """Named files that hold documents and blobs. Names are relative, `/`-separated."""

    def has(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """A small document. Raises NotFound, InvalidArgument."""
        ...

    def store(self, name: str, *, digest: str = "", size: int | None = None) -> tuple[str, int]:
        """Bring a file into the blob store; (digest, size). Raises DataLoss when it is not what was promised."""
        ...


class SpooledArchive:
    """An archive read once from a stream (order of members unknown): members wait in `tmp/`, hashed on the way."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._directory = Path(tempfile.mkdtemp(dir=blobs.scratch, prefix="archive."))
        self._files: dict[str, tuple[Path, str, int]] = {}
        self._count = 0
        self._links: dict[str, str] = {}
        self._moved: dict[Path, Path] = {}

    def close(self) -> None:
        remove_tree(self._directory)

    def fill(self, source: Readable, *, limits: Limits, progress: Report) -> None:
        """Read the whole archive. Raises DataLoss, InvalidArgument, ResourceExhausted."""
        stream = TarStream(source, limits=limits)
        reader = TarReader(stream, limits=limits)
        meter = Meter(progress, "archive", "reading")
        for entry in reader:
            parent, base = split_path(entry.name, limits=limits, what=f"archive entry {entry}")
            name = os.fsdecode(posixpath.join(parent, base))
            if entry.kind == b"0":
                self._files[name] = self._spool(reader, entry)
                self._links.pop(name, None)
            elif entry.kind in (b"1", b"2"):
                base_dir = "" if entry.kind == b"1" else posixpath.dirname(name)
                self._links[name] = posixpath.normpath(posixpath.join(base_dir, os.fsdecode(entry.link)))
            elif entry.kind != b"5":
                raise InvalidArgument(f"archive entry {entry} does not belong into an image archive")
            meter(stream.total)
        stream.drain()

    def _spool(self, reader: TarReader, entry: Entry) -> tuple[Path, str, int]:
        self._count += 1
        path = self._directory / str(self._count)
        digest = hashlib.sha256()
        with storage_errors("cannot store an archive member"), path.open("wb") as file:
            if entry.sparse is not None:
                raise InvalidArgument(f"archive entry {entry} is sparse, which no image archive has")
            for _, piece in reader.data(entry):
                digest.update(piece)
                file.write(piece)
        return path, f"sha256:{digest.hexdigest()}", entry.size

    def _find(self, name: str) -> tuple[Path, str, int] | None:
        for _ in range(_MAX_LINKS):
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def read(self, name: str) -> bytes:
        found = self._find(name)
        if found is None:
            raise NotFound(f"archive has no {name!r}")
        if found[2] > MAX_DOCUMENT_BYTES:
            raise InvalidArgument(f"archive member {name!r} is too large for a JSON document")
        return self._moved.get(found[0], found[0]).read_bytes()

    def store(self, name: str, *, digest: str = "", size: int | None = None) -> tuple[str, int]:
        found = self._find(name)
        if found is None:
            raise DataLoss(f"archive lacks {name!r}, which its manifest names")
        path, got, total = found
        if digest and got != digest:
            raise digest_mismatch(f"archive member {name!r}", wanted=digest, got=got)
        if size is not None and total != size:
            raise DataLoss(f"archive member {name!r} has {total} bytes, promised were {size}")
        if not self._blobs.has(got):
            self._blobs.adopt(path, got)
            self._moved[path] = self._blobs.path(got)
        return got, total


class LayoutDirectory:
    """A directory of the host; links in it may not lead out of it."""

    def __init__(self, path: Path, blobs: BlobStore, *, progress: Report) -> None:
        self._path, self._blobs, self._progress = path, blobs, progress
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def _open(self, name: str) -> int:
        return open_in_root(self._fd, name, os.O_RDONLY | os.O_NONBLOCK)

    def has(self, name: str) -> bool:
        try:
            os.close(self._open(name))
        except OSError:
            return False
        return True

    def read(self, name: str) -> bytes:
        try:
            with os.fdopen(self._open(name), "rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as error:
            raise NotFound(f"cannot read {self._path / name}", cause=os.strerror(error.errno or 0)) from None
        if len(data) > MAX_DOCUMENT_BYTES:
            raise InvalidArgument(f"{self._path / name} is too large for a JSON document")
        return data

    def store(self, name: str, *, digest: str = "", size: int | None = None) -> tuple[str, int]:
        if digest and self._blobs.has(digest):
            return digest, self._blobs.size(digest)
        try:
            fd = self._open(name)
        except OSError as error:
            raise DataLoss(f"cannot read {self._path / name}", cause=os.strerror(error.errno or 0)) from None
        with os.fdopen(fd, "rb", buffering=0) as file:
            meter = Meter(self._progress, digest or name, "copying", os.fstat(fd).st_size)
            return self._blobs.ingest(file, digest=digest, size=size, on_bytes=meter)
