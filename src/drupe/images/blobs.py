"""The content-addressed blobs: `blobs/sha256/<hex>`, whole and verified or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from drupe.errors import DataLoss, InvalidArgument
from drupe.images.files import storage_errors, sync_dir
from drupe.images.media import MAX_DOCUMENT_BYTES, check_digest, digest_mismatch, digest_of, hex_of
from drupe.images.streams import CHUNK_BYTES, Readable

_CANNOT = "cannot store a blob"


class BlobStore:
    """Blobs of a store by digest, under `<root>/blobs/sha256`. Raises drupe's errors, never OSError."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "blobs" / "sha256"
        self.scratch = root / "tmp"

    def path(self, digest: str) -> Path:
        return self.directory / hex_of(check_digest(digest, where="blob"))

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def size(self, digest: str) -> int:
        """Bytes of a blob. Raises DataLoss when it is gone."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise _lost(digest) from None

    def read(self, digest: str) -> bytes:
        """A small document (manifest, configuration), verified again. Raises DataLoss."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except FileNotFoundError:
            raise _lost(digest) from None
        if len(data) > MAX_DOCUMENT_BYTES:
            raise InvalidArgument(f"blob {digest}: too large for a JSON document")
        got = digest_of(data)
        if got != digest:
            raise digest_mismatch(f"blob {digest}", wanted=digest, got=got)
        return data

    def put(self, data: bytes) -> str:
        """Store `data`; its digest."""
        digest = digest_of(data)
        if not self.has(digest):
            with self._scratch_file() as (fd, path):
                _write_all(fd, data)
                self._publish(fd, path, digest)
        return digest

    def ingest(
        self,
        source: Readable,
        *,
        digest: str = "",
        size: int | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> tuple[str, int]:
        """Store all of `source`; (digest, size). Raises DataLoss when it is not the `digest` or `size` promised."""
        with storage_errors(_CANNOT), self._scratch_file() as (fd, path):
            got, total = copy_hashed(source, fd, on_bytes=on_bytes)
            if size is not None and total != size:
                raise DataLoss(f"blob {digest or got}: {total} bytes, promised were {size}")
            if digest and got != digest:
                raise digest_mismatch("blob", wanted=digest, got=got)
            self._publish(fd, path, got)
            return got, total

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A blob written piece by piece; `commit()` publishes it, leaving without that drops it."""
        with ExitStack() as stack:
            with storage_errors(_CANNOT):
                fd, path = stack.enter_context(self._scratch_file())
            yield BlobWriter(fd, lambda digest: self._publish(fd, path, digest))

    def adopt(self, path: Path, digest: str) -> None:
        """Take over a file of ours whose digest was computed while it was written."""
        with storage_errors(_CANNOT):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._publish(fd, path, digest)
            finally:
                os.close(fd)

    @contextmanager
    def partial(self, digest: str) -> Iterator[int | None]:
        """A download of `digest` that survives a crash: a locked `<blob>.partial`, opened for append, to continue.

        None when the blob is already there, perhaps because the process we waited for has just brought it.
        """
        path = self.directory / f"{hex_of(digest)}.partial"
        while True:
            if self.has(digest):
                yield None
                return
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if not _same_file(fd, path):
                    continue
                yield fd
                return
            finally:
                os.close(fd)

    def finish_partial(self, fd: int, digest: str) -> None:
        """Publish a complete, verified partial download."""
        self._publish(fd, self.directory / f"{hex_of(digest)}.partial", digest)

    def drop_if_corrupt(self, digest: str) -> None:
        """Hash a blob again and remove it when it is not what it should be."""
        with self.path(digest).open("rb") as file:
            if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != digest:
                self.path(digest).unlink()

    @contextmanager
    def _scratch_file(self) -> Iterator[tuple[int, Path]]:
        fd, name = tempfile.mkstemp(dir=self.scratch, prefix="blob.")
        try:
            yield fd, Path(name)
        finally:
            os.close(fd)
            Path(name).unlink(missing_ok=True)

    def _publish(self, fd: int, path: Path, digest: str) -> None:
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        path.rename(self.path(digest))
        sync_dir(self.directory)


class BlobWriter:
    """A write-only stream that hashes what passes."""

    def __init__(self, fd: int, publish: Callable[[str], None]) -> None:
        self._fd, self._publish = fd, publish
        self._hash = hashlib.sha256()
        self._total = 0

    def write(self, data: bytes | memoryview) -> int:
        self._hash.update(data)
        with storage_errors(_CANNOT):
            _write_all(self._fd, data)
        self._total += len(data)
        return len(data)

    def tell(self) -> int:
        return self._total

    def commit(self) -> tuple[str, int]:
        """Publish; (digest, size)."""
        digest = f"sha256:{self._hash.hexdigest()}"
        with storage_errors(_CANNOT):
            self._publish(digest)
        return digest, self._total


def copy_hashed(source: Readable, fd: int, *, on_bytes: Callable[[int], None] | None = None) -> tuple[str, int]:
    """Copy `source` to `fd`; (sha256 digest, bytes)."""
    digest = hashlib.sha256()
    total = 0
    while data := source.read(CHUNK_BYTES):
        digest.update(data)
        _write_all(fd, data)
        total += len(data)
        if on_bytes is not None:
            on_bytes(total)
    return f"sha256:{digest.hexdigest()}", total


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _same_file(fd: int, path: Path) -> bool:
    try:
        ours, there = os.fstat(fd), path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _lost(digest: str) -> DataLoss:
    return DataLoss(f"blob {digest} is missing from the image store", hint="pull or import the image again")
