"""Frames of the control socket, without I/O.

A frame is a u32 (big-endian) length and that many bytes of msgpack: one tagged array, one of the structs below.
Each end says Hello first. Descriptors travel by SCM_RIGHTS with the first byte of the Invoke frame that names them;
because a stream socket keeps them in order, "the next n descriptors" are the frame's own.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from drupe.errors import DataLoss, DrupeError, InvalidArgument, InvalidState, ResourceExhausted, Unavailable, from_wire

PROTOCOL = 1
MAX_FRAME_BYTES = 64 * 1024 * 1024
_HEADER_BYTES = 4


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First frame of both ends. root: absolute path of a daemon's state directory; "" of a caller, and of daemons of
    before."""

    protocol: int = PROTOCOL
    features: tuple[str, ...] = ()
    root: str = ""


class Invoke(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """Start of a call. id: chosen by the caller, unique among its running calls. deadline_s: None is no limit."""

    id: int
    method: str
    params: Any = None
    fds: tuple[str, ...] = ()
    deadline_s: float | None = None


class Item(msgspec.Struct, frozen=True, array_like=True, tag="item"):
    """One streamed item of a running call."""

    id: int
    data: Any


class Result(msgspec.Struct, frozen=True, array_like=True, tag="result"):
    """The good end of a call."""

    id: int
    data: Any


class Failure(msgspec.Struct, frozen=True, array_like=True, tag="error"):
    """The bad end of a call; error is DrupeError.to_wire(). id 0: the connection as a whole is refused."""

    id: int
    error: dict[str, Any]


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """The caller is no longer interested."""

    id: int


Frame = Hello | Invoke | Item | Result | Failure | Cancel

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """The bytes of one frame. Raises ResourceExhausted beyond MAX_FRAME_BYTES, InvalidArgument for a foreign type."""
    try:
        body = _encoder.encode(frame)
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidArgument(f"cannot be sent over the control socket: {error}") from None
    _check_size(len(body))
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


def check_hello(frame: Frame, root: str = "") -> None:
    """Raise unless `frame` is a Hello of our protocol: Unavailable naming both versions, or the peer's refusal. root:
    the state directory that is meant; InvalidState when the daemon has another."""
    if isinstance(frame, Failure):
        raise from_wire(frame.error)
    if not isinstance(frame, Hello):
        raise DataLoss("the peer did not say hello", hint="is this really drupe's control socket?")
    if frame.protocol != PROTOCOL:
        raise Unavailable(
            f"the peer speaks protocol {frame.protocol}, this side speaks {PROTOCOL}",
            hint="restart the daemon after an upgrade; pods keep running",
        )
    if root and frame.root and not _is_same(root, frame.root):
        raise InvalidState(
            f"the daemon here has its state in {frame.root}, not in {root}",
            hint="a daemon for another --root (DRUPE_ROOT) has a --run directory (DRUPE_RUN) of its own",
        )


def _is_same(one: str, other: str) -> bool:
    return os.path.abspath(one) == other or os.path.realpath(one) == os.path.realpath(other)  # noqa: PTH100


class Decoder:
    """Bytes and descriptors in, frames out, in order. `feed` may be given any split of the stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> list[tuple[Frame, dict[str, int]]]:
        """The frames now complete, each with the descriptors it names (which the caller then owns).

        Raises DataLoss (not a frame) or ResourceExhausted (too big); the decoder then holds no descriptor.
        """
        self._buffer += data
        self._fds.extend(fds)
        done: list[tuple[Frame, dict[str, int]]] = []
        try:
            while (body := self._next_body()) is not None:
                done.append(self._with_fds(_decode(body)))
        except DrupeError:
            for _, claimed in done:
                _close_all(claimed.values())
            self.close()
            raise
        if not self._buffer:  # descriptors come with their frame's first bytes: these belong to no frame
            self._drop_fds()
        return done

    def close(self) -> None:
        """Forget the rest; close descriptors that no frame has claimed."""
        self._buffer.clear()
        self._drop_fds()

    def _next_body(self) -> bytes | None:
        if len(self._buffer) < _HEADER_BYTES:
            return None
        size = int.from_bytes(self._buffer[:_HEADER_BYTES], "big")
        _check_size(size)
        end = _HEADER_BYTES + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_HEADER_BYTES:end])
        del self._buffer[:end]
        return body

    def _with_fds(self, frame: Frame) -> tuple[Frame, dict[str, int]]:
        names = frame.fds if isinstance(frame, Invoke) else ()
        if len(names) > len(self._fds) or len(set(names)) < len(names):
            raise DataLoss(f"a frame names {len(names)} descriptors, {len(self._fds)} came with it")
        return frame, {name: self._fds.popleft() for name in names}

    def _drop_fds(self) -> None:
        _close_all(self._fds)
        self._fds.clear()


def _decode(body: bytes) -> Frame:
    try:
        frame: Frame = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise DataLoss("not a frame of the control protocol", cause=str(error)) from None
    return frame


def _check_size(size: int) -> None:
    if size > MAX_FRAME_BYTES:
        raise ResourceExhausted(
            f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}",
            hint="large data goes through a descriptor, not through the control socket",
        )


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
