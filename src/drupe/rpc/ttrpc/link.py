"""One connection's frames, in and out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from drupe.errors import Unavailable
from drupe.rpc.pace import Pace
from drupe.rpc.ttrpc.frames import Decoder, Frame, Oversized, encode

_READ_BYTES = 64 * 1024


class Link:
    """Frames over an asyncio stream. What is sent leaves in the order of the calls of `post` and `send`. pace: of the
    frames that come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace: Pace | None = None) -> None:
        self._reader = reader
        self._writer = writer
        self._pace = pace
        self._decoder = Decoder()

    def post(self, frame: Frame) -> None:
        """Queue a frame without waiting. Raises ResourceExhausted for one too big, Unavailable when hung up."""
        data = encode(frame)
        if self._writer.is_closing():
            raise lost(may_have_run=False)
        self._writer.write(data)

    async def flush(self) -> None:
        """Wait until the peer has taken enough of what was queued."""
        try:
            await self._writer.drain()
        except OSError:
            raise lost(may_have_run=True) from None

    async def send(self, frame: Frame) -> None:
        """Queue a frame, and wait while too much is queued."""
        self.post(frame)
        await self.flush()

    async def frames(self) -> AsyncIterator[Frame | Oversized]:
        """What the peer sends, until it hangs up or is gone."""
        while True:
            try:
                data = await self._reader.read(_READ_BYTES)
            except OSError:
                return
            if not data:
                return
            frames = self._decoder.feed(data)
            if self._pace is not None:
                await self._pace.take(len(frames))
            for frame in frames:
                yield frame

    def close(self) -> None:
        """Hang up. What is queued still leaves, if the peer takes it."""
        self._writer.close()

    def cut(self) -> None:
        """Hang up at once; what is queued is dropped."""
        self._writer.transport.abort()

    async def closed(self, *, within_s: float) -> None:
        """Wait for what is queued to leave after `close`, then cut the connection."""
        with contextlib.suppress(OSError):
            try:
                await asyncio.wait_for(asyncio.shield(self._writer.wait_closed()), within_s)
            except TimeoutError:
                self._writer.transport.abort()


def lost(*, may_have_run: bool) -> Unavailable:
    """The error of a connection that has ended."""
    return Unavailable("the ttrpc connection is closed", may_have_run=may_have_run)
