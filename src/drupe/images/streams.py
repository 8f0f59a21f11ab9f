"""Byte streams for archives: decompression with bounded output, hashing, exact reads; never whole in memory."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from drupe.errors import DataLoss, InvalidArgument, ResourceExhausted
from drupe.images.limits import DEFAULT_LIMITS, MIB, Limits

CHUNK_BYTES = 256 * 1024
_OUTPUT_BYTES = 1 * MIB  # at most this much unpacked at a time, however well it was packed
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # bytes 1..3; byte 0 is 0x50..0x5f
_REFUSED = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"PK\x03\x04": "zip"}
_ZSTD_WINDOW_BYTES = 128 * MIB  # what `zstd --ultra -22` needs; a frame that asks for more is refused


class Readable(Protocol):
    """Anything with read(n): may answer short, b"" is the end."""

    def read(self, size: int, /) -> bytes: ...


def compression_of(head: bytes) -> str:
    """ "", "gzip" or "zstd", from the first bytes. Raises InvalidArgument for formats that no layer may have."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F):
        return "zstd"
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            raise InvalidArgument(f"archive is compressed with {name}", hint="use a plain, gzip or zstd tar")
    return ""


class Counting:
    """Counts the bytes that pass, and tells `on_bytes` the total."""

    def __init__(self, source: Readable, on_bytes: Callable[[int], None] | None = None) -> None:
        self._source, self._on_bytes, self.total = source, on_bytes, 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.total += len(data)
        if self._on_bytes is not None:
            self._on_bytes(self.total)
        return data


class _Prefixed:
    """Gives back the bytes that were peeked at."""

    def __init__(self, head: bytes, source: Readable) -> None:
        self._head, self._source = head, source

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._source.read(size)


def peek(source: Readable, size: int) -> tuple[bytes, Readable]:
    """The first `size` bytes (fewer at the end) and a reader that still has them."""
    head = b""
    while len(head) < size and (data := source.read(size - len(head))):
        head += data
    return head, _Prefixed(head, source)


def _plain(source: Readable) -> Iterator[bytes]:
    while data := source.read(CHUNK_BYTES):
        yield data


def _gunzip(source: Readable) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=31)
    data = b""
    while data := data or source.read(CHUNK_BYTES):
        if inflate.eof:  # another member, or the zero padding that some writers leave
            data = data.lstrip(b"\0")
            if not data:
                continue
            inflate = zlib.decompressobj(wbits=31)
        yield _inflate(inflate, data)
        data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    while not inflate.eof:
        if not (out := _inflate(inflate, b"")):
            raise DataLoss("gzip stream ends early")
        yield out


def _inflate(inflate: zlib._Decompress, data: bytes) -> bytes:
    try:
        return inflate.decompress(data, _OUTPUT_BYTES)
    except zlib.error as error:
        raise DataLoss("gzip stream is corrupt", cause=str(error)) from None


def _unzstd(source: Readable) -> Iterator[bytes]:
    import zstandard  # paid for only by zstd layers

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    reader = decompressor.stream_reader(source, read_across_frames=True, read_size=CHUNK_BYTES)  # type: ignore[arg-type]
    try:
        while data := reader.read(_OUTPUT_BYTES):
            yield data
    except zstandard.ZstdError as error:
        raise DataLoss("zstd stream is corrupt", cause=str(error)) from None


def decompressed(source: Readable) -> Iterator[bytes]:
    """Chunks of at most 1 MiB of the unpacked stream, whatever its compression."""
    head, source = peek(source, 6)
    kind = compression_of(head)
    return {"": _plain, "gzip": _gunzip, "zstd": _unzstd}[kind](source)


class TarStream:
    """The unpacked bytes of an archive: exact reads, their sha256 (the diff id) and the bomb limits."""

    def __init__(self, source: Readable, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._packed = Counting(source)
        self._chunks = decompressed(self._packed)
        self._limits = limits
        self._buffer = memoryview(b"")
        self._hash = hashlib.sha256()
        self.total = 0

    def _fill(self) -> bool:
        chunk = next((chunk for chunk in self._chunks if chunk), b"")
        self._hash.update(chunk)
        self.total += len(chunk)
        self._check_limits()
        self._buffer = memoryview(chunk)
        return bool(chunk)

    def _check_limits(self) -> None:
        limits = self._limits
        if self.total > limits.max_unpacked_bytes:
            raise ResourceExhausted(f"archive unpacks to more than {limits.max_unpacked_bytes} bytes")
        if self.total > limits.ratio_floor_bytes and self.total > self._packed.total * limits.max_ratio:
            raise ResourceExhausted(
                f"archive unpacks to more than {limits.max_ratio} times its size, which looks like a bomb"
            )

    def take(self, size: int) -> memoryview:
        """Up to `size` bytes, empty at the end."""
        if not self._buffer and not self._fill():
            return self._buffer
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def exact(self, size: int) -> bytes:
        """`size` bytes, or fewer at the end of the stream. For headers: `size` must be small."""
        data = bytes(self.take(size))
        while len(data) < size and (more := self.take(size - len(data))):
            data += more
        return data

    def drain(self) -> str:
        """Read to the end; the diff id (`sha256:…`) of everything that passed."""
        while self.take(_OUTPUT_BYTES):
            pass
        return f"sha256:{self._hash.hexdigest()}"
