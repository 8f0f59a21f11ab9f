"""Frames of ttrpc, without I/O.

A frame is a header of ten bytes, big-endian (length of data u32, stream id u32, kind u8, flags u8), and the data: an
envelope for requests and responses, the message itself for data frames.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from drupe.errors import ResourceExhausted

MAX_DATA_BYTES = 4 * 1024 * 1024
MAX_STREAM = 2**32 - 1
_HEADER = struct.Struct(">IIBB")


class Kind(IntEnum):
    """What a frame is. A reader ignores kinds that it does not know."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flag(IntFlag):
    """REMOTE_CLOSED: the sender sends no more. REMOTE_OPEN: of a request; data follows. NO_DATA: of a data frame; it
    carries no message, which is not the same as an empty one. AGAIN: of a request, by drupe's own relay; it was sent
    before, to a server that ended without an answer."""

    REMOTE_CLOSED = 1
    REMOTE_OPEN = 2
    NO_DATA = 4
    AGAIN = 0x80


class Frame(NamedTuple):
    """One frame. kind and flags are what came, known or not."""

    stream: int
    kind: int
    flags: int = 0
    data: bytes = b""


class Oversized(NamedTuple):
    """A frame over the limit, whose data is skipped: its stream fails, the connection goes on."""

    stream: int
    kind: int
    size_bytes: int


def too_big(size_bytes: int) -> ResourceExhausted:
    """The error of a frame over the limit."""
    return ResourceExhausted(f"a message of {size_bytes} bytes is over the limit of {MAX_DATA_BYTES}")


def encode(frame: Frame) -> bytes:
    """The bytes of a frame. Raises ResourceExhausted beyond MAX_DATA_BYTES."""
    if len(frame.data) > MAX_DATA_BYTES:
        raise too_big(len(frame.data))
    return _HEADER.pack(len(frame.data), frame.stream, frame.kind, frame.flags) + frame.data


class Decoder:
    """Bytes in, frames out, in order, for any split of the stream. Holds at most one frame that is not complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0  # bytes still to come of a frame that is too big

    def feed(self, data: bytes) -> list[Frame | Oversized]:
        """The frames that are now complete; one that is too big is told as soon as its header is there."""
        self._buffer += data
        done: list[Frame | Oversized] = []
        while (frame := self._next()) is not None:
            done.append(frame)
        return done

    def _next(self) -> Frame | Oversized | None:
        self._drop_skipped()
        if self._skip or len(self._buffer) < _HEADER.size:
            return None
        size, stream, kind, flags = _HEADER.unpack_from(self._buffer)
        if size > MAX_DATA_BYTES:
            self._skip = _HEADER.size + size
            return Oversized(stream, kind, size)
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        data = bytes(memoryview(self._buffer)[_HEADER.size : end])
        del self._buffer[:end]
        return Frame(stream, kind, flags, data)

    def _drop_skipped(self) -> None:
        now = min(self._skip, len(self._buffer))
        del self._buffer[:now]
        self._skip -= now
